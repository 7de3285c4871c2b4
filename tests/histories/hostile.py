"""Bytes as a stranger or a broken disk may hand them in: for tests of what decodes them."""

from __future__ import annotations

from hypothesis import strategies as st

NESTED = b"[" * 100_000 + b"]" * 100_000
"""JSON that is deeper than any stack."""

HOSTILE_JSON = (
    b"",
    b"\xff",
    b"[",
    b"nul",
    b'{"a":1',
    b"{} {}",
    b'{"a":' + NESTED + b"}",
    NESTED,
    b'{"a":' + b"9" * 5000 + b"}",
    b'{"a":1e999}',
    b'{"a":"\xff"}',
    b'{"a":"\\ud800"}',
    b'{"\xff":1}',
)
"""What no decoder may crash on."""


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return bytes with some of them cut out, put in, overwritten or repeated."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 20)))
        how = draw(st.sampled_from(("cut", "put", "end", "repeat")))
        if how == "cut":
            del data[start:stop]
        elif how == "put":
            data[start:stop] = draw(st.binary(max_size=8) | st.sampled_from((b"\r\n", b"\r\n\r\n", b"\xff", b"9" * 30, b"Aether-Tombstone: 1\r\n", b"0")))
        elif how == "end":
            del data[start:]
        else:
            data[start:start] = data[start:stop]
    return bytes(data)
