"""JetStream's answers as values, and its refusals as our errors.

The server speaks JSON for its API and for acks, and raw messages with `Nats-` headers for Direct Get. Everything is checked
here, once; beyond this module nothing of JetStream is untyped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal, TypeVar

import msgspec

from aether_api.errors import MALFORMED, AetherError, InvalidEnvelope, JetStreamError, RequestTimeout, StreamFull, StreamUnavailable, WrongLastSequence
from aether_api.headers import COUNT_DIGITS_MAX
from aether_nats.message import Message

ERROR_WRONG_LAST_SEQUENCE: Final = 10071
ERROR_WRITE_UNDER_WAY: Final = 10164
"""On replicated streams a conflict mostly has this number: a write to the subject is still in flight, its sequence unknown."""

ERROR_ID_UNDER_WAY: Final = 10158
"""On replicated streams: a message with the same `Nats-Msg-Id` is being written, and nobody knows yet whether it will be stored."""

ERROR_NO_MESSAGE: Final = 10037
ERROR_NO_SEQUENCE: Final = 10043
"""A message that is to be deleted is not there."""

ERROR_STREAM_NOT_FOUND: Final = 10059
ERROR_BAD_SCHEDULE: Final = 10189
ERROR_BAD_TIME_ZONE: Final = 10223

ERROR_NO_PEERS: Final = 10005
ERROR_NO_CLUSTER: Final = 10074
"""There are too few servers for the replicas of a stream; the second one where a server stands alone."""

ERROR_STREAM_EXISTS: Final = 10058
"""A stream of the name exists with another configuration; an equal one is no error."""

ERRORS_TOO_LARGE: Final = (10054, 10097)
"""A message is longer than the stream's `max_msg_size`, or its headers are longer than 64 KB; `max_payload` is checked before."""

ERRORS_FULL: Final = (10002, 10023)
"""The account, or the server, has no room."""

ERROR_STORE_FAILED: Final = 10077
"""The stream has no room, if it says that a maximum is exceeded; what else it says tells nothing."""

ERROR_TOO_MANY: Final = 10167
"""More waits to be stored in a stream than the server holds for it (10,000 messages, 128 MB): it was dropped."""

TOO_MANY_RETRY_S: Final = 0.5
"""Seconds after which a caller may send it again: as long as 600 take on a disk that fsyncs each. (An append comes again as every one whose outcome is open.)"""

OWN_METADATA: Final = "_nats."
"""Beginning of the keys in a stream's metadata that the server writes itself, and does not take back from us."""

CODE_UNAVAILABLE: Final = 503
CODE_NOT_FOUND: Final = 404
CODE_END_OF_BATCH: Final = 204
CODE_CONFLICT: Final = 409

API: Final = "$JS.API"
"""What all subjects of JetStream's API begin with."""

_DIGITS = re.compile(r"(?<!\d)\d{1,18}(?!\d)")
_T = TypeVar("_T")


class ApiError(msgspec.Struct, frozen=True):
    """The `error` object of an answer."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct, frozen=True):
    """What the server says once a message is stored.

    Attributes:
        sequence: where it stands in the stream.
        duplicate: a message with the same `Nats-Msg-Id` was stored before; `sequence` is that one's.
    """

    stream: str
    sequence: int
    duplicate: bool


class Republish(msgspec.Struct, frozen=True):
    """Where the server announces what it stored, by core NATS."""

    src: str
    dest: str
    headers_only: bool = False


class StreamConfig(msgspec.Struct, frozen=True):
    """The part of a stream's configuration that Aether sets; -1 means without limit, durations are nanoseconds."""

    name: str
    subjects: tuple[str, ...]
    retention: Literal["limits", "interest", "workqueue"] = "limits"
    storage: Literal["file", "memory"] = "file"
    num_replicas: int = 1
    discard: Literal["old", "new"] = "old"
    max_consumers: int = -1
    max_msgs: int = -1
    max_bytes: int = -1
    max_age: int = 0
    max_msg_size: int = -1
    max_msgs_per_subject: int = -1
    allow_direct: bool = True
    deny_delete: bool = False
    deny_purge: bool = False
    allow_atomic: bool = False
    allow_msg_schedules: bool = False
    republish: Republish | None = None
    metadata: dict[str, str] = {}


