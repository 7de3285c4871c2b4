"""Appends under way: sent again until their outcome is known, and stored together where each write ends with an fsync.

An append whose outcome is unknown (time-out, 503, lost link) is sent again, byte for byte, until the server says stored or
refused, or nobody can send any more because the connection was closed: `Appends` does that for every single one.

A server with `sync_interval: always` fsyncs once for each message, and a stream waits for it: 1,200 appends a second, however
many wait. An atomic batch (ADR-50) is one write, so `BatchedAppends` lets few go at once and stores those that wait meanwhile
together [reference: 22,000 a second of one stream]. A batch costs 2.4 ms on top, so nothing is gained where writes are not
fsynced, nor on replicated streams, whose servers fsync many writes at once anyway. A batch is stored whole or not at all: one
conflict refuses it, then each of its commits goes alone and learns for itself. So a batch is a way to travel, never a promise.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Final, Literal

from aether_api import logs
from aether_api.envelope import Commit, encode_commit
from aether_api.errors import (
    VERSION_UNKNOWN,
    AetherError,
    Backpressure,
    CommitTooLarge,
    Disconnected,
    InvalidEnvelope,
    JetStreamError,
    NoResponders,
    PayloadTooLarge,
    PermissionDenied,
    RequestTimeout,
    StreamFull,
    StreamUnavailable,
    VersionConflictError,
    WrongLastSequence,
)
from aether_nats.connection import NatsConnection
from aether_nats.jetstream_wire import ERRORS_TOO_LARGE, sequence_of
from aether_nats.message import Message
from aether_nats.requests import Exchange

logger = logging.getLogger(__name__)

APPEND_TIMEOUT_S: Final = 2.0
"""Seconds until an append is sent again: twenty times a slow fsync, a third of a leader election."""

APPEND_RETRY_S: Final = 0.25
"""Seconds between tries after the server refused to serve at all; an election takes seconds."""

UNKNOWN_OUTCOMES: Final = (RequestTimeout, Disconnected, StreamUnavailable, NoResponders, Backpressure, InvalidEnvelope)
"""What does not tell whether an append was stored, if it was sent at all."""

SINGLES_MAX: Final = 8
"""Appends of one stream that go alone at once, where there are batches: as many as keep the disk busy, so that few clients wait for nobody."""

BATCH_MIN: Final = 16
"""Appends that must wait for a batch to be worth it: it costs as much as some four fsyncs, and those that go alone overlap."""

BATCH_MAX: Final = 512
"""Appends of one batch; the server takes 1,000."""

BATCH_BYTES_MAX: Final = 4 << 20
"""Bytes of one batch: the server keeps them in memory until the last has come."""

BATCH_PAUSE_S: Final = 60.0
"""Seconds without batches after a server refused one for another reason than a conflict: most likely its stream allows none."""


STUCK_S: Final = 10.0
"""Seconds after the first try of an append that failed until somebody is told: longer than an election."""


class Append(Exchange):
    """An append under way; `may_be_stored` after a try whose outcome is unknown, `failed_s` is when the first one failed."""

    __slots__ = ("appends", "commit", "failed_s", "headers", "may_be_stored", "outcome", "payload")

    def __init__(self, appends: Appends, subject: str, commit: Commit, outcome: asyncio.Future[int]) -> None:
        super().__init__(subject)
        self.appends = appends
        self.commit = commit
        self.outcome = outcome
        self.headers, self.payload = encode_commit(commit)
        self.may_be_stored = False
        self.failed_s = inf

    def take(self, message: Message) -> bool:
        """Settle the append by the server's answer."""
        if not self.outcome.done():
            try:
                self.outcome.set_result(sequence_of(message))
            except AetherError as exc:
                self.appends.on_failed_try(self, exc, sent=True)
        return True

    def fail(self, error: AetherError) -> None:
        """The outcome of this try is unknown."""
        if not self.outcome.done():
            self.appends.on_failed_try(self, error, sent=True)

    def on_batch_failed(self, error: AetherError, *, sent: bool) -> None:
        """Go alone now: a batch that was refused stored nothing, and says nothing of this append."""
        if self.outcome.done():
            return
        if _leaves_open(error, sent=sent):
            self.appends.on_failed_try(self, error, sent=sent)
        else:
            self.appends.send(self)


