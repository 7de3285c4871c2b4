"""What the log on JetStream promises beyond the port: unknown outcomes, stale replicas, broken indexes, races with a purge."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest
from msgspec.structs import replace

from aether_api.commit_index import NO_COMMITS, CommitIndex
from aether_api.durable import parse_inbox_position
from aether_api.envelope import Commit, Event, StoredCommit, build_event_id, build_source, encode_event, encode_fields, join_events
from aether_api.errors import AetherError, CommitTooLarge, Disconnected, InvalidEnvelope, JetStreamError, PayloadTooLarge, RequestTimeout, StreamFull, VersionConflictError
from aether_api.headers import FIRST_LINE, decode_headers
from aether_api.identity import CommandId, Epoch, parse_actor_id
from aether_api.messages import Command
from aether_api.subjects import event_subject
from aether_nats import commit_reader
from aether_nats.connection import NatsConnection
from aether_nats.inbox import Inbox
from aether_nats.jetstream import JetStream
from aether_nats.jetstream_wire import StoredMessage, stored_of
from aether_nats.journal import Journal
from aether_nats.message import Message
from aether_nats.requests import Exchange
from aether_nats.schedules import Reminder, Schedules
from aether_nats.streams import ensure_streams
from tests.histories.places import Place, await_interest, until_equal

ALICE = parse_actor_id("default", "account", "alice")
WRONG_SEQUENCE = b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 7"}}'
STREAM_FULL = b'{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"}}'
STORE_FULL = b'{"error":{"code":503,"err_code":10023,"description":"insufficient resources"}}'
SEALED = b'{"error":{"code":400,"err_code":10109,"description":"invalid operation on sealed stream"}}'
UNAVAILABLE = b'{"error":{"code":503,"err_code":10008,"description":"no leader"}}'
ACK = b'{"stream":"S","seq":7}'


def build_commit(head: StoredCommit | None = None, *, id: str = "", index: CommitIndex | None = None, epoch: int = 1) -> Commit:
    version = (head.last_version if head else 0) + 1
    incarnation = head.incarnation if head else 0
    event = Event("1.0", build_event_id(incarnation, version), build_source(ALICE), "Deposited", "2026-07-01T12:00:00.000000Z", encode_fields({"amount": version}))
    index = index or (head.next_index() if head else NO_COMMITS)
    payload = join_events([encode_event(event)])
    return Commit(id or f"c-{index.n}", ALICE, head.sequence if head else 0, version, version, index, Epoch(epoch), "pod/boot", "account@x", payload, incarnation)


class ScriptedConnection:
    """A connection whose requests end as the script says."""

    def __init__(self, *script: bytes | AetherError | None, at_once: AetherError | None = None) -> None:
        self.script = list(script)
        self.at_once = at_once
        self.sent: list[tuple[str, bytes, bytes]] = []
        self.is_closed = False

    def check_loop(self) -> None:
        """There is one loop here."""

    def begin(self, exchange: Exchange, payload: bytes, headers: bytes, timeout_s: float) -> None:
        if self.at_once is not None:
            error, self.at_once = self.at_once, None
            raise error
        self.sent.append((exchange.subject, payload, headers))
        step = self.script.pop(0)
        if isinstance(step, AetherError):
            asyncio.get_running_loop().call_soon(exchange.fail, step)
        elif step is not None:
            asyncio.get_running_loop().call_soon(exchange.take, Message(b"inbox", b"", b"", step))

    def publish(self, subject: str, payload: bytes, headers: bytes) -> None:
        self.sent.append((subject, payload, headers))


def build_scripted(*script: bytes | AetherError | None, at_once: AetherError | None = None, batches: bool = False) -> tuple[Journal, ScriptedConnection]:
    connection = ScriptedConnection(*script, at_once=at_once)
    return Journal(JetStream(cast("NatsConnection", connection)), 1, batches=batches), connection


def places_in_batches(connection: ScriptedConnection) -> list[int]:
    """Return the place of each message in its batch, from one; zero for those that went alone."""
    return [int(decode_headers(FIRST_LINE + b"\r\n" + headers + b"\r\n").get("Nats-Batch-Sequence", "0")) for _, _, headers in connection.sent]


@pytest.fixture(autouse=True)
def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_nats.appends.APPEND_RETRY_S", 0.0)


@pytest.mark.parametrize("unknown", [RequestTimeout("late"), Disconnected("down"), UNAVAILABLE, b"garbage"])
async def test_after_an_unknown_outcome_the_identical_commit_is_sent_again_until_it_is_stored(unknown: bytes | AetherError) -> None:
    journal, connection = build_scripted(unknown, unknown, ACK)
    assert await journal.append(build_commit()) == 7
    assert len(connection.sent) == 3
    assert len(set(connection.sent)) == 1
    assert journal.resent == 2


async def test_after_an_unknown_outcome_a_refusal_is_a_conflict() -> None:
    journal, _ = build_scripted(RequestTimeout("late"), WRONG_SEQUENCE)
    with pytest.raises(VersionConflictError):
        await journal.append(build_commit())


async def test_an_append_of_which_nobody_knows_is_given_up_when_the_connection_is_closed() -> None:
    journal, connection = build_scripted(RequestTimeout("late"), Disconnected("down"))
    outcome = journal.append(build_commit())
    connection.is_closed = True
    with pytest.raises(Disconnected, match="was closed before the outcome"):
        await outcome
    assert len(connection.sent) == 1


async def test_a_link_that_is_down_is_waited_for() -> None:
    journal, connection = build_scripted(ACK, at_once=Disconnected("down"))
    assert await journal.append(build_commit()) == 7
    assert len(connection.sent) == 1


@pytest.mark.parametrize(("refusal", "expected"), [(STREAM_FULL, StreamFull), (STORE_FULL, StreamFull), (SEALED, JetStreamError)])
async def test_a_refusal_of_the_first_try_means_that_nothing_was_stored(refusal: bytes, expected: type[AetherError]) -> None:
    journal, _ = build_scripted(refusal)
    with pytest.raises(expected):
        await journal.append(build_commit())


async def test_commits_of_a_batch_for_which_there_is_no_room_each_learn_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_nats.appends.BATCH_MIN", 1)
    journal, connection = build_scripted(STORE_FULL, STORE_FULL, ACK, batches=True)
    with pytest.raises(StreamFull):
        await journal.append(build_commit())
    assert await journal.append(build_commit()) == 7
    assert places_in_batches(connection) == [1, 0, 1]


async def test_that_nothing_can_be_stored_is_told_once_and_that_a_commit_waits_for_long(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    journal, _ = build_scripted(STORE_FULL, STORE_FULL)
    for _ in range(2):
        with pytest.raises(StreamFull):
            await journal.append(build_commit())
    monkeypatch.setattr("aether_nats.appends.STUCK_S", 0.0)
    journal, _ = build_scripted(Disconnected("down"), UNAVAILABLE, UNAVAILABLE, ACK)
    await journal.append(build_commit())
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("ERROR", "commits cannot be stored"),
        ("WARNING", "a commit has not been stored for long, and its actor waits"),
    ]


async def test_a_refusal_after_an_unknown_outcome_tells_nothing_and_the_commit_is_sent_again() -> None:
    """The first try may have been stored before the stream was full: only an ack or a conflict settles it."""
    journal, connection = build_scripted(RequestTimeout("late"), STREAM_FULL, STREAM_FULL, WRONG_SEQUENCE)
    with pytest.raises(VersionConflictError):
        await journal.append(build_commit())
    assert len(connection.sent) == 4


async def test_a_refusal_after_a_batch_of_unknown_outcome_tells_nothing_and_the_commit_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_nats.appends.BATCH_MIN", 1)
    journal, connection = build_scripted(RequestTimeout("late"), STREAM_FULL, WRONG_SEQUENCE, batches=True)
    with pytest.raises(VersionConflictError):
        await journal.append(build_commit())
    assert places_in_batches(connection) == [1, 0, 0]


async def test_after_a_batch_was_refused_for_good_commits_go_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_nats.appends.BATCH_MIN", 1)
    journal, connection = build_scripted(SEALED, ACK, ACK, batches=True)
    for _ in range(2):
        assert await journal.append(build_commit()) == 7
    assert places_in_batches(connection) == [1, 0, 0]


async def test_no_batch_is_larger_than_the_most_that_a_server_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SINGLES_MAX", 1), ("BATCH_MIN", 2), ("BATCH_MAX", 3)):
        monkeypatch.setattr(f"aether_nats.appends.{name}", value)
    journal, connection = build_scripted(*[ACK] * 4, batches=True)
    for outcome in [journal.append(build_commit()) for _ in range(7)]:
        await outcome
    assert places_in_batches(connection) == [0, 1, 2, 3, 1, 2, 3]


async def test_a_commit_that_the_server_cannot_take_is_too_large() -> None:
    journal, _ = build_scripted(at_once=PayloadTooLarge("9 MB"))
    with pytest.raises(CommitTooLarge, match="versions 1 to 1"):
        await journal.append(build_commit())


async def test_an_append_that_is_given_up_is_not_sent_again() -> None:
    journal, connection = build_scripted(None, ACK)
    outcome = journal.append(build_commit())
    outcome.cancel()
    await asyncio.sleep(0.01)
    assert len(connection.sent) == 1


class Rig:
    """A journal on a real server, whose reads and purges a test may bend."""

    def __init__(self, connection: NatsConnection) -> None:
        self.connection = connection
        self.js = BentJetStream(connection)
        self.journal = Journal(self.js, 1)

    async def append(self, count: int = 1) -> StoredCommit:
        head = await self.journal.read_head(ALICE)
        for _ in range(count):
            await self.journal.append(build_commit(head))
            head = await self.journal.read_head(ALICE)
        assert head is not None
        return head

    async def read(self, from_n: int = 0) -> list[StoredCommit]:
        head = await self.journal.read_head(ALICE)
        assert head is not None
        return [commit async for batch in self.journal.read_commits(ALICE, head, from_n=from_n) for commit in batch]


class BentJetStream(JetStream):
    hidden: frozenset[int] = frozenset()
    behind: int | None = None
    """The last sequence that replicas have, if they lag."""

    before_purge: Any = None
    asked: Sequence[int] = ()
    """Sequences that were read one by one."""

    async def messages_by_sequence(self, stream: str, sequences: Sequence[int], *, size: int = 0) -> list[Message]:
        """Answer as a replica that has not caught up."""
        self.asked = [*self.asked, *sequences]
        found = await super().messages_by_sequence(stream, sequences, size=size)
        return [message for message in found if (stored := stored_of(message)) is None or stored.sequence not in self.hidden]

    async def read_batch(self, stream: str, subject: str, first_sequence: int, count: int, **bounds: int) -> tuple[list[StoredMessage], int]:
        """Answer as a replica that has not caught up."""
        found, pending = await super().read_batch(stream, subject, first_sequence, count, **bounds)
        return [message for message in found if self.behind is None or message.sequence <= self.behind], pending

    async def purge(self, stream: str, subject: str, *, keep: int = 0, before_sequence: int = 0) -> int:
        """Let something happen between the tombstone and the purge."""
        if self.before_purge is not None:
            happen, self.before_purge = self.before_purge, None
            await happen()
        return await super().purge(stream, subject, keep=keep, before_sequence=before_sequence)


@pytest.fixture
async def rig(place: Place) -> AsyncIterator[Rig]:
    async with place.with_streams() as connection:
        yield Rig(connection)


async def test_a_commit_that_a_replica_does_not_have_yet_is_read_from_the_leader(rig: Rig) -> None:
    await rig.append(70)
    commits = await rig.read()
    rig.js.hidden = frozenset(commits[n].sequence for n in (31, 63, 66, 68))
    assert [commit.n for commit in await rig.read()] == list(range(70))
    found = await rig.journal.read_at(ALICE, commits[66].sequence)
    assert found is not None
    assert found.n == 66
    assert rig.journal.scans == 0


@pytest.mark.parametrize("n", [1, 5, 40])
async def test_a_broken_index_is_healed_by_one_scan(rig: Rig, n: int) -> None:
    """A commit names others at sequences where they do not stand."""
    head = await rig.append(n)
    wrong = NO_COMMITS
    for place in range(n):
        wrong = wrong.appended(1000 + place)
    await rig.journal.append(build_commit(head, index=wrong))
    assert [commit.n for commit in await rig.read()] == list(range(n + 1))
    assert rig.journal.scans == 1
    assert [commit.n for commit in await rig.read(from_n=n)] == [n]


async def test_a_scan_does_not_miss_what_a_replica_does_not_have_yet(rig: Rig) -> None:
    """Else a broken index would quarantine an actor whose log is whole."""
    head = await rig.append(5)
    wrong = NO_COMMITS
    for place in range(5):
        wrong = wrong.appended(1000 + place)
    await rig.journal.append(build_commit(head, index=wrong))
    rig.js.behind = 3
    assert [commit.n for commit in await rig.read()] == list(range(6))


async def test_a_purge_counts_the_lives_that_a_replica_does_not_know_yet(rig: Rig) -> None:
    await rig.append(2)
    await rig.journal.purge(ALICE, epoch=Epoch(2), writer="operator")
    tombstone = await rig.journal.read_head(ALICE)
    assert tombstone is not None
    await rig.js.publish(event_subject(ALICE, 1), b"hello")
    rig.js.behind = tombstone.sequence - 1
    await rig.journal.purge(ALICE, epoch=Epoch(2), writer="operator")
    head = await rig.journal.read_head(ALICE)
    assert head is not None
    assert (head.tombstone, head.incarnation) == (True, 2)


async def test_a_purge_takes_the_reminder_that_an_owner_sets_with_its_last_commit(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would ever end a recurring one: an owner that does not answer is not waited for, and the actor may have no other life."""
    await rig.append()
    schedules, read = Schedules(rig.js), rig.js.message_by_last

    async def write_before_it_is_read(stream: str, subject: str) -> StoredMessage | None:
        monkeypatch.setattr(rig.js, "message_by_last", read)
        await schedules.set(ALICE, Reminder("interest", "AddInterest", b"{}", "@daily"), "t1")
        await rig.append()
        return await read(stream, subject)

    monkeypatch.setattr(rig.js, "message_by_last", write_before_it_is_read)
    await rig.journal.purge(ALICE, epoch=Epoch(2), writer="operator")
    await until_equal(lambda: schedules.read_all(ALICE), [])


