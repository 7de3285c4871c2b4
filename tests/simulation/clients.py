"""People: they send commands, repeat what they are not sure of, and one of them listens to all events."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from aether_api.errors import AetherError, RetryableError
from aether_api.identity import ActorId, Epoch
from aether_api.messages import Reply
from aether_nats.bus_settings import BusSettings
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.deliveries import EventStored, Reset
from aether_nats.event_bus import EventBus
from aether_nats.journal import purge_actor
from aether_runtime.reminders import RETRY_S
from tests.histories.cluster import NAMESPACE, PARTITIONS
from tests.simulation.record import Attempt, Wish

if TYPE_CHECKING:
    from tests.simulation.world import World

REPEAT_WITHIN_S: Final = 90.0
"""Seconds for which a command is repeated: well within the time for which its id is known (120 s, less what clocks differ)."""

FLIGHT_MAX: Final = 8
"""Commands of one client under way at once."""

COMPARE_EVERY_S: Final = 20.0
"""Seconds between the subscriber's comparisons: shorter than in production, so that a run needs no minutes to calm down."""

DRY_RUN_S: Final = 2.0
"""Seconds that somebody waits to hear what a command would do."""

ONE_SHOTS: Final = ("morning", "noon")
RECURRING: Final = "chime"


class Program:
    """Somebody with a name and chances of his own, who numbers what he does."""

    def __init__(self, world: World, name: str, source: random.Random) -> None:
        self._world = world
        self._name = name
        self._random = source
        self._count = 0


class Client(Program):
    """One sender."""

    async def run(self, connection: NatsConnection) -> None:
        """Send until the storm is over, then wait for what is under way."""
        client, slots = CommandClient(connection), asyncio.Semaphore(FLIGHT_MAX)
        async with asyncio.TaskGroup() as calls:
            for actor in self._world.actors:
                if actor.model == "account" and not self._world.faults.is_calm:
                    await slots.acquire()
                    calls.create_task(self._insist(client, self._note("Open", actor, {"owner": self._name}), slots, is_repeat=False))
            while not self._world.faults.is_calm:
                await asyncio.sleep(self._random.expovariate(self._world.faults.climate.calls_per_s))
                await slots.acquire()
                wish, is_repeat = self._choose()
                calls.create_task(self._insist(client, wish, slots, is_repeat=is_repeat))

    def _choose(self) -> tuple[Wish, bool]:
        record, now_s = self._world.record, asyncio.get_running_loop().time()
        young = [wish for wish in record.wishes[-50:] if now_s - wish.made_s < REPEAT_WITHIN_S]
        if young and self._random.random() < 0.25:
            return self._random.choice(young), True
        return self._draw_wish(self._random.choice(self._world.actors)), False

    def _draw_wish(self, actor: ActorId) -> Wish:
        draw, durable = self._random.random(), self._random.random() < 0.3
        if actor.model == "account":
            name = "Open" if draw < 0.05 else "Deposit" if draw < 0.55 else "Withdraw"
            fields: dict[str, object] = {"owner": self._name} if name == "Open" else {"amount": self._random.randint(1, 50)}
            expected = self._world.record.versions.get(actor, 0) + self._random.randrange(2) if not durable and self._random.random() < 0.1 else None
            return self._note(name, actor, fields, expected_version=expected, durable=durable)
        if draw < 0.2:
            return self._note("Set", actor, self._draw_reminder(), durable=durable)
        if draw < 0.25:
            return self._note("Cancel", actor, {"name": self._random.choice(ONE_SHOTS)}, durable=durable)
        name = "Ring" if draw < 0.75 else "Refuse" if draw < 0.85 else "Ignore" if draw < 0.95 else "Fail"
        return self._note(name, actor, {"label": f"{self._name} {self._count}"}, durable=durable)

    def _note(self, name: str, actor: ActorId, fields: dict[str, object], *, expected_version: int | None = None, durable: bool = False) -> Wish:
        self._count += 1
        wish = Wish(f"{self._name}-{self._count}", actor, name, fields, asyncio.get_running_loop().time(), expected_version, durable)
        self._world.record.wishes.append(wish)
        return wish

    def _draw_reminder(self) -> dict[str, object]:
        if self._random.random() < 0.2:
            missed = self._random.choice(("late", "collapse", "skip"))
            return {"name": RECURRING, "cron": self._random.choice(("@every 4s", "*/5 * * * * *")), "missed": missed, "label": RECURRING}
        name = self._random.choice(ONE_SHOTS)
        return {"name": name, "after_s": self._random.uniform(0.0, 12.0), "label": f"set {name}"}

    async def _insist(self, client: CommandClient, wish: Wish, slots: asyncio.Semaphore, *, is_repeat: bool) -> None:
        """Send a command, perhaps several times until there is a word."""
        try:
            while True:
                attempt = self._world.record.begin(wish, is_repeat=is_repeat)
                if not wish.durable and self._world.faults.happens(self._world.faults.climate.dry_runs):
                    await self._ask(client, wish)
                await self.call(client, attempt, self._random.uniform(0.5, 8.0))
                is_settled = not isinstance(attempt.answer, RetryableError) and not (isinstance(attempt.answer, Reply) and attempt.answer.outcome == "error")
                if is_settled or self._random.random() < 0.4 or asyncio.get_running_loop().time() - wish.made_s > REPEAT_WITHIN_S:
                    return
                is_repeat = True
                await asyncio.sleep(self._random.uniform(0.0, 2.0))
        finally:
            slots.release()

    async def _ask(self, client: CommandClient, wish: Wish) -> None:
        """Ask what a command would do, under an id of its own, which must never be stored."""
        record, wish = self._world.record, replace(wish, id=f"{wish.id}-dry")
        attempt = record.begin_dry_run(wish)
        try:
            attempt.answer = await client.send(wish.actor, wish.name, wish.fields, command_id=wish.id, timeout_s=DRY_RUN_S, expected_version=wish.expected_version, dry_run=True)
        except AetherError as exc:
            attempt.answer = exc

    async def call(self, client: CommandClient, attempt: Attempt, timeout_s: float) -> None:
        """Send a command once, as far as a caller of the client can tell."""
        wish, record = attempt.wish, self._world.record
        try:
            if wish.durable:
                record.end(attempt, await client.send_durable(wish.actor, wish.name, wish.fields, command_id=wish.id, timeout_s=timeout_s))
            else:
                record.end(attempt, await client.send(wish.actor, wish.name, wish.fields, command_id=wish.id, timeout_s=timeout_s, expected_version=wish.expected_version))
        except AetherError as exc:
            record.end(attempt, exc)
        self._world.log(f"{self._name} {wish.id} {wish.name} {wish.actor.id}: {describe(attempt.answer)}")


