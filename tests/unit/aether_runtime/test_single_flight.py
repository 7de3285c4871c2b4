"""Work on actors, one round of each at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import pytest

from aether_api.identity import ActorId
from aether_runtime.background import Background
from aether_runtime.single_flight import SingleFlight
from tests.histories.bank import ALICE

pytestmark = pytest.mark.asyncio


async def test_what_is_asked_for_meanwhile_is_one_more_round() -> None:
    rounds: list[ActorId] = []
    spawned: list[Coroutine[None, None, None]] = []

    async def work(actor: ActorId) -> None:
        rounds.append(actor)
        if len(rounds) == 1:
            flights.begin(actor)
            flights.begin(actor)

    def spawn(coroutine: Coroutine[None, None, None], name: str) -> bool:
        spawned.append(coroutine)
        return True

    flights = SingleFlight("work", work, spawn)
    flights.begin(ALICE)
    await spawned.pop()
    assert (rounds, spawned, len(flights)) == ([ALICE, ALICE], [], 0)


async def test_work_that_nobody_runs_is_not_under_way() -> None:
    """Found by a `stop_vm` before the start: its actor was never worked on again."""
    rounds: list[ActorId] = []
    background = Background()

    async def work(actor: ActorId) -> None:
        rounds.append(actor)

    flights = SingleFlight("work", work, background.spawn)
    flights.begin(ALICE)
    assert ALICE not in flights
    async with asyncio.TaskGroup() as tasks:
        background.open(tasks)
        flights.begin(ALICE)
    assert rounds == [ALICE]
