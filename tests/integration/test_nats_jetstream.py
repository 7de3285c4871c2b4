"""The JetStream calls on a real server, for both layers of the connection, and on the simulated server."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from aether_api.errors import JetStreamError, NoResponders, RequestTimeout, StreamUnavailable, WrongLastSequence
from aether_api.headers import EXPECTED_SEQUENCE, encode_headers
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.jetstream import BATCH_BYTES_MAX, READS_IN_FLIGHT_MAX, JetStream
from aether_nats.jetstream_wire import ERROR_STREAM_EXISTS, StoredMessage, StreamConfig, stored_of
from aether_nats.pull import Pull, Pulled, Wanted
from aether_nats.settings import NatsSettings
from tests.simulation.sockets import SocketServer

pytestmark = [pytest.mark.asyncio, pytest.mark.parametrize("fast", [True, False, None], ids=["fast", "plain", "simulated"])]

CONFIG = StreamConfig(name="S", subjects=("s.>",))


@asynccontextmanager
async def jetstream(*, fast: bool | None, config: StreamConfig = CONFIG) -> AsyncGenerator[JetStream, None]:
    async with EmbeddedServer.start() if fast is not None else SocketServer.start() as server:
        connection = await NatsConnection.open(NatsSettings(servers=(server.url,), fast=fast is not False))
        js = JetStream(connection)
        await js.create_stream(config)
        try:
            yield js
        finally:
            await connection.close()


def expect(sequence: int) -> bytes:
    return encode_headers({EXPECTED_SEQUENCE: str(sequence), "Aether-Commit": f"after-{sequence}"})


def payloads(messages: list[StoredMessage]) -> list[bytes]:
    return [message.payload for message in messages]


async def read_lasts(js: JetStream, *subjects: str) -> list[StoredMessage]:
    return [message async for message in js.multi_last("S", subjects)]


async def test_an_append_is_acknowledged_with_its_sequence(fast: bool | None) -> None:
    async with jetstream(fast=fast) as js:
        first = await js.publish("s.a", b"1", expect(0))
        second = await js.publish("s.a", b"2", expect(first.sequence))
        assert (first.stream, first.sequence, second.sequence, second.duplicate) == ("S", 1, 2, False)


async def test_an_append_after_another_sequence_is_refused_and_names_the_last(fast: bool | None) -> None:
    async with jetstream(fast=fast) as js:
        await js.publish("s.a", b"1", expect(0))
        await js.publish("s.b", b"other", expect(0))
        with pytest.raises(WrongLastSequence) as refused:
            await js.publish("s.a", b"2", expect(0))
        assert refused.value.last == 1
        info = await js.stream_info("S")
        assert info is not None
        assert info.state.messages == 2


async def test_a_message_id_is_stored_once(fast: bool | None) -> None:
    async with jetstream(fast=fast) as js:
        once = encode_headers({"Nats-Msg-Id": "m-1"})
        first, second = await js.publish("s.a", b"1", once), await js.publish("s.a", b"1", once)
        assert (second.sequence, second.duplicate) == (first.sequence, True)


async def test_a_subject_without_a_stream_is_unavailable(fast: bool | None) -> None:
    async with jetstream(fast=fast) as js:
        with pytest.raises(StreamUnavailable):
            await js.publish("elsewhere", b"")
        with pytest.raises(StreamUnavailable):
            await js.message_by_sequence("NONE", 1)
        with pytest.raises(StreamUnavailable):
            await js.messages_by_sequence("NONE", [1, 2, 3])


async def test_the_last_message_is_read_with_headers_from_the_leader_and_directly(fast: bool | None) -> None:
    async with jetstream(fast=fast) as js:
        await js.publish("s.a", b"1", expect(0))
        await js.publish("s.a", b"\x00\xff", expect(1))
        for found in (await js.message_by_last("S", "s.a"), await js.direct_by_last("S", "s.a"), await js.message_by_sequence("S", 2)):
            assert found is not None
            assert (found.subject, found.sequence, found.payload) == ("s.a", 2, b"\x00\xff")
            assert b"Aether-Commit: after-1\r\n" in found.raw_headers
            assert found.time.endswith("Z")


async def test_what_is_not_there_is_none_and_a_missing_stream_an_error(fast: bool | None) -> None:
    async with jetstream(fast=fast) as js:
        assert await js.message_by_last("S", "s.none") is None
        assert await js.direct_by_last("S", "s.none") is None
        assert await js.message_by_sequence("S", 7) is None
        assert await read_lasts(js, "s.none") == []
        assert await js.stream_info("NONE") is None
        assert await js.delete_stream("NONE") is False
        with pytest.raises(StreamUnavailable, match="there is no stream NONE; restore it from a backup"):
            await js.message_by_last("NONE", "s.a")


async def test_many_sequences_are_read_each_with_one_answer_whether_it_is_there_or_not(fast: bool | None) -> None:
    async with jetstream(fast=fast) as js:
        count = 2 * READS_IN_FLIGHT_MAX + 10
        for number in range(count):
            await js.publish(f"s.{number % 3}", b"%d" % number)
        wanted = [*range(count, 0, -1), count + 1]
        found = [stored_of(answer) for answer in await js.messages_by_sequence("S", wanted)]
        assert found.count(None) == 1
        assert sorted((message.sequence, message.payload) for message in found if message) == [(sequence, b"%d" % (sequence - 1)) for sequence in range(1, count + 1)]


async def test_multi_last_reads_the_heads_of_many_subjects(fast: bool | None) -> None:
    async with jetstream(fast=fast) as js:
        for value in (b"old", b"new"):
            for number in range(599):
                js.connection.publish(f"s.{number}", value)
            await js.publish("s.599", value)  # its ack comes once all before it are stored
        found = await read_lasts(js, *[f"s.{number}" for number in range(700)])
        assert sorted(message.subject for message in found) == sorted(f"s.{number}" for number in range(600))
        assert {message.payload for message in found} == {b"new"}
        assert len(await read_lasts(js, "s.1", "s.>")) == 600


async def test_heads_that_are_large_are_not_all_in_memory_at_once(fast: bool | None) -> None:
    async with jetstream(fast=fast) as js:
        for number in range(30):
            await js.publish(f"s.{number}", b"x" * 500_000)
        tracemalloc.start()
        found = [message.subject async for message in js.multi_last("S", [f"s.{number}" for number in range(30)])]
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found == [f"s.{number}" for number in range(30)]
        assert peak_bytes < 4 * BATCH_BYTES_MAX, "of 15 MB"


async def test_a_batch_is_read_from_a_sequence_with_what_is_left(fast: bool | None) -> None:
    async with jetstream(fast=fast) as js:
        for number in range(10):
            await js.publish("s.a", b"%d" % number)
            await js.publish("s.b", b"other")
        first, left = await js.read_batch("S", "s.a", 0, 4)
        rest, none_left = await js.read_batch("S", "s.a", first[-1].sequence + 1, 100)
        assert (payloads(first), left) == ([b"0", b"1", b"2", b"3"], 6)
        assert (payloads(rest), none_left) == ([b"%d" % number for number in range(4, 10)], 0)
        assert await js.read_batch("S", "s.none", 0, 4) == ([], 0)


async def fill(js: JetStream, count: int) -> None:
    for number in range(count):
        await js.publish("s.a", b"%d" % number, expect(2 * number - 1 if number else 0))
        await js.publish("s.b", b"other")


async def take_all(pull: Pull) -> list[Pulled]:
    taken: list[Pulled] = []
    while pulled := await pull.take():
        taken.append(pulled)
    return taken


async def is_gone(js: JetStream, consumer: str) -> bool:
    try:
        await js.connection.request(f"$JS.API.CONSUMER.MSG.NEXT.S.{consumer}", b'{"batch":1,"no_wait":true}', timeout_s=0.2)
    except NoResponders:
        return True
    except RequestTimeout:  # it ended with the request in its hands
        pass
    return False


async def test_a_consumer_delivers_what_was_asked_for_and_is_gone_when_it_is_closed(fast: bool | None) -> None:
    async with jetstream(fast=fast) as js:
        await fill(js, 60)
        pull = await js.open_pull("S", "s.a", 20, Wanted(45))
        taken = await take_all(pull)
        assert [sequence for pulled in taken for sequence in pulled.sequences] == list(range(21, 111, 2))
        assert [payload for pulled in taken for payload in pulled.payloads] == [b"%d" % number for number in range(10, 55)]
        assert all(b"\r\nAether-Commit: after-" in raw for pulled in taken for raw in pulled.raw_headers)
        assert not await pull.take()
        consumer = pull.consumer
        pull.close()
        async with asyncio.timeout(5):  # the server may take a request that was sent later before the end of the consumer
            while not await is_gone(js, consumer):
                await asyncio.sleep(0.02)


async def test_a_consumer_that_has_less_than_was_asked_for_says_so_in_time(fast: bool | None) -> None:
    async with jetstream(fast=fast) as js:
        await fill(js, 3)
        pull = await JetStream(js.connection, timeout_s=0.3).open_pull("S", "s.a", 1, Wanted(4))
        assert len((await pull.take()).payloads) == 3
        with pytest.raises((RequestTimeout, JetStreamError)):
            await pull.take()
        pull.close()


async def test_a_consumer_that_somebody_deletes_ends_at_once(fast: bool | None) -> None:
    async with jetstream(fast=fast) as js:
        await fill(js, 3)
        pull = await js.open_pull("S", "s.a", 1, Wanted(4))
        assert len((await pull.take()).payloads) == 3
        await js.connection.request(f"$JS.API.CONSUMER.DELETE.S.{pull.consumer}", b"")
        async with asyncio.timeout(2):
            with pytest.raises((JetStreamError, StreamUnavailable)):
                await pull.take()
        pull.close()


async def test_a_stream_that_is_not_there_has_no_consumer(fast: bool | None) -> None:
    async with jetstream(fast=fast) as js:
        with pytest.raises(JetStreamError, match="not found"):
            await js.open_pull("NONE", "s.a", 1, Wanted(1))


async def test_a_purge_keeps_the_newest_or_what_is_not_below_a_sequence(fast: bool | None) -> None:
    async with jetstream(fast=fast) as js:
        for subject in ("s.a", "s.b", "s.c"):
            for number in range(5):
                await js.publish(subject, b"%d" % number)
        assert await js.purge("S", "s.a", keep=1) == 4
        assert await js.purge("S", "s.b", before_sequence=8) == 2
        assert await js.purge("S", "s.c") == 5
        info = await js.stream_info("S", subjects_filter=">")
        assert info is not None
        assert info.state.subjects == {"s.a": 1, "s.b": 3}
        assert (await js.publish("s.c", b"again", expect(0))).sequence == 16


async def test_creating_again_is_harmless_only_with_an_equal_configuration(fast: bool | None) -> None:
    async with jetstream(fast=fast) as js:
        await js.create_stream(CONFIG)
        changed = StreamConfig(name="S", subjects=("s.>",), max_msgs_per_subject=1)
        with pytest.raises(JetStreamError) as refused:
            await js.create_stream(changed)
        assert refused.value.error_code == ERROR_STREAM_EXISTS
        assert (await js.update_stream(changed)).config.max_msgs_per_subject == 1
        assert await js.stream_names("s.x") == ["S"]
        assert await js.delete_stream("S") is True
        assert await js.stream_names(">") == []
