"""The calls of JetStream that Aether uses, typed, each bound in time.

Two kinds of reads, never to be mixed up (measured on three replicas): `message_by_last` asks the stream's leader and is
current; Direct Get (`messages_by_sequence`, `multi_last`, `read_batch`) is answered by any replica and is stale in 7 of 100
reads right after an ack, so it serves only for what is known to be there, by its sequence.

Every call may fail with `RequestTimeout` or `Disconnected` (outcome unknown) and with `StreamUnavailable`, all of them
retryable, and with `JetStreamError`, which is not.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Iterable, Sequence
from functools import partial
from typing import Final, TypeVar

import msgspec

from aether_api.errors import InvalidEnvelope, JetStreamError, NoResponders, StreamUnavailable
from aether_nats.connection import REQUEST_TIMEOUT_S, NatsConnection
from aether_nats.jetstream_wire import (
    API,
    CODE_END_OF_BATCH,
    CODE_NOT_FOUND,
    ERROR_NO_MESSAGE,
    ERROR_NO_SEQUENCE,
    ERROR_STREAM_NOT_FOUND,
    OWN_METADATA,
    LeaderAnswer,
    NamesAnswer,
    PubAck,
    PurgeAnswer,
    StoredMessage,
    StreamConfig,
    StreamInfo,
    WholeConfig,
    ack_of,
    build_status_error,
    check_batch,
    decode_answer,
    find_pending,
    stored_of,
)
from aether_nats.message import Message
from aether_nats.pull import ConsumerConfig, Pull, Wanted
from aether_nats.read_budget import PullShares, StreamBudgets

READS_IN_FLIGHT_MAX: Final = 256
"""Direct Gets sent before the first is awaited: enough to hide the round trip, and little beside other actors' reads."""

BATCH_BYTES_MAX: Final = 2 << 20
"""Bytes after which no further message comes in one batch of a Direct Get; the server's own bound is all that it keeps for a client."""

READ_AT_ONCE: Final = 1000
"""Messages that are asked for at once where all of a subject are read: few round trips, and `BATCH_BYTES_MAX` ends a batch of large ones."""

SUBJECTS_IN_REQUEST_MAX: Final = 512
"""Subjects in one `multi_last`: the server refuses above 1,024 matches."""

GONE_CURE: Final = "restore it from a backup, or let a runtime or the operator start, which makes it anew without what it held"
"""What to do where a stream is gone that was there."""

_T = TypeVar("_T")
_encode = msgspec.json.Encoder().encode
_info_decoder = msgspec.json.Decoder(StreamInfo)
_leader_decoder = msgspec.json.Decoder(LeaderAnswer)
_purge_decoder = msgspec.json.Decoder(PurgeAnswer)
_names_decoder = msgspec.json.Decoder(NamesAnswer)
_config_decoder = msgspec.json.Decoder(WholeConfig)
_any_decoder = msgspec.json.Decoder(msgspec.Raw)