class StreamState(msgspec.Struct, frozen=True):
    """What a stream holds; `last_ts` is when its last message was stored. `subjects` counts messages by subject, if it was asked for."""

    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0
    last_ts: str = ""
    num_subjects: int = 0
    subjects: dict[str, int] = {}


class StreamInfo(msgspec.Struct, frozen=True):
    """A stream's configuration and state, and when it was made (RFC 3339)."""

    config: StreamConfig
    state: StreamState
    created: str = ""


class WholeConfig(msgspec.Struct, frozen=True):
    """A stream's configuration as the server has it, with all that Aether does not set."""

    config: dict[str, object]


class StoredMessage(msgspec.Struct, frozen=True):
    """A message as the stream holds it; `time` is the server's, RFC 3339."""

    subject: str
    sequence: int
    raw_headers: bytes
    payload: bytes
    time: str


class _Ack(msgspec.Struct, frozen=True):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: ApiError | None = None


class _Failure(msgspec.Struct, frozen=True):
    error: ApiError | None = None


class _LeaderMessage(msgspec.Struct, frozen=True):
    subject: str
    seq: int
    time: str
    hdrs: bytes = b""
    data: bytes = b""


class LeaderAnswer(msgspec.Struct, frozen=True):
    """The answer to STREAM.MSG.GET; headers and data are base64 on the wire."""

    message: _LeaderMessage

    def stored(self) -> StoredMessage:
        """Return the message in the form that all reads share."""
        found = self.message
        return StoredMessage(found.subject, found.seq, found.hdrs, found.data, found.time)


class PurgeAnswer(msgspec.Struct, frozen=True):
    """The answer to STREAM.PURGE."""

    purged: int = 0


class NamesAnswer(msgspec.Struct, frozen=True):
    """One page of STREAM.NAMES."""

    total: int = 0
    streams: tuple[str, ...] | None = None


_decode_ack = msgspec.json.Decoder(_Ack).decode
_decode_failure = msgspec.json.Decoder(_Failure).decode


def ack_of(message: Message) -> PubAck:
    """Read the reply to a publish.

    Raises:
        WrongLastSequence: the expected sequence was another one; nothing was stored.
        StreamUnavailable: the stream has no leader now; the outcome is unknown. But for `StreamFull`: nothing was stored.
        JetStreamError: any other refusal; nothing was stored.
    """
    ack = _read_ack(message)
    return PubAck(ack.stream, ack.seq, ack.duplicate)


def sequence_of(message: Message) -> int:
    """Read the sequence from the reply to a publish; raises as `ack_of`."""
    return _read_ack(message).seq


def _read_ack(message: Message) -> _Ack:
    try:
        ack = _decode_ack(message.payload)
    except MALFORMED as exc:
        raise InvalidEnvelope(f"not an ack of JetStream: {message!r}: {exc}") from exc
    if ack.error is not None:
        raise build_error(ack.error)
    return ack


def decode_answer(message: Message, decode: msgspec.json.Decoder[_T]) -> _T:
    """Read an answer of the API, or raise the error that it carries."""
    try:
        failure = _decode_failure(message.payload)
        if failure.error is None:
            return decode.decode(message.payload)
    except MALFORMED as exc:
        raise InvalidEnvelope(f"not an answer of JetStream: {message!r}: {exc}") from exc
    raise build_error(failure.error)


