"""Clocks that differ are noticed by what cannot be."""

from __future__ import annotations

import pytest

from aether_api.logs import WARN_EVERY_S
from aether_runtime.clock import GAP_MIN_S, GapWatch
from tests.histories.alarm import CLOCK


def test_a_tick_that_looks_older_than_it_can_be_is_told_of_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    watch = GapWatch()
    told: list[int] = []
    for now_s in (0.0, 1.0, WARN_EVERY_S - 1, WARN_EVERY_S, WARN_EVERY_S + 1):
        watch.note_age(CLOCK, 65.0, 0.5, now_s)
        told.append(len(caplog.records))
    assert told == [1, 1, 1, 2, 2]


@pytest.mark.parametrize("waited_most_s", [65.0, 65.0 - GAP_MIN_S, float("inf")])
def test_a_tick_that_may_have_waited_tells_nothing_of_clocks(caplog: pytest.LogCaptureFixture, waited_most_s: float) -> None:
    GapWatch().note_age(CLOCK, 65.0, waited_most_s, 0.0)
    assert caplog.records == []
