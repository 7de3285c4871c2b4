"""The event store on a real server: several nodes whose version caches follow each other, broken logs, and lost acks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from aether_api.errors import AetherError, Disconnected, InvalidEnvelope, PermanentError, SettingsInvalid, VersionConflictError
from aether_api.identity import ActorId, Epoch, parse_actor_id
from aether_api.subjects import event_stream, event_subject
from aether_model.model import Model
from aether_nats.bus_settings import BusSettings
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.deliveries import ActorVersion, Overflow
from aether_nats.embedded import EmbeddedServer
from aether_nats.event_bus import EventBus
from aether_nats.event_subscription import EventSubscription
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_nats.streams import StreamPlan, delete_streams, ensure_streams
from aether_runtime.core.new_events import NewEvent
from aether_runtime.event_store import EventStore
from tests.histories.bank import ALICE, compile_account
from tests.histories.cluster import NAMESPACE, PARTITIONS, WAIT_S, Placements, connected, running_pod
from tests.integration.links import CutLink

pytestmark = pytest.mark.asyncio

BOB, CAROL = parse_actor_id(NAMESPACE, "account", "bob"), parse_actor_id(NAMESPACE, "account", "carol")
OPENED, DEPOSITED = NewEvent("Opened", {"owner": "somebody"}), NewEvent("Deposited", {"amount": 1})


@dataclass
class Node:
    """One process of several: a store whose version cache follows the event bus."""

    store: EventStore
    subscription: EventSubscription
    connection: NatsConnection

    async def until_version(self, actor: ActorId, version: int) -> None:
        """Wait until the cache, which is never asked to read the log here, has a version."""
        async with asyncio.timeout(WAIT_S):
            while await self.store.get_latest_version(actor) != version:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def node(url: str, namespace: str = NAMESPACE, *, bus: BusSettings | None = None, known: dict[ActorId, ActorVersion] | None = None) -> AsyncGenerator[Node]:
    async with connected(url) as connection:
        await ensure_streams(connection, namespace, StreamPlan(PARTITIONS))
        store = await EventStore.open(connection, namespace)
        async with asyncio.TaskGroup() as tasks, EventBus(connection, bus).subscribe_to_event_stored(namespace, known=known) as subscription:
            tasks.create_task(store.follow(subscription), name="version cache")
            yield Node(store, subscription, connection)


async def test_the_version_caches_of_all_nodes_agree_with_the_log(nats_server: EmbeddedServer) -> None:
    actors = [ALICE, BOB, CAROL]
    async with node(nats_server.url) as a, node(nats_server.url) as b, node(nats_server.url) as c:
        for each in (a, b, c):
            for actor in actors:
                await each.store.get_latest_version(actor)
        async with asyncio.TaskGroup() as writers:
            for number in range(30):
                writers.create_task((a, b, c)[number % 3].store.save_event(actors[number % 2], DEPOSITED), name=f"save {number}")
        for each in (a, b, c):
            await each.until_version(ALICE, 15)
            await each.until_version(BOB, 15)
            assert await each.store.get_latest_version(CAROL) == 0
            assert [await each.store.get_latest_version(actor, fresh=True) for actor in actors] == [15, 15, 0]


async def test_a_cache_that_follows_spares_its_node_the_conflict(nats_server: EmbeddedServer) -> None:
    async with node(nats_server.url) as a, node(nats_server.url) as b:
        await a.store.save_event(ALICE, DEPOSITED)
        await b.until_version(ALICE, 1)
        await b.store.save_event(ALICE, DEPOSITED, expected_version=1)
        await a.until_version(ALICE, 2)
        await a.store.save_event(ALICE, DEPOSITED, expected_version=2)
        await b.until_version(ALICE, 3)
        with pytest.raises(VersionConflictError) as raised:
            await b.store.save_event(ALICE, DEPOSITED, expected_version=2)
        assert (raised.value.attempted, raised.value.current) == (2, 3)


async def test_equal_names_in_two_namespaces_are_two_actors(nats_server: EmbeddedServer) -> None:
    shop_alice = parse_actor_id("shop", ALICE.model, ALICE.id)
    async with node(nats_server.url) as here, node(nats_server.url, "shop") as shop:
        await shop.store.save_event(shop_alice, DEPOSITED)
        await shop.store.save_event(shop_alice, DEPOSITED)
        await here.store.save_event(ALICE, DEPOSITED, expected_version=0)
        await shop.until_version(shop_alice, 2)
        await here.until_version(ALICE, 1)
        assert [event.source for event in await here.store.get_events(ALICE)] == ["/aether/default/account/alice"]


async def test_one_bus_over_all_namespaces_leaves_foreign_ones_out_of_the_cache(nats_server: EmbeddedServer) -> None:
    shop_alice = parse_actor_id("shop", ALICE.model, ALICE.id)
    async with node(nats_server.url, "shop") as shop, connected(nats_server.url) as connection:
        store = await EventStore.open(connection, NAMESPACE)
        async with EventBus(connection).subscribe_to_event_stored("*") as everything, asyncio.TaskGroup() as tasks:
            tasks.create_task(store.follow(everything), name="version cache")
            await store.get_latest_version(ALICE)
            await shop.store.save_event(shop_alice, DEPOSITED)
            await store.save_event(ALICE, DEPOSITED)
            await shop.until_version(shop_alice, 1)
            assert await store.get_latest_version(ALICE) == 1
            everything.close()


async def test_a_node_that_joins_late_knows_the_versions_it_asks_for(nats_server: EmbeddedServer) -> None:
    async with node(nats_server.url) as early:
        for _ in range(3):
            await early.store.save_event(ALICE, DEPOSITED)
        async with node(nats_server.url, known={ALICE: ActorVersion(1), BOB: ActorVersion(0)}) as late:
            late.store.update_version_cache(ALICE, 1)
            late.store.update_version_cache(BOB, 0)
            await late.until_version(ALICE, 3)
            await early.store.save_event(BOB, DEPOSITED)
            await late.until_version(BOB, 1)


async def test_the_cache_of_a_node_that_was_cut_off_catches_up(nats_server: EmbeddedServer) -> None:
    async with CutLink.to(nats_server.port) as link, node(nats_server.url) as other, node(link.url) as here:
        await other.store.save_event(ALICE, DEPOSITED)
        await here.until_version(ALICE, 1)
        await link.cut()
        for _ in range(4):
            await other.store.save_event(ALICE, DEPOSITED)
        assert await here.store.get_latest_version(ALICE) == 1, "it cannot know"
        link.mend()
        await here.until_version(ALICE, 5)


@pytest.mark.parametrize("models", [[], [compile_account()]])
async def test_a_log_that_went_another_way_while_the_link_was_cut_is_read_before_the_next_save(models: list[Model], nats_server: EmbeddedServer) -> None:
    async with CutLink.to(nats_server.port) as link, connected(link.url) as cut, connected(nats_server.url) as connection:
        store = await EventStore.open(cut, NAMESPACE, models=models)
        await store.save_events(ALICE, [OPENED, *[DEPOSITED] * 3])
        await link.cut()
        await delete_streams(connection, NAMESPACE)
        other = await EventStore.open(connection, NAMESPACE)
        await other.save_events(ALICE, [OPENED, DEPOSITED])
        link.mend()
        await store.save_event(ALICE, DEPOSITED)
        assert [event.type for event in await other.get_events(ALICE)] == ["Opened", "Deposited", "Deposited"]
        assert (await other.save_event(ALICE, DEPOSITED)).version == 4


async def test_an_overflow_leaves_the_cache_right(nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url) as connection, node(nats_server.url) as other:
        store = await EventStore.open(connection, NAMESPACE)
        async with EventBus(connection, BusSettings(queue_max=2)).subscribe_to_event_stored(NAMESPACE) as subscription:
            await store.get_latest_version(ALICE)
            for _ in range(10):
                await other.store.save_event(ALICE, DEPOSITED)
            await connection.flush()
            overflows = 0
            async with asyncio.timeout(WAIT_S):
                while await store.get_latest_version(ALICE) < 10:
                    item = await anext(subscription)
                    overflows += isinstance(item, Overflow)
                    store.take_delivery(item)
            assert overflows == 1


async def test_a_purge_is_followed_by_every_cache(nats_server: EmbeddedServer) -> None:
    async with node(nats_server.url) as a, node(nats_server.url) as b:
        for _ in range(3):
            await a.store.save_event(ALICE, DEPOSITED)
        await b.until_version(ALICE, 3)
        await Journal(JetStream(a.connection), PARTITIONS).purge(ALICE, epoch=Epoch(1), writer="operator")
        for each in (a, b):
            await each.until_version(ALICE, 0)
        await a.store.save_event(ALICE, DEPOSITED, expected_version=0)
        await b.until_version(ALICE, 1)


async def test_another_event_loop_neither_saves_nor_follows(nats_server: EmbeddedServer) -> None:
    async with node(nats_server.url) as a, EventBus(a.connection).subscribe_to_event_stored(NAMESPACE) as subscription:
        await a.store.save_event(ALICE, OPENED)

        async def use_elsewhere() -> None:
            for use in (lambda: a.store.save_event(ALICE, DEPOSITED), lambda: anext(subscription)):
                with pytest.raises(PermanentError, match="opened in another event loop"):
                    await use()

        await asyncio.to_thread(asyncio.run, use_elsewhere())
        assert await a.store.get_latest_version(ALICE, fresh=True) == 1
        async with asyncio.timeout(WAIT_S):
            await anext(subscription)


async def remake_with_more_partitions(connection: NatsConnection) -> None:
    await delete_streams(connection, NAMESPACE)
    await ensure_streams(connection, NAMESPACE, StreamPlan(PARTITIONS + 1))


async def test_a_store_whose_actor_has_another_past_looks_how_many_partitions_there_are(nats_server: EmbeddedServer) -> None:
    async with node(nats_server.url) as a, connected(nats_server.url) as elsewhere:
        await a.store.save_event(ALICE, OPENED)
        await remake_with_more_partitions(elsewhere)
        with pytest.raises(SettingsInvalid, match=f"made anew with {PARTITIONS + 1} partitions"):
            await a.store.save_event(ALICE, DEPOSITED)
        assert await (await EventStore.open(elsewhere, NAMESPACE)).get_events(ALICE) == []


async def test_a_store_looks_again_and_again_how_many_partitions_there_are(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.event_store.LAYOUT_CHECK_S", 0.0)
    async with connected(nats_server.url) as connection:
        await ensure_streams(connection, NAMESPACE, StreamPlan(PARTITIONS))
        store = await EventStore.open(connection, NAMESPACE)
        await store.save_event(ALICE, OPENED)
        await remake_with_more_partitions(connection)
        for use in (lambda: store.save_event(BOB, OPENED), lambda: store.get_events(ALICE), lambda: store.get_latest_version(ALICE, fresh=True)):
            with pytest.raises(SettingsInvalid, match="open the store, anew"):
                await use()


async def test_a_live_vm_takes_over_what_a_program_saved(nats_server: EmbeddedServer) -> None:
    async with running_pod(nats_server.url, "a", Placements(), compare_every_s=0.1) as pod, connected(nats_server.url) as connection:
        client = CommandClient(pod.connection)
        await client.send(ALICE, "Open", {"owner": "alice"})
        vm = pod.runtime.get_active_vms()[ALICE]
        store = await EventStore.open(connection, NAMESPACE, models=[compile_account()])
        await store.save_events(ALICE, [NewEvent("Deposited", {"amount": 5}), NewEvent("Withdrawn", {"amount": 2})], expected_version=1)
        async with asyncio.timeout(WAIT_S):
            while vm.get_version() != 3:
                await asyncio.sleep(0.01)
        await store.save_event(ALICE, DEPOSITED)
        reply = await client.send(ALICE, "Withdraw", {"amount": 4})
        assert (reply.outcome, reply.version, vm.get_state()["balance"]) == ("accepted", 5, 0)
        assert pod.runtime.get_active_vms()[ALICE] is vm


async def test_a_server_that_dies_during_saves_costs_time_and_nothing_else(nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url) as connection:
        store = await EventStore.open(connection, NAMESPACE)
        async with asyncio.TaskGroup() as tasks:
            saves = [tasks.create_task(store.save_event(actor, DEPOSITED), name=f"save {actor}") for actor in (ALICE, BOB, CAROL) for _ in range(20)]
            await _until(lambda: any(save.done() for save in saves))
            await nats_server.kill()
            await nats_server.run()
        for actor in (ALICE, BOB, CAROL):
            assert [event.version for event in await store.get_events(actor)] == list(range(1, 21))


@pytest.mark.parametrize("models", [[], [compile_account()]], ids=["without models", "with models"])
async def test_what_is_saved_while_the_server_is_away_waits_for_it(models: list[Model], nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url) as connection:
        store = await EventStore.open(connection, NAMESPACE, models=models)
        await nats_server.kill()
        await _until(lambda: not connection.is_connected)
        async with asyncio.TaskGroup() as tasks:
            save = tasks.create_task(store.save_event(ALICE, OPENED), name="save")
            await asyncio.sleep(0.5)
            assert not save.done()
            await nats_server.run()
        assert save.result().version == 1


@pytest.mark.parametrize(("is_silent", "outcome"), [(True, "may or may not be saved"), (False, "nothing was saved")])
async def test_a_save_that_waits_is_over_when_the_connection_is_closed(is_silent: bool, outcome: str, nats_server: EmbeddedServer) -> None:
    """A server that says nothing may have taken the append; while the link is lost none is sent, since the log is to be looked at first."""
    async with CutLink.to(nats_server.port) as link, connected(link.url) as connection:
        store = await EventStore.open(connection, NAMESPACE)
        await store.save_event(ALICE, OPENED)
        if is_silent:
            link.stall()
        else:
            await link.cut()
            await _until(lambda: not connection.is_connected)
        async with asyncio.TaskGroup() as tasks:
            save = tasks.create_task(_error_of(store.save_event(ALICE, DEPOSITED)), name="save")
            await asyncio.sleep(0.5)
            assert not save.done()
            await connection.close()
        error = save.result()
    assert isinstance(error, Disconnected), error
    assert outcome in str(error)


async def _error_of(save: Coroutine[None, None, object]) -> AetherError | None:
    try:
        await save
    except AetherError as exc:
        return exc
    return None


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0)


@asynccontextmanager
async def broken_log(server: EmbeddedServer) -> AsyncGenerator[tuple[EventStore, JetStream, str]]:
    """A store, and what is needed to break an actor's log."""
    async with connected(server.url) as connection:
        await ensure_streams(connection, NAMESPACE, StreamPlan(1))
        yield await EventStore.open(connection, NAMESPACE), JetStream(connection), event_subject(ALICE, 1)


