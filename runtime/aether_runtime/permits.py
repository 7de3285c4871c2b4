"""How many replays run at once in one process.

A replay holds its permit for one try. While its log cannot be read, others have it, so a stream without a leader keeps no actor of
another stream from starting. Whoever waits has its turn in the order of arrival, and tries after the first leave half of the permits
to first ones: a try of a stream without a leader takes as long as a request may.
"""

from __future__ import annotations

import asyncio
from typing import Final

RETRIES_SHARE: Final = 2
"""One in so many permits, and at least one, may be held by tries after the first."""


class Permits:
    """The permits of one process.

    Attributes:
        held: how many replays have one.
    """

    def __init__(self, count: int) -> None:
        self.held = 0
        self.all = asyncio.Semaphore(count)
        self.retries = asyncio.Semaphore(max(1, count // RETRIES_SHARE))


class Permit:
    """That of one replay, which takes it for each try and gives it back behind it."""

    __slots__ = ("_held", "_permits")

    def __init__(self, permits: Permits) -> None:
        self._permits = permits
        self._held: list[asyncio.Semaphore] = []

    async def take(self, *, again: bool = False) -> None:
        """Wait for one; cancelled, `give_back` puts everything right."""
        for semaphore in (self._permits.retries, self._permits.all) if again else (self._permits.all,):
            await semaphore.acquire()
            self._held.append(semaphore)
        self._permits.held += 1

    def give_back(self) -> None:
        """Let another replay have it; harmless to repeat."""
        if self._permits.all in self._held:
            self._permits.held -= 1
        while self._held:
            self._held.pop().release()