class JetStream:
    """JetStream behind one connection."""

    def __init__(self, connection: NatsConnection, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._budgets: defaultdict[str, StreamBudgets] = defaultdict(StreamBudgets)
        self._pull_shares = PullShares()

    @property
    def connection(self) -> NatsConnection:
        """The connection that carries the calls."""
        return self._connection

    async def publish(self, subject: str, payload: bytes, headers: bytes = b"", *, timeout_s: float | None = None) -> PubAck:
        """Store a message and return its place.

        Raises:
            WrongLastSequence: an expected sequence in `headers` was another one; nothing was stored.
        """
        try:
            return ack_of(await self._connection.request(subject, payload, headers, timeout_s or self._timeout_s))
        except NoResponders as exc:
            raise StreamUnavailable(f"no stream takes {subject} now") from exc

    async def stream_info(self, stream: str, *, subjects_filter: str = "") -> StreamInfo | None:
        """Read a stream's configuration and state; None when there is no such stream.

        Args:
            subjects_filter: also count messages by subject, for subjects that match; the server gives at most 100,000.
        """
        question = {"subjects_filter": subjects_filter} if subjects_filter else None
        try:
            return await self._call(f"STREAM.INFO.{stream}", question, _info_decoder)
        except JetStreamError as exc:
            if exc.error_code == ERROR_STREAM_NOT_FOUND:
                return None
            raise

    async def stream_names(self, subject: str) -> list[str]:
        """List the streams whose subjects overlap with `subject`."""
        names: list[str] = []
        while True:
            page = await self._call("STREAM.NAMES", {"subject": subject, "offset": len(names)}, _names_decoder)
            names += page.streams or ()
            if len(names) >= page.total or not page.streams:
                return names

    async def create_stream(self, config: StreamConfig) -> StreamInfo:
        """Create a stream; one with an equal configuration may exist already.

        Raises:
            JetStreamError: with `ERROR_STREAM_EXISTS` when it exists with another configuration.
        """
        return await self._call(f"STREAM.CREATE.{config.name}", config, _info_decoder)

    async def update_stream(self, config: StreamConfig) -> StreamInfo:
        """Give an existing stream this configuration."""
        return await self._call(f"STREAM.UPDATE.{config.name}", config, _info_decoder)

    async def set_metadata(self, stream: str, key: str, value: str) -> StreamInfo:
        """Write one entry into a stream's metadata; all else that somebody configured stays, also what Aether does not know."""
        found = await self._call(f"STREAM.INFO.{stream}", None, _config_decoder)
        known = msgspec.convert(found.config, StreamConfig).metadata
        metadata = {name: text for name, text in known.items() if not name.startswith(OWN_METADATA)}
        return await self._call(f"STREAM.UPDATE.{stream}", {**found.config, "metadata": {**metadata, key: value}}, _info_decoder)

    async def delete_stream(self, stream: str) -> bool:
        """Delete a stream with all it holds; False when there was none."""
        try:
            await self._call(f"STREAM.DELETE.{stream}", None, _any_decoder)
        except JetStreamError as exc:
            if exc.error_code == ERROR_STREAM_NOT_FOUND:
                return False
            raise
        return True

    async def purge(self, stream: str, subject: str, *, keep: int = 0, before_sequence: int = 0) -> int:
        """Remove messages of a subject (wildcards allowed) and return their number.

        Args:
            keep: how many of the newest stay; not together with `before_sequence`.
            before_sequence: remove only messages below this sequence.
        """
        question: dict[str, str | int] = {"filter": subject}
        if keep:
            question["keep"] = keep
        if before_sequence:
            question["seq"] = before_sequence
        return (await self._call(f"STREAM.PURGE.{stream}", question, _purge_decoder)).purged

    async def message_by_last(self, stream: str, subject: str) -> StoredMessage | None:
        """Read the last message of a subject from the stream's leader: current even right after an ack."""
        return await self._leader_message(stream, {"last_by_subj": subject})

    async def direct_by_last(self, stream: str, subject: str, *, before_sequence: int = 0) -> StoredMessage | None:
        """Read the last message of a subject, or the last before a sequence, from any replica: cheap, and possibly stale."""
        if not before_sequence:
            return stored_of(await self._direct(stream, f"{stream}.{subject}", b""))
        if before_sequence == 1:
            return None  # the server would take no bound for a bound of none
        found, _ = await self._direct_many(stream, _encode({"multi_last": [subject], "up_to_seq": before_sequence - 1}), 1)
        return found[0] if found else None

    async def message_by_sequence(self, stream: str, sequence: int) -> StoredMessage | None:
        """Read one message by its sequence from any replica; None when it is not there."""
        return stored_of(await self._direct(stream, stream, b'{"seq":%d}' % sequence))

    async def leader_message(self, stream: str, sequence: int) -> StoredMessage | None:
        """Read one message by its sequence from the stream's leader: for what a replica may not have yet."""
        return await self._leader_message(stream, {"seq": sequence})

    async def leader_next(self, stream: str, subject: str, first_sequence: int) -> StoredMessage | None:
        """Read the first message of a subject from `first_sequence` on from the stream's leader: current even right after an ack."""
        return await self._leader_message(stream, {"seq": max(1, first_sequence), "next_by_subj": subject})

    async def delete_message(self, stream: str, sequence: int) -> bool:
        """Delete one message; False when it was not there."""
        try:
            await self._call(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True}, _any_decoder)
        except JetStreamError as exc:
            if exc.error_code in (ERROR_NO_MESSAGE, ERROR_NO_SEQUENCE):
                return False
            raise
        return True

    def count_at_once(self, stream: str, size: int = 0) -> int:
        """Return how many messages of some `size` bytes, as far as the caller knows, are to be read at once: they are all in memory then."""
        return min(READS_IN_FLIGHT_MAX, self._budgets[stream].runs.count(size))

    async def messages_by_sequence(self, stream: str, sequences: Sequence[int], *, size: int = 0) -> list[Message]:
        """Read messages by their sequences, pipelined, and return the answers for `stored_of`, in the order in which they come.

        Args:
            size: bytes of one of them, as far as the caller knows.
        """
        subject, runs, found = f"{API}.DIRECT.GET.{stream}", self._budgets[stream].runs, list[Message]()
        while len(found) < len(sequences):
            questions = [b'{"seq":%d}' % sequence for sequence in sequences[len(found) : len(found) + self.count_at_once(stream, size)]]
            try:
                found += await runs.read(len(questions), size, partial(self._connection.request_each, subject, questions, self._timeout_s))
            except NoResponders as exc:
                raise StreamUnavailable(f"nobody serves the stream {stream} now") from exc
        return found

    async def multi_last(self, stream: str, subjects: Iterable[str]) -> AsyncGenerator[StoredMessage]:
        """Yield the last message of each subject that has one, from any replica, in order of sequence within a request; they are in memory batch by batch, since they may be large."""
        wanted = list(subjects)
        for start in range(0, len(wanted), SUBJECTS_IN_REQUEST_MAX):
            some = wanted[start : start + SUBJECTS_IN_REQUEST_MAX]
            question: dict[str, object] = {"multi_last": some, "max_bytes": BATCH_BYTES_MAX}
            while True:
                batch, pending = await self._direct_many(stream, _encode(question), len(some))
                for message in batch:
                    yield message
                if not pending or not batch:
                    break
                question["seq"] = batch[-1].sequence + 1

    def has_room_for_pull(self, size: int) -> bool:
        """Whether one more consumer may deliver messages of some `size` bytes: what they have under way is bounded."""
        return self._pull_shares.has_room(size)

    async def open_pull(self, stream: str, subject: str, first_sequence: int, wanted: Wanted) -> Pull:
        """Make a consumer that delivers so many messages of a subject from `first_sequence` on; the caller closes it."""
        config = ConsumerConfig(f"replay-{secrets.token_hex(8)}", subject, max(1, first_sequence))
        await self._call(f"CONSUMER.CREATE.{stream}.{config.name}.{subject}", {"stream_name": stream, "config": config, "action": "create"}, _any_decoder)
        pull = Pull(self._connection, stream, config.name, wanted, self._pull_shares, timeout_s=self._timeout_s)
        self._connection.attach(pull)
        self._pull_shares.join()
        return pull

    async def read_all(self, stream: str, subject: str) -> AsyncGenerator[StoredMessage]:
        """Yield all messages of a subject, in as many batches as that takes, of which one at a time is in memory; for people, of what they can look through."""
        first, pending = 1, 1
        while pending:
            batch, pending = await self.read_batch(stream, subject, first, READ_AT_ONCE)
            for message in batch:
                yield message
            if not batch:
                return
            first = batch[-1].sequence + 1

    async def read_batch(self, stream: str, subject: str, first_sequence: int, count: int, *, max_bytes: int = BATCH_BYTES_MAX) -> tuple[list[StoredMessage], int]:
        """Read up to `count` messages of a subject from `first_sequence` on, and how many more there are.

        The server walks every message in between and writers wait meanwhile: for fallbacks and tools, never to replay.

        Args:
            max_bytes: after so many no further message comes.
        """
        question = {"seq": max(1, first_sequence), "next_by_subj": subject, "batch": count, "max_bytes": max_bytes}
        return await self._direct_many(stream, _encode(question), count, max_bytes)

    async def _direct(self, stream: str, target: str, question: bytes) -> Message:
        try:
            return await self._read_one(stream, f"{API}.DIRECT.GET.{target}", question)
        except NoResponders as exc:
            raise StreamUnavailable(f"nobody serves the stream of {target} now") from exc

    async def _leader_message(self, stream: str, question: dict[str, object]) -> StoredMessage | None:
        try:
            answer = await self._call(f"STREAM.MSG.GET.{stream}", question, _leader_decoder, reads_from=stream)
        except JetStreamError as exc:
            if exc.error_code == ERROR_NO_MESSAGE:
                return None
            if exc.error_code == ERROR_STREAM_NOT_FOUND:  # as a Direct Get of it says: it may be restored, or made anew
                raise StreamUnavailable(f"there is no stream {stream}; {GONE_CURE}") from exc
            raise
        return answer.stored()

    async def _direct_many(self, stream: str, question: bytes, count: int, max_bytes: int = BATCH_BYTES_MAX) -> tuple[list[StoredMessage], int]:
        ask = partial(self._connection.request_many, f"{API}.DIRECT.GET.{stream}", question, b"", self._timeout_s)
        try:
            messages = await self._budgets[stream].batches.read(count, 0, ask, bytes_max=max_bytes)
        except NoResponders as exc:
            raise StreamUnavailable(f"nobody serves the stream {stream} now") from exc
        return _read_batch(messages)

    def _read_one(self, stream: str, subject: str, question: bytes) -> Awaitable[Message]:
        return self._budgets[stream].singles.read(1, 0, partial(self._connection.request, subject, question, b"", self._timeout_s))

    async def _call(self, name: str, question: object, decoder: msgspec.json.Decoder[_T], *, reads_from: str = "") -> _T:
        self._connection.check_loop()
        subject, payload = f"{API}.{name}", b"" if question is None else _encode(question)
        try:
            message = await (self._read_one(reads_from, subject, payload) if reads_from else self._connection.request(subject, payload, b"", self._timeout_s))
        except NoResponders as exc:
            raise StreamUnavailable("JetStream does not answer: is it enabled on the server and for this account?") from exc
        return decode_answer(message, decoder)


def _read_batch(answer: list[Message]) -> tuple[list[StoredMessage], int]:
    """Return the messages of a batched Direct Get and how many more there are."""
    *messages, end = answer
    if not messages and end.status == CODE_NOT_FOUND:
        return [], 0
    if end.status != CODE_END_OF_BATCH:
        raise build_status_error(end)
    check_batch(messages, end)
    return [_expect(stored_of(message)) for message in messages], find_pending(end)


def _expect(message: StoredMessage | None) -> StoredMessage:
    if message is None:
        raise InvalidEnvelope("a batch of a Direct Get holds something that is no message")
    return message
