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
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

from msgspec import structs

from aether_api import logs
from aether_api.commit_index import Block, inner_blocks
from aether_api.envelope import Commit, StoredCommit, build_tombstone, decode_commit, encode_commit
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
from aether_nats.connection import NatsConnection
from aether_nats.inbox import purge_inbox, read_inbox_end
from aether_nats.jetstream import JetStream
from aether_nats.jetstream_wire import StoredMessage, sequence_of
from aether_nats.message import Message
from aether_nats.requests import Exchange

logger = logging.getLogger(__name__)

APPEND_TIMEOUT_S: Final = 2.0
"""Seconds until an append is sent again: twenty times a slow fsync, a third of a leader election."""

APPEND_RETRY_S: Final = 0.25
"""Seconds between tries after the server refused to serve at all; an election takes seconds."""

BATCH_COMMITS: Final = 256
"""Commits read at once during replay: hides the round trip, and bounds memory to 256 commits of an actor."""

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

    def __init__(self, js: JetStream, partitions: int) -> None:
        self._js = js
        self._partitions = partitions
        self._subject_of = lru_cache(SUBJECTS_CACHED)(partial(event_subject, partitions=partitions))
        self._loop = asyncio.get_running_loop()
        self.scans = 0
        self.resent = 0

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
        message = await self._js.message_by_last(event_stream(actor.namespace, partition_of(actor, self._partitions)), event_subject(actor, self._partitions))
        return None if message is None else _decode(message)

    async def read_at(self, actor: ActorId, sequence: int) -> StoredCommit | None:
        """Read the commit at `sequence`; None when nothing of this actor stands there."""
        return (await self._read_sequences(actor, [sequence]))[0]

    async def read_commits(self, actor: ActorId, head: StoredCommit, *, from_n: int = 0) -> AsyncIterator[Sequence[StoredCommit]]:
        """Yield the commits with ordinals from `from_n` up to `head`, in order, in batches.

        Raises:
            InvalidEnvelope: the log does not hold what the index names, and a scan did not find it either.
        """
        sequences, scanned = await self._find_sequences(actor, head, from_n)
        next_n = from_n
        while next_n < head.n:
            start = next_n - from_n
            wanted = sequences[start : start + BATCH_COMMITS]
            commits = _check_run(await self._read_sequences(actor, wanted), next_n, head.incarnation)
            if commits:
                yield commits
                next_n += len(commits)
            elif scanned:
                raise InvalidEnvelope(f"{actor}: commit {next_n} is missing from the log")
            else:
                sequences, scanned = sequences[:start] + await self._scan(actor, head, next_n), True
        if head.n >= from_n:
            yield [head]

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
        message = await self._js.message_by_last(event_stream(actor.namespace, partition_of(actor, self._partitions)), event_subject(actor, self._partitions))
        if message is None:
            return None
        try:
            head = _decode(message)
            return _End(head.sequence, head.incarnation, head.epoch, head.tombstone)
        except InvalidEnvelope:
            commits = await self._walk(actor, message.sequence)
            return _End(message.sequence, max((commit.incarnation for commit in commits), default=0), max((commit.epoch for commit in commits), default=Epoch(0)))

    async def _delete_before(self, actor: ActorId, sequence: int) -> None:
        """Delete what lies before a tombstone; never the newest but one, since a new life may have begun meanwhile."""
        stream = event_stream(actor.namespace, partition_of(actor, self._partitions))
        await self._js.purge(stream, event_subject(actor, self._partitions), before_sequence=sequence)

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

    async def _read_sequences(self, actor: ActorId, sequences: Sequence[int]) -> list[StoredCommit | None]:
        """Read the actor's commits at some sequences; what a replica does not have yet, the leader has."""
        stream = event_stream(actor.namespace, partition_of(actor, self._partitions))
        subject = event_subject(actor, self._partitions)
        messages = await self._js.messages_by_sequence(stream, sequences)
        for place, message in enumerate(messages):
            if message is None:
                messages[place] = await self._js.leader_message(stream, sequences[place])
        return [_decode(message) if message is not None and message.subject == subject else None for message in messages]

    async def _find_sequences(self, actor: ActorId, head: StoredCommit, from_n: int) -> tuple[list[int], bool]:
        """Return the sequences of the commits [from_n, head.n), oldest first, and whether it took a scan to find them."""
        known: dict[int, int] = {}
        try:
            pending = [block for block in head.index().blocks() if block.last >= from_n]
            while pending:
                known.update((block.last, block.sequence) for block in pending)
                closed = [block for block in pending if block.first < block.last]
                pending = _expand(closed, await self._read_sequences(actor, [block.sequence for block in closed]), from_n)
        except InvalidEnvelope as exc:
            logger.debug("the commit index cannot be used", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
            return await self._scan(actor, head, from_n), True
        return [known[n] for n in sorted(known)], False

    async def _scan(self, actor: ActorId, head: StoredCommit, from_n: int) -> list[int]:
        """Find commits by walking the subject: slow for everybody, so only where the index is broken."""
        self.scans += 1
        logger.warning("the commit index is broken, scanning the actor's subject", extra={logs.ACTOR_ID: str(actor), logs.SEQUENCE: head.sequence})
        return [commit.sequence for commit in await self._walk(actor, head.sequence) if commit.incarnation == head.incarnation and commit.n >= from_n]

    async def _walk(self, actor: ActorId, end: int) -> list[StoredCommit]:
        """Return every commit of the actor before the sequence `end`, without its events; what is no commit is left out."""
        stream = event_stream(actor.namespace, partition_of(actor, self._partitions))
        commits: list[StoredCommit] = []
        next_sequence = 1
        while True:
            batch, _ = await self._js.read_batch(stream, event_subject(actor, self._partitions), next_sequence, BATCH_COMMITS)
            for message in batch:
                with suppress(InvalidEnvelope):
                    commits += [structs.replace(_decode(message), payload=b"")] if message.sequence < end else []
            if not batch or batch[-1].sequence >= end:
                return commits
            next_sequence = batch[-1].sequence + 1


async def purge_actor(connection: NatsConnection, partitions: int, actor: ActorId, *, epoch: Epoch, writer: str) -> None:
    """Purge one actor over `connection`, see `Journal.purge`."""
    await Journal(JetStream(connection), partitions).purge(actor, epoch=epoch, writer=writer)


def _expand(closed: Sequence[Block], commits: Sequence[StoredCommit | None], from_n: int) -> list[Block]:
    """Return the blocks inside closed ones, from the commits that end them.

    Raises:
        InvalidEnvelope: one of them is not the commit that ends its block.
    """
    inner: list[Block] = []
    for block, commit in zip(closed, commits, strict=True):
        if commit is None or commit.n != block.last:
            raise InvalidEnvelope(f"sequence {block.sequence} does not hold commit {block.last}")
        inner += [found for found in inner_blocks(block, commit.index()) if found.last >= from_n]
    return inner


def _check_run(commits: Sequence[StoredCommit | None], first_n: int, incarnation: int) -> list[StoredCommit]:
    """Return the commits if they are those from `first_n` on, else nothing."""
    found = [commit for commit in commits if commit is not None and commit.incarnation == incarnation]
    return found if len(found) == len(commits) and [commit.n for commit in found] == list(range(first_n, first_n + len(found))) else []


def _decode(message: StoredMessage) -> StoredCommit:
    return decode_commit(message.sequence, message.raw_headers, message.payload)


def _translate(commit: Commit, error: AetherError) -> AetherError:
    if isinstance(error, WrongLastSequence):
        return VersionConflictError(str(commit.actor), commit.first_version - 1, -1)
    if isinstance(error, PayloadTooLarge):
        return CommitTooLarge(f"{commit.actor}: the commit of versions {commit.first_version} to {commit.last_version} exceeds the server's max_payload: {error}")
    return error