async def test_an_index_that_names_the_wrong_commits_is_healed_by_one_scan(rig: Rig) -> None:
    """The sequences are those of the actor's commits, but of others than their places say."""
    await rig.js.publish("aether.default.evt.0.account.bob", b"")
    head = await rig.append(40)
    shifted = NO_COMMITS
    for sequence in (1, *(commit.sequence for commit in (await rig.read())[:-1])):
        shifted = shifted.appended(sequence)
    await rig.journal.append(build_commit(head, index=shifted))
    assert [commit.n for commit in await rig.read()] == list(range(41))
    assert rig.journal.scans == 1


async def test_a_long_history_that_lies_close_is_read_in_runs(rig: Rig) -> None:
    await rig.append(1200)
    await until_equal(lambda: count_messages(rig), 1200)
    for from_n in (0, 1, 33, 600):
        rig.js.asked = ()
        assert [commit.n for commit in await rig.read(from_n=from_n)] == list(range(from_n, 1200))
        assert len(rig.js.asked) < 10, "single reads only to find where the run begins"


async def count_messages(rig: Rig) -> int:
    """Count what some replica holds of alice."""
    messages, _ = await rig.js.read_batch("AETHER_default_EVT_0", event_subject(ALICE, 1), 1, 10_000)
    return len(messages)