class Appends:
    """Appends of one connection, each by itself.

    Attributes:
        resent: tries beyond the first, because the outcome was unknown.
        batched: appends that were stored as part of a batch.
    """

    def __init__(self, connection: NatsConnection) -> None:
        self.resent = 0
        self.batched = 0
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._warning = logs.Seldom()

    def begin(self, commit: Commit, subject: str, partition: int) -> asyncio.Future[int]:
        """Store a commit and return the future of its sequence; see `Journal.append`."""
        outcome: asyncio.Future[int] = self._loop.create_future()
        self.send(Append(self, subject, commit, outcome))
        return outcome

    def send(self, append: Append) -> None:
        """Try an append by itself, unless it was given up."""
        if append.outcome.done():
            return
        try:
            self._connection.begin(append, append.payload, append.headers, APPEND_TIMEOUT_S)
        except AetherError as exc:
            self.on_failed_try(append, exc, sent=False)

    def on_failed_try(self, append: Append, error: AetherError, *, sent: bool) -> None:
        """Send the append again unless it is known that it was not stored: then nothing but an ack or a conflict settles it."""
        unknown = _leaves_open(error, sent=sent)
        append.may_be_stored |= unknown and sent
        append.failed_s = min(append.failed_s, self._loop.time())
        self._tell(append, error)
        if isinstance(error, WrongLastSequence) or not (unknown or append.may_be_stored):
            append.outcome.set_exception(_translate(append.commit, error))
            return
        if self._connection.is_closed:
            append.outcome.set_exception(Disconnected(f"the connection was closed before the outcome of an append for {append.commit.actor} was known"))
            return
        self.resent += sent
        logger.debug("the outcome of an append is unknown, sending it again", extra={logs.ACTOR_ID: str(append.commit.actor), logs.REASON: str(error)})
        self._loop.call_later(0.0 if isinstance(error, RequestTimeout) else APPEND_RETRY_S, self.send, append)

    def _tell(self, append: Append, error: AetherError) -> None:
        """Say, seldom, that nothing can be stored: callers hear it one by one, and whoever runs the server hears nothing else. A link that is lost is told elsewhere."""
        now_s, is_full = self._loop.time(), isinstance(error, StreamFull)
        is_stuck = now_s >= append.failed_s + STUCK_S and not isinstance(error, Disconnected)
        if (is_full or is_stuck) and self._warning.is_due(now_s):
            what = "commits cannot be stored" if is_full else "a commit has not been stored for long, and its actor waits"
            logger.log(logging.ERROR if is_full else logging.WARNING, what, extra={logs.ACTOR_ID: str(append.commit.actor), logs.REASON: str(error)})


class BatchedAppends(Appends):
    """Appends of one connection to streams of a server that fsyncs each write."""

    def __init__(self, connection: NatsConnection) -> None:
        super().__init__(connection)
        self._lanes: dict[int, _Lane] = {}

    def begin(self, commit: Commit, subject: str, partition: int) -> asyncio.Future[int]:
        """Store a commit, with others of its stream where many wait."""
        outcome: asyncio.Future[int] = self._loop.create_future()
        lane = self._lanes.get(partition)
        if lane is None:
            lane = self._lanes[partition] = _Lane(self, self._connection, self._loop.time)
        lane.put(Append(self, subject, commit, outcome))
        return outcome


def choose_next(waiting: int, singles: int, *, may_batch: bool) -> Literal["wait", "single", "batch"]:
    """Return what a stream without a batch under way is sent next.

    Args:
        waiting: appends that wait; `singles` are on their way alone.
        may_batch: the stream takes batches.
    """
    if not waiting or (may_batch and singles >= SINGLES_MAX):
        return "wait"
    return "batch" if may_batch and waiting >= BATCH_MIN else "single"


