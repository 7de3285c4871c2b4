"""Bytes of a watch: lines come out whole wherever the network cuts them."""

from __future__ import annotations

from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_kube.watch import LINE_BYTES_MAX, LineBuffer, MalformedAnswer, WatchEvent, parse_watch_event


@given(st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=8), st.lists(st.integers(0, 200), max_size=10))
def test_lines_do_not_depend_on_where_the_stream_is_cut(lines: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    borders = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    buffer = LineBuffer()

    found = [line for start, end in pairwise(borders) for line in buffer.feed(stream[start:end])]

    assert found == [line for line in lines if line.strip()]


def test_an_unfinished_line_is_kept_back() -> None:
    buffer = LineBuffer()

    assert buffer.feed(b'{"a":') == []
    assert buffer.feed(b'1}\n{"b"') == [b'{"a":1}']


def test_a_line_without_end_is_refused() -> None:
    buffer = LineBuffer()

    with pytest.raises(MalformedAnswer):
        buffer.feed(b"x" * (LINE_BYTES_MAX + 1))


def test_a_line_becomes_an_event() -> None:
    line = orjson.dumps({"type": "ADDED", "object": {"metadata": {"name": "alice"}}})

    assert parse_watch_event(line) == WatchEvent("ADDED", {"metadata": {"name": "alice"}})


@pytest.mark.parametrize("line", [b"<html>", b"[]", b'{"type":"ADDED"}', b'{"type":"SURPRISE","object":{}}', b'{"object":{}}'])
def test_a_line_that_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(MalformedAnswer):
        parse_watch_event(line)