def build_error(error: ApiError) -> AetherError:
    """Return our error for a refusal of the server."""
    if error.err_code == ERROR_WRONG_LAST_SEQUENCE:
        found = _DIGITS.search(error.description)
        return WrongLastSequence(int(found.group()) if found else None)
    if error.err_code == ERROR_WRITE_UNDER_WAY:
        return WrongLastSequence(None)
    if error.err_code == ERROR_ID_UNDER_WAY:
        return StreamUnavailable("an earlier try is still being written; repeat it with its id")
    if error.err_code in ERRORS_FULL or (error.err_code == ERROR_STORE_FAILED and error.description.startswith("maximum ")):
        return StreamFull(f"{error.description} (error {error.err_code})")
    if error.err_code == ERROR_TOO_MANY:
        return StreamUnavailable(f"JetStream takes no more at the moment: {error.description} (error {error.err_code})", retry_after_s=TOO_MANY_RETRY_S)
    # Too few servers for the replicas stay too few; one of them that is away comes back.
    if error.code == CODE_UNAVAILABLE or (error.err_code == ERROR_NO_PEERS and "offline" in error.description):
        return StreamUnavailable(f"JetStream is not available: {error.description} (error {error.err_code})")
    return JetStreamError(error.code, error.err_code, error.description)


def stored_of(message: Message) -> StoredMessage | None:
    """Read the reply to a Direct Get; None when there is no such message.

    Raises:
        JetStreamError: the server refused the question.
        InvalidEnvelope: it is no answer of the server.
    """
    if message.status:
        if message.status in (CODE_NOT_FOUND, CODE_END_OF_BATCH):
            return None
        raise build_status_error(message)
    raw = message.raw_headers
    sequence = _find_header(raw, b"\r\nNats-Sequence:")
    subject, time = _find_header(raw, b"\r\nNats-Subject:"), _find_header(raw, b"\r\nNats-Time-Stamp:")
    try:
        return StoredMessage(subject.decode(), int(sequence), raw, message.payload, time.decode())
    except ValueError as exc:  # no number, one without end, or no UTF-8: anybody may have published on such a subject
        raise InvalidEnvelope(f"not an answer to a Direct Get: {message!r}: {exc}") from exc


def build_status_error(message: Message) -> AetherError:
    """Return our error for a reply that is nothing but a status."""
    if message.status == CODE_UNAVAILABLE:
        return StreamUnavailable(f"JetStream is not available: {message.status_text or 'no leader'}")
    return JetStreamError(message.status, 0, message.status_text)


def find_pending(message: Message) -> int:
    """Return how many matches the server left out of a batch, from its last message."""
    return _find_count(message, b"\r\nNats-Num-Pending:")


def find_missing(message: Message) -> int | None:
    """Return how many messages a request to a consumer leaves out since it brought as many bytes as it may, 0 if it brought all; None where a status says something else."""
    if message.status != CODE_CONFLICT:
        return None
    if message.status_text == "Batch Completed":
        return 0
    return _find_count(message, b"\r\nNats-Pending-Messages:") or None if "MaxBytes" in message.status_text else None


def check_batch(messages: Sequence[Message], end: Message) -> None:
    """Make sure that a batch came whole: each message, and the end, names the sequence of the message before.

    Raises:
        RequestTimeout: something was lost between servers; ask again.
    """
    before = 0
    for message in messages:
        if _find_count(message, b"\r\nNats-Last-Sequence:") != before:
            raise RequestTimeout(f"a batch of a Direct Get has a hole after sequence {before}")
        before = _find_count(message, b"\r\nNats-Sequence:")
    if _find_count(end, b"\r\nNats-Last-Sequence:") != before:
        raise RequestTimeout(f"a batch of a Direct Get lost its end after sequence {before}")


def _find_count(message: Message, marker: bytes) -> int:
    value = _find_header(message.raw_headers, marker)
    return int(value) if value.isdigit() and len(value) <= COUNT_DIGITS_MAX else 0


def _find_header(raw: bytes, marker: bytes) -> bytes:
    """Return one header's value; the server writes its own behind the publisher's, so the last counts."""
    at = raw.rfind(marker)
    if at < 0:
        return b""
    start = at + len(marker)
    return raw[start : raw.find(b"\r\n", start)].strip()
