"""One received message, decoded only as far as somebody looks.

Most replies are read for one number, so subject, reply and headers stay the bytes that came from the socket.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from aether_api.headers import FIRST_LINE, decode_headers

Handler = Callable[[bytes, bytes, bytes, bytes], None]
"""Called in the read loop with subject, reply, raw header block and payload; must not raise and must not block."""

_STATUS_START = len(FIRST_LINE) + 1
_STATUS_END = _STATUS_START + 3


class Message(msgspec.Struct, frozen=True, gc=False):
    """A message as it came: raw header block (empty without headers) and payload."""

    raw_subject: bytes
    raw_reply: bytes
    raw_headers: bytes
    payload: bytes

    @property
    def subject(self) -> str:
        """The subject it was published on."""
        return self.raw_subject.decode()

    @property
    def reply(self) -> str:
        """The subject that awaits an answer; empty when nobody does."""
        return self.raw_reply.decode()

    @property
    def status(self) -> int:
        """The server's status code (503 no responders, 404 not found, 204 end of a batch); 0 for a message of a peer."""
        digits = self.raw_headers[_STATUS_START:_STATUS_END]
        return int(digits) if digits.isdigit() and self.raw_headers[len(FIRST_LINE) : _STATUS_START] == b" " else 0

    @property
    def status_text(self) -> str:
        """What the server says beside the status code."""
        return self.raw_headers[_STATUS_END:].partition(b"\r\n")[0].strip().decode(errors="replace")

    def headers(self) -> dict[str, str]:
        """Decode the headers; a repeated name keeps its last value."""
        return decode_headers(self.raw_headers) if self.raw_headers else {}

    def __repr__(self) -> str:
        return f"Message(subject={self.raw_subject.decode(errors='replace')!r}, status={self.status}, payload of {len(self.payload)} bytes)"
