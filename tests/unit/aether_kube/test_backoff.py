"""Waits after failures."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aether_kube.backoff import Backoff

RANDOM = st.floats(0.0, 1.0, exclude_max=True)


@given(st.integers(1, 10_000), RANDOM)
def test_a_wait_is_bounded_however_many_failures_there_were(failures: int, random: float) -> None:
    backoff = Backoff(first_s=0.1, max_s=10.0)

    assert 0.05 <= backoff.delay_s(failures, random) <= 10.0


def test_waits_double() -> None:
    backoff = Backoff(first_s=1.0, max_s=10.0)

    assert [backoff.delay_s(failures, 0.0) for failures in (1, 2, 3, 4, 5)] == [0.5, 1.0, 2.0, 4.0, 5.0]


@given(RANDOM)
def test_what_the_server_asks_for_is_kept_up_to_the_bound(random: float) -> None:
    backoff = Backoff(first_s=0.1, max_s=10.0)

    assert backoff.delay_s(1, random, at_least_s=3.0) >= 3.0
    assert backoff.delay_s(1, random, at_least_s=3_600.0) <= 15.0
