"""`complete()` yields what a gap holds once and in order, whatever ends a loop, a wait, or the link in the middle of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager

import pytest

from aether_api.envelope import StoredCommit
from aether_api.errors import Disconnected, RequestTimeout
from aether_api.identity import ActorId, Epoch, parse_actor_id
from aether_nats.deliveries import ActorVersion, Delivery, EventStored, Gap, Reset, Unreadable
from aether_nats.embedded import EmbeddedServer
from aether_nats.event_bus import EventBus
from aether_nats.event_subscription import EventSubscription
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_nats.missed import READ_AHEAD_MAX, MissedReader
from aether_nats.streams import StreamPlan, ensure_streams
from tests.histories.cluster import connected
from tests.histories.commits import append_broken, append_events
from tests.integration.links import CutLink

pytestmark = pytest.mark.asyncio

ALICE = parse_actor_id("shop", "account", "alice")
KNOWN = {ALICE: ActorVersion(0)}

PATIENCE_S = 30.0
"""Seconds after which a test gives up; nothing is asserted about time."""


@asynccontextmanager
async def writing(server: EmbeddedServer) -> AsyncGenerator[Journal]:
    """The log as another node has it."""
    async with connected(server.url) as connection:
        layout = await ensure_streams(connection, "shop", StreamPlan(partitions=1))
        yield Journal(JetStream(connection), layout.partitions)


async def take_and_close(subscription: EventSubscription, count: int) -> list[Delivery]:
    """Return so many items, and end the reading of the gap that they are from."""
    async with aclosing(subscription.complete()) as events, asyncio.timeout(PATIENCE_S):
        return [await anext(events) for _ in range(count)]


async def take(subscription: EventSubscription, count: int) -> list[Delivery]:
    """Return so many items of a loop over `complete()`, and leave it."""
    items: list[Delivery] = []
    async with asyncio.timeout(PATIENCE_S):
        async for item in subscription.complete():
            items.append(item)
            if len(items) == count:
                break
    return items


def versions_of(items: list[Delivery]) -> list[int]:
    return [item.version for item in items if isinstance(item, EventStored)]


@pytest.mark.parametrize("left_after", [1, 2, 4, 5, 12])
async def test_a_loop_that_was_left_inside_a_gap_goes_on_there(nats_server: EmbeddedServer, left_after: int) -> None:
    async with writing(nats_server) as journal, connected(nats_server.url) as here:
        await append_events(journal, ALICE, 4, events=3)
        async with EventBus(here).subscribe_to_event_stored("shop", known=KNOWN) as subscription:
            seen = versions_of(await take(subscription, left_after))
            await append_events(journal, ALICE)
            while len(seen) < 13:
                seen += versions_of(await take(subscription, min(left_after, 13 - len(seen))))
            assert seen == list(range(1, 14))


async def test_only_the_wanted_types_come_and_what_is_unreadable_comes_once(nats_server: EmbeddedServer) -> None:
    async with writing(nats_server) as journal, connected(nats_server.url) as here:
        await append_events(journal, ALICE, 2, type="Withdrawn")
        await append_events(journal, ALICE, 2)
        await append_broken(journal, ALICE)
        await append_events(journal, ALICE, 2, type="Withdrawn")
        await append_events(journal, ALICE)
        async with EventBus(here).subscribe_to_event_stored("shop", ["Deposited"], from_beginning=True) as subscription:
            items = [(await take(subscription, 1))[0] for _ in range(4)]
            assert [(type(item), item.sequence) for item in items if isinstance(item, EventStored | Unreadable)] == [
                (EventStored, 3),
                (EventStored, 4),
                (Unreadable, 5),
                (EventStored, 8),
            ]


async def test_who_goes_on_without_complete_is_told_what_is_left_of_the_gap(nats_server: EmbeddedServer) -> None:
    async with writing(nats_server) as journal, connected(nats_server.url) as here:
        await append_events(journal, ALICE, 4, events=3)
        async with EventBus(here).subscribe_to_event_stored("shop", known=KNOWN) as subscription:
            assert versions_of(await take(subscription, 5)) == [1, 2, 3, 4, 5]
            gap = await anext(subscription)
            assert isinstance(gap, Gap)
            assert (gap.from_version, gap.to_version) == (6, 12)
            assert [item.version async for item in subscription.fetch_missed(gap) if isinstance(item, EventStored)] == list(range(6, 13))
            await append_events(journal, ALICE)
            assert versions_of(await take(subscription, 1)) == [13]


async def test_of_a_gap_that_is_purged_meanwhile_the_rest_is_left_out_and_a_reset_follows(nats_server: EmbeddedServer) -> None:
    async with writing(nats_server) as journal, connected(nats_server.url) as here:
        await append_events(journal, ALICE, 10)
        async with EventBus(here).subscribe_to_event_stored("shop", known=KNOWN) as subscription:
            assert versions_of(await take_and_close(subscription, 5)) == [1, 2, 3, 4, 5]
            await journal.purge(ALICE, epoch=Epoch(2), writer="operator")
            await append_events(journal, ALICE)
            items = await take(subscription, 2)
            assert items[0] == Reset(ALICE, 1)
            assert versions_of(items) == [1]


async def test_a_link_that_is_cut_before_a_gap_is_read_costs_nothing_but_time(nats_server: EmbeddedServer) -> None:
    async with writing(nats_server) as journal, CutLink.to(nats_server.port) as link, connected(link.url) as here:
        await append_events(journal, ALICE, 30)
        async with EventBus(here).subscribe_to_event_stored("shop", known=KNOWN) as subscription, asyncio.TaskGroup() as tasks:
            lost = asyncio.Event()
            here.on_disconnect(lost.set)
            await link.cut()
            await lost.wait()
            reading = tasks.create_task(take(subscription, 31))
            await append_events(journal, ALICE)
            link.mend()
            assert versions_of(await reading) == list(range(1, 32))


async def test_a_stream_that_is_deleted_holds_up_no_other_namespace_and_is_told_when_it_is_made_anew(nats_server: EmbeddedServer) -> None:
    zoe = parse_actor_id("zoo", "animal", "zoe")
    async with writing(nats_server) as journal, connected(nats_server.url) as here:
        js = JetStream(journal.connection)
        zoo = Journal(js, (await ensure_streams(journal.connection, "zoo", StreamPlan(partitions=1))).partitions)
        await append_events(journal, ALICE, 3)
        await append_events(zoo, zoe, 2)
        async with EventBus(here).subscribe_to_event_stored(from_beginning=True) as subscription:
            assert versions_of(await take_and_close(subscription, 1)) == [1]
            await js.delete_stream("AETHER_shop_EVT_0")
            items = await take(subscription, 3)
            assert {(item.actor, item.version) for item in items if isinstance(item, EventStored)} == {(zoe, 1), (zoe, 2)}
            assert Reset(ALICE, 0) in items
            await ensure_streams(journal.connection, "shop", StreamPlan(partitions=1))
            await append_events(journal, ALICE, 2)
            assert versions_of(await take(subscription, 2)) == [1, 2]


async def test_a_gap_that_waits_long_is_told_once(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("aether_nats.event_subscription.RETRY_S", 0.0)
    monkeypatch.setattr("aether_nats.event_subscription.WARN_AFTER_S", 0.3)
    fail_after(monkeypatch, 0)
    async with writing(nats_server) as journal, connected(nats_server.url) as here:
        await append_events(journal, ALICE, 3)
        async with EventBus(here).subscribe_to_event_stored("shop", known=KNOWN) as subscription:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.5):
                    await anext(subscription.complete())
    assert caplog.text.count("a gap waits for its log") == 1


@pytest.mark.parametrize("found_each_time", [1, 5])
async def test_what_fails_in_the_middle_of_a_gap_is_read_again_from_there(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, found_each_time: int) -> None:
    monkeypatch.setattr("aether_nats.event_subscription.RETRY_S", 0.0)
    fail_after(monkeypatch, found_each_time)
    async with writing(nats_server) as journal, connected(nats_server.url) as here:
        await append_events(journal, ALICE, 5, events=3)
        async with EventBus(here).subscribe_to_event_stored("shop", from_beginning=True) as subscription:
            assert versions_of(await take(subscription, 15)) == list(range(1, 16))
            await append_events(journal, ALICE)
            assert versions_of(await take(subscription, 1)) == [16]


@pytest.mark.parametrize("one_loop", [True, False])
async def test_a_wait_for_the_next_item_may_be_given_up_and_taken_up_again(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, one_loop: bool) -> None:
    """What is read takes longer than any of the waits, as on a link to a server that is far away."""
    begun = slow_down(monkeypatch, 0.05)
    async with writing(nats_server) as journal, connected(nats_server.url) as here:
        await append_events(journal, ALICE, 10)
        async with EventBus(here).subscribe_to_event_stored("shop", known=KNOWN) as subscription:
            events, seen, given_up = subscription.complete(), list[Delivery](), 0
            async with asyncio.timeout(PATIENCE_S):
                while len(seen) < 10:
                    try:
                        async with asyncio.timeout(0.01):
                            seen.append(await anext(events if one_loop else subscription.complete()))
                    except TimeoutError:
                        given_up += 1
            assert versions_of(seen) == list(range(1, 11))
            assert given_up
            assert begun == [1], "nothing is read twice"
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(events)
            await append_events(journal, ALICE)
            async with asyncio.timeout(PATIENCE_S):
                assert versions_of([await anext(events)]) == [11], "a wait for what is stored later may be given up, too"


async def test_what_is_under_way_for_who_gave_up_ends_with_the_subscription(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(monkeypatch, 600.0)
    async with writing(nats_server) as journal, connected(nats_server.url) as here:
        await append_events(journal, ALICE, 10)
        before = asyncio.all_tasks()
        async with EventBus(here).subscribe_to_event_stored("shop", known=KNOWN) as subscription, asyncio.TaskGroup() as tasks:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await anext(subscription.complete())
            assert len(asyncio.all_tasks() - before) == 1
            waiting = tasks.create_task(end_of(subscription))
            await asyncio.sleep(0.05)
            await subscription.end()
            assert await waiting == []
        assert asyncio.all_tasks() - before == set()


async def end_of(subscription: EventSubscription) -> list[Delivery]:
    """Return what is told until the subscription ends."""
    return [item async for item in subscription.complete()]


async def test_closing_ends_who_waits_for_a_log_that_does_not_answer(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "aether_nats.event_subscription")
    monkeypatch.setattr("aether_nats.event_subscription.RETRY_S", 600.0)
    fail_after(monkeypatch, 1)
    async with writing(nats_server) as journal, connected(nats_server.url) as here:
        await append_events(journal, ALICE, 3)
        async with EventBus(here).subscribe_to_event_stored("shop", known=KNOWN) as subscription, asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(take(subscription, 3))
            async with asyncio.timeout(PATIENCE_S):
                while "cannot be read now" not in caplog.text:
                    await asyncio.sleep(0.01)
            subscription.close()
            assert versions_of(await reading) == [1]


async def test_a_connection_that_was_closed_ends_the_reading_of_a_gap_with_the_reason(nats_server: EmbeddedServer) -> None:
    async with writing(nats_server) as journal, connected(nats_server.url) as here:
        await append_events(journal, ALICE, 3)
        async with EventBus(here).subscribe_to_event_stored("shop", known=KNOWN) as subscription:
            await here.close()
            with pytest.raises(Disconnected, match="closed"):
                await take(subscription, 1)


async def test_closing_a_loop_ends_the_reading_of_its_gap_and_another_loop_goes_on_there(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    read_commits = Journal.read_commits

    async def read_watched(self: Journal, actor: ActorId, head: StoredCommit, *, from_n: int = 0) -> AsyncGenerator[Sequence[StoredCommit]]:
        try:
            async for commits in read_commits(self, actor, head, from_n=from_n):
                yield commits
        finally:
            ended.append(str(actor))

    monkeypatch.setattr(Journal, "read_commits", read_watched)
    async with writing(nats_server) as journal, connected(nats_server.url) as here:
        await append_events(journal, ALICE, READ_AHEAD_MAX + 8)
        async with EventBus(here).subscribe_to_event_stored("shop", known=KNOWN) as subscription:
            async with aclosing(subscription.complete()) as events, asyncio.timeout(PATIENCE_S):
                assert versions_of([await anext(events)]) == [1]
                assert ended == []
            assert ended == [str(ALICE)]
            assert versions_of(await take(subscription, 2)) == [2, 3]


def fail_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let each reading of a gap fail after so many items, as a log does that is lost in the middle."""

    async def fail() -> None:
        raise RequestTimeout("the log does not answer")

    stop_after(monkeypatch, count, fail)


def slow_down(monkeypatch: pytest.MonkeyPatch, pause_s: float) -> list[int]:
    """Let each event of a gap take so long; returns with which version each reading began."""
    read, begun = MissedReader.read, list[int]()

    async def read_slowly(self: MissedReader, gap: Gap, types: frozenset[str] = frozenset()) -> AsyncGenerator[EventStored | Unreadable]:
        begun.append(gap.from_version)
        async for item in read(self, gap, types):
            await asyncio.sleep(pause_s)
            yield item

    monkeypatch.setattr(MissedReader, "read", read_slowly)
    return begun


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int, stop: Callable[[], Awaitable[None]]) -> None:
    """Let each reading of a gap find so many items, and then meet something else."""
    read = MissedReader.read

    async def read_some(self: MissedReader, gap: Gap, types: frozenset[str] = frozenset()) -> AsyncGenerator[EventStored | Unreadable]:
        left = count
        async for item in read(self, gap, types):
            if not left:
                await stop()
            left -= 1
            yield item

    monkeypatch.setattr(MissedReader, "read", read_some)
