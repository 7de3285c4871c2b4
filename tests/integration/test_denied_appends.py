"""An append that the server denies was not stored, and says so at once, with the permission that is missing."""

from __future__ import annotations

import asyncio

import pytest

from aether_api.errors import PermissionDenied
from aether_api.identity import parse_actor_id
from aether_nats.embedded import EmbeddedServer
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_nats.streams import StreamPlan, ensure_streams
from aether_runtime.core.new_events import NewEvent
from aether_runtime.event_store import EventStore
from tests.histories.cluster import connected
from tests.histories.commits import append_events, build_next

pytestmark = pytest.mark.asyncio

USERS = """authorization { users: [
  {user: all, password: p}
  {user: reader, password: p, permissions: {publish: {deny: ["aether.*.evt.>"]}}}
  {user: blind, password: p, permissions: {publish: {deny: ["$JS.API.DIRECT.GET.>"]}}}
  {user: guest, password: p, permissions: {publish: {deny: ["$JS.API.STREAM.>"]}}}
] }"""
ALICE = parse_actor_id("shop", "account", "alice")
PATIENCE_S = 10.0


@pytest.mark.parametrize("batches", [False, True])
async def test_each_append_that_is_denied_was_not_stored(batches: bool) -> None:
    async with EmbeddedServer.start(extra_config=USERS) as server:
        address = server.url.removeprefix("nats://")
        async with connected(f"nats://all:p@{address}") as other, connected(f"nats://reader:p@{address}") as here, asyncio.timeout(PATIENCE_S):
            await ensure_streams(other, "shop", StreamPlan(partitions=1))
            journal = Journal(JetStream(here), 1, batches=batches)
            actors = [parse_actor_id("shop", "account", f"a{number}") for number in range(40)]
            for append in [journal.append(build_next(actor, None)) for actor in actors]:
                with pytest.raises(PermissionDenied, match=r'publish to "aether\.shop\.evt\.0\.account\.a\d+", so nothing was stored'):
                    await append
            assert [await journal.read_head(actor) for actor in actors] == [None] * len(actors)


async def test_a_save_that_is_denied_says_that_nothing_was_stored() -> None:
    async with EmbeddedServer.start(extra_config=USERS) as server:
        address = server.url.removeprefix("nats://")
        async with connected(f"nats://all:p@{address}") as other, connected(f"nats://reader:p@{address}") as here, asyncio.timeout(PATIENCE_S):
            await ensure_streams(other, "shop")
            store = await EventStore.open(here, "shop")
            with pytest.raises(PermissionDenied, match="nothing was stored"):
                await store.save_event(ALICE, NewEvent("Deposited", {}))
            assert await store.get_events(ALICE) == []


async def test_reading_a_log_that_is_denied_names_the_permission() -> None:
    async with EmbeddedServer.start(extra_config=USERS) as server:
        address = server.url.removeprefix("nats://")
        async with connected(f"nats://all:p@{address}") as other, connected(f"nats://blind:p@{address}") as here, asyncio.timeout(PATIENCE_S):
            await ensure_streams(other, "shop", StreamPlan(partitions=1))
            await append_events(Journal(JetStream(other), 1), ALICE, 300)
            store = await EventStore.open(here, "shop")
            with pytest.raises(PermissionDenied, match=r"\$JS\.API\.DIRECT\.GET\.AETHER_shop_EVT_0"):
                await store.get_events(ALICE)


async def test_a_store_whose_streams_are_denied_does_not_open_and_says_why() -> None:
    async with EmbeddedServer.start(extra_config=USERS) as server, connected(f"nats://guest:p@{server.url.removeprefix('nats://')}") as here, asyncio.timeout(PATIENCE_S):
        with pytest.raises(PermissionDenied, match=r"\$JS\.API\.STREAM\.INFO\.AETHER_shop_EVT_0"):
            await EventStore.open(here, "shop")
