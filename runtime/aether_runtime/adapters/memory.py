"""Stores in memory: for tests and for trying a model; they keep the rules of the real ones, not the data."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from aether_api.envelope import Commit, StoredCommit, build_tombstone, decode_commit, encode_commit
from aether_api.errors import InvalidEnvelope, VersionConflictError
from aether_api.headers import FIRST_LINE
from aether_api.identity import ActorId, Epoch
from aether_nats.deliveries import Unreadable
from aether_runtime.core.snapshot_policy import choose_outdated
from aether_runtime.core.snapshots import Snapshot, SnapshotBody, decode_snapshot, read_last_time

BATCH_COMMITS = 256
"""Commits in one batch of a read, as the JetStream adapter has them."""

SNAPSHOTS_KEPT = 2
"""Snapshots kept for an actor and fold."""


class MemoryCommitLog:
    """One shared log of all actors, as a stream has it."""

    def __init__(self, snapshots: MemorySnapshotStore | None = None) -> None:
        self._commits: dict[ActorId, list[StoredCommit]] = {}
        self._sequence = 0
        self._snapshots = snapshots

    def append(self, commit: Commit) -> asyncio.Future[int]:
        """Store a commit at once, or refuse it."""
        outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        commits = self._commits.setdefault(commit.actor, [])
        if (commits[-1].sequence if commits else 0) != commit.expected_sequence:
            outcome.set_exception(VersionConflictError(str(commit.actor), commit.first_version - 1, commits[-1].last_version if commits else 0))
            return outcome
        self._sequence += 1
        headers, payload = encode_commit(commit)
        commits.append(decode_commit(self._sequence, FIRST_LINE + b"\r\n" + headers + b"\r\n", payload))
        outcome.set_result(self._sequence)
        return outcome

    async def read_head(self, actor: ActorId) -> StoredCommit | None:
        """Return the last commit."""
        commits = self._commits.get(actor)
        return commits[-1] if commits else None

    async def read_at(self, actor: ActorId, sequence: int) -> StoredCommit | None:
        """Return the commit at a sequence."""
        return next((commit for commit in self._commits.get(actor, ()) if commit.sequence == sequence), None)

    async def read_commits(self, actor: ActorId, head: StoredCommit, *, from_n: int = 0) -> AsyncGenerator[Sequence[StoredCommit]]:
        """Yield commits up to `head` in batches."""
        commits = [commit for commit in self._commits.get(actor, ()) if commit.incarnation == head.incarnation and from_n <= commit.n <= head.n]
        if [commit.n for commit in commits] != list(range(from_n, head.n + 1)):
            raise InvalidEnvelope(f"{actor}: commits between {from_n} and {head.n} are missing from the log")
        for start in range(0, len(commits), BATCH_COMMITS):
            yield commits[start : start + BATCH_COMMITS]

    async def scan(self, actor: ActorId, *, after_sequence: int = 0) -> AsyncIterator[Sequence[StoredCommit | Unreadable]]:
        """Yield the commits after a sequence; nothing else can stand here."""
        yield [commit for commit in self._commits.get(actor, ()) if commit.sequence > after_sequence]

    async def purge(self, actor: ActorId, *, epoch: Epoch, writer: str) -> None:
        """Leave only a tombstone."""
        head = await self.read_head(actor)
        if head is not None and not (head.tombstone and head.epoch >= epoch):
            tombstone = build_tombstone(
                id=f"tombstone-{head.incarnation + 1}", actor=actor, expected_sequence=head.sequence, epoch=max(epoch, head.epoch), pod=writer, incarnation=head.incarnation + 1
            )
            await self.append(tombstone)
        if head is not None:
            self._commits[actor] = self._commits[actor][-1:]
        if self._snapshots is not None:
            self._snapshots.drop(actor)


class MemorySnapshotStore:
    """Snapshots as bytes, so that their codec is used."""

    def __init__(self) -> None:
        self._snapshots: dict[tuple[ActorId, str], list[Snapshot]] = {}
        self.dropped = 0

    async def read_kept(self, actor: ActorId, fold: str) -> AsyncIterator[SnapshotBody]:
        """Yield what is kept, newest first."""
        for snapshot in reversed(self._snapshots.get((actor, fold), ())):
            try:
                body = decode_snapshot(FIRST_LINE + b"\r\n" + snapshot.headers, snapshot.payload)
            except InvalidEnvelope:
                self.dropped += 1
            else:
                yield body

    async def read_latest(self, actor: ActorId, fold: str) -> SnapshotBody | None:
        """Return the newest one that is not broken."""
        return await anext(self.read_kept(actor, fold), None)

    async def write(self, actor: ActorId, snapshot: Snapshot) -> None:
        """Keep the newest two."""
        kept = self._snapshots.setdefault((actor, snapshot.fold), [])
        kept.append(snapshot)
        del kept[:-SNAPSHOTS_KEPT]

    async def drop_outdated(self, actor: ActorId, fold: str, last_time: str) -> None:
        """Drop what is kept of former models and too old."""
        newest = {other: kept[-1] for (owner, other), kept in self._snapshots.items() if owner == actor and other != fold}
        times = {other: read_last_time(FIRST_LINE + b"\r\n" + snapshot.headers, snapshot.payload) for other, snapshot in newest.items()}
        for outdated in choose_outdated(times, last_time):
            del self._snapshots[actor, outdated]

    def drop(self, actor: ActorId) -> None:
        """Forget all snapshots of an actor."""
        for key in [key for key in self._snapshots if key[0] == actor]:
            del self._snapshots[key]
