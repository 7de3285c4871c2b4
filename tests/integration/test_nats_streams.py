"""The streams of a namespace on a real server: made once, by whoever comes first, and kept as they are."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aether_api.errors import Disconnected, InvalidName, JetStreamError, SettingsInvalid, StreamUnavailable, WrongLastSequence
from aether_api.headers import EXPECTED_SEQUENCE, encode_headers
from aether_api.identity import ActorId, parse_actor_id
from aether_api.subjects import partition_of, snapshot_subject, stored_subject
from aether_nats.embedded import EmbeddedServer
from aether_nats.jetstream import JetStream
from aether_nats.jetstream_wire import StreamConfig
from aether_nats.message import Message
from aether_nats.settings import NatsSettings
from aether_nats.streams import CREATE_TIMEOUT_S, SNAPSHOTS_KEPT, StreamLayout, StreamPlan, delete_streams, ensure_streams, read_layout
from tests.histories.cluster import connected

pytestmark = pytest.mark.asyncio

ALICE = parse_actor_id("bank", "account", "alice")


def expect(sequence: int) -> bytes:
    return encode_headers({EXPECTED_SEQUENCE: str(sequence)})


def actor_of_partition(partition: int, partitions: int) -> ActorId:
    ids = (f"a{number}" for number in range(1000))
    return next(actor for id in ids if partition_of(actor := parse_actor_id("bank", "account", id), partitions) == partition)


async def test_a_namespace_gets_event_streams_snapshots_and_an_inbox() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as connection:
        assert await read_layout(connection, "bank") is None
        layout = await ensure_streams(connection, "bank")
        assert layout == StreamLayout("bank", 4, takes_batches=True) == await read_layout(connection, "bank")
        names = await JetStream(connection).stream_names("aether.bank.>")
        assert sorted(names) == sorted([*layout.event_streams, "AETHER_bank_SNAP", "AETHER_bank_INBOX"])
        assert layout.event_streams[3] == "AETHER_bank_EVT_3"


async def test_the_number_of_partitions_never_changes_once_it_is_fixed() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as connection:
        await ensure_streams(connection, "bank", StreamPlan(partitions=2))
        assert (await ensure_streams(connection, "bank", StreamPlan(partitions=8))).partitions == 2
        assert len(await JetStream(connection).stream_names("aether.bank.evt.>")) == 2


async def test_many_that_come_first_together_agree() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as one, connected(server.url) as other:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(ensure_streams(connection, "bank", StreamPlan(partitions=partitions)), name=f"creator-{partitions}")
                for partitions in (1, 2, 3, 5)
                for connection in (one, other)
            ]
        agreed = {task.result().partitions for task in tasks}
        assert len(agreed) == 1
        assert len(await JetStream(one).stream_names("aether.bank.evt.>")) == agreed.pop()


async def test_streams_that_were_half_made_are_completed() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as connection:
        layout = await ensure_streams(connection, "bank", StreamPlan(partitions=3))
        js = JetStream(connection)
        await js.delete_stream(layout.event_streams[2])
        await js.delete_stream(layout.snapshot_stream)
        await ensure_streams(connection, "bank")
        assert len(await js.stream_names("aether.bank.>")) == 5


@pytest.mark.parametrize("partition", [0, 1])
async def test_an_event_stream_that_was_lost_is_not_made_anew_without_a_word(partition: int, caplog: pytest.LogCaptureFixture) -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as connection:
        layout = await ensure_streams(connection, "bank", StreamPlan(partitions=2))
        js = JetStream(connection)
        assert not caplog.records
        await js.delete_stream(layout.snapshot_stream)
        await js.delete_stream(layout.event_streams[partition])
        assert (await ensure_streams(connection, "bank", StreamPlan(partitions=5))).partitions == 2, "histories that are left stay where they are looked for"
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("ERROR", "an event stream was gone and is made anew; the histories that it held are lost, and its actors begin anew")
    ]


async def test_streams_that_are_there_are_only_read() -> None:
    """Making a stream takes the leader of all JetStream, and one that is there needs none: a runtime starts while that leader is away."""
    async with EmbeddedServer.start() as server, connected(server.url) as connection:
        layout = await ensure_streams(connection, "bank", StreamPlan(partitions=3))
        await JetStream(connection).delete_stream(layout.event_streams[2])
        asked: list[str] = []
        connection.subscribe("$JS.API.STREAM.>", lambda message: asked.append(message.subject))
        for missing in ([layout.event_streams[2]], []):
            asked.clear()
            assert await ensure_streams(connection, "bank", StreamPlan(partitions=3)) == layout
            await connection.flush()
            assert [subject.removeprefix("$JS.API.STREAM.") for subject in asked if ".INFO." not in subject] == [f"CREATE.{name}" for name in missing]


async def test_every_partition_takes_the_commits_of_its_actors_and_announces_them() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as connection:
        layout = await ensure_streams(connection, "bank", StreamPlan(partitions=3))
        announced: list[Message] = []
        complete = asyncio.Event()

        def take(message: Message) -> None:
            announced.append(message)
            if len(announced) == 3:
                complete.set()

        connection.subscribe("aether.bank.stored.>", take)
        js = JetStream(connection)
        actors = [actor_of_partition(partition, 3) for partition in range(3)]
        for actor in actors:
            ack = await js.publish(layout.event_subject(actor), b"commit", expect(0))
            assert ack.stream == layout.event_stream(actor)
            with pytest.raises(WrongLastSequence):
                await js.publish(layout.event_subject(actor), b"refused", expect(0))
        async with asyncio.timeout(10):
            await complete.wait()
        await connection.flush()
        assert [message.subject for message in announced] == [stored_subject(actor) for actor in actors]
        assert [(message.payload, message.headers()["Nats-Sequence"], message.headers()["Nats-Last-Sequence"]) for message in announced] == [(b"commit", "1", "0")] * 3


async def test_without_broadcast_nothing_is_announced() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as connection:
        layout = await ensure_streams(connection, "bank", StreamPlan(broadcast=False))
        announced: list[Message] = []
        connection.subscribe("aether.bank.stored.>", announced.append)
        await JetStream(connection).publish(layout.event_subject(ALICE), b"commit")
        await connection.flush()
        assert announced == []


async def test_a_single_event_cannot_be_deleted_and_an_actor_can_be_purged() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as connection:
        layout = await ensure_streams(connection, "bank")
        js, subject, stream = JetStream(connection), layout.event_subject(ALICE), layout.event_stream(ALICE)
        for sequence in range(3):
            await js.publish(subject, b"commit", expect(sequence))
        answer = await connection.request(f"$JS.API.STREAM.MSG.DELETE.{stream}", b'{"seq":1}')
        assert b"10057" in answer.payload  # message delete not permitted
        assert await js.purge(stream, subject, keep=1) == 2


async def test_only_the_newest_snapshots_of_an_actor_are_kept() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as connection:
        layout = await ensure_streams(connection, "bank")
        js, subject = JetStream(connection), snapshot_subject(ALICE, "fold1")
        for number in range(5):
            await js.publish(subject, b"%d" % number)
        kept, _ = await js.read_batch(layout.snapshot_stream, subject, 0, 10)
        assert [message.payload for message in kept] == [b"3", b"4"]
        assert len(kept) == SNAPSHOTS_KEPT


async def test_events_survive_a_crash_of_the_server(tmp_path: Path) -> None:
    async with EmbeddedServer.start(tmp_path) as server, connected(server.url) as connection:
        layout = await ensure_streams(connection, "bank")
        js = JetStream(connection)
        await js.publish(layout.event_subject(ALICE), b"kept", expect(0))
        await server.kill()
        await server.run()
        async with asyncio.timeout(10):
            await connection.wait_connected()
        found = await js.message_by_last(layout.event_stream(ALICE), layout.event_subject(ALICE))
        assert found is not None
        assert found.payload == b"kept"
        assert await read_layout(connection, "bank") == layout


async def test_deleting_takes_only_the_streams_of_that_namespace() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as connection:
        for namespace in ("bank", "bank-2"):
            await ensure_streams(connection, namespace, StreamPlan(partitions=2))
        assert await delete_streams(connection, "bank") == 4
        assert await read_layout(connection, "bank") is None
        assert await read_layout(connection, "bank-2") == StreamLayout("bank-2", 2, takes_batches=True)


async def test_a_plan_that_cannot_work_is_refused_and_says_why() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as connection:
        with pytest.raises(SettingsInvalid, match="partitions must be 1 to 64"):
            await ensure_streams(connection, "bank", StreamPlan(partitions=65))
        with pytest.raises(InvalidName, match="namespace"):
            await ensure_streams(connection, "Bank.*")
        with pytest.raises(JetStreamError, match="replicas"):
            await ensure_streams(connection, "bank", StreamPlan(replicas=3))


async def test_a_foreign_stream_of_our_name_is_not_touched() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as connection:
        await JetStream(connection).create_stream(StreamConfig(name="AETHER_bank_EVT_0", subjects=("mine",)))
        with pytest.raises(SettingsInvalid, match="not made by Aether"):
            await ensure_streams(connection, "bank")


@pytest.mark.parametrize("fast", [True, False])
async def test_a_server_without_jetstream_is_not_waited_for_long_and_the_error_says_what_to_do(fast: bool) -> None:
    async with EmbeddedServer.start(extra_config="jetstream: false") as server, connected(NatsSettings((server.url,), fast=fast)) as connection:
        async with asyncio.timeout(CREATE_TIMEOUT_S / 2):
            with pytest.raises(StreamUnavailable, match="JetStream is off on the NATS server, and no other one answers for it: turn it on"):
                await ensure_streams(connection, "bank")


async def test_a_connection_that_was_closed_is_not_tried_again() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as connection:
        await connection.close()
        async with asyncio.timeout(CREATE_TIMEOUT_S / 2):
            with pytest.raises(Disconnected, match="closed"):
                await ensure_streams(connection, "bank")
