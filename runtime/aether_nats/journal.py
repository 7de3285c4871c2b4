"""The log of every actor of a namespace on JetStream: append with a fence, read without a scan, purge with a tombstone.

Three rules of the design live here and nowhere else:

- An append whose outcome is unknown (time-out, 503, lost link) is sent again, byte for byte, until the server says stored or
  refused. Nobody else may take a step for the actor meanwhile. A refusal may mean that the first try was stored: the caller
  reads all commits since and looks for its own id.
- The last commit is read from the stream's leader; older ones by their sequence, found through the index that commits carry.
  A subject is scanned only where that index is broken, and that is counted.
- A purge first appends a tombstone, which fences every writer, and then deletes what lies before it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

from aether_api import logs
from aether_api.envelope import Commit, StoredCommit, build_tombstone, encode_commit
from aether_api.errors import (
    AetherError,
    Backpressure,
    CommitTooLarge,
    Disconnected,
    InvalidEnvelope,
    NoResponders,
    PayloadTooLarge,
    RequestTimeout,
    StreamUnavailable,
    VersionConflictError,
    WrongLastSequence,
)
from aether_api.identity import ActorId, Epoch
from aether_api.subjects import event_stream, event_subject, partition_of, snapshot_stream, snapshot_wildcard
from aether_nats.commit_reader import CommitReader, decode_stored
from aether_nats.connection import NatsConnection
from aether_nats.inbox import purge_inbox, read_inbox_end
from aether_nats.jetstream import JetStream
from aether_nats.jetstream_wire import sequence_of
from aether_nats.message import Message
from aether_nats.requests import Exchange

logger = logging.getLogger(__name__)

APPEND_TIMEOUT_S: Final = 2.0
"""Seconds until an append is sent again: twenty times a slow fsync, a third of a leader election."""

APPEND_RETRY_S: Final = 0.25
"""Seconds between tries after the server refused to serve at all; an election takes seconds."""

SUBJECTS_CACHED: Final = 16_384
"""Actors whose subjects are remembered: hashing a name costs as much as sending its append, and hot actors are few (3 MB)."""

PURGE_ATTEMPTS_MAX: Final = 5
"""Tries to place a tombstone while another writer still appends; each lost race means that a live VM made progress."""

UNKNOWN_OUTCOMES: Final = (RequestTimeout, Disconnected, StreamUnavailable, NoResponders, Backpressure, InvalidEnvelope)
"""What does not tell whether an append was stored, if it was sent at all."""


class _Append(Exchange):
    """An append under way; `may_be_stored` after a try whose outcome is unknown."""

    __slots__ = ("commit", "headers", "journal", "may_be_stored", "outcome", "payload")

    def __init__(self, journal: Journal, subject: str, commit: Commit, outcome: asyncio.Future[int]) -> None:
        super().__init__(subject)
        self.journal = journal
        self.commit = commit
        self.outcome = outcome
        self.headers, self.payload = encode_commit(commit)
        self.may_be_stored = False

    def take(self, message: Message) -> bool:
        """Settle the append by the server's answer."""
        if not self.outcome.done():
            try:
                self.outcome.set_result(sequence_of(message))
            except AetherError as exc:
                self.journal.on_failed_try(self, exc, sent=True)
        return True

    def fail(self, error: AetherError) -> None:
        """The outcome of this try is unknown."""
        if not self.outcome.done():
            self.journal.on_failed_try(self, error, sent=True)


@dataclass(frozen=True, slots=True)
class _End:
    """Where an actor's log ends: the last sequence, the last incarnation, the highest epoch."""

    sequence: int
    incarnation: int
    epoch: Epoch
    tombstone: bool = False


