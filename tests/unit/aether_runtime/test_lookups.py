"""What calls that wait for the directory share, and what they leave behind: nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine

import pytest

from aether_api.errors import KubeUnavailable
from aether_api.identity import ActorId, PodUid
from aether_runtime import lookups as lookups_module
from aether_runtime.lookups import Lookup, Lookups
from aether_runtime.ports import DesiredActor, Home
from tests.histories.bank import ALICE

HOME = Home(PodUid("pod-a"), DesiredActor(ALICE, "alice"))

WAIT_S = 5.0


class Shelf:
    """A directory that answers when it is told to, with what it held when it was asked."""

    def __init__(self) -> None:
        self.home: Home | None = None
        self.asked = 0
        self.reading = 0
        self.error: Exception | None = None
        self.go = asyncio.Event()

    async def find(self, actor: ActorId) -> Home | None:
        self.asked += 1
        self.reading += 1
        found = self.home
        try:
            await self.go.wait()
        finally:
            self.reading -= 1
        if self.error is not None:
            raise self.error
        return found


class Rig:
    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.tasks = tasks
        self.shelf = Shelf()
        self.lookups = Lookups(self.shelf, self.spawn)

    def spawn(self, work: Coroutine[None, None, None], name: str) -> bool:
        self.tasks.create_task(work, name=name)
        return True

    async def ask(self) -> Home | None:
        with self.lookups.open(ALICE) as lookup:
            assert await lookup.ask(WAIT_S)
            assert lookup.known
            return lookup.home

    def start(self) -> asyncio.Task[Home | None]:
        return self.tasks.create_task(self.ask())


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(lookups_module, "UNWANTED_S", 0.0)
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as tasks:
        yield Rig(tasks)


async def turn_until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


async def test_calls_that_come_together_make_one_read(rig: Rig) -> None:
    rig.shelf.home = HOME
    calls = [rig.start() for _ in range(100)]
    await turn_until(lambda: rig.shelf.reading)
    rig.shelf.go.set()
    assert [await call for call in calls] == [HOME] * 100
    assert (rig.shelf.asked, len(rig.lookups)) == (1, 0)


async def test_a_call_never_takes_an_answer_from_before_it_came(rig: Rig) -> None:
    early = rig.start()
    await turn_until(lambda: rig.shelf.reading)
    rig.shelf.home = HOME  # somebody applies the resource, and calls its actor
    late = [rig.start() for _ in range(100)]
    await asyncio.sleep(0)
    rig.shelf.go.set()
    assert await early is None
    assert [await call for call in late] == [HOME] * 100
    assert (rig.shelf.asked, len(rig.lookups)) == (2, 0)


async def test_calls_that_give_up_leave_nothing_behind(rig: Rig) -> None:
    for _ in range(10):
        calls = [rig.start() for _ in range(50)]
        await turn_until(lambda: rig.shelf.reading)
        for call in calls:
            call.cancel()
        await turn_until(lambda: not rig.shelf.reading)
    await turn_until(lambda: not len(rig.lookups))
    assert rig.shelf.asked == 10


async def test_a_read_that_one_call_gave_up_goes_on_for_the_others(rig: Rig) -> None:
    rig.shelf.home = HOME
    gives_up, waits = rig.start(), rig.start()
    await turn_until(lambda: rig.shelf.reading)
    gives_up.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    rig.shelf.go.set()
    assert (await waits, rig.shelf.asked) == (HOME, 1)


async def test_who_comes_after_all_others_gave_up_is_read_for_anew(rig: Rig) -> None:
    rig.shelf.home = HOME
    first = rig.start()
    await turn_until(lambda: rig.shelf.reading)
    second = rig.start()
    await asyncio.sleep(0)
    first.cancel()
    second.cancel()
    await turn_until(second.done)
    third = rig.start()
    await turn_until(lambda: rig.shelf.asked == 2)
    rig.shelf.go.set()
    assert (await third, rig.shelf.asked) == (HOME, 2)


@pytest.mark.parametrize("away", [True, False])
async def test_a_directory_that_cannot_tell_is_asked_again_a_moment_later(rig: Rig, monkeypatch: pytest.MonkeyPatch, away: bool) -> None:
    rig.shelf.home, rig.shelf.error = HOME, KubeUnavailable("away") if away else None
    rig.shelf.go.set()

    async def ask(lookup: Lookup) -> tuple[bool, bool]:
        return await lookup.ask(WAIT_S), lookup.known

    with rig.lookups.open(ALICE) as lookup:
        assert [await ask(lookup), await ask(lookup)] == [(True, not away)] * 2
        assert (rig.shelf.asked, lookup.problem) == (1, "away" if away else "")
        monkeypatch.setattr(lookups_module, "DIRECTORY_AGAIN_S", 0.0)
        rig.shelf.error = None
        assert (await ask(lookup), rig.shelf.asked, lookup.problem) == ((True, True), 2, "")
