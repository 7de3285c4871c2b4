"""The contract of the log of commits: in memory, on one server, and on three."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from msgspec.structs import replace

from aether_api.commit_index import NO_COMMITS
from aether_api.envelope import Commit, Event, StoredCommit, build_event_id, build_source, encode_event, encode_fields, join_events
from aether_api.errors import VersionConflictError
from aether_api.identity import ActorId, Epoch, parse_actor_id
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_runtime.adapters.memory import MemoryCommitLog
from aether_runtime.ports import CommitLog
from tests.histories.places import CATCH_UP_S, PLACES, open_place, until_equal

ALICE, BOB = parse_actor_id("default", "account", "alice"), parse_actor_id("default", "account", "bob")


@pytest.fixture(params=["memory", *PLACES])
async def events(request: pytest.FixtureRequest) -> AsyncIterator[CommitLog]:
    if request.param == "memory":
        yield MemoryCommitLog()
        return
    async with open_place(request.param, request) as place, place.with_streams() as connection:
        yield Journal(JetStream(connection), 1)


def build_commit(head: StoredCommit | None, *, actor: ActorId = ALICE, events: int = 1, id: str = "", epoch: int = 1, size: int = 0) -> Commit:
    """Return the commit that follows `head`."""
    first = (head.last_version if head else 0) + 1
    incarnation = head.incarnation if head else 0
    encoded = [
        encode_event(
            Event(
                "1.0", build_event_id(incarnation, version), build_source(actor), "Deposited", "2026-07-01T12:00:00.000000Z", encode_fields({"amount": version, "note": "x" * size})
            )
        )
        for version in range(first, first + events)
    ]
    index = head.next_index() if head else NO_COMMITS
    id = id or f"{actor.id}-{incarnation}-{index.n}"
    return Commit(id, actor, head.sequence if head else 0, first, first + events - 1, index, Epoch(epoch), "pod/boot", "account@x", join_events(encoded), incarnation)


async def ensure_stored(store: CommitLog, commit: Commit) -> int:
    """Store a commit that nobody contends for, and return its sequence.

    On a slow cluster an append is sent again whose ack was late, and what is sent while a write is in flight is refused before a read shows that write.
    """
    async with asyncio.timeout(CATCH_UP_S):
        while True:
            with suppress(VersionConflictError):
                return await store.append(commit)
            stored = await store.read_head(commit.actor)
            if stored is not None and stored.id == commit.id:
                return stored.sequence
            await asyncio.sleep(0.01)


async def append(store: CommitLog, *, actor: ActorId = ALICE, count: int = 1, events: int = 1) -> StoredCommit:
    """Append commits one after the other and return the last as it was stored."""
    head = await store.read_head(actor)
    for _ in range(count):
        commit = build_commit(head, actor=actor, events=events)
        sequence = await ensure_stored(store, commit)
        head = StoredCommit(
            commit.id,
            sequence,
            commit.index.n,
            commit.index.text,
            commit.first_version,
            commit.last_version,
            commit.epoch,
            commit.pod,
            commit.model,
            commit.incarnation,
            False,
            commit.payload,
        )
    assert head is not None
    return head


async def read(store: CommitLog, actor: ActorId = ALICE, from_n: int = 0) -> list[StoredCommit]:
    head = await store.read_head(actor)
    if head is None:
        return []
    return [commit async for batch in store.read_commits(actor, head, from_n=from_n) for commit in batch]


async def test_an_actor_without_commits_has_no_head(events: CommitLog) -> None:
    assert await events.read_head(ALICE) is None
    assert await events.read_at(ALICE, 1) is None


async def test_a_commit_reads_back_as_it_was_written(events: CommitLog) -> None:
    commit = build_commit(None, events=3, epoch=7)
    sequence = await events.append(commit)
    head = await events.read_head(ALICE)
    assert head == await events.read_at(ALICE, sequence)
    assert head is not None
    assert (head.id, head.sequence, head.n, head.first_version, head.last_version, head.epoch, head.pod, head.model) == (commit.id, sequence, 0, 1, 3, 7, "pod/boot", "account@x")
    assert head.payload == commit.payload
    assert [event.version for event in head.events()] == [1, 2, 3]


async def test_commits_are_read_in_order_up_to_the_head_that_is_asked_for(events: CommitLog) -> None:
    middle = await append(events, count=5)
    await append(events, count=3)
    assert [commit.n for commit in await read(events)] == list(range(8))
    assert [commit.n async for batch in events.read_commits(ALICE, middle) for commit in batch] == list(range(5))
    assert [commit.n async for batch in events.read_commits(ALICE, middle, from_n=3) for commit in batch] == [3, 4]
    assert [commit.n async for batch in events.read_commits(ALICE, middle, from_n=5) for commit in batch] == []


async def test_an_actor_sees_only_its_own_commits(events: CommitLog) -> None:
    mine = await append(events, actor=ALICE)
    other = await append(events, actor=BOB)
    assert await events.read_at(ALICE, other.sequence) is None
    assert [commit.id for commit in await read(events, ALICE)] == [mine.id]
    assert [commit.id for commit in await read(events, BOB)] == [other.id]


async def test_an_append_after_another_sequence_than_the_last_is_refused(events: CommitLog) -> None:
    head = await append(events, count=2)
    stale = build_commit(await events.read_at(ALICE, (await read(events))[0].sequence), id="stale")
    with pytest.raises(VersionConflictError):
        await events.append(stale)
    with pytest.raises(VersionConflictError):
        await events.append(build_commit(None, id="first"))
    with pytest.raises(VersionConflictError):
        await events.append(replace(build_commit(head, id="ahead"), expected_sequence=head.sequence + 1))
    assert [commit.id for commit in await read(events)] == ["alice-0-0", "alice-0-1"]


async def test_an_identical_resend_is_refused_and_the_tail_holds_its_id(events: CommitLog) -> None:
    """So a writer that lost the ack finds out that its commit was stored."""
    head = await append(events)
    commit = build_commit(head, id="mine")
    await events.append(commit)
    with pytest.raises(VersionConflictError):
        await events.append(commit)
    await append(events, count=40)
    assert (await read(events, from_n=commit.index.n))[0].id == "mine"


async def test_of_many_appends_at_once_one_is_stored(events: CommitLog) -> None:
    head = await append(events)
    outcomes = [events.append(build_commit(head, id=f"writer-{number}")) for number in range(20)]
    stored = 0
    for outcome in outcomes:
        try:
            await outcome
            stored += 1
        except VersionConflictError:
            continue
    assert stored == 1
    assert len(await read(events)) == 2


@pytest.mark.slow
async def test_two_thousand_commits_between_those_of_others_read_back_whole_and_from_the_middle(events: CommitLog) -> None:
    await append(events, actor=BOB, count=5)
    for _ in range(20):
        await append(events, actor=ALICE, count=100)
        await append(events, actor=BOB, count=7)
    commits = await read(events)
    assert [(commit.n, commit.first_version) for commit in commits] == [(n, n + 1) for n in range(2000)]
    assert [event.fields()["amount"] for commit in commits for event in commit.events()] == list(range(1, 2001))
    for from_n in (1, 31, 32, 1000, 1023, 1024, 1025, 1999, 2000):
        assert [commit.n for commit in await read(events, from_n=from_n)] == list(range(from_n, 2000))
    if isinstance(events, Journal):
        assert events.scans == 0


async def test_a_purge_leaves_a_tombstone_that_begins_a_new_life(events: CommitLog) -> None:
    before = await append(events, count=40)
    await append(events, actor=BOB, count=3)
    await events.purge(ALICE, epoch=Epoch(9), writer="operator")
    head = await events.read_head(ALICE)
    assert head is not None
    assert (head.tombstone, head.incarnation, head.n, head.epoch, head.index_text, head.events()) == (True, 1, 0, 9, "", [])
    assert head.sequence > before.sequence
    await until_equal(lambda: events.read_at(ALICE, before.sequence), None)
    assert [commit.tombstone for commit in await read(events)] == [True]
    assert len(await read(events, BOB)) == 3


async def test_versions_count_from_one_again_after_a_purge(events: CommitLog) -> None:
    await append(events, count=3)
    await events.purge(ALICE, epoch=Epoch(2), writer="operator")
    await append(events, count=35)
    commits = await read(events)
    assert [(commit.n, commit.first_version, commit.tombstone) for commit in commits] == [(0, 0, True), *((n, n, False) for n in range(1, 36))]
    assert [event.id for event in commits[1].events()] == ["1.1"]


async def test_a_writer_from_before_a_purge_is_refused(events: CommitLog) -> None:
    head = await append(events, count=3)
    await events.purge(ALICE, epoch=Epoch(2), writer="operator")
    with pytest.raises(VersionConflictError):
        await events.append(build_commit(head, id="zombie"))


async def test_a_purge_may_be_repeated_and_never_takes_a_new_life(events: CommitLog) -> None:
    await append(events, count=3)
    await events.purge(ALICE, epoch=Epoch(2), writer="operator")
    first = await events.read_head(ALICE)
    await events.purge(ALICE, epoch=Epoch(2), writer="operator")
    assert await events.read_head(ALICE) == first


async def test_a_purge_of_nothing_does_nothing(events: CommitLog) -> None:
    await events.purge(ALICE, epoch=Epoch(2), writer="operator")
    assert await events.read_head(ALICE) is None


async def test_a_purge_never_lowers_the_epoch(events: CommitLog) -> None:
    await events.append(build_commit(None, epoch=9))
    await events.purge(ALICE, epoch=Epoch(2), writer="operator")
    head = await events.read_head(ALICE)
    assert head is not None
    assert head.epoch == 9


async def test_an_append_that_is_given_up_leaves_the_log_usable(events: CommitLog) -> None:
    outcome = events.append(build_commit(None))
    outcome.cancel()
    for _ in range(10):  # what was given up may still be on its way, so the first try may lose to it
        head = await events.read_head(ALICE)
        with suppress(VersionConflictError):
            await events.append(build_commit(head, id="next"))
            break
    assert [commit.id for commit in await read(events)][-1] == "next"


async def test_a_scan_yields_all_that_stands_after_a_sequence(events: CommitLog) -> None:
    await append(events, count=3)
    await append(events, actor=BOB)
    last = await append(events, count=300)
    commits = await read(events)
    found = [item async for batch in events.scan(ALICE) for item in batch]
    assert found == commits
    assert [item.sequence async for batch in events.scan(ALICE, after_sequence=commits[2].sequence) for item in batch] == [commit.sequence for commit in commits[3:]]
    assert [batch async for batch in events.scan(ALICE, after_sequence=last.sequence) if batch] == []
