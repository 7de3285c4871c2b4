"""Events of other nodes on a real server: nothing refused, nothing twice, nothing out of order, and nothing missed without a word."""

from __future__ import annotations

import asyncio
import re
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Iterable
from contextlib import asynccontextmanager, suppress

import pytest
from msgspec.structs import replace

from aether_api.errors import AetherError, Disconnected, PermissionDenied, RequestTimeout, VersionConflictError
from aether_api.identity import ActorId, Epoch, parse_actor_id
from aether_nats.bus_settings import BusSettings, Start
from aether_nats.connection import Callback, NatsConnection, Subscription
from aether_nats.deliveries import ActorVersion, Delivery, EventStored, Gap, Overflow, Reset, Unreadable
from aether_nats.embedded import EmbeddedServer
from aether_nats.event_bus import EventBus
from aether_nats.event_subscription import EventSubscription
from aether_nats.jetstream import JetStream
from aether_nats.jetstream_wire import StoredMessage, StreamInfo
from aether_nats.journal import Journal
from aether_nats.stream_watch import StreamWatch
from aether_nats.streams import StreamPlan, delete_streams, ensure_streams
from aether_runtime.event_store import EventStore
from tests.histories.cluster import connected
from tests.histories.commits import append_broken, append_events, build_next
from tests.integration.links import CutLink

pytestmark = pytest.mark.asyncio

ALICE, BOB, CAROL = (parse_actor_id("shop", "account", id) for id in ("alice", "bob", "carol"))
MARKET_ALICE = parse_actor_id("market", "account", "alice")
ORDER = parse_actor_id("shop", "order", "o1")

PATIENCE_S = 30.0
"""Seconds after which a test gives up; nothing is asserted about time."""


@pytest.fixture
def nats_server(any_nats_server: EmbeddedServer) -> EmbeddedServer:
    """Run the tests on nats-server and on the simulated one."""
    return any_nats_server


@asynccontextmanager
async def writing(server: EmbeddedServer, namespace: str = "shop", plan: StreamPlan | None = None) -> AsyncGenerator[Journal, None]:
    """The log as another node has it."""
    async with connected(server.url) as connection:
        layout = await ensure_streams(connection, namespace, plan or StreamPlan(partitions=2))
        yield Journal(JetStream(connection), layout.partitions)


async def read(subscription: EventSubscription, count: int) -> list[Delivery]:
    """Return the next items as they are told."""
    async with asyncio.timeout(PATIENCE_S):
        return [await anext(subscription) for _ in range(count)]


async def read_complete(subscription: EventSubscription, ends: dict[ActorId, int]) -> dict[ActorId, list[int]]:
    """Return the versions of each actor in the order of arrival, until all have reached their ends."""
    seen: dict[ActorId, list[int]] = {actor: [] for actor in ends}
    async with asyncio.timeout(PATIENCE_S):
        async for item in subscription.complete():
            if isinstance(item, EventStored):
                seen.setdefault(item.actor, []).append(item.version)
            if all(versions[-1:] == [ends[actor]] for actor, versions in seen.items() if actor in ends):
                break
    return seen


def versions_of(items: Iterable[Delivery]) -> list[tuple[ActorId, int]]:
    return [(item.actor, item.version) for item in items if isinstance(item, EventStored)]


