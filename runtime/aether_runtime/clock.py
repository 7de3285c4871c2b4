"""The time as one process sees it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from aether_api import logs
from aether_api.identity import ActorId
from aether_api.messages import format_time
from aether_runtime.core.group import Now

logger = logging.getLogger(__name__)

GAP_MIN_S: Final = 1.0
"""Seconds that a message may look too old before clocks are blamed: more than it takes to be stored, told of and read."""


class LoopClock:
    """Reads the time once in an iteration of the loop, however many groups of commands are decided in it.

    What the iteration decides happens at one moment then; it is late by no more than the iteration takes, some milliseconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._now: Now | None = None

    def now(self) -> Now:
        """Return wall and monotonic time."""
        now = self._now
        if now is None:
            unix_s = time.time()
            now = self._now = Now(unix_s, self._loop.time(), format_time(unix_s))
            self._loop.call_soon(self._forget)
        return now

    def _forget(self) -> None:
        self._now = None


class GapWatch:
    """Warns when messages look older than they can be, since then the clock of this pod is ahead of the server's."""

    def __init__(self) -> None:
        self._warning = logs.Seldom()

    def note_age(self, actor: ActorId, age_s: float, waited_most_s: float, monotonic_s: float) -> None:
        """Take notice of a tick that was dropped as too old.

        Args:
            age_s: since the server stored it, by its stamp and our clock.
            waited_most_s: since the actor's inbox was last seen empty, by our own measure: it cannot be older.
        """
        gap_s = age_s - waited_most_s
        if gap_s > GAP_MIN_S and self._warning.is_due(monotonic_s):
            message = "a tick looks too late to be run, and came just now: the clock of this pod is ahead of that of NATS; set the clocks right"
            logger.warning(message, extra={logs.ACTOR_ID: str(actor), logs.REASON: f"at least {gap_s:.0f} s ahead"})
