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
from typing import Final

from aether_api import logs
from aether_api.commit_index import Block, inner_blocks
from aether_api.envelope import Commit, StoredCommit, build_tombstone, decode_commit, encode_commit
from aether_api.errors import (
    AetherError,
    Backpressure,
    CommitTooLarge,
    Disconnected,
    InternalError,
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
from aether_nats.jetstream import JetStream
from aether_nats.jetstream_wire import StoredMessage, ack_of
from aether_nats.message import Message

logger = logging.getLogger(__name__)

APPEND_TIMEOUT_S: Final = 2.0
"""Seconds until an append is sent again: twenty times a slow fsync, a third of a leader election."""

APPEND_RETRY_S: Final = 0.25
"""Seconds between tries after the server refused to serve at all; an election takes seconds."""

BATCH_COMMITS: Final = 256
"""Commits read at once during replay: hides the round trip, and bounds memory to 256 commits of an actor."""

PURGE_ATTEMPTS_MAX: Final = 5
"""Tries to place a tombstone while another writer still appends; each lost race means that a live VM made progress."""

UNKNOWN_OUTCOMES: Final = (RequestTimeout, Disconnected, StreamUnavailable, NoResponders, Backpressure)


class Journal:
    """Appends and reads commits of one namespace."""

    def __init__(self, js: JetStream, partitions: int) -> None:
        self._js = js
        self._partitions = partitions
        self._loop = asyncio.get_running_loop()
        self.scans = 0
        self.resent = 0

    def append(self, commit: Commit) -> asyncio.Future[int]:
        """Store a commit and return the future of its sequence; cancel the future to give up.

        The future fails with `VersionConflictError` (another commit stands there, perhaps this very one), `CommitTooLarge`,
        or `JetStreamError`; in the last two cases nothing was stored.
        """
        outcome: asyncio.Future[int] = self._loop.create_future()
        headers, payload = encode_commit(commit)
        self._send(commit, event_subject(commit.actor, self._partitions), headers, payload, outcome)
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
        sequences = await self._find_sequences(actor, head, from_n)
        for start in range(0, len(sequences), BATCH_COMMITS):
            found = await self._read_sequences(actor, sequences[start : start + BATCH_COMMITS])
            yield [_expect(actor, sequence, commit) for sequence, commit in zip(sequences[start:], found, strict=False)]
        if head.n >= from_n:
            yield [head]

    async def purge(self, actor: ActorId, *, epoch: Epoch, writer: str) -> None:
        """End the actor's history: append a tombstone, then delete snapshots and everything before it. Safe to repeat.

        Raises:
            VersionConflictError: a live writer kept winning; try again.
        """
        for _ in range(PURGE_ATTEMPTS_MAX):
            head = await self.read_head(actor)
            if head is None:
                break
            if head.tombstone and head.epoch >= epoch:
                await self._delete_before_head(actor)
                break
            tombstone = build_tombstone(
                id=secrets.token_hex(8), actor=actor, expected_sequence=head.sequence, epoch=max(epoch, head.epoch), pod=writer, incarnation=head.incarnation + 1
            )
            try:
                await self.append(tombstone)
            except VersionConflictError:
                continue
            await self._delete_before_head(actor)
            break
        else:
            raise VersionConflictError(str(actor), 0, 0)
        await self._js.purge(snapshot_stream(actor.namespace), snapshot_wildcard(actor))

    async def _delete_before_head(self, actor: ActorId) -> None:
        await self._js.purge(event_stream(actor.namespace, partition_of(actor, self._partitions)), event_subject(actor, self._partitions), keep=1)

    def _send(self, commit: Commit, subject: str, headers: bytes, payload: bytes, outcome: asyncio.Future[int]) -> None:
        if outcome.done():
            return

        def again() -> None:
            self.resent += 1
            self._send(commit, subject, headers, payload, outcome)

        def settle(answer: asyncio.Future[Message]) -> None:
            if outcome.done():
                if not answer.cancelled():
                    answer.exception()
                return
            try:
                outcome.set_result(ack_of(answer.result()).sequence)
            except UNKNOWN_OUTCOMES as exc:
                logger.debug("the outcome of an append is unknown, sending it again", extra={logs.ACTOR_ID: str(commit.actor), logs.REASON: str(exc)})
                self._loop.call_later(0.0 if isinstance(exc, RequestTimeout) else APPEND_RETRY_S, again)
            except AetherError as exc:
                outcome.set_exception(_translate(commit, exc))

        try:
            self._js.connection.request(subject, payload, headers, APPEND_TIMEOUT_S).add_done_callback(settle)
        except (Disconnected, Backpressure):
            self._loop.call_later(APPEND_RETRY_S, again)
        except AetherError as exc:
            outcome.set_exception(_translate(commit, exc))

    async def _read_sequences(self, actor: ActorId, sequences: Sequence[int]) -> list[StoredCommit | None]:
        stream = event_stream(actor.namespace, partition_of(actor, self._partitions))
        subject = event_subject(actor, self._partitions)
        messages = await self._js.messages_by_sequence(stream, sequences)
        return [_decode(message) if message is not None and message.subject == subject else None for message in messages]

    async def _find_sequences(self, actor: ActorId, head: StoredCommit, from_n: int) -> list[int]:
        """Return the sequences of the commits [from_n, head.n), oldest first, by expanding blocks in rounds."""
        known: dict[int, int] = {}
        pending = [block for block in head.index().blocks() if block.last >= from_n]
        while pending:
            known.update((block.last, block.sequence) for block in pending)
            closed = [block for block in pending if block.first < block.last]
            commits = await self._read_sequences(actor, [block.sequence for block in closed])
            if any(commit is None for commit in commits):
                return await self._scan(actor, head, from_n)
            pending = _expand(closed, commits, from_n)
        if len(known) != max(0, head.n - from_n):
            raise InternalError(f"{actor}: the index of commit {head.n} names {len(known)} commits from {from_n} on")
        return [known[n] for n in sorted(known)]

    async def _scan(self, actor: ActorId, head: StoredCommit, from_n: int) -> list[int]:
        """Find commits by walking the subject: slow for everybody, so only where the index is broken."""
        self.scans += 1
        logger.warning("the commit index is broken, scanning the actor's subject", extra={logs.ACTOR_ID: str(actor), logs.SEQUENCE: head.sequence})
        stream = event_stream(actor.namespace, partition_of(actor, self._partitions))
        sequences: list[int] = []
        next_sequence = 1
        while True:
            batch, _ = await self._js.read_batch(stream, event_subject(actor, self._partitions), next_sequence, BATCH_COMMITS)
            older = [commit for commit in map(_decode, batch) if commit.sequence < head.sequence and commit.incarnation == head.incarnation and commit.n >= from_n]
            sequences += [commit.sequence for commit in older]
            if not batch or batch[-1].sequence >= head.sequence:
                return sequences
            next_sequence = batch[-1].sequence + 1


async def purge_actor(connection: NatsConnection, partitions: int, actor: ActorId, *, epoch: Epoch, writer: str) -> None:
    """Purge one actor over `connection`, see `Journal.purge`."""
    await Journal(JetStream(connection), partitions).purge(actor, epoch=epoch, writer=writer)


def _expand(closed: Sequence[Block], commits: Sequence[StoredCommit | None], from_n: int) -> list[Block]:
    inner: list[Block] = []
    for block, commit in zip(closed, commits, strict=True):
        if commit is not None:
            inner += [found for found in inner_blocks(block, commit.index()) if found.last >= from_n]
    return inner


def _decode(message: StoredMessage) -> StoredCommit:
    return decode_commit(message.sequence, message.raw_headers, message.payload)


def _expect(actor: ActorId, sequence: int, commit: StoredCommit | None) -> StoredCommit:
    if commit is None:
        raise InvalidEnvelope(f"{actor}: the commit at sequence {sequence} is missing from the log")
    return commit


def _translate(commit: Commit, error: AetherError) -> AetherError:
    if isinstance(error, WrongLastSequence):
        return VersionConflictError(str(commit.actor), commit.first_version - 1, -1)
    if isinstance(error, PayloadTooLarge):
        return CommitTooLarge(f"{commit.actor}: the commit of versions {commit.first_version} to {commit.last_version} exceeds the server's max_payload: {error}")
    return error