class _Lane:
    """The appends to one stream: those that wait, those that go alone, and at most one batch."""

    def __init__(self, appends: BatchedAppends, connection: NatsConnection, monotonic: Callable[[], float]) -> None:
        self._appends = appends
        self._connection = connection
        self._monotonic = monotonic
        self._waiting: deque[Append] = deque()
        self._singles = 0
        self._has_batch = False
        self._paused_until_s = 0.0
        self._prefix, self._batches = secrets.token_hex(6), 0

    def put(self, append: Append) -> None:
        """Take an append; it goes at once if the stream is not busy."""
        self._waiting.append(append)
        self._go_on()

    def on_batch_ended(self, batch: _Batch, refused: AetherError | None = None) -> None:
        """The batch has its answer."""
        self._has_batch = False
        if refused is None:
            self._appends.batched += len(batch.members)
        elif isinstance(refused, JetStreamError):
            logger.warning("commits cannot be stored together and go one by one for a while", extra={logs.REASON: str(refused)})
            self._paused_until_s = self._monotonic() + BATCH_PAUSE_S
        self._go_on()

    def _go_on(self) -> None:
        while not self._has_batch:
            match choose_next(len(self._waiting), self._singles, may_batch=self._monotonic() >= self._paused_until_s):
                case "wait":
                    return
                case "batch":
                    self._send_batch()
                case "single":
                    self._send_single(self._waiting.popleft())

    def _send_single(self, append: Append) -> None:
        if not append.outcome.done():
            self._singles += 1
            append.outcome.add_done_callback(self._on_single_ended)
            self._appends.send(append)

    def _on_single_ended(self, outcome: asyncio.Future[int]) -> None:
        self._singles -= 1
        self._go_on()

    def _send_batch(self) -> None:
        members: list[Append] = []
        size = 0
        while self._waiting and len(members) < BATCH_MAX and size < BATCH_BYTES_MAX:
            append = self._waiting.popleft()
            if not append.outcome.done():
                members.append(append)
                size += len(append.payload) + len(append.headers)
        if not members:
            return
        self._has_batch = True
        self._batches += 1
        batch = _Batch(self, members)
        try:
            self._publish(batch, f"{self._prefix}-{self._batches:x}")
        except AetherError as exc:  # the last message, which stores the batch, was not sent
            batch.scatter(exc, sent=False)

    def _publish(self, batch: _Batch, batch_id: str) -> None:
        *others, last = batch.members
        for place, append in enumerate(others, start=1):
            self._connection.publish(append.subject, append.payload, build_batch_headers(batch_id, place) + append.headers)
        closing = build_batch_headers(batch_id, len(batch.members), is_last=True) + last.headers
        self._connection.begin(batch, last.payload, closing, APPEND_TIMEOUT_S)


class _Batch(Exchange):
    """A batch under way."""

    __slots__ = ("_lane", "members")

    def __init__(self, lane: _Lane, members: list[Append]) -> None:
        super().__init__(members[-1].subject)
        self._lane = lane
        self.members = members

    def take(self, message: Message) -> bool:
        """Settle all appends by the server's answer, which names the sequence of the last: they stand in a row."""
        try:
            sequence = sequence_of(message) - len(self.members)
        except AetherError as exc:
            self.scatter(exc, sent=True)
            return True
        for append in self.members:
            sequence += 1
            if not append.outcome.done():
                append.outcome.set_result(sequence)
        self._lane.on_batch_ended(self)
        return True

    def fail(self, error: AetherError) -> None:
        """It is not known whether it was stored."""
        self.scatter(error, sent=True)

    def scatter(self, error: AetherError, *, sent: bool) -> None:
        """Let each append find its own outcome."""
        for append in self.members:
            append.on_batch_failed(error, sent=sent)
        self._lane.on_batch_ended(self, error)


def build_batch_headers(batch_id: str, place: int, *, is_last: bool = False) -> bytes:
    """Return the header lines that make a message part of an atomic batch; they go before all others."""
    commit = "Nats-Batch-Commit: 1\r\n" if is_last else ""
    return f"Nats-Batch-Id: {batch_id}\r\nNats-Batch-Sequence: {place}\r\n{commit}".encode()


def _leaves_open(error: AetherError, *, sent: bool) -> bool:
    """Tell whether an append may have been stored, or may be with the next try; where the inbox is denied it is the answer that was lost."""
    return (isinstance(error, UNKNOWN_OUTCOMES) and not isinstance(error, StreamFull)) or (sent and isinstance(error, PermissionDenied) and error.action == "subscribe")


def _translate(commit: Commit, error: AetherError) -> AetherError:
    if isinstance(error, WrongLastSequence):
        return VersionConflictError(str(commit.actor), commit.first_version - 1, VERSION_UNKNOWN)
    if isinstance(error, PayloadTooLarge):
        return CommitTooLarge(f"{commit.actor}: the commit of versions {commit.first_version} to {commit.last_version} exceeds the server's max_payload: {error}")
    if isinstance(error, JetStreamError) and error.error_code in ERRORS_TOO_LARGE:
        return CommitTooLarge(f"{commit.actor}: the commit of versions {commit.first_version} to {commit.last_version} exceeds what its stream takes (max_msg_size): {error}")
    if isinstance(error, PermissionDenied):
        return PermissionDenied(error.subject, error.action, consequence="nothing was stored")
    return error
