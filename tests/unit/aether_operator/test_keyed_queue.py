"""Work by name: nothing is lost, nothing runs twice at once, failures come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from aether_api.errors import InternalError, KubeInvalid, KubeUnavailable
from aether_kube.backoff import Backoff
from aether_operator.cluster.keyed_queue import KeyedQueue

FAST = Backoff(first_s=0.001, max_s=0.002)


@asynccontextmanager
async def running(handle: Callable[[str], Awaitable[None]], workers: int = 2) -> AsyncGenerator[KeyedQueue[str], None]:
    queue: KeyedQueue[str] = KeyedQueue("test", handle, workers=workers, backoff=FAST)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(queue.run())
        yield queue
        task.cancel()


class Log:
    """Remembers what was handled, and lets tests wait for a count."""

    def __init__(self) -> None:
        self.handled: list[str] = []
        self._moved = asyncio.Condition()

    async def note(self, key: str) -> None:
        async with self._moved:
            self.handled.append(key)
            self._moved.notify_all()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5), self._moved:
            await self._moved.wait_for(lambda: len(self.handled) >= count)


async def test_a_name_that_waits_is_not_added_twice() -> None:
    log = Log()
    async with running(log.note) as queue:
        queue.add("a")
        queue.add("a")
        queue.add("b")
        await log.until(2)

    assert log.handled == ["a", "b"]


async def test_a_name_that_is_added_while_it_is_handled_is_handled_again_and_never_twice_at_once() -> None:
    log, begun, go_on = Log(), asyncio.Event(), asyncio.Event()

    async def handle(key: str) -> None:
        await log.note(key)
        begun.set()
        await go_on.wait()

    async with running(handle) as queue:
        queue.add("a")
        await begun.wait()
        queue.add("a")
        queue.add("a")
        assert log.handled == ["a"]
        go_on.set()
        await log.until(2)

    assert log.handled == ["a", "a"]


async def test_a_retryable_failure_comes_back_until_it_succeeds() -> None:
    log = Log()

    async def handle(key: str) -> None:
        await log.note(key)
        if len(log.handled) < 3:
            raise KubeUnavailable("not now", retry_after_s=0)

    async with running(handle) as queue:
        queue.add("a")
        await log.until(3)

    assert len(queue) == 0


async def test_what_a_failure_asks_for_counts_in_full_though_waits_are_bounded() -> None:
    log, asked_s, at_s = Log(), 20 * FAST.max_s, list[float]()

    async def handle(key: str) -> None:
        at_s.append(asyncio.get_running_loop().time())
        await log.note(key)
        if len(log.handled) < 2:
            raise KubeUnavailable("somebody has to act first", retry_after_s=asked_s)

    async with running(handle) as queue:
        queue.add("a")
        await log.until(2)

    assert at_s[1] - at_s[0] >= asked_s


async def test_a_permanent_failure_is_forgotten_until_it_is_added_again() -> None:
    log = Log()

    async def handle(key: str) -> None:
        await log.note(key)
        if key == "bad":
            raise KubeInvalid("never")

    async with running(handle, workers=1) as queue:
        queue.add("bad")
        queue.add("good")
        await log.until(2)
        assert len(queue) == 0
        queue.add("bad")
        await log.until(3)

    assert log.handled == ["bad", "good", "bad"]


async def test_what_is_to_be_handled_later_waits_unless_it_is_wanted_now() -> None:
    log = Log()
    async with running(log.note) as queue:
        queue.add_later("a", 60)
        queue.add_later("a", 60)
        assert len(queue) == 1
        queue.add("a")
        await log.until(1)

    assert len(queue) == 0


async def test_of_two_times_at_which_to_handle_a_name_the_sooner_counts() -> None:
    log = Log()
    async with running(log.note) as queue:
        for delays_s in ((100.0, 0.001), (0.001, 100.0)):
            log.handled.clear()
            for delay_s in delays_s:
                queue.add_later("a", delay_s)
            await log.until(1)
            assert len(queue) == 0


async def test_a_bug_ends_the_queue() -> None:
    async def handle(key: str) -> None:
        raise InternalError("broken")

    queue: KeyedQueue[str] = KeyedQueue("test", handle, workers=1)
    queue.add("a")

    with pytest.raises(ExceptionGroup) as caught:
        await queue.run()
    assert caught.group_contains(InternalError)
