"""Inboxes, dead letters and schedules on a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import msgspec
import pytest

from aether_api.durable import DeadLetter, InboxPosition, build_durable_headers, parse_durable
from aether_api.errors import CommandFailed, Disconnected, InvalidEnvelope, JetStreamError, PermanentError, PermissionDenied
from aether_api.headers import STORED_SEQUENCE
from aether_api.identity import CommandId, Epoch, parse_actor_id
from aether_api.messages import Command, format_time
from aether_api.subjects import inbox_subject, parse_wake_subject, wake_wildcard
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.inbox import READ_AHEAD, Inbox, Tries, purge_inbox, read_inbox_end
from aether_nats.jetstream import BATCH_BYTES_MAX, JetStream
from aether_nats.jetstream_wire import StreamConfig, WholeConfig
from aether_nats.journal import Journal
from aether_nats.message import Message
from aether_nats.schedules import Reminder, Schedules
from aether_nats.settings import NatsSettings
from aether_nats.streams import ensure_streams
from tests.histories.places import Place, until_equal

ALICE = parse_actor_id("bank", "account", "alice")
BOB = parse_actor_id("bank", "account", "bob")
NOW_S = 1_769_860_800.0


def build_command(id: str, name: str = "Deposit", payload: bytes = b'{"amount":1}') -> Command:
    return Command(ALICE, name, CommandId(id), payload, format_time(NOW_S), NOW_S, 10.0)


@dataclass
class Rig:
    """The streams of a namespace, and the hints that came."""

    connection: NatsConnection
    js: JetStream
    inbox: Inbox
    hints: asyncio.Queue[tuple[str, int]] = field(default_factory=asyncio.Queue)

    def on_wake(self, message: Message) -> None:
        assert message.payload == b""
        self.hints.put_nowait((parse_wake_subject(message.subject).id, int(message.headers()[STORED_SEQUENCE])))

    async def hint(self) -> tuple[str, int]:
        async with asyncio.timeout(20):
            return await self.hints.get()


@pytest.fixture
async def rig(place: Place) -> AsyncIterator[Rig]:
    async with place.with_streams("bank") as connection:
        yield build_rig(connection)


@pytest.fixture
async def rig_alone(nats_server: EmbeddedServer) -> AsyncIterator[Rig]:
    """One on a server that a test may restart."""
    async with Place(NatsSettings((nats_server.url,)), 1).with_streams("bank") as connection:
        yield build_rig(connection)


def build_rig(connection: NatsConnection) -> Rig:
    js = JetStream(connection)
    rig = Rig(connection, js, Inbox(js, "bank"))
    connection.subscribe(wake_wildcard("bank"), rig.on_wake)
    return rig


async def read_ids(rig: Rig, after: int = 0) -> list[str]:
    found = await rig.inbox.read_next(ALICE, after)
    return [parse_durable(ALICE, InboxPosition(5, message.sequence), message.raw_headers, message.payload, stored=message.time).command.id for message in found]


async def test_a_durable_command_is_announced_and_read_back_in_order(rig: Rig) -> None:
    sequences = [(await rig.inbox.send(build_command(f"c-{number}"))).sequence for number in range(3)]
    assert [await rig.hint() for _ in sequences] == [("alice", sequence) for sequence in sequences]
    await until_equal(lambda: read_ids(rig, sequences[0]), ["c-1", "c-2"])
    assert await rig.inbox.read_next(ALICE, sequences[-1]) == []


async def test_the_backlog_tells_who_waits(rig: Rig) -> None:
    receipts = [await rig.inbox.send(build_command(f"c-{number}")) for number in range(3)]
    assert await rig.inbox.read_backlog() == {ALICE: 3}
    await until_equal(lambda: rig.inbox.find_last([ALICE, BOB]), {ALICE: receipts[-1].sequence})
    await rig.inbox.settle(ALICE, receipts[1].sequence)
    assert await rig.inbox.read_backlog() == {ALICE: 1}


async def test_a_command_sent_twice_is_stored_once(rig: Rig) -> None:
    client = CommandClient(rig.connection)
    first = await client.send_durable(ALICE, "Deposit", {"amount": 1}, command_id="c-1")
    again = await client.send_durable(ALICE, "Deposit", {"amount": 1}, command_id="c-1")
    assert (first.repeated, again.repeated, again.sequence) == (False, True, first.sequence)
    assert len(await rig.inbox.read_next(ALICE, 0)) == 1


async def test_a_durable_command_outlives_the_server(rig_alone: Rig, nats_server: EmbeddedServer) -> None:
    await rig_alone.inbox.send(build_command("c-1"))
    await nats_server.stop()
    await nats_server.run()
    await rig_alone.connection.wait_connected()
    assert [message.payload for message in await rig_alone.inbox.read_next(ALICE, 0)] == [b'{"amount":1}']


async def test_a_long_inbox_is_read_in_pieces(rig: Rig) -> None:
    for number in range(READ_AHEAD + 5):
        await rig.inbox.send(build_command(f"c-{number}"))
    ids = [f"c-{number}" for number in range(READ_AHEAD + 5)]
    await until_equal(lambda: read_ids(rig), ids[:READ_AHEAD])
    last = (await rig.inbox.read_next(ALICE, 0))[-1].sequence
    await until_equal(lambda: read_ids(rig, last), ids[READ_AHEAD:])


async def test_large_commands_are_read_until_they_are_as_many_bytes_as_wanted(rig: Rig) -> None:
    for number in range(4):
        await rig.inbox.send(build_command(f"c-{number}", payload=b" " * 2000))
    await until_equal(lambda: read_ids(rig), [f"c-{number}" for number in range(4)])
    assert len(await rig.inbox.read_next(ALICE, 0, max_bytes=3000)) == 2
    assert len(await rig.inbox.read_next(ALICE, 0, max_bytes=10)) == 1


async def test_dead_letters_are_listed_whatever_they_weigh(rig: Rig) -> None:
    for number in range(3):
        await rig.inbox.send(build_command(f"c-{number}", payload=b" " * BATCH_BYTES_MAX))
    await until_equal(lambda: read_ids(rig), ["c-0"])
    after = 0
    for _ in range(3):
        (message,) = await rig.inbox.read_next(ALICE, after)
        await rig.inbox.bury(ALICE, message, "CommandFailed", "it raised")
        after = message.sequence

    async def read_dead() -> list[str]:
        return [letter.command_id for letter in await rig.inbox.read_dead(ALICE)]

    await until_equal(read_dead, [f"c-{number}" for number in range(3)])


async def bury_one(rig: Rig, command: Command, explanation: str, more: bytes = b"") -> DeadLetter:
    ack = await rig.js.publish(inbox_subject(ALICE), command.payload, build_durable_headers(command) + more)
    (message,) = await rig.inbox.read_next(ALICE, ack.sequence - 1)
    await rig.inbox.bury(ALICE, message, "CommandFailed", explanation)
    return (await rig.inbox.read_dead(ALICE))[-1]


@pytest.mark.parametrize(("room", "is_kept"), [(400, True), (100, False)])
async def test_a_command_that_just_fits_into_a_message_can_be_buried(rig_alone: Rig, room: int, is_kept: bool) -> None:
    size = rig_alone.connection.max_payload - len(build_durable_headers(build_command("c-1"))) - room
    letter = await bury_one(rig_alone, build_command("c-1", payload=b" " * size), "it raised " * 100)
    assert (letter.command_id, letter.reason, letter.message[:9], len(letter.payload)) == ("c-1", "CommandFailed", "it raised", size * is_kept)
    if is_kept:
        await rig_alone.inbox.retry_dead(ALICE, letter.sequence)
    else:
        with pytest.raises(InvalidEnvelope, match=f"{size} bytes"):
            await rig_alone.inbox.retry_dead(ALICE, letter.sequence)
        assert [left.sequence for left in await rig_alone.inbox.read_dead(ALICE)] == [letter.sequence]


async def test_a_command_with_as_many_headers_as_the_server_takes_can_be_buried(rig_alone: Rig) -> None:
    letter = await bury_one(rig_alone, build_command("c-1"), "it raised " * 50, b"Aether-Tenant: " + b"t" * 65_200 + b"\r\n")
    assert (letter.command_id, letter.payload) == ("c-1", '{"amount":1}')


async def bound_messages(rig: Rig, max_msg_size: int) -> None:
    info = await rig.js.stream_info("AETHER_bank_INBOX")
    assert info is not None
    metadata = {key: value for key, value in info.config.metadata.items() if not key.startswith("_nats.")}
    await rig.js.update_stream(msgspec.structs.replace(info.config, metadata=metadata, max_msg_size=max_msg_size))


async def test_a_dead_letter_that_fits_in_no_form_is_refused(rig_alone: Rig) -> None:
    ack = await rig_alone.inbox.send(build_command("c-1"))
    await bound_messages(rig_alone, 20)
    (message,) = await rig_alone.inbox.read_next(ALICE, ack.sequence - 1)
    with pytest.raises(JetStreamError, match="10054"):
        await rig_alone.inbox.bury(ALICE, message, "CommandFailed", "it raised")


async def test_tries_are_kept_with_the_snapshots(rig: Rig) -> None:
    assert await rig.inbox.read_tries(ALICE) is None
    for count in (1, 2, 3):
        await rig.inbox.write_tries(ALICE, Tries(9, 7, count))
    assert await rig.inbox.read_tries(ALICE) == Tries(9, 7, 3)


async def test_a_dead_letter_can_be_retried_or_dropped_and_nobody_elses(rig: Rig) -> None:
    for number in range(2):
        await rig.inbox.send(build_command(f"c-{number}"))
    await until_equal(lambda: read_ids(rig), ["c-0", "c-1"])
    for message in await rig.inbox.read_next(ALICE, 0):
        await rig.inbox.bury(ALICE, message, "CommandFailed", "it raised")
        await rig.inbox.bury(ALICE, message, "CommandFailed", "it raised, and we did not hear the ack")
        await rig.inbox.settle(ALICE, message.sequence)
    await until_equal(lambda: read_dead_ids(rig), ["c-0", "c-1"])
    first, second = await rig.inbox.read_dead(ALICE)
    assert second.reason == "CommandFailed"
    with pytest.raises(InvalidEnvelope, match="no dead letter"):
        await rig.inbox.drop_dead(BOB, second.sequence)
    await rig.inbox.drop_dead(ALICE, first.sequence)
    sequence = await rig.inbox.retry_dead(ALICE, second.sequence)
    await until_equal(lambda: read_dead_ids(rig), [])
    await until_equal(lambda: read_ids(rig), ["c-1"])
    (message,) = await rig.inbox.read_next(ALICE, 0)
    assert message.sequence == sequence


@pytest.mark.parametrize("fault", ["denied", "lost"])
async def test_a_dead_letter_that_cannot_be_removed_does_not_run_without_a_word(rig: Rig, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    letter = await bury_one(rig, build_command("c-1"), "it raised")
    await rig.inbox.settle(ALICE, letter.sequence)
    delete = rig.js.delete_message

    async def fail(stream: str, sequence: int) -> bool:
        if fault == "denied":
            raise PermissionDenied(f"$JS.API.STREAM.MSG.DELETE.{stream}", "publish")
        if sequence == letter.sequence:
            raise Disconnected("the link is down")
        return await delete(stream, sequence)

    monkeypatch.setattr(rig.js, "delete_message", fail)
    with pytest.raises(PermanentError) as caught:
        await rig.inbox.retry_dead(ALICE, letter.sequence)
    assert await read_ids(rig) == ([] if fault == "denied" else ["c-1"])
    assert (f"aether dead drop account/alice {letter.sequence}" in str(caught.value)) == (fault == "lost")
    assert await read_dead_ids(rig) == ["c-1"]


async def read_dead_ids(rig: Rig) -> list[str]:
    return [letter.command_id for letter in await rig.inbox.read_dead(ALICE)]


async def test_the_stream_says_which_one_it_is(rig: Rig, place: Place) -> None:
    before = await rig.inbox.read_end()
    ack = await rig.inbox.send(build_command("c-1"))
    assert await rig.inbox.read_end() == InboxPosition(before.incarnation, ack.sequence)
    await rig.js.delete_stream("AETHER_bank_INBOX")
    await ensure_streams(rig.connection, "bank", place.plan())
    after = await rig.inbox.read_end()
    assert (after.incarnation > before.incarnation, after.sequence) == (True, 0)


async def test_a_stream_that_has_gone_back_becomes_another_one_once_and_keeps_its_configuration(rig: Rig) -> None:
    stream = "AETHER_bank_INBOX"
    await rig.js.set_metadata(stream, "team", "bank")
    config, before = await read_config(rig, stream), await rig.inbox.read_end()
    after = await rig.inbox.begin_anew(before, time.time())
    assert after.incarnation > before.incarnation
    assert await rig.inbox.begin_anew(before, time.time() + 60) == after == await rig.inbox.read_end()
    assert await read_inbox_end(rig.js, "bank") == after
    again = await rig.inbox.begin_anew(after, 0.0)
    assert again.incarnation == after.incarnation + 1, "whatever the clock says"
    now = await read_config(rig, stream)
    metadata = now.pop("metadata")
    assert isinstance(metadata, dict)
    assert metadata["team"] == "bank"
    config.pop("metadata")
    assert now == config


async def read_config(rig: Rig, stream: str) -> dict[str, object]:
    answer = await rig.connection.request(f"$JS.API.STREAM.INFO.{stream}", b"", b"", 20.0)
    return dict(msgspec.json.decode(answer.payload, type=WholeConfig).config)


async def test_an_inbox_of_an_earlier_release_learns_to_hint_and_keeps_its_limits(rig: Rig) -> None:
    await rig.js.delete_stream("AETHER_bank_INBOX")
    subjects = tuple(f"aether.bank.{kind}.>" for kind in ("inbox", "reminder", "dead"))
    await rig.js.create_stream(StreamConfig("AETHER_bank_INBOX", subjects, max_bytes=1_000_000, metadata={"team": "bank"}))
    await ensure_streams(rig.connection, "bank")
    await rig.inbox.send(build_command("c-1"))
    assert (await rig.hint())[0] == "alice"
    info = await rig.js.stream_info("AETHER_bank_INBOX")
    assert info is not None
    assert (info.config.max_bytes, info.config.metadata["team"], info.config.allow_msg_schedules) == (1_000_000, "bank", True)


async def test_a_one_shot_comes_to_the_inbox_and_is_gone(rig: Rig) -> None:
    schedules = Schedules(rig.js)
    due = format_time(NOW_S)
    await schedules.set(ALICE, Reminder("dunning", "Remind", b'{"level":1}', f"@at {due}", due, missed="skip"), "t1")
    await rig.hint()
    await until_equal(lambda: read_ids(rig), ["dunning:t1"])
    (message,) = await rig.inbox.read_next(ALICE, 0)
    found = parse_durable(ALICE, InboxPosition(5, message.sequence), message.raw_headers, message.payload, stored=message.time)
    assert found.tick is not None
    assert (found.command.name, found.command.payload, found.command.id) == ("Remind", b'{"level":1}', "dunning:t1")
    assert (found.tick.due, found.tick.recurring, found.tick.missed) == (due, False, "skip")
    await until_equal(lambda: schedules.read_all(ALICE), [])


async def test_a_schedule_that_is_made_again_replaces_itself(rig: Rig) -> None:
    schedules, reminder = Schedules(rig.js), Reminder("interest", "AddInterest", b"{}", "@daily")
    for _ in range(2):
        await schedules.set(ALICE, reminder, "t1")
    await until_equal(lambda: schedules.read_all(ALICE), [(reminder, "t1")])


async def test_a_recurring_reminder_ticks_until_it_is_cancelled(rig: Rig) -> None:
    schedules = Schedules(rig.js)
    reminder = Reminder("interest", "AddInterest", b"{}", "* * * * * *", zone="Europe/Berlin", missed="collapse")
    await schedules.set(ALICE, reminder, "t1")
    await until_equal(lambda: schedules.read_all(ALICE), [(reminder, "t1")])
    for _ in range(2):
        await rig.hint()

    async def are_told_apart() -> bool:
        return len({id for id in await read_ids(rig) if id.startswith("interest:t1:20")}) >= 2

    await until_equal(are_told_apart, True)
    found = [parse_durable(ALICE, InboxPosition(5, m.sequence), m.raw_headers, m.payload, stored=m.time) for m in await rig.inbox.read_next(ALICE, 0)]
    assert all(item.tick is not None and item.tick.recurring for item in found)
    await schedules.cancel(ALICE, "interest", "t1")
    await schedules.cancel(ALICE, "interest", "t1")
    await until_equal(lambda: schedules.read_all(ALICE), [])


@pytest.mark.parametrize(("text", "zone", "match"), [("0 9 * * *", "", "six fields"), ("rubbish", "", "six fields"), ("0 0 9 * * *", "Moon/Crater", "time zone")])
async def test_a_schedule_that_the_server_cannot_read_costs_its_command(rig: Rig, text: str, zone: str, match: str) -> None:
    with pytest.raises(CommandFailed, match=match):
        await Schedules(rig.js).set(ALICE, Reminder("interest", "AddInterest", b"{}", text, zone=zone), "t1")


async def test_a_schedule_that_its_stream_finds_too_long_costs_its_command(rig_alone: Rig) -> None:
    await bound_messages(rig_alone, 1000)
    await Schedules(rig_alone.js).set(ALICE, Reminder("interest", "AddInterest", b"{}", "@daily"), "t1")
    with pytest.raises(CommandFailed, match="interest: it is longer"):
        await Schedules(rig_alone.js).set(ALICE, Reminder("interest", "AddInterest", b'{"why":"%s"}' % (b"x" * 1000), "@daily"), "t2")


async def test_a_one_shot_that_came_due_while_the_server_was_down_fires_at_its_start(rig_alone: Rig, nats_server: EmbeddedServer) -> None:
    due_s = time.time() + 1
    await Schedules(rig_alone.js).set(ALICE, Reminder("dunning", "Remind", b"{}", f"@at {format_time(due_s)}", format_time(due_s)), "t1")
    await nats_server.stop()
    await asyncio.sleep(max(0.0, due_s - time.time()))
    await nats_server.run()
    await rig_alone.connection.wait_connected()
    async with asyncio.timeout(20):
        while not await rig_alone.inbox.read_next(ALICE, 0):
            await asyncio.sleep(0.05)


async def test_a_purge_takes_what_waits_for_the_actor_and_leaves_what_waits_for_others(rig: Rig) -> None:
    journal, schedules = Journal(rig.js, 1), Schedules(rig.js)
    await rig.inbox.send(build_command("c-1"))
    await until_equal(lambda: read_ids(rig), ["c-1"])
    (message,) = await rig.inbox.read_next(ALICE, 0)
    await rig.inbox.bury(ALICE, message, "CommandFailed", "it raised")
    await schedules.set(ALICE, Reminder("interest", "AddInterest", b"{}", "@daily"), "t1")
    await CommandClient(rig.connection).send_durable(BOB, "Deposit")
    await journal.purge(ALICE, epoch=Epoch(2), writer="operator")
    assert await rig.inbox.read_backlog() == {BOB: 1}
    await until_equal(lambda: rig.inbox.read_dead(ALICE), [])
    await until_equal(lambda: schedules.read_all(ALICE), [])


async def test_a_purge_leaves_what_came_into_the_inbox_after_the_end_that_it_names(rig: Rig) -> None:
    await rig.inbox.send(build_command("c-1"))
    end = await read_inbox_end(rig.js, "bank")
    assert end is not None
    await rig.inbox.send(build_command("c-2"))
    await purge_inbox(rig.js, ALICE, end)
    await until_equal(lambda: read_ids(rig), ["c-2"])
