"""Bounds the bytes that all drains of a process have read of inboxes and not settled (not what one reads to look for a later tick, of which it keeps ticks alone).

Each actor reads its share ahead, and one command at least, however large. Where a pod was away while large ones came, thousands of actors begin at once: 1,000 with a
command of 400 KB each took 400 MB, a pod that ended by it found them again, and buried them after five tries as commands that may end the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from aether_nats.jetstream_wire import StoredMessage
from aether_runtime.core.inbox import AHEAD_BYTES_MAX, count_bytes
from aether_runtime.room import Room

READS_AT_ONCE: Final = 32
"""Reads under way at once: nobody knows how much each will bring. They hide the round trip."""

ROOM_WAIT_S: Final = 10.0
"""Seconds that a read waits for room; then the bound gives way, for all, since what cannot be settled of some actors must not hold up all others."""


class ReadAhead:
    """What the drains of one process have read."""

    def __init__(self) -> None:
        self._room = Room(AHEAD_BYTES_MAX)
        self._reading = asyncio.Semaphore(READS_AT_ONCE)

    @asynccontextmanager
    async def holding(self, read: Callable[[], Awaitable[list[StoredMessage]]]) -> AsyncGenerator[Sequence[StoredMessage]]:
        """Read once there is room, and count what came until the `with` block ends."""
        async with self._reading:
            if not await self._room.wait(ROOM_WAIT_S):
                self._room.widen()
            messages = await read()
            size = count_bytes(messages)
            self._room.take(size)
        try:
            yield messages
        finally:
            self._room.give_back(size)