@pytest.mark.parametrize("run_min", [1, commit_reader.RUN_MIN])
async def test_a_run_that_meets_a_message_which_is_no_commit_is_read_by_the_index(rig: Rig, monkeypatch: pytest.MonkeyPatch, run_min: int) -> None:
    monkeypatch.setattr(commit_reader, "RUN_MIN", run_min)
    head = await rig.append(100)
    await rig.js.publish(event_subject(ALICE, 1), b"garbage")
    end = await rig.js.message_by_last("AETHER_default_EVT_0", event_subject(ALICE, 1))
    assert end is not None
    commit = build_commit(head)
    await rig.journal.append(replace(commit, expected_sequence=end.sequence))
    await rig.append(100)
    assert [commit.n for commit in await rig.read()] == list(range(201))
    assert rig.journal.scans == 0


async def test_commits_that_are_gone_are_no_history(rig: Rig) -> None:
    await rig.append(10)
    commits = await rig.read()
    await JetStream(rig.connection).purge("AETHER_default_EVT_0", event_subject(ALICE, 1), before_sequence=commits[4].sequence)
    with pytest.raises(InvalidEnvelope, match="missing"):
        await rig.read()
    assert [commit.n for commit in await rig.read(from_n=4)] == list(range(4, 10))


async def test_a_message_that_is_no_commit_is_told_with_its_sequence(rig: Rig) -> None:
    await rig.append(2)
    await rig.js.publish(event_subject(ALICE, 1), b"hello")
    with pytest.raises(InvalidEnvelope, match="sequence 3"):
        await rig.journal.read_head(ALICE)


