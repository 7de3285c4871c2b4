"""What drains have read and not settled is bounded by its bytes, and nobody is held up for ever."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from aether_nats.jetstream_wire import StoredMessage
from aether_runtime import read_ahead
from aether_runtime.core.inbox import AHEAD_BYTES_MAX
from aether_runtime.read_ahead import READS_AT_ONCE, ReadAhead

LARGE = StoredMessage("aether.default.inbox.account.alice", 1, b"", bytes(AHEAD_BYTES_MAX // 8), "")


class Drains:
    """Drains that read one large message each, and settle it when they are told to."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.ahead = ReadAhead()
        self.has = self.most = self.done = 0
        self.settled = asyncio.Semaphore(0)

    async def read(self) -> list[StoredMessage]:
        await asyncio.sleep(0)
        return [LARGE]

    async def drain(self) -> None:
        async with self.ahead.holding(self.read) as messages:
            self.has += len(messages)
            self.most = max(self.most, self.has)
            await self.settled.acquire()
        self.has -= 1
        self.done += 1

    async def run(self, *, settle: bool) -> None:
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            for _ in range(self.count):
                tasks.create_task(self.drain())
            while self.done + self.has < self.count:
                if settle and self.has:
                    self.settled.release()
                await asyncio.sleep(0)
            for _ in range(self.count):
                self.settled.release()


async def test_drains_read_on_as_others_settle_what_they_have_read() -> None:
    drains = Drains(500)
    await drains.run(settle=True)
    assert drains.done == 500
    assert drains.most < 8 + READS_AT_ONCE + 1, "eight have room, and so many reads may be under way"


async def test_commands_that_nobody_settles_do_not_hold_up_the_others_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "ROOM_WAIT_S", 0.01)
    drains = Drains(100)
    await drains.run(settle=False)
    assert (drains.most, drains.done) == (100, 100)


async def test_where_nobody_settles_the_bound_gives_way_once_and_not_for_each_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "ROOM_WAIT_S", 0.01)
    drains = Drains(0)
    async with asyncio.timeout(10), AsyncExitStack() as stack:
        for _ in range(9):
            await stack.enter_async_context(drains.ahead.holding(drains.read))
        monkeypatch.setattr(read_ahead, "ROOM_WAIT_S", 1000.0)
        for _ in range(3):
            await stack.enter_async_context(drains.ahead.holding(drains.read))


async def test_a_read_that_is_given_up_leaves_its_place_to_others() -> None:
    drains = Drains(READS_AT_ONCE)
    hung = [asyncio.Event() for _ in range(READS_AT_ONCE)]

    async def hang(number: int) -> list[StoredMessage]:
        await hung[number].wait()
        return []

    async def give_up(number: int) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), drains.ahead.holding(lambda: hang(number)):
                pass

    async with asyncio.TaskGroup() as tasks:
        for number in range(READS_AT_ONCE):
            tasks.create_task(give_up(number))
    await drains.run(settle=True)
    assert drains.done == READS_AT_ONCE
