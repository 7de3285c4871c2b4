"""What a received message tells of itself."""

from __future__ import annotations

import pytest

from aether_nats.message import Message


def build(raw_headers: bytes) -> Message:
    return Message(b"subject", b"", raw_headers, b"")


@pytest.mark.parametrize(
    ("raw_headers", "status", "text"),
    [
        (b"", 0, ""),
        (b"NATS/1.0\r\nStatus: 404\r\n\r\n", 0, ""),
        (b"NATS/1.0 503\r\n\r\n", 503, ""),
        (b"NATS/1.0 404 Message Not Found\r\n\r\n", 404, "Message Not Found"),
        (b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 3\r\n\r\n", 204, "EOB"),
    ],
)
def test_the_status_is_read_from_the_first_line_only(raw_headers: bytes, status: int, text: str) -> None:
    message = build(raw_headers)
    assert (message.status, message.status_text if status else "") == (status, text)


def test_headers_beside_a_status_are_decoded() -> None:
    assert build(b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 3\r\n\r\n").headers() == {"Nats-Num-Pending": "3"}
