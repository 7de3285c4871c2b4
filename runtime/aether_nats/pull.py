"""Reads one subject of a stream in order through a consumer of its own, for histories so long that making one pays.

A consumer costs the server a quarter of the CPU that batched Direct Gets cost for each message (measured: 2.1 us instead of 9), does not keep writers
waiting, and sends what was asked for while the reader is busy with what came before. It is named, unacknowledged, in memory, without replicas, and goes by
itself when nobody asks it for a while. Nothing here is needed for safety: the reader checks what it gets against the log's own chain.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec

from aether_api.errors import AetherError, Backpressure, Disconnected, StreamUnavailable
from aether_nats.connection import NatsConnection
from aether_nats.jetstream_wire import API, build_status_error, find_missing
from aether_nats.message import Message
from aether_nats.read_budget import PULL_BYTES_MAX, PullShares
from aether_nats.requests import INBOX_PREFIX, STATUS_AT, Awaited

ASKED_MAX: Final = 512
ASKED_FIRST: Final = 16
"""Messages of one request, and of the first one; they are fewer where they are large, as far as the last ones tell. Two requests are under way."""

ROOM_BYTES: Final = 64 << 10
"""Bytes beyond the largest payload that one request may bring, for subject and headers: the server ends it sooner where messages grew, so that two never fill
the 64 MB for which it keeps a slow client (measured: 1,024 commits of 64 KB lost the link)."""

TAKEN_MAX: Final = 256
"""Messages handed over at once: folded in a millisecond, for which other actors wait, and small enough for the caches of a core."""

TRIES_MAX: Final = 3
TRY_AGAIN_S: Final = 0.02
"""How often the first request is repeated, and seconds before each (measured on three servers: one new consumer in a hundred was not known at once, none for 20 ms)."""

LONG_REPLY_DOTS: Final = 11
"""Dots of a reply that has a token behind everything else."""

INACTIVE_NS: Final = 30 * 10**9
"""Nanoseconds without a request after which the server drops a consumer whose reader is gone."""

_encode = msgspec.json.Encoder().encode


class Wanted(NamedTuple):
    """What a consumer is to deliver: so many messages, of so many bytes as far as anybody knows."""

    messages: int
    size: int = 0


class Pulled(NamedTuple):
    """Messages as a consumer delivers them, in columns; without sequences where their replies do not tell them."""

    sequences: Sequence[int]
    raw_headers: Sequence[bytes]
    payloads: Sequence[bytes]

    def __bool__(self) -> bool:
        return bool(self.payloads)


NOTHING_PULLED: Final = Pulled((), (), ())
"""What there is when all messages were taken."""


class ConsumerConfig(msgspec.Struct, frozen=True):
    """The part of a consumer's configuration that Aether sets; durations are nanoseconds."""

    name: str
    filter_subject: str
    opt_start_seq: int
    deliver_policy: str = "by_start_sequence"
    ack_policy: str = "none"
    replay_policy: str = "instant"
    inactive_threshold: int = INACTIVE_NS
    num_replicas: int = 1
    mem_storage: bool = True


class _Arrival(Awaited[None]):
    """Whoever waits until something has come."""

    __slots__ = ()

    def take(self, message: Message) -> bool:  # what comes does not come through the table
        return self.settle(None)


def sequences_of(replies: Sequence[bytes]) -> Sequence[int]:
    """Return where the messages of one consumer stand in the stream, at least one; nothing where their replies do not tell.

    A consumer delivers in the order of the stream. So where as many messages as there are lie between the first and the last, nothing else is among
    them, and the others need not be read.
    """
    # $JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<deliveries>.<sequence>.<delivered>.<time>.<pending>[.<token>]
    behind = 5 if replies[0].count(b".") == LONG_REPLY_DOTS else 4

    def read(some: Sequence[bytes]) -> list[int]:
        return [int(reply.rsplit(b".", behind)[1]) for reply in some]

    try:
        first, last = read((replies[0], replies[-1]))
        return range(first, last + 1) if last - first == len(replies) - 1 else read(replies)
    except (ValueError, IndexError):
        return ()