def describe(answer: object) -> str:
    """Return an answer on a line."""
    if isinstance(answer, Reply):
        return f"{answer.outcome} {answer.version} {answer.reason} {answer.message[:80]}"
    return f"{type(answer).__name__} {answer}"[:160]


class Reader:
    """The subscriber on another node: it is told of every event of all actors, whatever happens to it."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def run(self, connection: NatsConnection) -> None:
        """Listen until cancelled, from where it was."""
        record, bus = self._world.record, EventBus(connection, BusSettings(compare_every_s=COMPARE_EVERY_S))
        while True:
            try:
                async with bus.subscribe_to_event_stored(NAMESPACE, known=dict(record.known), from_beginning=True) as subscription:
                    async for item in subscription.complete():
                        if isinstance(item, EventStored):
                            record.take(item)
                        elif isinstance(item, Reset):
                            record.reset(item)
                        else:
                            record.problems.append(f"the subscriber was told of {item}")
            except RetryableError as exc:
                self._world.log(f"reader begins anew: {exc}")
            await asyncio.sleep(RETRY_S)


async def purge(world: World, connection: NatsConnection, actor: ActorId) -> None:
    """End an actor's life as the operator does: at an epoch above its placement's, again and again until it is done."""
    home = world.registry.now(actor)
    world.operator.move(actor, home.pod_uid)
    epoch = Epoch(world.registry.epoch(actor))
    while True:
        try:
            await purge_actor(connection, PARTITIONS, actor, epoch=epoch, writer="operator/1")
            world.log(f"{actor.id} is purged at epoch {epoch}")
            return
        except AetherError as exc:
            world.log(f"the purge of {actor.id} has to wait: {exc}")
        await asyncio.sleep(RETRY_S)
