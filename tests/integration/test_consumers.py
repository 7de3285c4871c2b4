"""Long histories on a real server that are read through consumers, and what stands in their way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
import pytest
from msgspec.structs import replace

from aether_api.envelope import StoredCommit
from aether_api.errors import Disconnected
from aether_api.identity import parse_actor_id
from aether_nats.commit_reader import RUN_MIN
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_nats.message import Message
from aether_nats.pull import ASKED_FIRST
from aether_nats.read_budget import PULL_BYTES_MAX
from aether_nats.streams import StreamPlan, ensure_streams
from tests.histories.cluster import connected
from tests.histories.commits import build_next
from tests.integration.links import CutLink

pytestmark = pytest.mark.asyncio

ALICE: Final = parse_actor_id("default", "account", "alice")
COMMITS: Final = 3 * RUN_MIN

USERS: Final = """authorization { users = [
  {user: all, password: p}
  {user: reader, password: p, permissions: {publish: {deny: ["%s"]}}}
] }"""


async def fill(connection: NatsConnection, count: int = COMMITS, **changes: Any) -> StoredCommit:
    """Store a long history and return its last commit."""
    await ensure_streams(connection, ALICE.namespace, StreamPlan(partitions=1))
    journal = Journal(JetStream(connection), 1)
    head = await journal.read_head(ALICE)
    for _ in range(count):
        await journal.append(replace(build_next(ALICE, head), **changes))
        head = await journal.read_head(ALICE)
    assert head is not None
    return head


class Reading:
    """Somebody who reads a history, and what is asked of the server meanwhile."""

    def __init__(self, connection: NatsConnection, watcher: NatsConnection, timeout_s: float = 5.0) -> None:
        self.journal = Journal(JetStream(connection, timeout_s=timeout_s), 1)
        self.asked: list[Message] = []
        watcher.subscribe("$JS.API.CONSUMER.>", self.asked.append)
        self._watcher = watcher

    async def read(self, head: StoredCommit) -> list[int]:
        await self._watcher.flush()
        return [commit.n async for batch in self.journal.read_commits(ALICE, head) for commit in batch]

    async def count(self, what: str) -> int:
        """Count the requests of a kind."""
        await self._watcher.flush()
        return sum(message.subject.startswith(f"$JS.API.CONSUMER.{what}.") for message in self.asked)


async def test_a_long_history_takes_one_consumer_and_leaves_none() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as connection, connected(server.url) as watcher:
        head = await fill(connection)
        reading = Reading(connection, watcher)
        assert await reading.read(head) == list(range(COMMITS))
        await connection.flush()
        assert (await reading.count("CREATE"), await reading.count("DELETE")) == (1, 1)
        names = await connection.request("$JS.API.CONSUMER.NAMES.AETHER_default_EVT_0", b"")
        assert msgspec.json.decode(names.payload)["total"] == 0


async def test_large_commits_are_asked_for_a_few_at_a_time() -> None:
    """Else memory would hold a thousand of them."""
    size = 50_000
    async with EmbeddedServer.start() as server, connected(server.url) as connection, connected(server.url) as watcher:
        head = await fill(connection, RUN_MIN + 1, payload=b"[" + b" " * size + b"]")
        reading = Reading(connection, watcher)
        assert await reading.read(head) == list(range(RUN_MIN + 1))
        await reading.count("")
        batches = [msgspec.json.decode(message.payload)["batch"] for message in reading.asked if ".MSG.NEXT." in message.subject]
        assert max(batches[:1]) == ASKED_FIRST
        assert max(batches[1:]) <= PULL_BYTES_MAX // size


async def test_commits_that_grow_are_read_without_losing_the_link() -> None:
    """The server drops a client for which it has to keep more than 64 MB."""
    async with EmbeddedServer.start() as server, connected(server.url) as connection, connected(server.url) as watcher:
        small, large = RUN_MIN + 100, 700
        await fill(connection, small)
        head = await fill(connection, large, payload=b"[" + b" " * 150_000 + b"]")
        reading = Reading(connection, watcher)
        lost: list[str] = []
        connection.on_disconnect(lambda: lost.append("link"))
        assert await reading.read(head) == list(range(small + large))
        assert (lost, reading.journal.scans) == ([], 0)
        assert await reading.count("CREATE") == 1


async def test_a_consumer_that_is_deleted_meanwhile_costs_time_and_nothing_else() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as connection, connected(server.url) as watcher:
        head = await fill(connection)
        reading = Reading(connection, watcher)
        await watcher.flush()
        read: list[int] = []
        async for batch in reading.journal.read_commits(ALICE, head):
            if not read:
                create = next(message for message in reading.asked if ".CREATE." in message.subject)
                await watcher.request(f"$JS.API.CONSUMER.DELETE.AETHER_default_EVT_0.{create.subject.split('.')[5]}", b"")
            read += [commit.n for commit in batch]
        assert read == list(range(COMMITS))


@pytest.mark.parametrize("denied", ["$JS.API.CONSUMER.>", "$JS.API.CONSUMER.MSG.NEXT.>"])
async def test_who_may_use_no_consumer_reads_by_sequence_and_does_not_ask_again_at_once(caplog: pytest.LogCaptureFixture, denied: str) -> None:
    async with EmbeddedServer.start(extra_config=USERS % denied) as server:
        address = server.url.removeprefix("nats://")
        async with connected(f"nats://all:p@{address}") as watcher, connected(f"nats://reader:p@{address}") as connection:
            head = await fill(watcher)
            reading = Reading(connection, watcher, timeout_s=0.3)
            for _ in range(2):
                assert await reading.read(head) == list(range(COMMITS))
        assert sum("consumers bring nothing" in record.getMessage() for record in caplog.records) == 1


async def test_a_lost_link_ends_the_reading_at_once() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as watcher, CutLink.to(server.port) as link, connected(link.url) as connection:
        head = await fill(watcher)
        batches: AsyncIterator[Any] = Reading(connection, watcher).journal.read_commits(ALICE, head)
        await anext(batches)
        await link.cut()
        async with asyncio.timeout(2):
            with pytest.raises(Disconnected):
                async for _ in batches:
                    pass


async def test_a_reading_that_is_given_up_leaves_no_consumer() -> None:
    async with EmbeddedServer.start() as server, connected(server.url) as connection, connected(server.url) as watcher:
        head = await fill(connection)
        reading = Reading(connection, watcher)
        await watcher.flush()
        batches: Any = reading.journal.read_commits(ALICE, head)
        await anext(batches)
        await batches.aclose()
        await connection.flush()
        assert await reading.count("DELETE") == 1
