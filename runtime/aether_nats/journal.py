"""The log of every actor of a namespace on JetStream: append with a fence, read without a scan, purge with a tombstone.

Three rules of the design live here and nowhere else:

- An append whose outcome is unknown is sent again, byte for byte (`aether_nats.appends`). Nobody else may take a step for the
  actor meanwhile. A refusal may mean that the first try was stored: the caller reads all commits since and looks for its own id.
- The last commit is read from the stream's leader; older ones by their sequence, found through the index that commits carry.
  A subject is scanned only where that index is broken, and that is counted.
- A purge first appends a tombstone, which fences every writer, and then deletes what lies before it, in the inbox before the end that it names.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

from aether_api.durable import InboxPosition, parse_inbox_position
from aether_api.envelope import Commit, StoredCommit, build_tombstone
from aether_api.errors import VERSION_UNKNOWN, InvalidEnvelope, VersionConflictError
from aether_api.identity import ActorId, Epoch
from aether_api.subjects import event_stream, event_subject, partition_of, snapshot_stream, snapshot_wildcard
from aether_nats.appends import Appends, BatchedAppends
from aether_nats.commit_reader import CommitReader, decode_stored
from aether_nats.connection import NatsConnection
from aether_nats.deliveries import Unreadable
from aether_nats.inbox import purge_inbox, read_inbox_end
from aether_nats.jetstream import JetStream

SUBJECTS_CACHED: Final = 16_384
"""Actors whose subjects are remembered, by reads and appends alike: hashing a name costs as much as sending its append, and hot actors are few (3 MB)."""

PURGE_ATTEMPTS_MAX: Final = 5
"""Tries to place a tombstone while another writer still appends; each lost race means that a live VM made progress."""


@dataclass(frozen=True, slots=True)
class _End:
    """Where an actor's log ends: the last sequence, the last incarnation, the highest epoch; and the end of the inbox that a tombstone names."""

    sequence: int
    incarnation: int
    epoch: Epoch
    tombstone: bool = False
    inbox: InboxPosition | None = None


