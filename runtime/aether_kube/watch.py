"""Decides what the bytes of a watch mean: pieces to lines, lines to watch events. Pure.

A watch is one JSON object a line over a chunked answer; a piece of the network ends anywhere. What stands after the last
line break of a cut stream is dropped, because the next watch sends that event again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import orjson

from aether_kube.documents import JsonObject, parse_json, text_at, value_at

LINE_BYTES_MAX: Final = 16 * 1024 * 1024
"""Bytes: ten times the 1.5 MB that etcd takes for one object; a longer line is no watch event but a broken server."""

WatchEventKind = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
_KINDS: Final[dict[str, WatchEventKind]] = {"ADDED": "ADDED", "MODIFIED": "MODIFIED", "DELETED": "DELETED", "BOOKMARK": "BOOKMARK", "ERROR": "ERROR"}


class MalformedAnswer(ValueError):
    """Bytes that no API server sends; what they stood for is unknown, so the informer lists again."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One line of a watch; for ERROR the document is a Status, for BOOKMARK only its resourceVersion counts."""

    kind: WatchEventKind
    document: JsonObject


class LineBuffer:
    """Cuts a stream of bytes into lines, in time linear in the bytes however long a line is."""

    __slots__ = ("_byte_count", "_pieces")

    def __init__(self) -> None:
        """Start with nothing."""
        self._pieces: list[bytes] = []
        self._byte_count = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """Take the next bytes and return the lines that they complete, without line breaks and blank lines.

        Raises:
            MalformedAnswer: an unfinished line has over LINE_BYTES_MAX bytes.
        """
        *complete, rest = piece.split(b"\n")
        lines: list[bytes] = []
        for part in complete:
            lines.append(b"".join((*self._pieces, part)))
            self._pieces.clear()
            self._byte_count = 0
        if rest:
            self._pieces.append(rest)
            self._byte_count += len(rest)
        if self._byte_count > LINE_BYTES_MAX:
            raise MalformedAnswer(f"a line of a watch has more than {LINE_BYTES_MAX} bytes")
        return [line for line in lines if line.strip()]


def parse_watch_event(line: bytes) -> WatchEvent:
    """Return the event that a line holds.

    Raises:
        MalformedAnswer: it holds none.
    """
    try:
        document = parse_json(line)
    except orjson.JSONDecodeError as exc:
        raise MalformedAnswer("a line of a watch is no JSON") from exc
    kind = _KINDS.get(text_at(document, "type"))
    subject = value_at(document, "object")
    if kind is None or not isinstance(subject, dict):
        raise MalformedAnswer("a line of a watch holds no known event")
    return WatchEvent(kind, subject)
