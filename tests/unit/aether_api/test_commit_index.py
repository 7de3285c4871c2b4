"""The radix-32 index: it covers everything before a commit, and its expansion reaches every commit without a scan."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_api.commit_index import NO_COMMITS, RADIX, Block, CommitIndex, decode_index, decode_short_index, inner_blocks
from aether_api.errors import InvalidEnvelope

COMMITS = 5_000


@cache
def build_log() -> tuple[tuple[int, ...], tuple[CommitIndex, ...]]:
    """Return the sequences of 5,000 commits at uneven distances, and the index that each of them carries."""
    sequences, indexes, index, sequence = [], [], NO_COMMITS, 7
    for n in range(COMMITS):
        indexes.append(index)
        sequences.append(sequence)
        index = index.appended(sequence)
        sequence += 1 + n * 7919 % 53
    return tuple(sequences), (*indexes, index)


def test_the_blocks_of_every_commit_cover_all_commits_before_it_exactly() -> None:
    sequences, indexes = build_log()
    for n in range(COMMITS + 1):
        expected_last = n - 1
        for block in indexes[n].blocks():
            assert (block.last, block.sequence) == (expected_last, sequences[block.last])
            expected_last = block.first - 1
        assert expected_last == -1


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 1023, 1024, 1025, 2000, 4999, 5000])
def test_the_expansion_of_blocks_reaches_every_commit(n: int) -> None:
    sequences, indexes = build_log()
    found: dict[int, int] = {}
    pending = list(indexes[n].blocks())
    rounds = 0
    while pending:
        rounds += 1
        found |= {block.last: block.sequence for block in pending}
        pending = [inner for block in pending if block.first < block.last for inner in inner_blocks(block, indexes[block.last])]
    assert found == dict(enumerate(sequences[:n]))
    assert rounds <= 3, "three rounds reach 32 ** 3 commits"


@given(st.integers(0, COMMITS))
def test_the_text_form_decodes_to_the_same_index(n: int) -> None:
    index = build_log()[1][n]
    assert decode_index(n, index.text) == index


def test_the_example_of_the_design() -> None:
    """n = 33 has the digits 1 1: commit 32, then commit 31, which closes block 0."""
    index = NO_COMMITS
    for sequence in range(101, 134):
        index = index.appended(sequence)
    assert [(block.first, block.last) for block in index.blocks()] == [(32, 32), (0, 31)]
    assert index.text == "3p.1"
    assert NO_COMMITS.text == ""


def test_the_index_stays_small() -> None:
    assert max(len(index.text) for index in build_log()[1]) <= 250


def test_no_level_ever_holds_a_full_block() -> None:
    assert all(max(Counter(block.last - block.first for block in index.blocks()).values(), default=0) < RADIX for index in build_log()[1])


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "1"),
        (1, ""),
        (1, "1.1"),
        (2, "5.5"),
        (2, "5.6"),
        (2, "5.0"),
        (1, "0"),
        (1, "-5"),
        (1, "+5"),
        (1, "1_0"),
        (1, " 5"),
        (1, "ß"),
        (1, "."),
        (33, "3p"),
        (-1, ""),
        (-33, "1"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(n: int, text: str) -> None:
    with pytest.raises(InvalidEnvelope):
        decode_index(n, text)


@given(st.integers(-5, 2000), st.text("0123456789abcz.-_ \n", max_size=20))
def test_whatever_text_arrives_either_decodes_to_a_full_cover_or_is_refused(n: int, text: str) -> None:
    try:
        index = decode_index(n, text)
    except InvalidEnvelope:
        return
    blocks = list(index.blocks())
    assert sum(block.last - block.first + 1 for block in blocks) == n
    assert sorted((block.sequence for block in blocks), reverse=True) == [block.sequence for block in blocks]


def test_a_short_index_names_every_commit_by_itself_and_a_longer_one_is_left_to_its_blocks() -> None:
    sequences, indexes = build_log()
    for n in range(RADIX):
        assert decode_short_index(n, indexes[n].text) == list(sequences[:n])
    assert decode_short_index(RADIX, indexes[RADIX].text) is None


@pytest.mark.parametrize(("n", "text"), [(0, "5"), (2, "5"), (1, "5.2"), (2, "5.9"), (1, "x!")])
def test_a_short_index_that_does_not_fit_is_refused(n: int, text: str) -> None:
    with pytest.raises(InvalidEnvelope):
        decode_short_index(n, text)


def test_inner_blocks_stop_at_the_border_of_their_block() -> None:
    _, indexes = build_log()
    inner = list(inner_blocks(Block(32, 63, 0), indexes[63]))
    assert [(block.first, block.last) for block in inner] == [(n, n) for n in range(62, 31, -1)]


@given(st.integers(0, COMMITS), st.integers(0, COMMITS))
def test_a_run_of_commits_gives_the_index_that_they_give_one_by_one(n: int, count: int) -> None:
    sequences, indexes = build_log()
    end = min(n + count, COMMITS)
    assert indexes[n].extended(sequences[n:end]) == indexes[end]


def name_blocks(n: int) -> list[int]:
    """Return the commits that the index of commit `n` must name, newest first, by the words of the design."""
    named, last, size, rest = [], n - 1, 1, n
    while rest:
        rest, digit = divmod(rest, RADIX)
        for _ in range(digit):
            named.append(last)
            last -= size
        size *= RADIX
    return named


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=120), st.integers(0, 40_000))
def test_an_index_names_what_the_design_says_however_far_commits_lie_apart(gaps: list[int], before: int) -> None:
    sequences = list(accumulate(gaps, initial=before + 1))
    index = NO_COMMITS.extended(range(1, before + 1))
    for n, sequence in enumerate(sequences, start=before):
        assert [(block.last, block.sequence) for block in index.blocks()] == [(last, last + 1 if last < before else sequences[last - before]) for last in name_blocks(n)]
        index = index.appended(sequence)


@given(st.integers(1, 2000), st.integers(-5, 5))
def test_a_commit_cannot_follow_one_that_is_not_before_it(n: int, distance: int) -> None:
    index = NO_COMMITS.extended(range(10, 10 + n))
    newest = 9 + n
    if distance <= 0:
        with pytest.raises(InvalidEnvelope, match="not before"):
            index.appended(newest + distance)
    else:
        assert next(index.appended(newest + distance).blocks()).sequence == newest + distance
