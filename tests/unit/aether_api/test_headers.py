"""The codec of header blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_api.errors import InvalidEnvelope
from aether_api.headers import FIRST_LINE, decode_headers, encode_headers

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
