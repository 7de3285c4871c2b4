"""The codec of header blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_api.errors import InvalidEnvelope
from aether_api.headers import COUNT_DIGITS_MAX, FIRST_LINE, decode_headers, encode_headers, find_header, marker, parse_count

header_names = st.from_regex(r"[A-Za-z][A-Za-z0-9\-]{0,20}", fullmatch=True)
header_values = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), max_size=30)


@given(st.dictionaries(header_names, header_values, max_size=8))
def test_what_is_encoded_decodes_to_the_same(values: dict[str, str]) -> None:
    assert decode_headers(FIRST_LINE + b"\r\n" + encode_headers(values) + b"\r\n") == values


@pytest.mark.parametrize("value", ["a\r\nForged: 1", "a\nb", "a\rb"])
def test_a_value_cannot_forge_another_header(value: str) -> None:
    with pytest.raises(InvalidEnvelope, match="Some-Name"):
        encode_headers({"Some-Name": value})


def test_the_last_of_equal_names_wins() -> None:
    assert decode_headers(b"NATS/1.0\r\nA: 1\r\nA: 2\r\n\r\n") == {"A": "2"}


def test_blanks_around_a_value_do_not_count() -> None:
    assert decode_headers(b"NATS/1.0\r\nA:1\r\nB:   2  \r\nC:\r\n\r\n") == {"A": "1", "B": "2", "C": ""}


@given(st.binary(max_size=60))
def test_whatever_bytes_arrive_either_decode_or_are_refused_as_an_envelope(raw: bytes) -> None:
    try:
        decode_headers(FIRST_LINE + b"\r\n" + raw)
    except InvalidEnvelope:
        return


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(InvalidEnvelope, match="UTF-8"):
        decode_headers(b"NATS/1.0\r\nA: \xff\xfe\r\n\r\n")


NAMES = ("Aether-Command", "Aether-Time", "Aether-Commit", "A")


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.text(max_size=8) | st.sampled_from(("", " x ", "a:b"))), max_size=6), st.sampled_from((b"\r\n", b"", b"\r\n\r\n", b"\n")))
def test_one_header_is_found_as_it_is_among_all(lines: list[tuple[str, str]], end: bytes) -> None:
    raw = FIRST_LINE + b"".join(f"\r\n{name}: {value}".encode() for name, value in lines) + end
    found = decode_headers(raw)
    for name in NAMES:
        assert find_header(raw, marker(name)) == found.get(name)


@given(st.binary(max_size=60), st.sampled_from(NAMES))
def test_whatever_bytes_arrive_one_header_is_found_or_not_or_the_block_is_refused(raw: bytes, name: str) -> None:
    try:
        found = find_header(FIRST_LINE + b"\r\n" + raw + marker(name) + raw, marker(name))
    except InvalidEnvelope:
        return
    assert found is not None


@given(st.text(max_size=25))
def test_a_count_is_a_number_that_fits_or_nothing(text: str) -> None:
    count = parse_count(text)
    assert count is None or (0 <= count < 10**COUNT_DIGITS_MAX and text.isascii() and int(text) == count)
