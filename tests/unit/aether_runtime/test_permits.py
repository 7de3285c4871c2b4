"""How many replays run at once, and who comes next."""

from __future__ import annotations

import asyncio

from aether_runtime.permits import Permit, Permits


async def take(permits: Permits, name: str, taken: list[str], *, again: bool = False) -> Permit:
    permit = Permit(permits)
    await permit.take(again=again)
    taken.append(name)
    return permit


async def test_permits_are_given_in_the_order_of_arrival() -> None:
    permits, taken = Permits(1), list[str]()
    held = await take(permits, "a", taken)
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(take(permits, name, taken)) for name in "bcd"]
        await asyncio.sleep(0)
        assert (taken, permits.held) == (["a"], 1)
        held.give_back()
        for place, task in enumerate(waiting):
            (await task).give_back()
            assert taken == ["a", "b", "c", "d"][: place + 2]
    assert permits.held == 0


async def test_further_tries_leave_half_of_the_permits_to_first_ones() -> None:
    permits, taken = Permits(4), list[str]()
    async with asyncio.TaskGroup() as tasks:
        retries = [tasks.create_task(take(permits, name, taken, again=True)) for name in "abc"]
        await asyncio.sleep(0)
        first = [await take(permits, name, taken) for name in "de"]
        assert (taken, permits.held) == (["a", "b", "d", "e"], 4)
        for permit in first:
            permit.give_back()
        await asyncio.sleep(0)
        assert len(taken) == 4
        retries[0].result().give_back()
    assert taken[-1] == "c"


async def test_a_permit_that_was_waited_for_in_vain_is_nobodys() -> None:
    permits = Permits(1)
    held = Permit(permits)
    await held.take()
    late = Permit(permits)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(late.take(again=True))
        await asyncio.sleep(0)
        task.cancel()
    late.give_back()
    held.give_back()
    held.give_back()
    assert permits.held == 0
    await Permit(permits).take(again=True)
    assert (permits.all.locked(), permits.retries.locked(), permits.held) == (True, True, 1)