async def test_a_new_life_that_begins_during_a_purge_is_whole(rig: Rig) -> None:
    await rig.append(5)

    async def begin() -> None:
        await rig.append(3)

    rig.js.before_purge = begin
    await rig.journal.purge(ALICE, epoch=Epoch(2), writer="operator")
    commits = await rig.read()
    assert [(commit.n, commit.tombstone, commit.last_version) for commit in commits] == [(0, True, 0), (1, False, 1), (2, False, 2), (3, False, 3)]
    info = await rig.js.stream_info("AETHER_default_EVT_0")
    assert info is not None
    assert info.state.messages == 4


async def test_a_durable_command_that_is_stored_during_a_purge_or_before_it_is_repeated_waits_for_the_next_life(rig: Rig) -> None:
    inbox = Inbox(rig.js, ALICE.namespace)

    async def send(id: str) -> None:
        await inbox.send(Command(ALICE, "Open", CommandId(id), b"{}", "2026-07-01T12:00:00.000000Z", 0.0, 10.0))

    await rig.append()
    await send("old")
    rig.js.before_purge = lambda: send("new")
    await rig.journal.purge(ALICE, epoch=Epoch(2), writer="operator")
    await send("newer")
    await rig.journal.purge(ALICE, epoch=Epoch(2), writer="operator")
    head = await rig.journal.read_head(ALICE)
    assert head is not None
    assert parse_inbox_position(head.inbox).sequence == 1

    async def read_waiting() -> list[int]:
        return [message.sequence for message in await inbox.read_next(ALICE, 0)]

    await until_equal(read_waiting, [2, 3])


