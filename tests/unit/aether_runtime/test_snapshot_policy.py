"""When a snapshot is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_runtime.core.snapshot_policy import (
    NEVER,
    UNIT_MIN_S,
    WORTH_COMMITS,
    ReplayRate,
    SnapshotRule,
    Tail,
    choose_outdated,
    events_after_problem,
    events_to_go,
    is_worth_before_sleep,
)


def rate_of(unit_s: float) -> ReplayRate:
    rate = ReplayRate()
    rate.unit_s = unit_s
    return rate


@pytest.mark.parametrize(("events", "to_go"), [(0, 500), (1, 499), (499, 1), (500, 0), (700, 0)])
def test_by_count_it_is_due_after_that_many_events(events: int, to_go: int) -> None:
    assert events_to_go(Tail(events, events), SnapshotRule(500, 0), ReplayRate()) == to_go


def test_without_a_rule_it_is_never_due() -> None:
    assert events_to_go(Tail(10**9, 10**9), SnapshotRule(0, 0), ReplayRate()) == NEVER


def test_by_time_it_is_due_when_the_replay_would_take_longer_than_the_target() -> None:
    rule, rate = SnapshotRule(0, 1), rate_of(0.001)
    assert events_to_go(Tail(150, 150), rule, rate) > 0
    assert events_to_go(Tail(200, 200), rule, rate) == 0
    assert events_to_go(Tail(900, 20), rule, rate) > 0, "few commits of many events are read fast"


@given(st.integers(0, 5000), st.integers(0, 2000), st.floats(0, 5), st.floats(1e-6, 1e-2))
def test_it_never_becomes_due_before_the_events_to_go_have_come(events: int, every: int, target_s: float, unit_s: float) -> None:
    rule, rate = SnapshotRule(every, target_s), rate_of(unit_s)
    to_go = events_to_go(Tail(events, events), rule, rate)
    for more in {0, to_go // 2, to_go - 2}:
        if 0 <= more < to_go - 1:
            later = Tail(events + more, events + more)
            assert not every or later.events < every
            assert not target_s or rate.estimate_s(later) <= target_s * 1.000001


def test_the_rate_follows_what_replays_take() -> None:
    rate = ReplayRate()
    for _ in range(20):
        rate.note(Tail(10_000, 10_000), 5.0)
    assert rate.estimate_s(Tail(10_000, 10_000)) == pytest.approx(5.0, rel=0.01)


def test_a_short_replay_says_nothing_of_the_rate_and_one_outlier_not_all() -> None:
    rate = ReplayRate()
    before = rate.unit_s
    rate.note(Tail(10, 10), 10.0)
    assert rate.unit_s == before
    rate.note(Tail(100_000, 100_000), 500_000 * before * 9)
    assert rate.unit_s == pytest.approx(before * 5)


def test_short_replays_mend_a_rate_that_is_far_too_slow() -> None:
    rate = rate_of(0.02)
    for _ in range(300):
        rate.note(Tail(5, 5), 0.002)
    assert rate.unit_s == pytest.approx(0.002 / 25, rel=0.1)
    rate.note(Tail(0, 0), 0.0)
    assert rate.unit_s == pytest.approx(0.002 / 25, rel=0.1)


def test_replays_in_which_the_clock_stands_still_leave_a_rate_by_which_snapshots_are_taken() -> None:
    rate = ReplayRate()
    for _ in range(100_000):
        rate.note(Tail(1, 1), 0.0)
    assert rate.unit_s >= UNIT_MIN_S
    assert events_to_go(Tail(1, 1), SnapshotRule(0, 1.0), rate) > 1_000_000
    assert events_to_go(Tail(10_000_000, 10_000_000), SnapshotRule(0, 1.0), rate) == 0


def test_tries_of_a_snapshot_that_is_too_large_get_rare() -> None:
    version, tries, rule = 500, 0, SnapshotRule(500, 1)
    while version < 1_000_000:
        version += events_after_problem(Tail(version, version), rule)
        tries += 1
    assert tries < 15


def test_a_short_tail_is_not_worth_a_snapshot_before_sleep() -> None:
    assert [is_worth_before_sleep(Tail(commits * 3, commits)) for commits in (0, WORTH_COMMITS - 1, WORTH_COMMITS)] == [False, False, True]


@pytest.mark.parametrize(
    ("former", "outdated"),
    [
        ({}, []),
        ({"a": "2026-01-01T00:00:00.000000Z"}, []),
        ({"a": "2026-01-01T00:00:00.000000Z", "b": "2026-01-02T00:00:00.000000Z"}, ["a"]),
        ({"a": "2026-07-08T00:00:00.000000Z", "b": "2026-07-09T00:00:00.000000Z"}, []),
        ({"a": "2026-07-07T23:59:59.000000Z", "b": "2026-07-09T00:00:00.000000Z"}, ["a"]),
        ({"broken": "", "b": "2026-07-09T00:00:00.000000Z"}, ["broken"]),
    ],
)
def test_former_folds_are_outdated_after_a_week_but_for_the_newest(former: dict[str, str], outdated: list[str]) -> None:
    assert choose_outdated(former, "2026-07-15T00:00:00.000000Z") == outdated