class Journal:
    """Appends and reads commits of one namespace."""

    def __init__(self, js: JetStream, partitions: int, *, reads: JetStream | None = None, batches: bool = False) -> None:
        """Make a journal over connections that are open.

        Args:
            js: for what an actor waits for.
            reads: another connection, if there is one, for histories, so that these hold nothing up.
            batches: store commits of several actors together where many wait; the server fsyncs each write and its streams allow it.
        """
        self.partitions = partitions
        self._js = js
        self._place = lru_cache(SUBJECTS_CACHED)(partial(_place, partitions=partitions))
        self._reader = CommitReader(reads or js, self._locate)
        self._appends = BatchedAppends(js.connection) if batches else Appends(js.connection)

    @property
    def resent(self) -> int:
        """How many appends were sent again because their outcome was unknown."""
        return self._appends.resent

    @property
    def batched(self) -> int:
        """How many commits were stored together with others."""
        return self._appends.batched

    @property
    def scans(self) -> int:
        """How often an index was broken and a subject had to be scanned."""
        return self._reader.scans

    @property
    def connection(self) -> NatsConnection:
        """The connection that carries reads and appends."""
        return self._js.connection

    def append(self, commit: Commit) -> asyncio.Future[int]:
        """Store a commit and return the future of its sequence; cancel the future to give up.

        The future fails with `VersionConflictError` (another commit stands there, perhaps this very one), `CommitTooLarge`, `PermissionDenied`
        or `JetStreamError`, with which nothing was stored, or `Disconnected`, if the connection was closed before anybody knew.

        Raises:
            PermanentError: this is another event loop than the connection's.
        """
        self._js.connection.check_loop()
        subject, partition = self._place(commit.actor)
        return self._appends.begin(commit, subject, partition)

    async def read_head(self, actor: ActorId) -> StoredCommit | None:
        """Read the actor's last commit from the leader; None when it has none.

        Raises:
            InvalidEnvelope: something else than a commit stands there.
        """
        message = await self._js.message_by_last(*self._locate(actor))
        return None if message is None else decode_stored(message)

    async def read_at(self, actor: ActorId, sequence: int) -> StoredCommit | None:
        """Read the commit at `sequence`; None when nothing of this actor stands there."""
        return (await self._reader.read_sequences(actor, [sequence]))[0]

    def read_commits(self, actor: ActorId, head: StoredCommit, *, from_n: int = 0) -> AsyncGenerator[Sequence[StoredCommit]]:
        """Yield the commits with ordinals from `from_n` up to `head`, in order, in batches; raises as `CommitReader.read_commits`."""
        return self._reader.read_commits(actor, head, from_n=from_n)

    def scan(self, actor: ActorId, *, after_sequence: int = 0) -> AsyncIterator[Sequence[StoredCommit | Unreadable]]:
        """Walk the actor's subject, see `CommitReader.scan`: slow for everybody, so only where its log is broken."""
        return self._reader.scan(actor, after_sequence)

    async def purge(self, actor: ActorId, *, epoch: Epoch, writer: str) -> None:
        """End the actor's history: append a tombstone, then delete everything before it, snapshots, and what waits for it.

        Safe to repeat: what comes after the tombstone, in the log and in the inbox, is never touched.

        Raises:
            VersionConflictError: a live writer kept winning; try again.
        """
        for _ in range(PURGE_ATTEMPTS_MAX):
            end = await self._find_end(actor)
            inbox = await read_inbox_end(self._js, actor.namespace)  # behind the schedules of all commits until that end, which were made before these
            if end is None:
                break
            if end.tombstone and end.epoch >= epoch:
                inbox = end.inbox
                await self._delete_before(actor, end.sequence)
                break
            tombstone = build_tombstone(
                id=secrets.token_hex(8),
                actor=actor,
                expected_sequence=end.sequence,
                epoch=max(epoch, end.epoch),
                pod=writer,
                incarnation=end.incarnation + 1,
                inbox=str(inbox or ""),
            )
            try:
                await self._delete_before(actor, await self.append(tombstone))
                break
            except VersionConflictError:
                continue
        else:
            raise VersionConflictError(str(actor), VERSION_UNKNOWN, VERSION_UNKNOWN)
        await self._js.purge(snapshot_stream(actor.namespace), snapshot_wildcard(actor))
        if inbox is not None:
            await purge_inbox(self._js, actor, inbox)

    async def _find_end(self, actor: ActorId) -> _End | None:
        """Return where the actor's log ends, even if it ends with something that is no commit."""
        message = await self._js.message_by_last(*self._locate(actor))
        if message is None:
            return None
        try:
            head = decode_stored(message)
            return _End(head.sequence, head.incarnation, head.epoch, head.tombstone, parse_inbox_position(head.inbox) if head.inbox else None)
        except InvalidEnvelope:
            commits = await self._reader.walk(actor, message.sequence)
            return _End(message.sequence, max((commit.incarnation for commit in commits), default=0), max((commit.epoch for commit in commits), default=Epoch(0)))

    async def _delete_before(self, actor: ActorId, sequence: int) -> None:
        """Delete what lies before a tombstone; never the newest but one, since a new life may have begun meanwhile."""
        await self._js.purge(*self._locate(actor), before_sequence=sequence)

    def _locate(self, actor: ActorId) -> tuple[str, str]:
        """Return the stream and the subject of an actor's commits."""
        subject, partition = self._place(actor)
        return event_stream(actor.namespace, partition), subject


async def purge_actor(connection: NatsConnection, partitions: int, actor: ActorId, *, epoch: Epoch, writer: str) -> None:
    """Purge one actor over `connection`, see `Journal.purge`."""
    await Journal(JetStream(connection), partitions).purge(actor, epoch=epoch, writer=writer)


def _place(actor: ActorId, partitions: int) -> tuple[str, int]:
    """Return the subject of an actor's commits and the number of their stream."""
    return event_subject(actor, partitions), partition_of(actor, partitions)
