"""The time as one process sees it."""

from __future__ import annotations

import asyncio
import time

from aether_api.messages import format_time
from aether_runtime.core.group import Now


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
