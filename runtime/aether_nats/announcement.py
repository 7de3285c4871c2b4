"""What the server says of a commit that it stored: the commit itself, and behind its headers the server's own.

The announcement (RePublish) carries the commit's sequence and that of the actor's commit before it. The server writes its
headers last, so what a publisher forged of them does not count.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from aether_api import headers
from aether_api.envelope import StoredCommit, decode_commit
from aether_api.errors import InvalidEnvelope
from aether_nats.message import Message

_STREAM: Final = headers.marker("Nats-Stream")
_SEQUENCE: Final = headers.marker(headers.STORED_SEQUENCE)
_TIME: Final = headers.marker("Nats-Time-Stamp")
_LAST_SEQUENCE: Final = headers.marker("Nats-Last-Sequence")
_USUAL: Final = re.compile(
    rb"\r\nNats-Stream: ([!-~]+)\r\nNats-Subject: [!-~]+\r\nNats-Sequence: ([1-9]\d{0,17})\r\nNats-Time-Stamp: ([!-~]+)\r\nNats-Last-Sequence: (\d{1,18})\r\n\r\n"
)
"""What servers write today, in their order: one search instead of three."""


class Place(NamedTuple):
    """Where the server stored what it announces.

    Attributes:
        stream: its name; empty where the server does not say.
        last_sequence: of what the actor stored before, 0 for nothing.
        time: when, RFC 3339 to the nanosecond; empty where the server does not say.
    """

    stream: str
    sequence: int
    last_sequence: int
    time: str


def read_place(message: Message) -> Place:
    """Return where something was stored, or raise `InvalidEnvelope`."""
    raw = message.raw_headers
    usual = _USUAL.fullmatch(raw, max(0, raw.rfind(_STREAM)))
    if usual is not None:
        stream, sequence, time, last_sequence = usual.groups()
        return Place(stream.decode(), int(sequence), int(last_sequence), time.decode())
    return Place(headers.find_header(raw, _STREAM) or "", _count(raw, _SEQUENCE), _count(raw, _LAST_SEQUENCE), headers.find_header(raw, _TIME) or "")


def decode_announced(sequence: int, message: Message) -> StoredCommit:
    """Return the commit that was stored at `sequence`, or raise `InvalidEnvelope`."""
    raw = message.raw_headers
    return decode_commit(sequence, raw[: raw.rfind(_STREAM)] + b"\r\n\r\n", message.payload)


def _count(raw: bytes, marked: bytes) -> int:
    count = headers.parse_count(headers.find_header(raw, marked) or "")
    if count is None:
        raise InvalidEnvelope("a header of the server is missing")
    return count
