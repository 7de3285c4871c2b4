"""When a VM that failed is started again: later and later, until it has served for a while.

To be ready says little: a VM that fails at its first group replays without trouble each time. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from aether_api.messages import make_encodable

RESTART_MIN_S: Final = 1.0
"""Seconds before a failed VM is started again; doubles with each failure up to `RESTART_MAX_S`."""

RESTART_MAX_S: Final = 30.0
"""Seconds between restarts of a VM that keeps failing: somebody must act, and the log must not drown."""

DOUBLINGS_MAX: Final = 16
"""Doublings after which a pause grows no more, far beyond `RESTART_MAX_S`: a float holds no power of two above 1,023, and an actor may fail for days."""

SERVED_S: Final = 60.0
"""Seconds of service after which a failure counts as the first: twice the longest pause, so that one which fails at once never gets there."""


@dataclass(frozen=True, slots=True)
class Failures:
    """How often an actor's VMs failed in a row.

    Attributes:
        problem: what the last one failed with.
        ready_s: monotonic time at which its successor was ready; None while it is not.
    """

    count: int
    problem: str
    ready_s: float | None = None

    @property
    def pause_s(self) -> float:
        """Seconds from the last failure to the next start."""
        return min(RESTART_MIN_S * 2.0 ** min(self.count - 1, DOUBLINGS_MAX), RESTART_MAX_S)

    def describe(self) -> str:
        """Return what a person should know."""
        times = "" if self.count == 1 else f", {self.count} times in a row"
        return f"it failed{times}: {self.problem}; it is started again {self.pause_s:g} s after that, and the log of its pod says more"


def name_error(error: Exception) -> str:
    """Return what an error says of itself; one that an author wrote may fail at that, too."""
    try:
        return make_encodable(repr(error))
    except Exception:  # noqa: BLE001  # its `__repr__` may be an author's: it costs the words and nothing else
        return type(error).__name__


def count_failure(before: Failures | None, problem: str, now_s: float) -> Failures:
    """Return the failures with one more; after a while of service it is the first."""
    goes_on = before is not None and (before.ready_s is None or now_s - before.ready_s < SERVED_S)
    return Failures(before.count + 1 if before is not None and goes_on else 1, problem)


def note_ready(failures: Failures, now_s: float) -> Failures:
    """Return the failures of an actor whose new VM serves."""
    return replace(failures, ready_s=now_s)