async def test_what_is_no_commit_at_all_is_told_with_its_place(nats_server: EmbeddedServer) -> None:
    async with broken_log(nats_server) as (store, js, subject):
        for _ in range(3):
            await store.save_event(ALICE, DEPOSITED)
        await js.publish(subject, b"garbage")
        result = await store.get_events_with_errors(ALICE)
        assert [event.version for event in result.events] == [1, 2, 3]
        assert [error.sequence for error in result.errors] == [4]
        assert "not a commit" in result.errors[0].reason
        assert [event.version for event in (await store.get_events_with_errors(ALICE, 3)).events] == [3]
        with pytest.raises(InvalidEnvelope, match="sequence 4"):
            await store.get_events(ALICE)


@pytest.mark.parametrize("count", [10, 600])
async def test_commits_that_are_gone_are_told_as_missing_versions(nats_server: EmbeddedServer, count: int) -> None:
    async with broken_log(nats_server) as (store, js, subject):
        for _ in range(count):
            await store.save_event(ALICE, DEPOSITED)
        await js.purge(event_stream(NAMESPACE, 0), subject, before_sequence=5)
        result = await store.get_events_with_errors(ALICE)
        assert [event.version for event in result.events] == list(range(5, count + 1))
        assert [(error.sequence, error.reason) for error in result.errors] == [(5, "versions 1 to 4, which should come before it, are missing")]
        assert (await store.get_events_with_errors(ALICE, 5)).is_whole
