"""What matters only where three servers keep three copies of a log: its leader dies, replicas lag, and writes are refused while another is under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Final

import msgspec
import pytest

from aether_api.envelope import StoredCommit
from aether_api.errors import RetryableError, VersionConflictError, WrongLastSequence
from aether_api.headers import EXPECTED_SEQUENCE, encode_headers
from aether_api.identity import ActorId, parse_actor_id
from aether_api.subjects import event_subject
from aether_nats import commit_reader
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.jetstream import JetStream
from aether_nats.jetstream_wire import PubAck
from aether_nats.journal import Journal
from aether_nats.streams import StreamPlan, ensure_streams
from tests.histories.cluster import Load, connected, running_pod, until_live
from tests.histories.commits import build_next
from tests.histories.invariants import check_answers, check_log, read_history
from tests.histories.nats_cluster import Member, NatsCluster
from tests.histories.owners import SHARED, check_owners, open_accounts, owning

pytestmark = pytest.mark.slow

ALICE = parse_actor_id("default", "account", "alice")
REPLICATED: Final = StreamPlan(partitions=1, replicas=3)

PROGRESS: Final = 60
"""Commands that are accepted between two faults, so that each fault meets a log under load."""

TIMEOUT_S: Final = 60.0
"""Seconds for a test; an election takes some 3 of them on a quiet machine."""


@dataclass
class Rig:
    """The streams of a test on three servers."""

    cluster: NatsCluster
    account: str
    connection: NatsConnection

    @asynccontextmanager
    async def journals(self, *members: Member) -> AsyncGenerator[list[Journal]]:
        """Yield a log for each member, read and written through it."""
        async with AsyncExitStack() as stack:
            connections = [await stack.enter_async_context(connected(self.cluster.settings(self.account, member))) for member in members]
            yield [Journal(JetStream(connection), 1) for connection in connections]

    async def find_leader(self) -> Member:
        """Return the member that leads the event stream."""
        while True:
            try:
                info = msgspec.json.decode((await self.connection.request("$JS.API.STREAM.INFO.AETHER_default_EVT_0", b"")).payload)
                return self.cluster.member(info["cluster"]["leader"])
            except (KeyError, RetryableError):
                await asyncio.sleep(0.05)

    async def mend(self) -> None:
        """Start who is down and wait until everybody is level."""
        self.cluster.run()
        await asyncio.to_thread(self.cluster.wait_healthy)


@pytest.fixture
async def rig(nats_cluster: NatsCluster) -> AsyncIterator[Rig]:
    account = nats_cluster.open_account()
    async with connected(nats_cluster.settings(account)) as connection:
        await ensure_streams(connection, "default", REPLICATED)
        rig = Rig(nats_cluster, account, connection)
        yield rig
        await rig.mend()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


async def test_a_leader_that_is_killed_under_load_costs_no_commit_and_doubles_none(rig: Rig) -> None:
    async with asyncio.timeout(TIMEOUT_S), owning("a", Journal(JetStream(rig.connection), 1)) as owner:
        await open_accounts(owner)
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as load:
            for actor in SHARED:
                load.create_task(owner.deposit(actor, takewhile(lambda _: not enough.is_set(), count())), name=f"deposits to {actor}")
            await until(lambda: owner.accepted >= PROGRESS)
            (await rig.find_leader()).kill()
            before = owner.accepted
            await until(lambda: owner.accepted >= before + PROGRESS)
            await rig.mend()
            enough.set()
        await check_owners(Journal(JetStream(rig.connection), 1), [owner])
    assert owner.journal.resent, "no append was under way when a leader died"


async def test_streams_are_made_while_the_leader_of_jetstream_is_replaced(rig: Rig) -> None:
    leader = rig.cluster.member(rig.cluster.members[0].find_meta_leader())
    other = next(member for member in rig.cluster.members if member is not leader)
    async with asyncio.timeout(TIMEOUT_S), connected(rig.cluster.settings(rig.account, other)) as connection:
        leader.kill()

        layout = await ensure_streams(connection, "other", REPLICATED)

        assert layout.partitions == 1


async def test_what_is_acknowledged_is_read_at_once_through_any_server(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(TIMEOUT_S), rig.journals(*rig.cluster.members) as readers:
        writer, head = Journal(JetStream(rig.connection), 1), None
        for n in range(200):
            sequence = await writer.append(build_next(ALICE, head))
            for reader in readers:
                head = await reader.read_head(ALICE)
                assert head is not None
                assert (head.sequence, head.n) == (sequence, n)
                assert await reader.read_at(ALICE, sequence) == head
                assert await read_ordinals(reader, head, from_n=max(0, n - 2)) == list(range(max(0, n - 2), n + 1))
        for reader in readers:
            assert head is not None
            assert await read_ordinals(reader, head) == list(range(200))
        monkeypatch.setattr(commit_reader, "RUN_MIN", 1)
        consumers: list[str] = []
        rig.connection.subscribe("$JS.API.CONSUMER.CREATE.>", lambda message: consumers.append(message.subject))
        await rig.connection.flush()
        for _ in range(5):
            head = await writer.read_head(ALICE)
            head = await append_next(writer, head)
            for reader in readers:
                assert await read_ordinals(reader, head) == list(range(head.n + 1))
        await rig.connection.flush()
        assert [reader.scans for reader in readers] == [0] * len(readers)
        assert len(consumers) >= 3 * len(readers), "most was read through consumers"


async def append_next(writer: Journal, head: StoredCommit | None) -> StoredCommit:
    await writer.append(build_next(ALICE, head))
    found = await writer.read_head(ALICE)
    assert found is not None
    return found


async def read_ordinals(journal: Journal, head: StoredCommit, from_n: int = 0) -> list[int]:
    return [commit.n async for batch in journal.read_commits(ALICE, head, from_n=from_n) for commit in batch]


async def test_of_two_commits_that_race_for_the_same_place_one_is_stored(rig: Rig) -> None:
    async with asyncio.timeout(TIMEOUT_S), rig.journals(*rig.cluster.members[:2]) as writers:
        head, won = None, set[str]()
        for _ in range(150):
            commits = [msgspec.structs.replace(build_next(ALICE, head), id=f"{place}-{head.n + 1 if head else 0}") for place in "ab"]
            outcomes = [writer.append(commit) for writer, commit in zip(writers, commits, strict=True)]
            stored = [commit.id for commit, outcome in zip(commits, outcomes, strict=True) if await is_stored(outcome)]
            assert len(stored) == 1
            head = await writers[0].read_head(ALICE)
            assert head is not None
            assert head.id == stored[0]
            won.add(head.id[0])
        commits_found = await read_history(writers[1], ALICE)
        check_log(commits_found)
        assert len(commits_found) == 150
        assert won == {"a", "b"}, "one writer always came first, so nothing raced"


async def is_stored(outcome: asyncio.Future[int]) -> bool:
    try:
        await outcome
    except VersionConflictError:
        return False
    return True


async def test_a_write_that_is_refused_because_another_is_under_way_is_a_conflict(rig: Rig) -> None:
    """The server says so with an error of its own (10164), which names no last sequence."""
    js, subject, unnamed = JetStream(rig.connection), event_subject(ALICE, 1), 0
    async with asyncio.timeout(TIMEOUT_S):
        last = 0
        while not unnamed:
            lines = encode_headers({EXPECTED_SEQUENCE: str(last)})
            async with asyncio.TaskGroup() as racing:
                tries = [racing.create_task(try_publish(js, subject, lines), name=f"writer {number}") for number in range(4)]
            (ack,) = [task.result() for task in tries if isinstance(task.result(), PubAck)]
            refusals = [task.result() for task in tries if isinstance(task.result(), WrongLastSequence)]
            assert isinstance(ack, PubAck)
            assert len(refusals) == 3
            unnamed += sum(isinstance(refusal, WrongLastSequence) and refusal.last is None for refusal in refusals)
            last = ack.sequence


async def try_publish(js: JetStream, subject: str, lines: bytes) -> PubAck | WrongLastSequence:
    try:
        return await js.publish(subject, b"", lines)
    except WrongLastSequence as exc:
        return exc


async def test_callers_of_a_runtime_lose_nothing_when_a_server_dies(rig: Rig) -> None:
    settings = rig.cluster.settings(rig.account)
    actors: list[ActorId] = [parse_actor_id("default", "account", f"a-{number}") for number in range(4)]
    async with asyncio.timeout(TIMEOUT_S), running_pod(settings, "a", plan=REPLICATED) as one, running_pod(settings, "b", plan=REPLICATED) as two:
        await until_live([one, two])
        load = Load(CommandClient(rig.connection), actors)
        await load.open()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.deposit(range(400), clients=8), name="deposits")
            await until(lambda: load.has_sent(100))
            (await rig.find_leader()).kill()
        journal = Journal(JetStream(rig.connection), 1)
        for actor in actors:
            commits = await read_history(journal, actor)
            check_log(commits)
            check_answers(commits, load.replies_of(actor))
            assert [reply.outcome for reply in load.replies_of(actor)] == ["accepted"] * 101
