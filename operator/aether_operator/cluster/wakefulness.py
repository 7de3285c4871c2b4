"""Notices stalls of this process: time in which nothing could be heard, so that silence of others then says nothing.

A stall is found by the ticks that it swallowed. Who asks makes it look first, so a task that goes on before the tick still hears of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from aether_api import logs

logger = logging.getLogger(__name__)

TICK_S: Final = 0.1
"""Seconds between looks."""

STALL_S: Final = 1.0
"""Seconds between two looks that mean that we slept: ten ticks, and as long as a pod may be silent."""


class Wakefulness:
    """Since when this process runs without a stall."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Begin awake."""
        self._monotonic = monotonic
        self._last_s = self._since_s = monotonic()

    @property
    def since_s(self) -> float:
        """Since when, in monotonic seconds."""
        self._look()
        return self._since_s

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self._look()
            await asyncio.sleep(TICK_S)

    def _look(self) -> None:
        now_s, last_s = self._monotonic(), self._last_s
        self._last_s = now_s
        if now_s - last_s > STALL_S:
            self._since_s = now_s
            logger.warning("the operator itself stalled; silence of pods in that time does not count", extra={logs.DURATION_S: round(now_s - last_s, 1)})
