"""When a snapshot is worth taking: by count of events, and by the time that a replay would take. Pure.

The rate of replays is measured, since it depends on model, machine and log by a factor of a hundred: every replay of this
process moves an average. A commit costs a fixed number of events on top of its own (a read, a header, a decode), so that the
commits of a hot actor, which hold hundreds of events, are not mistaken for slow ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from aether_api.messages import parse_time

COMMIT_UNITS: Final = 4
"""What a commit costs beside its events, in events: about 20 us to read and check against 5 us to decode and apply (measured)."""

UNIT_DEFAULT_S: Final = 10e-6
"""Seconds of a unit before anything was measured."""

UNIT_MIN_S: Final = 0.1e-6
"""Seconds of a unit at least, less than anything takes in Python: where a clock sees no time pass, nothing was measured."""

NOTED_MIN: Final = 200
"""Units of the smallest replay that is measured: below, round trips are all that would be seen. One that was faster than the average all the same tells that
this is too slow, and counts as one of so many: with it snapshots come so often that no larger replay might ever correct it."""

WEIGHT_UNITS: Final = 5_000
"""Units at which a replay counts for as much as everything before it."""

WEIGHT_MAX: Final = 0.5
"""Weight of one replay at most, since one may have been held up by something else."""

NEVER: Final = 2**62
"""More events than any actor has."""

WORTH_COMMITS: Final = 16
"""Commits since the last snapshot that make one worth writing before an actor sleeps: fewer are read about as fast as a snapshot is."""

FORMER_KEPT: Final = timedelta(days=7)
"""Age from which snapshots of former models go: they serve a rollback, which comes within days or not at all."""


@dataclass(frozen=True, slots=True)
class Tail:
    """What came after the newest snapshot."""

    events: int
    commits: int

    @property
    def units(self) -> int:
        """What it costs to replay."""
        return self.events + COMMIT_UNITS * self.commits


@dataclass(frozen=True, slots=True)
class SnapshotRule:
    """What a user wants.

    Attributes:
        every: events, 0 for no limit.
        target_s: seconds that a replay may take, 0 for no limit.
    """

    every: int
    target_s: float


class ReplayRate:
    """The average speed of this process's replays."""

    def __init__(self) -> None:
        self.unit_s = UNIT_DEFAULT_S

    def note(self, replayed: Tail, took_s: float) -> None:
        """Take a replay into the average."""
        if replayed.units < NOTED_MIN and took_s >= self.estimate_s(replayed):
            return
        weight = min(WEIGHT_MAX, max(NOTED_MIN, replayed.units) / WEIGHT_UNITS)
        self.unit_s += weight * (max(UNIT_MIN_S, took_s / replayed.units) - self.unit_s)

    def estimate_s(self, tail: Tail) -> float:
        """Return the seconds that a replay of the tail would take."""
        return tail.units * self.unit_s


def events_to_go(tail: Tail, rule: SnapshotRule, rate: ReplayRate) -> int:
    """Return 0 if a snapshot is due, else a number of further events before which it cannot become due.

    So a VM compares two numbers after a commit, and asks again only when that many have come.
    """
    by_count = rule.every - tail.events if rule.every else NEVER
    if not rule.target_s:
        return max(0, by_count)
    left_s = rule.target_s - rate.estimate_s(tail)
    if left_s <= 0:
        return 0
    by_time = int(left_s / ((1 + COMMIT_UNITS) * rate.unit_s)) + 1
    return max(0, min(by_count, by_time))


def events_after_problem(tail: Tail, rule: SnapshotRule) -> int:
    """Return the number of events after which a snapshot that was too large, or impossible, is tried again: as many again as since the last good one, so tries get rare."""
    return max(tail.events, rule.every, 1)


def is_worth_before_sleep(tail: Tail) -> bool:
    """Tell whether a snapshot will save more at the next activation than it costs now."""
    return tail.commits >= WORTH_COMMITS


def choose_outdated(former: Mapping[str, str], last_time: str) -> list[str]:
    """Return the former folds whose snapshots go; the newest stays whatever its age, since the model before this one may have served for long.

    Args:
        former: time of the last commit in the newest snapshot of each fold but the present one; empty where it cannot be read.
        last_time: of the last commit in the snapshot of the present one.
    """
    newest = max(former, key=former.__getitem__, default="")
    return [fold for fold, time in former.items() if fold != newest and (not time or parse_time(last_time) - parse_time(time) > FORMER_KEPT)]
