"""What the server says of a commit that it stored: the commit itself, and behind its headers the server's own.

The announcement (RePublish) carries the commit's sequence and that of the actor's commit before it. The server writes its
headers last, so what a publisher forged of them does not count.
"""

from __future__ import annotations

from typing import Final

from aether_api import headers
from aether_api.envelope import StoredCommit, decode_commit
from aether_api.errors import InvalidEnvelope
from aether_nats.message import Message

_STREAM: Final = headers.marker("Nats-Stream")
_SEQUENCE: Final = headers.marker(headers.STORED_SEQUENCE)
_LAST_SEQUENCE: Final = headers.marker("Nats-Last-Sequence")


def read_stream(message: Message) -> str:
    """Return the name of the stream that announces; empty where it is missing."""
    return headers.find_header(message.raw_headers, _STREAM) or ""


def read_sequence(message: Message) -> int:
    """Return the sequence of what was stored, or raise `InvalidEnvelope`."""
    return _count(message, _SEQUENCE)


def read_last_sequence(message: Message) -> int:
    """Return the sequence of what the actor stored before, 0 for nothing, or raise `InvalidEnvelope`."""
    return _count(message, _LAST_SEQUENCE)


def decode_announced(sequence: int, message: Message) -> StoredCommit:
    """Return the commit that was stored at `sequence`, or raise `InvalidEnvelope`."""
    raw = message.raw_headers
    return decode_commit(sequence, raw[: raw.rfind(_STREAM)] + b"\r\n\r\n", message.payload)


def _count(message: Message, marked: bytes) -> int:
    count = headers.parse_count(headers.find_header(message.raw_headers, marked) or "")
    if count is None:
        raise InvalidEnvelope("a header of the server is missing")
    return count
