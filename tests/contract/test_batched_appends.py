"""Commits of many actors that are stored together: the promises of a journal hold for each of them, whatever happens to the batch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from msgspec.structs import replace

from aether_api.commit_index import NO_COMMITS
from aether_api.envelope import Commit, Event, StoredCommit, build_event_id, build_source, encode_event, encode_fields, join_events
from aether_api.errors import CommitTooLarge, VersionConflictError
from aether_api.headers import EXPECTED_SEQUENCE, encode_headers
from aether_api.identity import ActorId, Epoch, parse_actor_id
from aether_api.subjects import event_stream, event_subject
from aether_nats import appends
from aether_nats.appends import BATCH_MIN, SINGLES_MAX, build_batch_headers, choose_next
from aether_nats.connection import NatsConnection
from aether_nats.deliveries import EventStored
from aether_nats.embedded import EmbeddedServer
from aether_nats.event_bus import EventBus
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_nats.message import Message
from aether_nats.settings import NatsSettings
from aether_nats.streams import StreamPlan, build_event_config, ensure_streams
from tests.simulation.sockets import SocketServer

MANY = 100
ACTORS = [parse_actor_id("default", "account", f"a{number}") for number in range(MANY)]


Server = EmbeddedServer | SocketServer


@pytest.fixture(params=["nats-server", "simulated"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    async with EmbeddedServer.start(sync_always=True) if request.param == "nats-server" else SocketServer.start() as server:
        yield server


@pytest.fixture
async def connection(server: Server) -> AsyncIterator[NatsConnection]:
    connection = await NatsConnection.open(NatsSettings((server.url,)))
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def journal(connection: NatsConnection) -> Journal:
    layout = await ensure_streams(connection, "default", StreamPlan(partitions=1))
    assert layout.takes_batches
    return Journal(JetStream(connection), layout.partitions, batches=True)


def build_commit(actor: ActorId, head: StoredCommit | None = None, *, id: str = "", size: int = 0) -> Commit:
    version = head.last_version + 1 if head else 1
    event = Event("1.0", build_event_id(0, version), build_source(actor), "Deposited", "2026-07-01T12:00:00.000000Z", encode_fields({"amount": version, "note": "x" * size}))
    index = head.next_index() if head else NO_COMMITS
    return Commit(
        id or f"{actor.id}-{version}", actor, head.sequence if head else 0, version, version, index, Epoch(1), "pod/boot", "account@x", join_events([encode_event(event)])
    )


async def read_all(journal: Journal, actor: ActorId) -> list[StoredCommit]:
    head = await journal.read_head(actor)
    return [] if head is None else [commit async for batch in journal.read_commits(actor, head) for commit in batch]


def test_few_appends_go_alone_and_many_that_wait_go_together() -> None:
    assert choose_next(0, 0, may_batch=True) == "wait"
    assert choose_next(1, 0, may_batch=True) == "single"
    assert choose_next(BATCH_MIN - 1, SINGLES_MAX - 1, may_batch=True) == "single"
    assert choose_next(BATCH_MIN, SINGLES_MAX - 1, may_batch=True) == "batch"
    assert choose_next(BATCH_MIN, SINGLES_MAX, may_batch=True) == "wait"
    assert choose_next(BATCH_MIN, SINGLES_MAX, may_batch=False) == "single"


async def test_each_commit_of_a_batch_learns_its_own_sequence(journal: Journal) -> None:
    sequences = [await outcome for outcome in [journal.append(build_commit(actor)) for actor in ACTORS]]
    assert sorted(sequences) == list(range(1, MANY + 1))
    assert journal.batched > 0
    for actor, sequence in zip(ACTORS, sequences, strict=True):
        stored = await journal.read_at(actor, sequence)
        assert stored is not None
        assert stored.id == f"{actor.id}-1"


async def test_actors_go_on_from_commits_that_were_stored_together(journal: Journal) -> None:
    heads: dict[ActorId, StoredCommit | None] = dict.fromkeys(ACTORS)
    for _ in range(3):
        for outcome in [journal.append(build_commit(actor, heads[actor])) for actor in ACTORS]:
            await outcome
        heads = {actor: await journal.read_head(actor) for actor in ACTORS}
    for actor in ACTORS:
        assert [commit.last_version for commit in await read_all(journal, actor)] == [1, 2, 3]


async def test_a_conflict_refuses_its_own_commit_and_no_other_of_its_batch(journal: Journal, connection: NatsConnection) -> None:
    loser = ACTORS[MANY // 2]
    await Journal(JetStream(connection), 1).append(build_commit(loser, id="foreign"))
    outcomes = {actor: journal.append(build_commit(actor)) for actor in ACTORS}
    for actor, outcome in outcomes.items():
        if actor == loser:
            with pytest.raises(VersionConflictError):
                await outcome
        else:
            await outcome
    for actor in ACTORS:
        assert [commit.id for commit in await read_all(journal, actor)] == ["foreign" if actor == loser else f"{actor.id}-1"]


async def test_a_commit_that_is_too_large_fails_alone(journal: Journal, connection: NatsConnection) -> None:
    sizes = {ACTORS[40]: connection.max_payload}
    outcomes = {actor: journal.append(build_commit(actor, size=sizes.get(actor, 0))) for actor in ACTORS}
    with pytest.raises(CommitTooLarge):
        await outcomes.pop(ACTORS[40])
    for outcome in outcomes.values():
        await outcome


async def test_a_commit_that_was_given_up_while_it_waited_is_not_stored(journal: Journal) -> None:
    outcomes = [journal.append(build_commit(actor)) for actor in ACTORS]
    outcomes[-1].cancel()
    for outcome in outcomes[:-1]:
        await outcome
    assert await read_all(journal, ACTORS[-1]) == []
    assert await journal.append(build_commit(ACTORS[-1])) == MANY


async def test_a_server_that_dies_with_batches_under_way_stores_each_commit_once(journal: Journal, server: Server) -> None:
    outcomes = [journal.append(build_commit(actor)) for actor in ACTORS]
    while not any(outcome.done() for outcome in outcomes):
        await asyncio.sleep(0)
    await server.kill()
    await server.run()
    await journal.connection.wait_connected()
    for actor, outcome in zip(ACTORS, outcomes, strict=True):
        async with asyncio.timeout(30):
            with suppress(VersionConflictError):  # the first try was stored and its ack lost
                await outcome
        assert [commit.id for commit in await read_all(journal, actor)] == [f"{actor.id}-1"]


async def publish_part(connection: NatsConnection, actor: ActorId, batch: str, place: int, *, expected: int, is_last: bool = False) -> Message:
    lines = build_batch_headers(batch, place, is_last=is_last) + encode_headers({EXPECTED_SEQUENCE: str(expected)})
    return await connection.request(event_subject(actor, 1), b"x", lines)


def read_outcome(answer: Message) -> tuple[int, int]:
    """Return the sequence and the number of the error, 0 for what is not there."""
    found = json.loads(answer.payload)
    return found.get("seq", 0), found.get("error", {}).get("err_code", 0)


async def test_the_server_stores_a_batch_whole_or_not_at_all(journal: Journal, connection: NatsConnection) -> None:
    """What the journal builds on, said in the server's own words."""
    one, other, third = ACTORS[:3]
    await publish_part(connection, one, "whole", 1, expected=0)
    assert read_outcome(await publish_part(connection, other, "whole", 2, expected=0, is_last=True)) == (2, 0)
    assert (await publish_part(connection, one, "conflict", 1, expected=99)).payload == b""
    assert read_outcome(await publish_part(connection, third, "conflict", 2, expected=0, is_last=True)) == (0, 10071)
    await publish_part(connection, one, "twice", 1, expected=1)
    assert read_outcome(await publish_part(connection, one, "twice", 2, expected=1, is_last=True)) == (0, 10164)
    await publish_part(connection, one, "hole", 1, expected=1)
    assert read_outcome(await publish_part(connection, other, "hole", 3, expected=2, is_last=True)) == (0, 10176)
    assert read_outcome(await publish_part(connection, one, "tail", 2, expected=1, is_last=True)) == (0, 10176)
    await publish_part(connection, one, "overtaken", 1, expected=1)
    await connection.request(event_subject(one, 1), b"x")
    assert read_outcome(await publish_part(connection, third, "overtaken", 2, expected=0, is_last=True)) == (0, 10071)
    assert await JetStream(connection).message_by_last(event_stream("default", 0), event_subject(third, 1)) is None


