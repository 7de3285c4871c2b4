"""A history whose commits lie far apart is found window by window: no commit is left out, and little of it is in memory at once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from aether_api.commit_index import NO_COMMITS, CommitIndex
from aether_api.envelope import Commit, StoredCommit, encode_commit
from aether_api.errors import InvalidEnvelope
from aether_api.headers import FIRST_LINE, encode_headers
from aether_api.identity import ActorId, Epoch, parse_actor_id
from aether_nats import commit_reader
from aether_nats.commit_reader import BATCH_COMMITS, CommitReader
from aether_nats.connection import NatsConnection
from aether_nats.jetstream import JetStream
from aether_nats.jetstream_wire import StoredMessage
from aether_nats.message import Message

ALICE = parse_actor_id("shop", "account", "alice")

DISTANCE = 100
"""Messages of others between two commits, far more than a run would be read over."""


STREAM, SUBJECT = "AETHER_shop_EVT_0", "aether.shop.evt.0.account.alice"


class FarApartLog(JetStream):
    """Holds an actor's commits far apart from each other, and counts what is read of it."""

    def __init__(self, commits: Sequence[StoredCommit]) -> None:
        super().__init__(NatsConnection.__new__(NatsConnection))
        self.commits = commits
        self.asked: list[int] = []
        self.lost: frozenset[int] = frozenset()
        self.step = 1

    async def messages_by_sequence(self, stream: str, sequences: Sequence[int], *, size: int = 0) -> list[Message]:
        self.asked.append(len(sequences))
        return [self._answer(sequence // DISTANCE - 1) for sequence in sequences][:: self.step]

    async def leader_message(self, stream: str, sequence: int) -> StoredMessage | None:
        return None

    def _answer(self, n: int) -> Message:
        if n in self.lost:
            return Message(b"", b"", b"NATS/1.0 404 Message Not Found\r\n\r\n", b"")
        found = self.commits[n]
        index = CommitIndex(n, found.index_text)
        lines, payload = encode_commit(Commit(found.id, ALICE, 0, n + 1, n + 1, index, found.epoch, found.pod, found.model, found.payload))
        place = encode_headers({"Nats-Stream": STREAM, "Nats-Subject": SUBJECT, "Nats-Sequence": str(found.sequence), "Nats-Time-Stamp": "2026-07-01T12:00:00Z"})
        return Message(b"", b"", FIRST_LINE + b"\r\n" + lines + place + b"\r\n", payload)


class FarApart(CommitReader):
    """Reads an actor's history of commits that lie far apart."""

    def __init__(self, count: int) -> None:
        index = NO_COMMITS
        self.commits: list[StoredCommit] = []
        for n in range(count):
            sequence = (n + 1) * DISTANCE
            self.commits.append(StoredCommit(f"c{n}", sequence, n, index.text, n + 1, n + 1, Epoch(1), "", "", 0, False, b"[]"))
            index = index.appended(sequence)
        self.log = FarApartLog(self.commits)
        super().__init__(self.log, lambda _: (STREAM, SUBJECT))

    async def walk(self, actor: ActorId, end: int) -> list[StoredCommit]:
        return [commit for commit in self.commits if commit.sequence < end]

    async def read(self, from_n: int = 0) -> list[int]:
        return [commit.n async for batch in self.read_commits(ALICE, self.commits[-1], from_n=from_n) for commit in batch]


@pytest.mark.parametrize("count", [1, 2, 32, 33, 64, 1024, 1025, 1057, 2100])
@pytest.mark.parametrize("window", [32, 100, 1024, 32_768])
async def test_each_window_continues_where_the_one_before_ended(monkeypatch: pytest.MonkeyPatch, count: int, window: int) -> None:
    monkeypatch.setattr(commit_reader, "WINDOW_COMMITS", window)
    reader = FarApart(count)
    for from_n in {0, count // 3, count // 2, count - 1}:
        assert await reader.read(from_n) == list(range(from_n, count))
    assert reader.scans == 0


@pytest.mark.parametrize(("count", "rounds", "reads"), [(20, 1, 19), (32, 1, 31), (33, 2, 33), (1000, 5, 1030), (5000, 22, 5155)])
async def test_a_history_of_one_window_costs_one_round_for_each_level_and_batch(count: int, rounds: int, reads: int) -> None:
    reader = FarApart(count)
    await reader.read()
    assert (len(reader.log.asked), sum(reader.log.asked)) == (rounds, reads)
    assert max(reader.log.asked) <= BATCH_COMMITS


async def test_answers_that_come_in_another_order_are_put_right() -> None:
    reader = FarApart(1057)
    reader.log.step = -1
    assert await reader.read() == list(range(1057))
    assert reader.scans == 0


async def test_commits_are_told_before_all_of_a_long_history_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_reader, "WINDOW_COMMITS", 1024)
    reader = FarApart(20_000)
    first = await anext(reader.read_commits(ALICE, reader.commits[-1]))
    assert [commit.n for commit in first] == list(range(BATCH_COMMITS))
    assert sum(reader.log.asked) < 400


async def test_a_commit_that_the_index_promises_and_the_log_lacks_is_looked_for_by_one_scan_which_begins_where_reading_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_reader, "WINDOW_COMMITS", 32)
    reader = FarApart(2000)
    reader.log.lost = frozenset({1500})
    read: list[int] = []
    with pytest.raises(InvalidEnvelope, match="commit 1"):
        async for batch in reader.read_commits(ALICE, reader.commits[-1]):
            read += [commit.n for commit in batch]
    assert read == list(range(len(read)))
    assert 1500 - BATCH_COMMITS <= len(read) <= 1500
    assert reader.scans == 1
