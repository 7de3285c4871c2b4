"""A subscriber ends with what the log holds, whatever became of its streams: restored from an older backup, or made anew with other partitions."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aether_api.identity import ActorId, Epoch, parse_actor_id
from aether_api.subjects import partition_of
from aether_nats.deliveries import ActorVersion, Delivery, EventStored, Reset
from aether_nats.embedded import EmbeddedServer
from aether_nats.event_bus import EventBus
from aether_nats.event_subscription import EventSubscription
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_nats.message import Message
from aether_nats.streams import StreamPlan, delete_streams, ensure_streams
from tests.histories.cluster import connected
from tests.histories.commits import append_events
from tests.integration.links import CutLink

pytestmark = pytest.mark.asyncio

ALICE, BOB = (parse_actor_id("shop", "account", id) for id in ("alice", "bob"))

PATIENCE_S = 30.0
"""Seconds after which a test gives up; nothing is asserted about time."""


@dataclass
class Backup:
    """A server, and a copy of what it had stored at one time."""

    server: EmbeddedServer
    store: Path
    copy: Path

    async def take(self) -> None:
        """Copy what is stored now."""
        await self.server.stop()
        shutil.copytree(self.store, self.copy)
        await self.server.run()

    async def restore(self) -> None:
        """Go back to the copy."""
        await self.server.stop()
        shutil.rmtree(self.store)
        shutil.copytree(self.copy, self.store)
        await self.server.run()


@dataclass
class Projection:
    """What a program holds that takes all that it is told.

    Attributes:
        versions: of each actor, in the order in which they came since the last reset.
    """

    versions: dict[ActorId, list[int]] = field(default_factory=dict[ActorId, list[int]])
    told: list[Delivery] = field(default_factory=list[Delivery])

    @property
    def resets(self) -> list[Delivery]:
        """What it was told to forget."""
        return [item for item in self.told if isinstance(item, Reset)]

    async def follow(self, subscription: EventSubscription, until: Callable[[], bool]) -> None:
        """Take what is told until something is so."""
        events = subscription.complete()
        async with asyncio.timeout(PATIENCE_S):
            while not until():
                item = await anext(events)
                self.told.append(item)
                if isinstance(item, Reset):
                    self.versions.pop(item.actor, None)
                elif isinstance(item, EventStored):
                    self.versions.setdefault(item.actor, []).append(item.version)

    async def follow_to(self, subscription: EventSubscription, actor: ActorId, version: int, *, resets: int = 0) -> None:
        """Take what is told until an actor has a version, after so many resets."""
        await self.follow(subscription, lambda: len(self.resets) >= resets and self.versions.get(actor, [0])[-1] == version)


@asynccontextmanager
async def backed_up(folder: Path) -> AsyncGenerator[Backup]:
    async with EmbeddedServer.start(folder / "store") as server:
        yield Backup(server, folder / "store", folder / "backup")


@asynccontextmanager
async def writing(server: EmbeddedServer, partitions: int = 1) -> AsyncGenerator[Journal]:
    """The log as another node has it."""
    async with connected(server.url) as connection:
        layout = await ensure_streams(connection, "shop", StreamPlan(partitions=partitions))
        yield Journal(JetStream(connection), layout.partitions)


async def test_a_stream_that_was_restored_and_has_grown_again_before_anybody_asks_is_told_anew(tmp_path: Path) -> None:
    async with backed_up(tmp_path) as backup:
        async with writing(backup.server) as journal:
            await append_events(journal, ALICE, 5)
        await backup.take()
        async with connected(backup.server.url) as here, EventBus(here).subscribe_to_event_stored("shop", known={ALICE: ActorVersion(5)}) as subscription:
            projection = Projection()
            async with writing(backup.server) as journal:
                await append_events(journal, ALICE, 5)
            await projection.follow_to(subscription, ALICE, 10)
            assert projection.versions[ALICE] == [6, 7, 8, 9, 10]
            await backup.restore()
            async with asyncio.timeout(PATIENCE_S), writing(backup.server) as journal:
                await here.wait_connected()
                await append_events(journal, ALICE, 7)
                await here.flush()
            await projection.follow_to(subscription, ALICE, 12, resets=1)
            assert projection.versions[ALICE] == list(range(1, 13))
            assert projection.resets == [Reset(ALICE, 0)]


@pytest.mark.parametrize("grown_to", [8, 10, 12])
async def test_a_stream_that_was_restored_and_has_grown_again_behind_a_cut_link_is_told_anew(tmp_path: Path, grown_to: int) -> None:
    async with backed_up(tmp_path) as backup:
        async with writing(backup.server) as journal:
            await append_events(journal, BOB, 5)
        await backup.take()
        async with (
            CutLink.to(backup.server.port) as link,
            connected(link.url) as here,
            EventBus(here).subscribe_to_event_stored("shop", from_beginning=True) as told_all,
            writing(backup.server) as journal,
        ):
            await append_events(journal, BOB, 5)
            async with EventBus(here).subscribe_to_event_stored("shop") as told_nothing:
                projection = Projection()
                await projection.follow_to(told_all, BOB, 10)
                await link.cut()
                await backup.restore()
                async with asyncio.timeout(PATIENCE_S):
                    await journal.connection.wait_connected()
                await append_events(journal, BOB, grown_to - 5)
                link.mend()
                await projection.follow_to(told_all, BOB, grown_to, resets=1)
                assert projection.versions == {BOB: list(range(1, grown_to + 1))}
                late = Projection()
                await late.follow_to(told_nothing, BOB, grown_to)
                assert late.versions == {BOB: list(range(1, grown_to + 1))}, "it may have missed any of them"


async def test_an_announcement_that_comes_late_is_no_other_stream(nats_server: EmbeddedServer) -> None:
    announced: list[Message] = []
    async with writing(nats_server) as journal, connected(nats_server.url) as here:
        journal.connection.subscribe("aether.shop.stored.account.*", announced.append)
        async with EventBus(here).subscribe_to_event_stored("shop") as subscription:
            await append_events(journal, ALICE, 3)
            await journal.connection.flush()
            late = announced[1]
            journal.connection.publish(late.subject, late.payload, headers=late.raw_headers)
            await journal.connection.flush()
            await append_events(journal, ALICE, 2)
            projection = Projection()
            await projection.follow_to(subscription, ALICE, 5)
            await append_events(journal, BOB)
            await projection.follow_to(subscription, BOB, 1)
            assert projection.versions == {ALICE: [1, 2, 3, 4, 5], BOB: [1]}
            assert projection.resets == []


async def test_a_stream_that_was_made_anew_behind_a_cut_link_is_told_anew_although_nothing_stands_where_the_former_one_ended(nats_server: EmbeddedServer) -> None:
    async with (
        writing(nats_server) as journal,
        CutLink.to(nats_server.port) as link,
        connected(link.url) as here,
        EventBus(here).subscribe_to_event_stored("shop") as subscription,
    ):
        projection = Projection()
        await append_events(journal, ALICE, 2)
        await projection.follow_to(subscription, ALICE, 2)
        await link.cut()
        await delete_streams(journal.connection, "shop")
        await ensure_streams(journal.connection, "shop", StreamPlan(partitions=1))
        await append_events(journal, BOB, 2)
        await journal.purge(BOB, epoch=Epoch(2), writer="operator")
        await append_events(journal, ALICE, 4)
        link.mend()
        await projection.follow_to(subscription, ALICE, 4, resets=1)
        assert projection.versions == {ALICE: [1, 2, 3, 4]}
        assert Reset(ALICE, 0) in projection.resets


@pytest.mark.parametrize(("before", "after"), [(4, 1), (2, 4), (4, 2)])
@pytest.mark.parametrize("events", [3, 12])
async def test_streams_that_were_made_anew_with_other_partitions_are_told_anew(nats_server: EmbeddedServer, before: int, after: int, events: int) -> None:
    actors = [parse_actor_id("shop", "account", f"a{number}") for number in range(12)]
    (mover, *_) = (actor for actor in actors if partition_of(actor, before) == before - 1 and partition_of(actor, after) != before - 1)
    async with connected(nats_server.url) as here, EventBus(here).subscribe_to_event_stored("shop") as subscription:
        projection = Projection()
        async with writing(nats_server, before) as journal:
            await append_events(journal, mover, 10)
            await projection.follow_to(subscription, mover, 10)
            await delete_streams(journal.connection, "shop")
        async with writing(nats_server, after) as journal:
            await append_events(journal, mover, events)
            await here.flush()
            await projection.follow_to(subscription, mover, events, resets=1)
            await append_events(journal, mover)
            await projection.follow_to(subscription, mover, events + 1)
        assert projection.versions == {mover: list(range(1, events + 2))}
        assert projection.resets == [Reset(mover, 0)]