async def test_a_batch_whose_beginning_went_down_with_its_server_stores_nothing(journal: Journal, connection: NatsConnection, server: Server) -> None:
    await publish_part(connection, ACTORS[0], "cut", 1, expected=0)
    await server.kill()
    await server.run()
    await connection.wait_connected()
    assert read_outcome(await publish_part(connection, ACTORS[1], "cut", 2, expected=0, is_last=True)) == (0, 10176)
    assert await read_all(journal, ACTORS[1]) == []


async def test_where_the_stream_takes_no_batches_everything_is_stored_one_by_one(connection: NatsConnection) -> None:
    await JetStream(connection).create_stream(replace(build_event_config("default", 0, StreamPlan(partitions=1)), allow_atomic=False))
    layout = await ensure_streams(connection, "default", StreamPlan(partitions=1))
    assert not layout.takes_batches
    journal = Journal(JetStream(connection), layout.partitions, batches=True)
    for outcome in [journal.append(build_commit(actor)) for actor in ACTORS]:
        await outcome
    assert journal.batched == 0


async def test_commits_of_a_batch_are_announced_like_any_other(journal: Journal, connection: NatsConnection) -> None:
    async with EventBus(connection).subscribe_to_event_stored("default") as subscription:
        for outcome in [journal.append(build_commit(actor)) for actor in ACTORS]:
            await outcome
        seen: list[ActorId] = []
        async with asyncio.timeout(30):
            async for item in subscription:
                assert isinstance(item, EventStored)
                seen.append(item.actor)
                if len(seen) == MANY:
                    break
    assert journal.batched > 0
    assert set(seen) == set(ACTORS)


def test_a_batch_stays_within_what_the_server_takes() -> None:
    assert BATCH_MIN < appends.BATCH_MAX <= 1000
