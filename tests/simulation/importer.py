"""Programs that save events without a VM, in the middle of a storm, and give some of their saves up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from aether_api.envelope import Event
from aether_api.errors import AetherError, RetryableError
from aether_api.identity import ActorId
from aether_nats.connection import NatsConnection
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_runtime.adapters.jetstream_snapshots import JetStreamSnapshotStore
from aether_runtime.core.new_events import NewEvent
from aether_runtime.event_store import EventStore, EventStoreSettings
from tests.histories.alarm import Alarm
from tests.histories.bank import compile_account
from tests.histories.cluster import NAMESPACE, PARTITIONS
from tests.simulation.clients import Program
from tests.simulation.ledger import Ledger

IMPORT: Final = "import"
"""Key of the metadata that names the save which an event comes of."""

GIVEN_UP_S: Final = 0.05
"""Seconds at most after which an impatient program gives a save up."""


@dataclass(slots=True)
class Save:
    """One call of a store.

    Attributes:
        outcome: what was saved, or why nothing was; None while nobody knows.
    """

    id: str
    actor: ActorId
    count: int
    expected_version: int | None
    outcome: tuple[Event, ...] | BaseException | None = None

    @property
    def is_open(self) -> bool:
        """Whether its caller cannot know what became of it."""
        return self.outcome is None or isinstance(self.outcome, TimeoutError) or (isinstance(self.outcome, RetryableError) and "may or may not" in str(self.outcome))


class Importer(Program):
    """One program, with models or without."""

    async def run(self, connection: NatsConnection) -> None:
        """Save until the storm is over."""
        js, draw = JetStream(connection), self._random
        store = EventStore(
            Journal(js, PARTITIONS),
            JetStreamSnapshotStore(js),
            NAMESPACE,
            models=(compile_account(), Alarm()) if draw.random() < 0.7 else (),
            settings=EventStoreSettings(timeout_s=draw.choice((2.0, 8.0)), actors_max=draw.choice((1, 100))),
            is_closed=lambda: connection.is_closed,
        )
        connection.on_disconnect(store._cache.doubt)
        async with asyncio.TaskGroup() as saves:
            while not self._world.faults.is_calm:
                await asyncio.sleep(draw.expovariate(self._world.faults.climate.imports_per_s))
                saves.create_task(self._save(store))

    async def _save(self, store: EventStore) -> None:
        draw, self._count = self._random, self._count + 1
        actor = draw.choice(self._world.actors)
        expected = max(0, self._world.record.versions.get(actor, 0) + draw.randint(-1, 1)) if draw.random() < 0.5 else None
        save = Save(f"{self._name}-{self._count}", actor, draw.randint(1, 3), expected)
        self._world.saves.append(save)
        try:
            async with asyncio.timeout(draw.uniform(0.0, GIVEN_UP_S) if draw.random() < 0.2 else None):
                save.outcome = await store.save_events(actor, list(self._build(save)), expected_version=expected)
        except (AetherError, TimeoutError) as exc:
            save.outcome = exc
        self._world.log(f"{save.id} for {actor.id} at {expected}: {save.outcome!r:.150}")

    def _build(self, save: Save) -> Iterator[NewEvent]:
        kind, fields = ("Deposited", {"amount": self._random.randint(1, 50)}) if save.actor.model == "account" else ("Rang", {"label": save.id})
        for _ in range(save.count):
            yield NewEvent(kind, fields, command_id=save.id if self._count % 2 else "", metadata={IMPORT: save.id})


def check_saves(saves: list[Save], ledger: Ledger, mortal: ActorId) -> Iterator[str]:
    """Yield what is wrong: what was saved is stored once and as told, what was refused is not, and what nobody knows is there as a whole or not at all."""
    for save in saves:
        found = [event for life in ledger.all_of(save.actor) for event in life.events if event.metadata.get(IMPORT) == save.id]
        if save.actor == mortal:  # a save whose ack was lost, and whose life a purge ended, is refused, or saved anew in the next one
            found = found[-save.count :] if isinstance(save.outcome, tuple) else []
        if isinstance(save.outcome, tuple) and found != [*save.outcome]:
            yield f"{save.id} was told that {save.outcome} were saved, and the log holds {found}"
        elif len(found) not in (0, save.count):
            yield f"{save.id} saved {save.count} events, and the log holds {found}"
        elif found and not isinstance(save.outcome, tuple) and not save.is_open:
            yield f"{save.id} was refused with {save.outcome!r}, and the log holds {found}"
        if found and save.expected_version not in (None, found[0].version - 1):
            yield f"{save.id} expected version {save.expected_version}, and the log holds {found}"