class Pull:
    """What a consumer still has to deliver; the subscriber to its messages.

    Attributes:
        consumer: its name.
    """

    queue = ""

    def __init__(self, connection: NatsConnection, stream: str, name: str, wanted: Wanted, shares: PullShares, *, timeout_s: float) -> None:
        """Prepare for so many messages; callers use `JetStream.open_pull`.

        Args:
            shares: of the bytes that all consumers of the connection may have under way.
        """
        self.sid = connection.next_sid()
        self.subject = f"{INBOX_PREFIX}.{name}.{secrets.token_hex(8)}"
        self._connection = connection
        self._stream = stream
        self.consumer = name
        self._left = wanted.messages
        self._timeout_s = timeout_s
        self._under_way = 0
        self._shares = shares
        self._is_open = True
        self._asked = self._count_fitting(ASKED_FIRST, 1, wanted.size)
        self._spare = 0
        self._tries = 0
        self._arrived: list[tuple[bytes, bytes, bytes]] = []
        self._max_bytes = max(PULL_BYTES_MAX, connection.max_payload + ROOM_BYTES)
        self._has_brought = False
        self._error: AetherError | None = None
        self._waiting: _Arrival | None = None

    def __call__(self, subject: bytes, reply: bytes, raw_headers: bytes, payload: bytes) -> None:
        """Keep a message for `take`; a status ends the pull, unless it says that a request brought as many bytes as it may."""
        if raw_headers[STATUS_AT : STATUS_AT + 1] == b" ":
            self._take_status(Message(subject, reply, raw_headers, payload))
        else:
            self._has_brought = True
            self._arrived.append((reply, raw_headers, payload))
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.settle(None)

    async def take(self) -> Pulled:
        """Return what has come since, at least one message; none once all of them were taken.

        Raises:
            RequestTimeout, Disconnected: nothing came; open another one.
            JetStreamError, StreamUnavailable: the server has ended the consumer.
            PermissionDenied: the user may not ask for messages.
        """
        self._ask()
        while not self._arrived and self._left:
            if self._error is not None:
                await self._ask_again(self._error)
            await self._wait()
            self._ask()
        if not self._arrived:
            return NOTHING_PULLED
        replies, raw_headers, payloads = zip(*self._arrived[:TAKEN_MAX], strict=True)
        del self._arrived[:TAKEN_MAX]
        count = len(payloads)
        self._asked = self._spare = self._count_fitting(ASKED_MAX, count, sum(map(len, payloads)))
        self._left -= count
        self._under_way -= count
        return Pulled(sequences_of(replies), raw_headers, payloads)

    def _count_fitting(self, most: int, count: int, size: int) -> int:
        """Return how many messages fit into our share, if `count` of them have `size` bytes."""
        return max(1, min(most, self._shares.each * count // (1 + size)))

    def _take_status(self, status: Message) -> None:
        missing = find_missing(status)
        if missing == 0:
            return
        if missing is not None and self._has_brought:
            self._under_way -= missing
            self._has_brought = False  # the next request brings one message at least, or never will
        else:
            self._error = build_status_error(status)

    def close(self) -> None:
        """End the consumer; without a link the server does it by itself. Harmless to repeat."""
        if not self._is_open:
            return
        self._is_open = False
        self._shares.leave()
        self._connection.stop_subscription(self, keep_handler=False)
        with suppress(Disconnected, Backpressure):
            self._connection.publish(f"{API}.CONSUMER.DELETE.{self._stream}.{self.consumer}", b"")

    def _ask(self) -> None:
        """Keep two requests under way, one until something has come."""
        while self._under_way <= self._spare and self._under_way < self._left:
            count = min(self._asked, self._left - self._under_way)
            question = {"batch": count, "max_bytes": self._max_bytes, "expires": int(self._timeout_s * 1e9)}
            self._connection.publish(f"{API}.CONSUMER.MSG.NEXT.{self._stream}.{self.consumer}", _encode(question), reply=self.subject)
            self._under_way += count

    async def _ask_again(self, error: AetherError) -> None:
        """Repeat the first request if nobody knew the consumer: of several servers ours may hear a moment later of it than the one that has it."""
        if self._spare or self._tries >= TRIES_MAX or not isinstance(error, StreamUnavailable):
            raise error
        self._tries += 1
        await asyncio.sleep(TRY_AGAIN_S)
        self._error, self._under_way = None, 0
        self._ask()

    async def _wait(self) -> None:
        self._waiting = arrival = _Arrival(f"{API}.CONSUMER.MSG.NEXT.{self._stream}.{self.consumer}", asyncio.get_running_loop().create_future())
        token = self._connection.expect(arrival, self._timeout_s)
        try:
            await arrival.future
        finally:
            self._connection.discard(token)
            self._waiting = None
