"""The simulation's own foundation: time that jumps, processes that stop between two steps, and chance that comes from the seed."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid

import pytest

from tests.simulation.determinism import START_S, determined
from tests.simulation.loop import Hang, Process, State, VirtualLoop, launch
from tests.simulation.runs import run_seed


def build_loop() -> VirtualLoop:
    return VirtualLoop()  # type: ignore[abstract]  # of what typeshed demands of a loop it has what is used here


async def count(ticks: list[float]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        ticks.append(loop.time())
        await asyncio.sleep(1.0)


def test_an_hour_of_sleep_takes_no_time() -> None:
    loop, began_s = build_loop(), time.monotonic()
    loop.run(asyncio.sleep(3600.0), until_s=4000.0)
    assert loop.time() == 3600.0
    assert time.monotonic() - began_s < 60


def test_a_loop_that_waits_for_nothing_is_a_hang_and_so_is_one_that_takes_too_long() -> None:
    with pytest.raises(Hang, match="nothing can happen"):
        build_loop().run(asyncio.Event().wait(), until_s=10.0)
    with pytest.raises(Hang, match="not over"):
        build_loop().run(asyncio.sleep(11.0), until_s=10.0)


def test_a_killed_process_takes_no_further_step_and_a_paused_one_goes_on_as_if_nothing_had_been() -> None:
    loop = build_loop()
    killed, paused = Process("killed"), Process("paused")
    ticks: dict[str, list[float]] = {"killed": [], "paused": []}

    async def live() -> None:
        for process in (killed, paused):
            launch(loop, process, count(ticks[process.name]))
        await asyncio.sleep(2.5)
        killed.state, paused.state = State.DEAD, State.PAUSED
        await asyncio.sleep(5.0)
        loop.resume(paused)
        await asyncio.sleep(1.1)
        for process in (killed, paused):
            loop.resume(process)
            for task in process.pending():
                task.cancel()
        await asyncio.sleep(0.1)

    loop.run(live(), until_s=100.0)
    assert ticks == {"killed": [0.0, 1.0, 2.0], "paused": [0.0, 1.0, 2.0, 7.5, 8.5]}


def test_what_a_process_starts_belongs_to_it() -> None:
    loop, process = build_loop(), Process("parent")
    heard: list[str] = []

    async def child() -> None:
        await asyncio.sleep(1.0)
        heard.append("child")

    async def parent() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(child())

    async def live() -> None:
        root = launch(loop, process, parent()).root
        await asyncio.sleep(0.5)
        process.state = State.DEAD
        await asyncio.sleep(5.0)
        assert heard == []
        loop.resume(process)
        await root

    loop.run(live(), until_s=100.0)
    assert heard == ["child"]


def test_clocks_and_ids_come_from_the_loop_and_the_seed() -> None:
    def draw(seed: int) -> tuple[float, float, str, str]:
        loop = build_loop()
        with determined(loop, seed):
            loop.run(asyncio.sleep(5.0), until_s=10.0)
            return time.time(), time.monotonic(), secrets.token_hex(4), uuid.uuid4().hex

    assert draw(1) == draw(1)
    assert draw(1)[:2] == (START_S + 5.0, 5.0)
    assert draw(1)[2:] != draw(2)[2:]
    assert abs(time.time() - START_S) > 1000, "the real clock is back"


def test_a_process_may_have_a_clock_that_is_wrong() -> None:
    loop, seen = build_loop(), list[float]()

    async def look() -> None:
        seen.append(time.time())

    async def live() -> None:
        await launch(loop, Process("ahead", 3.0), look()).root

    with determined(loop, 1):
        loop.run(live(), until_s=10.0)
    assert seen == [START_S + 3.0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_seed_keeps_every_promise_and_gives_the_same_run_again(seed: int) -> None:
    """Two of the many that tests/simulation runs; these belong to `make check`."""
    assert run_seed(seed).digest == run_seed(seed).digest
