"""Where the messages of a consumer stand is told by their replies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_nats.pull import sequences_of


def build_reply(sequence: int, form: str) -> bytes:
    start = {"short": "$JS.ACK", "long": "$JS.ACK.hub.account-hash", "longer": "$JS.ACK._.account-hash"}[form]
    return f"{start}.AETHER_shop_EVT_1.replay-1.1.{sequence}.7.1764268265574399663.12{'.token' if form != 'short' else ''}".encode()


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=40, unique=True).map(sorted), st.sampled_from(["short", "long", "longer"]))
def test_sequences_are_those_of_the_replies(sequences: list[int], form: str) -> None:
    assert list(sequences_of([build_reply(sequence, form) for sequence in sequences])) == sequences


@given(st.integers(1, 10**12), st.integers(1, 40))
def test_what_stands_in_a_row_is_known_by_its_ends(first: int, count: int) -> None:
    assert list(sequences_of([build_reply(first + place, "short") for place in range(count)])) == list(range(first, first + count))


@pytest.mark.parametrize("replies", [[b""], [b"an.inbox"], [build_reply(1, "short"), b"an.inbox"], [build_reply(1, "short"), b"x", build_reply(9, "short")]])
def test_other_replies_tell_nothing(replies: list[bytes]) -> None:
    assert not sequences_of(replies)
