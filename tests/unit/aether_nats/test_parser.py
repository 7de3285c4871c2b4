"""The fast parser hands on the same messages however the socket cuts them."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.errors import ProtocolError

from aether_nats.parser import CONTROL_LINE_BYTES_MAX, FastParser
from tests.histories.hostile import damaged

Received = tuple[bytes, bytes, bytes, bytes]

BLOCK = b"NATS/1.0\r\nA: b\r\n\r\n"
STREAM = (
    b'INFO {"version":"2.15.2"}\r\n'
    b"MSG a.b 1 5\r\nhello\r\n"
    b"PING\r\n"
    b"MSG a.b 1 reply.to 12\r\nwith\r\nMSG 1 \r\n"
    b"HMSG a.c 2 %d %d\r\n%bbody\r\n"
    % (len(BLOCK), len(BLOCK) + 4, BLOCK)
    + b"HMSG a.c 2 reply.to %d %d\r\n%b\r\n" % (len(BLOCK), len(BLOCK), BLOCK)
    + b"MSG other 99 3\r\nxyz\r\n"
    b"PONG\r\n"
    b"-ERR 'Permissions Violation for Publish to \"x\"'\r\n"
    b"+OK\r\n"
    b"MSG a.b 1 0\r\n\r\n"
)
MESSAGES: list[Received] = [
    (b"a.b", b"", b"", b"hello"),
    (b"a.b", b"reply.to", b"", b"with\r\nMSG 1 "),
    (b"a.c", b"", BLOCK, b"body"),
    (b"a.c", b"reply.to", BLOCK, b""),
    (b"a.b", b"", b"", b""),
]
CONTROLS = ["info 2.15.2", "ping", "pong", 'error Permissions Violation for Publish to "x"']


class Recorder:
    """Takes what is no message."""

    def __init__(self) -> None:
        self.controls: list[str] = []

    def on_ping(self) -> None:
        self.controls.append("ping")

    def on_pong(self) -> None:
        self.controls.append("pong")

    def on_info(self, info: dict[str, object]) -> None:
        self.controls.append(f"info {info.get('version')}")

    def on_server_error(self, text: str) -> None:
        self.controls.append(f"error {text}")


def parse(chunks: list[bytes]) -> tuple[list[Received], list[str]]:
    messages: list[Received] = []
    recorder = Recorder()

    def handle(subject: bytes, reply: bytes, raw_headers: bytes, payload: bytes) -> None:
        messages.append((subject, reply, raw_headers, payload))

    parser = FastParser(recorder, {b"1": handle, b"2": handle})

    for chunk in chunks:
        parser.feed(chunk)
    return messages, recorder.controls


def test_messages_and_control_lines_are_told_apart() -> None:
    assert parse([STREAM]) == (MESSAGES, CONTROLS)


def test_every_byte_may_arrive_alone() -> None:
    assert parse([STREAM[i : i + 1] for i in range(len(STREAM))]) == (MESSAGES, CONTROLS)


@given(st.lists(st.integers(min_value=0, max_value=len(STREAM)), max_size=8))
def test_any_cut_gives_the_same_messages(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert parse([STREAM[start:stop] for start, stop in pairwise(edges)]) == (MESSAGES, CONTROLS)


def test_a_long_message_in_many_chunks_is_whole() -> None:
    payload = bytes(range(256)) * 4096
    data = b"MSG a.b 1 %d\r\n%b\r\n" % (len(payload), payload)
    messages, _ = parse([data[i : i + 32_768] for i in range(0, len(data), 32_768)])
    assert messages == [(b"a.b", b"", b"", payload)]


@pytest.mark.parametrize("garbage", [b"HELLO\r\n", b"MSG a.b\r\n", b"MSG a.b 1 many\r\n", b"INFO {\r\n", b"x" * (CONTROL_LINE_BYTES_MAX + 1)])
def test_what_is_not_the_protocol_is_refused(garbage: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse([garbage])


def test_a_subject_may_hold_what_a_server_lets_through() -> None:
    messages, _ = parse([b"MSG a.\x0bb\x1c\xa0 1 2\r\nhi\r\nHMSG a.\x0bb 2 r.\x0bt %d %d\r\n%b\r\n" % (len(BLOCK), len(BLOCK), BLOCK)])
    assert messages == [(b"a.\x0bb\x1c\xa0", b"", b"", b"hi"), (b"a.\x0bb", b"r.\x0bt", BLOCK, b"")]


@pytest.mark.parametrize("sizes", [b"19 18", b"-1 5", b"5 -1", b"a 5", b"5 a"])
def test_a_message_whose_headers_do_not_fit_it_is_refused(sizes: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse([b"HMSG a.b 1 %b\r\n%b\r\n" % (sizes, BLOCK)])


def test_a_reset_forgets_half_a_message() -> None:
    messages: list[bytes] = []

    parser = FastParser(Recorder(), {b"1": lambda subject, reply, raw, payload: messages.append(payload)})
    parser.feed(b"MSG a.b 1 10\r\nhalf")
    parser.reset()
    parser.feed(b"MSG a.b 1 4\r\nnext\r\n")
    assert messages == [b"next"]


@settings(max_examples=40)
@given(damaged(STREAM), st.integers(1, 64))
def test_whatever_bytes_arrive_they_are_messages_or_refused_and_parsing_ends(data: bytes, size: int) -> None:
    with suppress(ProtocolError):
        parse([data[start : start + size] for start in range(0, len(data), size)])


@pytest.mark.parametrize("length", [-1, -2, -13, -14, -15, -1000])
def test_a_message_of_negative_length_is_refused(length: int) -> None:
    """It would send the parser back to where it came from, for ever."""
    with pytest.raises(ProtocolError):
        parse([b"MSG a.b 1 %d\r\n\r\n" % length])
