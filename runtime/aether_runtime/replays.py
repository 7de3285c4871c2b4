"""How far the replays of one process are: what statuses, metrics and `aether status` say of one that takes long.

A replay notes each batch that it folds, which costs an addition. Only now and then it has itself shown: the status that comes of it
takes its turn behind all changes of phase, as versions do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from aether_runtime.core.group import Now

SHOW_AFTER_S: Final = 1.0
"""Seconds after which a replay is one that somebody may look at: the default of `spec.snapshot.recoveryTarget`."""

SHOW_EVERY_S: Final = 5.0
"""Seconds between two looks at one actor's replay: as often as the version of an actor that never rests is written."""

MINUTE_S: Final = 90.0
"""Seconds from which on the time to go is told in minutes."""


class ReplayWatch:
    """Follows one replay, over all of its tries.

    Attributes:
        first: version at which the try under way began: that of the snapshot.
        version: of the state as far as it is rebuilt.
        target: last version in the log; None until that was read.
        snapshot_tries: how often the snapshots could not be read.
        problem: why the log cannot be read now; empty while it can.
    """

    __slots__ = ("_applies_from_s", "_began_s", "_due_s", "_now", "_show", "_tried_s", "first", "problem", "snapshot_tries", "target", "version")

    def __init__(self, now: Callable[[], Now], show: Callable[[], None]) -> None:
        """Begin to follow; `show` is called when the target is known, and from time to time if it takes long."""
        self.first = self.version = 0
        self.target: int | None = None
        self.problem = ""
        self.snapshot_tries = 0
        self._now = now
        self._show = show
        self._began_s = self._tried_s = now().monotonic_s
        self._due_s = self._began_s + SHOW_AFTER_S
        self._applies_from_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return self._now().monotonic_s - self._began_s

    @property
    def applying_s(self) -> float:
        """Seconds since the try under way knew where to begin: what was spent on snapshots and on what could not be read is no measure of a replay.

        By a clock of its own, since `now` stands still within an iteration of the loop, and so many events are applied in one.
        """
        return time.monotonic() - self._applies_from_s

    @property
    def to_go(self) -> int:
        """Events that are not applied yet, as far as that is known."""
        return max(0, (self.target or 0) - self.version)

    def begin(self, first: int, target: int) -> None:
        """A try begins from a snapshot, or from the beginning."""
        is_news = self.target is None
        self.first = self.version = first
        self.target = target
        self.problem = ""
        self._tried_s = self._now().monotonic_s
        self._applies_from_s = time.monotonic()
        if is_news:
            self._show()

    def move(self, version: int) -> None:
        """The state is rebuilt as far as `version`."""
        self.version = version
        self._show_now_and_then()

    def wait(self, problem: str) -> None:
        """The log cannot be read now."""
        self.problem = problem
        self._show_now_and_then()

    def describe(self) -> str:
        """Return how far it is, in one sentence."""
        if self.problem:
            return f"the log cannot be read now, trying again: {self.problem}"
        if self.target is None:
            return "reading the log"
        return describe_progress(self.version - self.first, self.target - self.first, self._now().monotonic_s - self._tried_s)

    def _show_now_and_then(self) -> None:
        now_s = self._now().monotonic_s
        if now_s >= self._due_s:
            self._due_s = now_s + SHOW_EVERY_S
            self._show()


class Replays:
    """The replays under way in one process."""

    def __init__(self) -> None:
        self._watches: set[ReplayWatch] = set()

    @property
    def to_go(self) -> int:
        """Events that all of them still have to apply."""
        return sum(watch.to_go for watch in self._watches)

    @property
    def oldest_s(self) -> float:
        """Seconds since the oldest of them began; 0 without any."""
        return max((watch.elapsed_s for watch in self._watches), default=0.0)

    @contextmanager
    def following(self, watch: ReplayWatch) -> Generator[None]:
        """Count a replay in for the length of a `with` block."""
        self._watches.add(watch)
        try:
            yield
        finally:
            self._watches.discard(watch)


def describe_progress(done: int, total: int, took_s: float) -> str:
    """Return how far a replay is that applied `done` of `total` events in `took_s` seconds, and how long it will go on at that pace."""
    text = f"replayed {done:,} of {total:,} events"
    if not 0 < done < total:
        return text
    left_s = took_s * (total - done) / done
    left = f"{max(1, round(left_s))} s" if left_s < MINUTE_S else f"{round(left_s / 60)} min"
    return f"{text} ({100 * done // total} %), about {left} to go"