async def test_a_purge_that_is_repeated_takes_nothing_of_an_inbox_that_was_made_anew(rig: Rig) -> None:
    inbox = Inbox(rig.js, ALICE.namespace)
    command = Command(ALICE, "Open", CommandId("c"), b"{}", "2026-07-01T12:00:00.000000Z", 0.0, 10.0)
    await rig.append()
    await inbox.send(command)
    await rig.journal.purge(ALICE, epoch=Epoch(2), writer="operator")
    await rig.connection.request("$JS.API.STREAM.DELETE.AETHER_default_INBOX", b"")
    await ensure_streams(rig.connection, "default")
    await await_interest(rig.connection, "default", 1)
    await inbox.send(command)
    await rig.journal.purge(ALICE, epoch=Epoch(2), writer="operator")
    assert await inbox.read_backlog() == {ALICE: 1}


async def test_an_actor_whose_log_ends_with_garbage_can_be_purged(rig: Rig) -> None:
    """A quarantined actor is told to be purged, so that has to work."""
    await rig.append(3)
    await rig.js.publish(event_subject(ALICE, 1), b"hello")
    await rig.journal.purge(ALICE, epoch=Epoch(2), writer="operator")
    head = await rig.append(2)
    assert (head.incarnation, head.n, head.last_version) == (1, 2, 2)
    assert [commit.n for commit in await rig.read()] == [0, 1, 2]


async def test_what_a_publisher_forges_of_the_servers_own_headers_does_not_count(rig: Rig) -> None:
    await rig.js.publish(event_subject(ALICE, 1), b"", b"Nats-Sequence: 99\r\nNats-Subject: aether.default.evt.0.account.bob\r\n")

    async def read_place() -> list[tuple[int, str]]:
        found = await rig.js.messages_by_sequence("AETHER_default_EVT_0", [1])
        return [(message.sequence, message.subject) for message in map(stored_of, found) if message]

    await until_equal(read_place, [(1, event_subject(ALICE, 1))])
