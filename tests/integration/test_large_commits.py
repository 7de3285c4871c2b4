"""Many actors with large commits start at once: the server must not lose patience with a reader that asked for more than it can take."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec

from aether_api.commit_index import CommitIndex
from aether_api.envelope import Commit, StoredCommit
from aether_api.errors import RetryableError
from aether_api.identity import ActorId, Epoch, parse_actor_id
from aether_api.subjects import event_stream
from aether_nats.embedded import EmbeddedServer
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_nats.pull import Wanted
from aether_nats.streams import StreamPlan, ensure_streams
from tests.histories.cluster import connected

ACTORS: Final = [parse_actor_id("default", "account", f"a{number}") for number in range(50)]
"""So many that their commits lie too far apart for consumers."""

COMMITS: Final = 25
LARGE: Final = b"[" + b" " * 400_000 + b"]"
"""One of 1,250 payloads: eight times what a server keeps for a client."""

SURPRISES_MAX: Final = 3
"""Times that the link may be lost to a reader who was told nothing of what it reads."""


async def fill(journal: Journal, last: bytes) -> None:
    """Append the commits of all actors in turns; the last of each is another one."""
    indexes, sequences = dict.fromkeys(ACTORS, CommitIndex()), dict.fromkeys(ACTORS, 0)
    for n in range(COMMITS):
        payload = LARGE if n < COMMITS - 1 else last
        appends = {actor: journal.append(Commit(f"c{n}", actor, sequences[actor], n + 1, n + 1, indexes[actor], Epoch(1), "pod/boot", "account@x", payload)) for actor in ACTORS}
        for actor, append in appends.items():
            sequences[actor] = await append
            indexes[actor] = indexes[actor].appended(sequences[actor])


async def read(journal: Journal, actor: ActorId) -> list[int]:
    """Return the sizes of the payloads of an actor's commits, and try again as a replay does."""
    while True:
        try:
            head = await journal.read_head(actor)
            assert head is not None
            batches: list[Sequence[StoredCommit]] = [batch async for batch in journal.read_commits(actor, head)]
            assert [commit.n for batch in batches for commit in batch] == list(range(COMMITS))
            return [len(commit.payload) for batch in batches for commit in batch]
        except RetryableError:
            await asyncio.sleep(0.1)


async def count_losses(server: EmbeddedServer, last: bytes) -> int:
    """Read all actors at once, and return how often the link was lost."""
    async with connected(server.url) as connection:
        layout = await ensure_streams(connection, "default", StreamPlan(broadcast=False))
        await fill(Journal(JetStream(connection), layout.partitions), last)
    losses: list[None] = []
    async with connected(server.url) as connection, asyncio.timeout(60):
        connection.on_disconnect(lambda: losses.append(None))
        journal = Journal(JetStream(connection), layout.partitions)
        async with asyncio.TaskGroup() as tasks:
            readers = [tasks.create_task(read(journal, actor)) for actor in ACTORS]
        assert all(reader.result() == [len(LARGE)] * (COMMITS - 1) + [len(last)] for reader in readers)
    return len(losses)


async def test_actors_with_large_commits_start_at_once_without_losing_the_link(nats_server: EmbeddedServer) -> None:
    assert await count_losses(nats_server, LARGE) == 0


async def test_commits_that_are_larger_than_anybody_could_know_are_read_in_the_end(nats_server: EmbeddedServer) -> None:
    assert await count_losses(nats_server, b"[]") <= SURPRISES_MAX


async def test_a_stream_that_does_not_answer_holds_up_no_reads_of_others_after_the_link_was_lost(nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url) as connection:
        js = JetStream(connection)
        await ensure_streams(connection, "default", StreamPlan(1, broadcast=False))
        connection.subscribe("$JS.API.DIRECT.GET.DEAD.>", lambda _: None)
        is_over = asyncio.Event()

        async def try_again() -> None:
            while not is_over.is_set():
                with suppress(RetryableError):
                    await js.direct_by_last("DEAD", "s.a")
                await asyncio.sleep(0.1)

        async with asyncio.TaskGroup() as tasks:
            readers = [tasks.create_task(try_again()) for _ in range(64)]
            await asyncio.sleep(0.2)
            await nats_server.kill()
            await asyncio.sleep(1.0)
            await nats_server.run()
            await connection.wait_connected()
            async with asyncio.timeout(2):
                assert await js.message_by_last(event_stream("default", 0), "aether.default.evt.0.account.a") is None
                assert await js.direct_by_last(event_stream("default", 0), "aether.default.evt.0.account.a") is None
            is_over.set()
            for reader in readers:
                reader.cancel()


async def test_a_consumer_is_asked_for_fewer_messages_where_they_are_large(nats_server: EmbeddedServer) -> None:
    asked: list[int] = []
    async with connected(nats_server.url) as connection:
        js = JetStream(connection)
        layout = await ensure_streams(connection, "default", StreamPlan(1, broadcast=False))
        for _ in range(8):
            await js.publish("aether.default.evt.0.account.a", LARGE)
        publish = connection.publish

        def note(subject: str, payload: bytes, headers: bytes = b"", reply: str = "") -> None:
            if ".MSG.NEXT." in subject:
                asked.append(msgspec.json.decode(payload)["batch"])
            publish(subject, payload, headers, reply)

        connection.publish = note  # type: ignore[method-assign]
        stream = (await js.stream_names("aether.default.evt.0.account.a"))[0]
        pulls = [await js.open_pull(stream, "aether.default.evt.0.account.a", 1, Wanted(8, 100_000)) for _ in range(40)]
        count = 0
        while pulled := await pulls[-1].take():
            count += len(pulled.payloads)
        for pull in pulls:
            pull.close()
    assert (layout.partitions, count, max(asked)) == (1, 8, 2)
