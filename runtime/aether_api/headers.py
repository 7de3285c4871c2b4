"""NATS headers: the names that Aether uses, and a small codec for raw header blocks.

A header block is what the NATS protocol sends: `NATS/1.0\r\n`, then `Name: value\r\n` lines, then `\r\n`. nats-py's own
codec goes through `email.parser`, which costs eight times the decode of an event (measured), hence this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aether_api.errors import InvalidEnvelope

EXPECTED_SEQUENCE: Final = "Nats-Expected-Last-Subject-Sequence"
MESSAGE_ID: Final = "Nats-Msg-Id"
SCHEDULE: Final = "Nats-Schedule"
SCHEDULE_TARGET: Final = "Nats-Schedule-Target"
SCHEDULE_ZONE: Final = "Nats-Schedule-Time-Zone"
SCHEDULE_NEXT: Final = "Nats-Schedule-Next"
STORED_SEQUENCE: Final = "Nats-Sequence"
COMMIT: Final = "Aether-Commit"
VERSIONS: Final = "Aether-Version"
ORDINAL: Final = "Aether-N"
BACK: Final = "Aether-Back"
EPOCH: Final = "Aether-Epoch"
POD: Final = "Aether-Pod"
MODEL: Final = "Aether-Model"
INCARNATION: Final = "Aether-Incarnation"
TOMBSTONE: Final = "Aether-Tombstone"
INBOX: Final = "Aether-Inbox"
REMINDER: Final = "Aether-Reminder"

COMMAND: Final = "Aether-Command"
COMMAND_NAME: Final = "Aether-Command-Name"
MISSED: Final = "Aether-Missed"
DUE: Final = "Aether-Due"
DEAD_REASON: Final = "Aether-Dead-Reason"
DEAD_MESSAGE: Final = "Aether-Dead-Message"
DEAD_LOST_BYTES: Final = "Aether-Dead-Lost-Bytes"
TIME: Final = "Aether-Time"
TIMEOUT_MS: Final = "Aether-Timeout-Ms"
EXPECTED_VERSION: Final = "Aether-Expected-Version"
DRY_RUN: Final = "Aether-Dry-Run"
FORWARDS: Final = "Aether-Forwards"
TRACEPARENT: Final = "traceparent"

SNAPSHOT_FORMAT: Final = "Aether-Format"
SNAPSHOT_SHA256: Final = "Aether-Sha256"
SNAPSHOT_SEQUENCE: Final = "Aether-Sequence"
CONTENT_TYPE: Final = "content-type"

FIRST_LINE: Final = b"NATS/1.0"

BLANKS: Final = " \t"
"""What may surround a value; other white space belongs to it."""

COUNT_DIGITS_MAX: Final = 18
"""Digits of a number in a header: enough for a sequence or for milliseconds, and it always fits 64 bits."""


def encode_headers(values: Mapping[str, str]) -> bytes:
    """Return `Name: value` lines, each ended by CRLF, without the protocol's first and last line.

    Raises:
        InvalidEnvelope: a value holds a line break and would forge another header.
    """
    lines: list[str] = []
    for name, value in values.items():
        if "\n" in value or "\r" in value:
            raise InvalidEnvelope(f"header {name} must not hold a line break")
        lines.append(f"{name}: {value}\r\n")
    return "".join(lines).encode()


def decode_headers(raw: bytes) -> dict[str, str]:
    """Return the headers of a raw block; names keep their spelling, the last of equal names wins.

    Raises:
        InvalidEnvelope: the block is not UTF-8.
    """
    try:
        _, *lines = raw.decode().split("\r\n")
    except UnicodeDecodeError as exc:
        raise InvalidEnvelope("the headers are not UTF-8") from exc
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name] = value.strip(BLANKS)
    return headers


def marker(name: str) -> bytes:
    """Return what `find_header` looks for."""
    return f"\r\n{name}:".encode()


def find_header(raw: bytes, marked: bytes) -> str | None:
    """Return one header of a raw block, the last of equal names as `decode_headers` does; for hot paths that need few of them.

    Raises:
        InvalidEnvelope: it is not UTF-8.
    """
    at = raw.rfind(marked)
    if at < 0:
        return None
    start = at + len(marked)
    end = raw.find(b"\r\n", start)
    try:
        return raw[start : end if end >= 0 else None].decode().strip(BLANKS)
    except UnicodeDecodeError as exc:
        raise InvalidEnvelope("the headers are not UTF-8") from exc


def parse_count(text: str) -> int | None:
    """Return a whole number of at least 0, or None for anything else, however long or in whatever script."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= COUNT_DIGITS_MAX else None