class Journal:
    """Appends and reads commits of one namespace."""

    def __init__(self, js: JetStream, partitions: int, *, reads: JetStream | None = None) -> None:
        """Use `js` for what an actor waits for, and `reads`, another connection if there is one, for histories, so that these hold nothing up."""
        self.partitions = partitions
        self._js = js
        self._subject_of = lru_cache(SUBJECTS_CACHED)(partial(event_subject, partitions=partitions))
        self._reader = CommitReader(reads or js, partitions)
        self._loop = asyncio.get_running_loop()
        self.resent = 0

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

        The future fails with `VersionConflictError` (another commit stands there, perhaps this very one), `CommitTooLarge`,
        or `JetStreamError`; in the last two cases nothing was stored.
        """
        outcome: asyncio.Future[int] = self._loop.create_future()
        self._send(_Append(self, self._subject_of(commit.actor), commit, outcome))
        return outcome

    async def read_head(self, actor: ActorId) -> StoredCommit | None:
        """Read the actor's last commit from the leader; None when it has none.

        Raises:
            InvalidEnvelope: something else than a commit stands there.
        """
        message = await self._js.message_by_last(event_stream(actor.namespace, partition_of(actor, self.partitions)), event_subject(actor, self.partitions))
        return None if message is None else decode_stored(message)

    async def read_at(self, actor: ActorId, sequence: int) -> StoredCommit | None:
        """Read the commit at `sequence`; None when nothing of this actor stands there."""
        return (await self._reader.read_sequences(actor, [sequence]))[0]

    def read_commits(self, actor: ActorId, head: StoredCommit, *, from_n: int = 0) -> AsyncIterator[Sequence[StoredCommit]]:
        """Yield the commits with ordinals from `from_n` up to `head`, in order, in batches; raises as `CommitReader.read_commits`."""
        return self._reader.read_commits(actor, head, from_n=from_n)

    async def purge(self, actor: ActorId, *, epoch: Epoch, writer: str) -> None:
        """End the actor's history: append a tombstone, then delete everything before it, snapshots, and what waits for it. Safe to repeat.

        Raises:
            VersionConflictError: a live writer kept winning; try again.
        """
        inbox = await read_inbox_end(self._js, actor.namespace)
        for _ in range(PURGE_ATTEMPTS_MAX):
            end = await self._find_end(actor)
            if end is None:
                break
            if end.tombstone and end.epoch >= epoch:
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
            raise VersionConflictError(str(actor), 0, 0)
        await self._js.purge(snapshot_stream(actor.namespace), snapshot_wildcard(actor))
        if inbox is not None:
            await purge_inbox(self._js, actor)

    async def _find_end(self, actor: ActorId) -> _End | None:
        """Return where the actor's log ends, even if it ends with something that is no commit."""
        message = await self._js.message_by_last(event_stream(actor.namespace, partition_of(actor, self.partitions)), event_subject(actor, self.partitions))
        if message is None:
            return None
        try:
            head = decode_stored(message)
            return _End(head.sequence, head.incarnation, head.epoch, head.tombstone)
        except InvalidEnvelope:
            commits = await self._reader.walk(actor, message.sequence)
            return _End(message.sequence, max((commit.incarnation for commit in commits), default=0), max((commit.epoch for commit in commits), default=Epoch(0)))

    async def _delete_before(self, actor: ActorId, sequence: int) -> None:
        """Delete what lies before a tombstone; never the newest but one, since a new life may have begun meanwhile."""
        stream = event_stream(actor.namespace, partition_of(actor, self.partitions))
        await self._js.purge(stream, event_subject(actor, self.partitions), before_sequence=sequence)

    def on_failed_try(self, append: _Append, error: AetherError, *, sent: bool) -> None:
        """Send the append again unless it is known that it was not stored: then nothing but an ack or a conflict settles it."""
        unknown = isinstance(error, UNKNOWN_OUTCOMES)
        append.may_be_stored |= unknown and sent
        if isinstance(error, WrongLastSequence) or not (unknown or append.may_be_stored):
            append.outcome.set_exception(_translate(append.commit, error))
            return
        self.resent += sent
        logger.debug("the outcome of an append is unknown, sending it again", extra={logs.ACTOR_ID: str(append.commit.actor), logs.REASON: str(error)})
        self._loop.call_later(0.0 if isinstance(error, RequestTimeout) else APPEND_RETRY_S, self._send, append)

    def _send(self, append: _Append) -> None:
        if append.outcome.done():
            return
        try:
            self._js.connection.begin(append, append.payload, append.headers, APPEND_TIMEOUT_S)
        except AetherError as exc:
            self.on_failed_try(append, exc, sent=False)


async def purge_actor(connection: NatsConnection, partitions: int, actor: ActorId, *, epoch: Epoch, writer: str) -> None:
    """Purge one actor over `connection`, see `Journal.purge`."""
    await Journal(JetStream(connection), partitions).purge(actor, epoch=epoch, writer=writer)


def _translate(commit: Commit, error: AetherError) -> AetherError:
    if isinstance(error, WrongLastSequence):
        return VersionConflictError(str(commit.actor), commit.first_version - 1, -1)
    if isinstance(error, PayloadTooLarge):
        return CommitTooLarge(f"{commit.actor}: the commit of versions {commit.first_version} to {commit.last_version} exceeds the server's max_payload: {error}")
    return error