def lose_announcements_of_bob(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop what is announced of an actor as it comes, as a route between servers may."""
    hear = NatsConnection.subscribe

    def hear_badly(self: NatsConnection, subject: str, callback: Callback, queue: str = "") -> Subscription:
        return hear(self, subject, lambda message: None if message.subject == "aether.shop.stored.account.bob" else callback(message), queue)

    monkeypatch.setattr(NatsConnection, "subscribe", hear_badly)


async def test_a_node_sees_the_events_of_another_in_order(nats_server: EmbeddedServer) -> None:
    async with writing(nats_server) as journal, connected(nats_server.url) as here, EventBus(here).subscribe_to_event_stored("shop") as subscription:
        await append_events(journal, ALICE, 3)
        await append_events(journal, ORDER, events=2)
        items = await read(subscription, 5)
        assert versions_of(items) == [(ALICE, 1), (ALICE, 2), (ALICE, 3), (ORDER, 1), (ORDER, 2)]
        first = items[0]
        assert isinstance(first, EventStored)
        assert (first.event.type, first.event.fields(), first.sequence) == ("Deposited", {"amount": 1}, 1)


async def test_a_commit_that_was_refused_is_never_seen(nats_server: EmbeddedServer) -> None:
    async with writing(nats_server) as journal, connected(nats_server.url) as here, EventBus(here).subscribe_to_event_stored("shop") as subscription:
        stale = build_next(ALICE, None)
        await append_events(journal, ALICE)
        with pytest.raises(VersionConflictError):
            await journal.append(stale)
        await append_events(journal, ALICE)
        assert versions_of(await read(subscription, 2)) == [(ALICE, 1), (ALICE, 2)]


async def test_patterns_and_types_choose_what_is_seen(nats_server: EmbeddedServer) -> None:
    async with writing(nats_server) as shop, writing(nats_server, "market") as market, connected(nats_server.url) as here:
        bus = EventBus(here)
        async with (
            bus.subscribe_to_event_stored("shop", actor_pattern="account") as accounts,
            bus.subscribe_to_event_stored("mar*") as markets,
            bus.subscribe_to_event_stored("*", actor_pattern="*/al*") as everywhere,
            bus.subscribe_to_event_stored("shop", ["Withdrawn"], "account/bob") as withdrawals,
        ):
            await append_events(shop, ALICE)
            await append_events(market, MARKET_ALICE)
            await append_events(shop, ORDER)
            await append_events(shop, BOB)
            await append_events(shop, BOB, type="Withdrawn")
            assert versions_of(await read(accounts, 3)) == [(ALICE, 1), (BOB, 1), (BOB, 2)]
            assert versions_of(await read(markets, 1)) == [(MARKET_ALICE, 1)]
            assert sorted(versions_of(await read(everywhere, 2))) == sorted([(ALICE, 1), (MARKET_ALICE, 1)])
            assert versions_of(await read(withdrawals, 1)) == [(BOB, 2)]


async def test_a_user_of_one_namespace_hears_nothing_of_another() -> None:
    """Isolation is the server's: its users may subscribe to their own namespace only."""
    users = 'authorization { users = [ {user: all, password: p}, {user: shop, password: p, permissions: {publish: ["$JS.API.>", "_INBOX.>"], subscribe: ["aether.shop.>", "_INBOX.>"]}} ] }'
    async with EmbeddedServer.start(extra_config=users) as server:
        address = server.url.removeprefix("nats://")
        async with connected(f"nats://all:p@{address}") as other, connected(f"nats://shop:p@{address}") as here:
            for namespace in ("shop", "market"):
                await ensure_streams(other, namespace, StreamPlan(partitions=1))
            journal = Journal(JetStream(other), 1)
            async with EventBus(here).subscribe_to_event_stored("shop") as shop:
                await append_events(journal, MARKET_ALICE)
                await append_events(journal, ALICE)
                assert versions_of(await read(shop, 1)) == [(ALICE, 1)]
                for namespace in ("*", "market"):
                    with pytest.raises(PermissionDenied, match=rf'subscribe to "aether\.{re.escape(namespace)}\.stored') as caught:
                        async with EventBus(here).subscribe_to_event_stored(namespace):
                            raise AssertionError("it was entered")
                    assert caught.value.action == "subscribe"


async def test_a_node_that_joins_late_is_told_what_it_does_not_know(nats_server: EmbeddedServer) -> None:
    async with writing(nats_server) as journal, connected(nats_server.url) as here:
        await append_events(journal, ALICE, 40)
        await append_events(journal, BOB, 2, events=3)
        known = {ALICE: ActorVersion(37), BOB: ActorVersion(2), CAROL: ActorVersion(0)}
        async with EventBus(here).subscribe_to_event_stored("shop", known=known) as subscription:
            gaps = [item for item in await read(subscription, 2) if isinstance(item, Gap)]
            assert [(gap.actor, gap.from_version, gap.to_version) for gap in gaps] == [(ALICE, 38, 40), (BOB, 3, 6)]
            await append_events(journal, ALICE)
            assert versions_of(await read(subscription, 1)) == [(ALICE, 41)]
        async with EventBus(here).subscribe_to_event_stored("shop", known=known) as subscription:
            await append_events(journal, CAROL)
            seen = await read_complete(subscription, {ALICE: 41, BOB: 6, CAROL: 1})
            assert seen == {ALICE: [38, 39, 40, 41], BOB: [3, 4, 5, 6], CAROL: [1]}


async def test_a_node_that_knows_all_is_told_nothing(nats_server: EmbeddedServer) -> None:
    async with writing(nats_server) as journal, connected(nats_server.url) as here:
        await append_events(journal, ALICE, 4)
        async with EventBus(here).subscribe_to_event_stored("shop", known={ALICE: ActorVersion(4)}) as subscription:
            await append_events(journal, ALICE)
            assert versions_of(await read(subscription, 1)) == [(ALICE, 5)]


async def test_a_subscriber_may_begin_with_everything_there_is(nats_server: EmbeddedServer) -> None:
    async with writing(nats_server) as journal, connected(nats_server.url) as here:
        await append_events(journal, ALICE, 35)
        await append_events(journal, ORDER, 2)
        async with EventBus(here).subscribe_to_event_stored("shop", from_beginning=True) as subscription:
            await append_events(journal, ALICE)
            assert await read_complete(subscription, {ALICE: 36, ORDER: 2}) == {ALICE: list(range(1, 37)), ORDER: [1, 2]}


async def test_a_comparison_that_comes_due_before_all_is_read_hides_nothing(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_nats.stream_watch.SWEEP_BATCH", 2)
    async with writing(nats_server, plan=StreamPlan(partitions=1)) as journal, connected(nats_server.url) as here:
        many = await append_to_many(journal, "many", 10)
        async with EventBus(here).subscribe_to_event_stored("shop", from_beginning=True) as subscription:
            events = subscription.complete()
            told = [await anext(events)]
            subscription._watch._compare_at = 0.0
            async with asyncio.timeout(PATIENCE_S):
                told += [await anext(events) for _ in many[1:]]
            assert sorted(versions_of(told)) == sorted((actor, 1) for actor in many)


async def test_a_batch_that_the_server_cuts_short_by_its_bytes_is_not_taken_for_the_end(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    read_batch = JetStream.read_batch

    async def read_two(self: JetStream, stream: str, subject: str, first_sequence: int, count: int, **bounds: int) -> tuple[list[StoredMessage], int]:
        return await read_batch(self, stream, subject, first_sequence, min(count, 2), **bounds)

    monkeypatch.setattr(JetStream, "read_batch", read_two)
    actors = [parse_actor_id("shop", "account", f"a{number}") for number in range(7)]
    async with writing(nats_server, plan=StreamPlan(partitions=1)) as journal, connected(nats_server.url) as here:
        for actor in actors:
            await append_events(journal, actor)
        async with EventBus(here).subscribe_to_event_stored("shop", from_beginning=True) as subscription:
            assert await read_complete(subscription, dict.fromkeys(actors, 1)) == {actor: [1] for actor in actors}


async def test_a_node_that_was_cut_off_is_told_of_every_actor_that_moved(nats_server: EmbeddedServer) -> None:
    async with writing(nats_server) as journal, CutLink.to(nats_server.port) as link, connected(link.url) as here:
        await append_events(journal, CAROL, 2)
        async with EventBus(here).subscribe_to_event_stored("shop") as subscription:
            await append_events(journal, ALICE, 2)
            assert versions_of(await read(subscription, 2)) == [(ALICE, 1), (ALICE, 2)]
            await link.cut()
            await append_events(journal, ALICE, 3)
            await append_events(journal, BOB, 2)
            await append_events(journal, CAROL, 1)
            link.mend()
            seen = await read_complete(subscription, {ALICE: 5, BOB: 2, CAROL: 3})
            assert seen == {ALICE: [3, 4, 5], BOB: [1, 2], CAROL: [3]}
            await append_events(journal, ALICE)
            assert await read_complete(subscription, {ALICE: 6}) == {ALICE: [6]}


async def test_a_loss_is_looked_for_soon_although_the_first_look_fails(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    names, failures = JetStream.stream_names, [RequestTimeout("late")]

    async def fail_once(self: JetStream, subject: str) -> list[str]:
        if failures:
            raise failures.pop()
        return await names(self, subject)

    async with (
        writing(nats_server) as journal,
        CutLink.to(nats_server.port) as link,
        connected(link.url) as here,
        EventBus(here).subscribe_to_event_stored("shop") as subscription,
    ):
        await link.cut()
        await append_events(journal, BOB)
        monkeypatch.setattr(JetStream, "stream_names", fail_once)
        link.mend()
        assert await read_complete(subscription, {BOB: 1}) == {BOB: [1]}


async def test_what_was_lost_without_a_sign_before_a_loss_was_noticed_is_found_with_it(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_announcements_of_bob(monkeypatch)
    async with (
        writing(nats_server, plan=StreamPlan(partitions=1)) as journal,
        connected(nats_server.url) as here,
        EventBus(here).subscribe_to_event_stored("shop") as subscription,
    ):
        await append_events(journal, BOB)
        await append_events(journal, ALICE)
        assert versions_of(await read(subscription, 1)) == [(ALICE, 1)]
        subscription.note_loss()
        assert await read_complete(subscription, {BOB: 1}) == {BOB: [1]}


async def test_a_server_that_was_killed_costs_nothing_but_time(nats_server: EmbeddedServer) -> None:
    async with writing(nats_server) as journal, connected(nats_server.url) as here, EventBus(here).subscribe_to_event_stored("shop") as subscription:
        await append_events(journal, ALICE, 2)
        await nats_server.kill()
        await nats_server.run()
        async with asyncio.timeout(PATIENCE_S):
            await here.wait_connected()
            await journal.append(build_next(BOB, None))
        seen = await read_complete(subscription, {ALICE: 2, BOB: 1})
        assert seen == {ALICE: [1, 2], BOB: [1]}


async def test_a_subscriber_that_is_too_slow_is_told_and_misses_nothing(nats_server: EmbeddedServer) -> None:
    async with (
        writing(nats_server) as journal,
        connected(nats_server.url) as here,
        EventBus(here, BusSettings(queue_max=4)).subscribe_to_event_stored("shop") as subscription,
    ):
        await append_events(journal, ALICE, 10)
        await append_events(journal, BOB, 2)
        await here.flush()
        items = await read(subscription, 7)
        assert versions_of(items) == [(ALICE, 1), (ALICE, 2), (ALICE, 3), (ALICE, 4)]
        assert items[4] == Overflow(8)
        gaps = {item.actor: item for item in items[5:] if isinstance(item, Gap)}
        assert (gaps[ALICE].from_version, gaps[ALICE].to_version, gaps[BOB].to_version) == (5, 10, 2)
        for actor, expected in ((ALICE, [5, 6, 7, 8, 9, 10]), (BOB, [1, 2])):
            assert [item.version async for item in subscription.fetch_missed(gaps[actor]) if isinstance(item, EventStored)] == expected
        await append_events(journal, BOB)
        assert versions_of(await read(subscription, 1)) == [(BOB, 3)]


async def test_a_subscriber_that_is_too_slow_for_large_commits_is_told(nats_server: EmbeddedServer) -> None:
    async with (
        writing(nats_server) as journal,
        connected(nats_server.url) as here,
        EventBus(here, BusSettings(queue_bytes_max=1)).subscribe_to_event_stored("shop") as subscription,
    ):
        await append_events(journal, ALICE, 10)
        await here.flush()
        assert (await read(subscription, 2))[1] == Overflow(9)


async def test_what_is_announced_while_a_subscription_begins_is_bounded_by_its_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    blanks, opened, held_bytes = b" " * 100_000, StreamWatch.open, list[int]()
    async with EmbeddedServer.start() as server, writing(server) as journal, connected(server.url) as here:

        async def open_slowly(self: StreamWatch, start: Start) -> None:
            await opened(self, start)
            tracemalloc.start()
            for number in range(40):
                commit = build_next(parse_actor_id("shop", "account", f"a{number}"), None)
                await journal.append(replace(commit, payload=commit.payload + blanks))
            await here.flush()
            held_bytes.append(tracemalloc.get_traced_memory()[0])
            tracemalloc.stop()

        monkeypatch.setattr(StreamWatch, "open", open_slowly)
        async with EventBus(here, BusSettings(queue_bytes_max=1)).subscribe_to_event_stored("shop") as subscription:
            assert (await read(subscription, 2))[1] == Overflow(39)
            assert held_bytes[0] < 10 * len(blanks), "of forty"


async def test_bytes_that_were_taken_make_room_for_others(nats_server: EmbeddedServer) -> None:
    async with (
        writing(nats_server) as journal,
        connected(nats_server.url) as here,
        EventBus(here, BusSettings(queue_bytes_max=1)).subscribe_to_event_stored("shop") as subscription,
    ):
        for version in (1, 2, 3):
            await append_events(journal, ALICE)
            assert versions_of(await read(subscription, 1)) == [(ALICE, version)]


async def append_to_many(journal: Journal, beginning: str, count: int) -> list[ActorId]:
    """Append one event to each of so many new actors."""
    actors = [parse_actor_id("shop", "account", f"{beginning}{number}") for number in range(count)]
    async with asyncio.TaskGroup() as tasks:
        for actor in actors:
            tasks.create_task(append_events(journal, actor), name=str(actor))
    return actors


@pytest.mark.parametrize("pattern", ["*", "account"])
async def test_more_actors_than_positions_and_a_writer_beside_hide_nothing_of_what_there_was(nats_server: EmbeddedServer, pattern: str) -> None:
    async with writing(nats_server) as journal, connected(nats_server.url) as here:
        old = await append_to_many(journal, "old", 200)
        bus = EventBus(here, BusSettings(actors_max=20))
        async with bus.subscribe_to_event_stored("shop", actor_pattern=pattern, from_beginning=True) as subscription:
            live = await append_to_many(journal, "live", 20)
            await here.flush()
            await read_complete(subscription, dict.fromkeys(old + live, 1))


async def test_more_actors_than_positions_and_a_writer_beside_hide_nothing_after_an_overflow(nats_server: EmbeddedServer) -> None:
    async with (
        writing(nats_server) as journal,
        connected(nats_server.url) as here,
        EventBus(here, BusSettings(queue_max=10, actors_max=20)).subscribe_to_event_stored("shop") as subscription,
    ):
        many = await append_to_many(journal, "many", 200)
        await here.flush()
        assert isinstance((await read(subscription, 11))[-1], Overflow)
        live = await append_to_many(journal, "live", 8)
        await here.flush()
        told: set[ActorId] = set()
        async with asyncio.timeout(PATIENCE_S):
            while len(told) < len(many) - 10 + len(live):  # ten were told before the overflow
                item = await anext(subscription)
                if isinstance(item, Gap):
                    told |= {found.actor async for found in subscription.fetch_missed(item)}
                elif isinstance(item, EventStored):
                    told.add(item.actor)
        assert set(live) < told


async def test_what_a_replica_that_is_behind_does_not_have_is_read_once_more(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[int] = []

    class Behind(JetStream):
        """Says that streams are replicated; the replica that answers first has two messages."""

        async def stream_info(self, stream: str, *, subjects_filter: str = "") -> StreamInfo | None:
            info = await super().stream_info(stream, subjects_filter=subjects_filter)
            return None if info is None else replace(info, config=replace(info.config, num_replicas=3))

        async def read_batch(self, stream: str, subject: str, first_sequence: int, count: int, **bounds: int) -> tuple[list[StoredMessage], int]:
            answers.append(first_sequence)
            found, pending = await super().read_batch(stream, subject, first_sequence, count, **bounds)
            return (found[:2], 0) if len(answers) == 1 else (found, pending)

    monkeypatch.setattr("aether_nats.event_bus.JetStream", Behind)
    async with writing(nats_server, plan=StreamPlan(partitions=1)) as journal, connected(nats_server.url) as here:
        await append_to_many(journal, "old", 6)
        bus = EventBus(here, BusSettings(actors_max=1, compare_every_s=0.2))
        async with bus.subscribe_to_event_stored("shop", from_beginning=True) as subscription:
            seen = await read_complete(subscription, {parse_actor_id("shop", "account", f"old{number}"): 1 for number in range(6)})
    assert all(versions == [1] for versions in seen.values()), "and only that"
    assert answers == [1, 3]


async def test_looks_into_the_log_that_take_longer_than_each_wait_are_taken_all_the_same(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Far(JetStream):
        """Each question takes longer than a poll."""

        async def read_batch(self, stream: str, subject: str, first_sequence: int, count: int, **bounds: int) -> tuple[list[StoredMessage], int]:
            await asyncio.sleep(0.05)
            return await super().read_batch(stream, subject, first_sequence, count, **bounds)

        async def stream_info(self, stream: str, *, subjects_filter: str = "") -> StreamInfo | None:
            await asyncio.sleep(0.05)
            return await super().stream_info(stream, subjects_filter=subjects_filter)

    monkeypatch.setattr("aether_nats.event_bus.JetStream", Far)
    async with writing(nats_server, plan=StreamPlan(partitions=1)) as journal, connected(nats_server.url) as here:
        actors = await append_to_many(journal, "old", 6)
        async with EventBus(here).subscribe_to_event_stored("shop", from_beginning=True) as subscription:
            subscription.note_loss()
            told: set[ActorId] = set()
            async with asyncio.timeout(PATIENCE_S):
                while len(told) < len(actors):
                    with suppress(TimeoutError):
                        async with asyncio.timeout(0.01):
                            item = await anext(subscription)
                            assert isinstance(item, Gap)
                            told.add(item.actor)


async def test_who_was_forgotten_is_told_of_once_while_all_is_heard(nats_server: EmbeddedServer) -> None:
    actors = [parse_actor_id("shop", "account", f"a{number}") for number in range(8)]
    async with (
        writing(nats_server) as journal,
        connected(nats_server.url) as here,
        EventBus(here, BusSettings(actors_max=2)).subscribe_to_event_stored("shop") as subscription,
    ):
        for _ in range(5):
            for actor in actors:
                await append_events(journal, actor)
        items = await read(subscription, 5 * 8)
        assert sorted(versions_of(items)) == sorted((actor, version) for actor in actors for version in range(1, 6))


async def test_a_purge_is_told_as_a_new_beginning(nats_server: EmbeddedServer) -> None:
    async with writing(nats_server) as journal, connected(nats_server.url) as here, EventBus(here).subscribe_to_event_stored("shop") as subscription:
        await append_events(journal, ALICE, 2)
        await journal.purge(ALICE, epoch=Epoch(2), writer="operator")
        await append_events(journal, ALICE)
        items = await read(subscription, 4)
        assert items[2] == Reset(ALICE, 1)
        assert versions_of(items) == [(ALICE, 1), (ALICE, 2), (ALICE, 1)]


async def test_a_purge_while_the_node_was_cut_off_is_told(nats_server: EmbeddedServer) -> None:
    async with (
        writing(nats_server) as journal,
        CutLink.to(nats_server.port) as link,
        connected(link.url) as here,
        EventBus(here).subscribe_to_event_stored("shop") as subscription,
    ):
        await append_events(journal, ALICE, 5)
        await read(subscription, 5)
        await link.cut()
        await journal.purge(ALICE, epoch=Epoch(2), writer="operator")
        await append_events(journal, ALICE, 2)
        link.mend()
        items = await read(subscription, 2)
        assert items[0] == Reset(ALICE, 1)
        assert isinstance(items[1], Gap)
        assert [item.version async for item in subscription.fetch_missed(items[1]) if isinstance(item, EventStored)] == [1, 2]


async def test_streams_that_were_made_anew_are_told(nats_server: EmbeddedServer) -> None:
    async with writing(nats_server) as journal, connected(nats_server.url) as here, EventBus(here).subscribe_to_event_stored("shop") as subscription:
        await append_events(journal, ALICE, 3)
        await read(subscription, 3)
        await delete_streams(journal.connection, "shop")
        await ensure_streams(journal.connection, "shop", StreamPlan(partitions=2))
        await append_events(journal, ALICE, 2)
        items: list[Delivery] = []
        async with asyncio.timeout(PATIENCE_S):
            async for item in subscription.complete():
                items.append(item)
                if isinstance(item, EventStored) and item.version == 2:
                    break
        assert items[0] == Reset(ALICE, 0)
        assert versions_of(items) == [(ALICE, 1), (ALICE, 2)]


async def test_what_cannot_be_read_is_told_with_its_place(nats_server: EmbeddedServer) -> None:
    async with (
        writing(nats_server, plan=StreamPlan(partitions=1)) as journal,
        connected(nats_server.url) as here,
        EventBus(here).subscribe_to_event_stored("shop") as subscription,
    ):
        await append_events(journal, ALICE)
        await append_broken(journal, ALICE)
        await journal.connection.request("aether.shop.evt.0.account.bob", b"no commit")
        items = await read(subscription, 3)
        assert [(item.actor, item.sequence) for item in items if isinstance(item, Unreadable)] == [(ALICE, 2), (BOB, 3)]


@pytest.mark.parametrize("sequence", [0, 1])
async def test_what_cannot_be_read_of_an_actor_that_is_known_is_told_as_well(nats_server: EmbeddedServer, sequence: int) -> None:
    async with writing(nats_server, plan=StreamPlan(partitions=1)) as journal, connected(nats_server.url) as here:
        await append_events(journal, ALICE, 3)
        await journal.connection.request("aether.shop.evt.0.account.alice", b"no commit")
        await journal.connection.request("aether.shop.evt.0.account.bob", b"no commit")
        await append_events(journal, CAROL, 2)
        known = {ALICE: ActorVersion(1, sequence), BOB: ActorVersion(1), CAROL: ActorVersion(1)}
        async with EventBus(here).subscribe_to_event_stored("shop", known=known) as subscription:
            items = await read(subscription, 4)
            assert [(item.actor, item.from_version, item.to_version) for item in items if isinstance(item, Gap)] == [(ALICE, 2, 3), (CAROL, 2, 2)]
            assert [(item.actor, item.sequence) for item in items if isinstance(item, Unreadable)] == [(ALICE, 4), (BOB, 5)]


async def test_a_namespace_that_announces_nothing_is_compared(nats_server: EmbeddedServer) -> None:
    async with (
        writing(nats_server, plan=StreamPlan(partitions=1, broadcast=False)) as journal,
        connected(nats_server.url) as here,
        EventBus(here, BusSettings(compare_every_s=0.05)).subscribe_to_event_stored("shop") as subscription,
    ):
        await append_events(journal, ALICE, 3)
        assert await read_complete(subscription, {ALICE: 3}) == {ALICE: [1, 2, 3]}
        await append_events(journal, ALICE, 1)
        assert await read_complete(subscription, {ALICE: 4}) == {ALICE: [4]}


async def test_a_comparison_finds_what_no_announcement_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A route between servers may lose announcements without any sign; here the user is not allowed to hear them."""
    monkeypatch.setattr("aether_nats.stream_watch.SETTLE_S", 0.01)
    users = 'authorization { users = [ {user: all, password: p}, {user: deaf, password: p, permissions: {publish: ">", subscribe: {allow: ">", deny: "aether.shop.stored.account.alice"}}} ] }'
    async with EmbeddedServer.start(extra_config=users) as server:
        address = server.url.removeprefix("nats://")
        async with connected(f"nats://all:p@{address}") as other, connected(f"nats://deaf:p@{address}") as here:
            await ensure_streams(other, "shop", StreamPlan(partitions=1))
            async with EventBus(here, BusSettings(compare_every_s=0.2)).subscribe_to_event_stored("shop", known={ALICE: ActorVersion(0)}) as subscription:
                await append_events(Journal(JetStream(other), 1), ALICE, 2)
                assert await read_complete(subscription, {ALICE: 2}) == {ALICE: [1, 2]}


@pytest.mark.parametrize("pattern", ["*", "account", "account/b*", "account/bob"])
async def test_a_comparison_finds_an_actor_of_which_nothing_was_ever_heard(monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.setattr("aether_nats.stream_watch.SETTLE_S", 0.01)
    lose_announcements_of_bob(monkeypatch)
    async with EmbeddedServer.start() as server, connected(server.url) as other, connected(server.url) as here:
        await ensure_streams(other, "shop", StreamPlan(partitions=1))
        journal = Journal(JetStream(other), 1)
        await append_events(journal, CAROL)
        async with EventBus(here, BusSettings(compare_every_s=0.2)).subscribe_to_event_stored("shop", actor_pattern=pattern) as subscription:
            for times in (2, 4):
                await append_events(journal, ALICE, 2)
                await append_events(journal, BOB, 2)
                seen = await read_complete(subscription, {BOB: times})
                assert seen[BOB] == [times - 1, times], "and once it is known, its next commits are found as before"
            assert CAROL not in seen


async def test_a_comparison_tells_nothing_of_actors_that_were_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_nats.stream_watch.SETTLE_S", 0.01)
    async with EmbeddedServer.start() as server, writing(server, plan=StreamPlan(partitions=1)) as journal, connected(server.url) as here:
        asked: list[bytes] = []
        journal.connection.subscribe("$JS.API.DIRECT.GET.>", lambda message: asked.append(message.payload))
        settings = BusSettings(compare_every_s=0.05)
        async with (
            EventBus(here, settings).subscribe_to_event_stored("shop") as all_actors,
            EventBus(here, settings).subscribe_to_event_stored("shop", actor_pattern="account") as accounts,
        ):
            for _ in range(2):
                await append_events(journal, ALICE, 2)
                await append_events(journal, ORDER, 2)
                assert versions_of(await read(all_actors, 4))[-1][0] == ORDER
                await read(accounts, 2)
                asked.clear()
                for subscription in (all_actors, accounts):
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.5):
                            await anext(subscription)
                assert [question for question in asked if b'"batch":256' in question] == [], "nothing is read again"


async def test_closing_the_connection_ends_who_waits_and_says_so(nats_server: EmbeddedServer) -> None:
    async with writing(nats_server) as journal, connected(nats_server.url) as here:
        await append_events(journal, ALICE)
        store = await EventStore.open(here, "shop")
        bus = EventBus(here)
        async with bus.subscribe_to_event_stored("shop") as plain, bus.subscribe_to_event_stored("shop") as filled, bus.subscribe_to_event_stored("shop") as followed:
            async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
                waiting = [tasks.create_task(end_of(wait)) for wait in (anext(plain), anext(filled.complete()), store.follow(followed))]
                await asyncio.sleep(0.05)
                await here.close()
            for task in waiting:
                assert isinstance(task.result(), Disconnected)
            with pytest.raises(Disconnected, match="closed"):
                await anext(plain)


async def end_of(wait: Awaitable[object]) -> Exception | None:
    """Return what ended a wait."""
    try:
        await wait
    except AetherError as exc:
        return exc
    return None


async def test_under_load_nothing_is_told_twice_or_as_missed(nats_server: EmbeddedServer) -> None:
    actors = [parse_actor_id("shop", "account", f"a{number}") for number in range(8)]
    async with (
        writing(nats_server) as journal,
        connected(nats_server.url) as here,
        EventBus(here, BusSettings(compare_every_s=0.05)).subscribe_to_event_stored("shop") as subscription,
        asyncio.TaskGroup() as writers,
    ):
        for actor in actors:
            writers.create_task(append_events(journal, actor, 40), name=str(actor))
        items = await read(subscription, 8 * 40)
        assert all(isinstance(item, EventStored) for item in items)
        for actor in actors:
            assert [version for found, version in versions_of(items) if found == actor] == list(range(1, 41))
