"""Bounds the bytes that are under way in a process where nobody knows beforehand how many they will be: who finds no room waits, for a time."""

from __future__ import annotations

import asyncio


class Room:
    """So many bytes, which are taken once they are known: whoever comes while there is some left may exceed it."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = self._bound = bytes_max
        self._taken = 0
        self._changed = asyncio.Event()

    async def wait(self, within_s: float) -> bool:
        """Wait until there is room; False if there is none for so many seconds."""
        try:
            async with asyncio.timeout(within_s):
                while self._taken >= self._bound:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def take(self, size: int) -> None:
        """Count bytes until they are given back."""
        self._taken += size

    def give_back(self, size: int) -> None:
        """Count them no more, and let others go on."""
        self._taken -= size
        if self._taken < self._bytes_max:
            self._bound = self._bytes_max
        self._changed.set()

    def widen(self) -> None:
        """Let as much again be taken, by all who wait, until less than the first bound is: what is taken now may stay for hours."""
        self._bound = self._taken + self._bytes_max
        self._changed.set()
