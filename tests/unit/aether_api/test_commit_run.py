"""Commits in a run: what a run gives is what its commits give one by one, and what does not follow is no run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aether_api import headers
from aether_api.commit_run import CommitRun, build_run, sizes_of
from aether_api.envelope import Commit, build_tombstone, decode_commit, encode_commit
from aether_api.errors import InvalidEnvelope
from aether_api.identity import Epoch
from tests.unit.aether_api.test_envelope import ACTOR, build_commit

Row = tuple[int, bytes, bytes]


def build_commits(sizes: Sequence[int], *, incarnation: int = 0, writers: Sequence[str] = ("p/b",)) -> list[Commit]:
    """Build commits of so many events each, that follow each other."""
    commits: list[Commit] = []
    index, version, sequence = build_commit().index, 7, 15
    for place, size in enumerate(sizes):
        commits.append(
            build_commit(version, size, id=f"c{place}", expected_sequence=sequence, index=index, incarnation=incarnation, pod=writers[place * len(writers) // len(sizes)])
        )
        version, sequence = version + size, sequence + 3
        index = index.appended(sequence)
    return commits


def store(commits: Sequence[Commit]) -> list[Row]:
    rows: list[Row] = []
    for place, commit in enumerate(commits):
        lines, payload = encode_commit(commit)
        rows.append((18 + 3 * place, headers.FIRST_LINE + b"\r\n" + lines + b"\r\n", payload))
    return rows


def run_of(rows: Sequence[Row]) -> CommitRun | None:
    return build_run([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])


def expect_run(rows: Sequence[Row]) -> CommitRun:
    run = run_of(rows)
    assert run is not None
    return run


@given(st.lists(st.integers(1, 3), min_size=1, max_size=9) | st.integers(1, 9).map(lambda count: [1] * count), st.integers(0, 2), st.integers(1, 2))
def test_a_run_is_its_commits(sizes: list[int], incarnation: int, writers: int) -> None:
    rows = store(build_commits(sizes, incarnation=incarnation, writers=["p/b", "q/b"][:writers]))
    run, commits = expect_run(rows), [decode_commit(*row) for row in rows]
    assert list(run) == commits
    assert (run[-1], len(run), run.incarnation) == (commits[-1], len(commits), incarnation)
    assert (run.first_n, run.first_version, run.last_version) == (commits[0].n, commits[0].first_version, commits[-1].last_version)
    assert run.events() == [commit.events() for commit in commits]
    assert sizes_of(run) == sizes_of(commits)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=6), st.data())
def test_a_part_of_a_run_is_a_run(sizes: list[int], data: st.DataObject) -> None:
    rows = store(build_commits(sizes))
    start = data.draw(st.integers(0, len(rows) - 1))
    stop = data.draw(st.integers(start + 1, len(rows)))
    run, part = expect_run(rows), expect_run(rows)[start:stop]
    assert isinstance(part, CommitRun)
    assert list(part) == list(run)[start:stop]
    assert part.events() == run.events()[start:stop]
    assert list(run[::-1]) == list(run)[::-1]
    assert list(run[stop:start]) == []


SUBJECT = b"aether.shop.evt.0.account.alice"


def place(rows: Sequence[Row], *, subject: bytes = SUBJECT, behind: bytes = b"") -> list[Row]:
    """Add what Direct Get says of each message."""
    return [
        (
            sequence,
            block[:-2] + b"Nats-Stream: S\r\nNats-Subject: %b\r\nNats-Sequence: %d\r\nNats-Time-Stamp: 2026-07-01T12:00:00.%dZ\r\n%b\r\n" % (subject, sequence, sequence, behind),
            payload,
        )
        for sequence, block, payload in rows
    ]


def placed_run_of(rows: Sequence[Row]) -> CommitRun | None:
    return build_run([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows], SUBJECT)


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=9) | st.integers(1, 9).map(lambda count: [1] * count),
    st.integers(1, 2),
    st.sampled_from((b"", b"Nats-Num-Pending: 3\r\nNats-Last-Sequence: 0\r\n")),
)
def test_answers_of_direct_get_make_the_same_run(sizes: list[int], writers: int, behind: bytes) -> None:
    rows = store(build_commits(sizes, writers=["p/b", "q/b"][:writers]))
    run = placed_run_of(place(rows, behind=behind))
    assert run is not None
    assert list(run) == list(expect_run(rows))


@pytest.mark.parametrize("sizes", [[1] * 5, [1, 2, 1, 2, 1]])
def test_an_answer_from_elsewhere_makes_no_run(sizes: list[int]) -> None:
    rows = place(store(build_commits(sizes)))
    other = place(store(build_commits(sizes)), subject=b"aether.shop.evt.0.account.bob")
    moved = [(sequence + 1, block, payload) for sequence, block, payload in rows]
    more = place(store(build_commits(sizes)), behind=b"Aether-Tombstone: 1\r\n")
    plain = store(build_commits(sizes))
    assert placed_run_of(rows) is not None
    for wrong in (other, moved, more, plain):
        assert placed_run_of(wrong) is None
        for at in range(len(rows)):
            assert placed_run_of([*rows[:at], wrong[at], *rows[at + 1 :]]) is None


@given(st.lists(st.integers(1, 3), min_size=2, max_size=7), st.data())
def test_a_commit_that_was_read_before_ends_a_run_like_any_other(sizes: list[int], data: st.DataObject) -> None:
    rows = store(build_commits(sizes))
    whole, grown = expect_run(rows), expect_run(rows[:-1]).followed_by(decode_commit(*rows[-1]))
    assert grown is not None
    assert list(grown) == list(whole)
    assert [grown[-place] for place in range(1, len(rows) + 1)] == list(whole)[::-1]
    assert (grown.first_n, grown.first_version, grown.last_version, list(grown.sequences)) == (whole.first_n, whole.first_version, whole.last_version, list(whole.sequences))
    assert (grown.events(), sizes_of(grown)) == (whole.events(), sizes_of(whole))
    start = data.draw(st.integers(0, len(rows) - 1))
    stop = data.draw(st.integers(start + 1, len(rows)))
    assert list(grown[-stop:]) == list(whole)[-stop:]
    assert grown.followed_by(decode_commit(*store(build_commits([*sizes, 1]))[-1])) is None
    part = grown[start:stop]
    assert (list(part), sizes_of(part)) == (list(whole)[start:stop], sizes_of(whole)[start:stop])
    with pytest.raises(IndexError):
        grown[len(rows)]


def lengthen(commits: list[Commit]) -> None:
    commits[2] = replace(commits[2], last_version=commits[2].last_version + 1)


def leave_out(commits: list[Commit]) -> None:
    del commits[2]


def skip_versions(commits: list[Commit]) -> None:
    commits[2:] = [replace(commit, first_version=commit.first_version + 1, last_version=commit.last_version + 1) for commit in commits[2:]]


def change_life(commits: list[Commit]) -> None:
    commits[2] = replace(commits[2], incarnation=1)


def set_reminder(commits: list[Commit]) -> None:
    commits[2] = replace(commits[2], reminders="r:t")


def settle(commits: list[Commit]) -> None:
    commits[2] = replace(commits[2], inbox="1:1")


def begin_anew(commits: list[Commit]) -> None:
    commits[2] = build_tombstone(id="t", actor=ACTOR, expected_sequence=1, epoch=Epoch(4), pod="p/b", incarnation=1)


@pytest.mark.parametrize("sizes", [[1] * 5, [1, 2, 1, 2, 1]])
@pytest.mark.parametrize("change", [lengthen, leave_out, skip_versions, change_life, set_reminder, settle, begin_anew])
def test_what_does_not_follow_or_is_not_usual_is_no_run(sizes: list[int], change: Callable[[list[Commit]], None]) -> None:
    commits = build_commits(sizes)
    change(commits)
    assert run_of(store(commits)) is None


@pytest.mark.parametrize("sizes", [[1] * 5, [1, 2, 1, 2, 1]])
def test_a_header_that_comes_twice_or_hides_another_makes_no_run(sizes: list[int]) -> None:
    """Of two headers of one name the last counts, wherever it stands."""
    for line in (b"Aether-Version: 1-9\r\n", b"Aether-Tombstone: 1\r\n", b"Aether-Inbox: 1:1\r\n"):
        for front in (True, False):
            rows = store(build_commits(sizes))
            sequence, block, payload = rows[3]
            changed = block.replace(b"NATS/1.0\r\n", b"NATS/1.0\r\n" + line) if front else block[:-2] + line + b"\r\n"
            rows[3] = (sequence, changed, payload)
            assert run_of(rows) is None, (line, front)


@pytest.mark.parametrize("sizes", [[1] * 5, [1, 2, 1, 2, 1]])
@pytest.mark.parametrize("name", ["Commit", "Back", "Pod"])
def test_headers_that_are_no_text_make_no_run(sizes: list[int], name: str) -> None:
    rows = store(build_commits(sizes))
    sequence, block, payload = rows[2]
    rows[2] = (sequence, block.replace(f"Aether-{name}: ".encode(), f"Aether-{name}: ".encode() + b"\xff"), payload)
    assert run_of(rows) is None


@pytest.mark.parametrize("change", [leave_out, skip_versions, change_life, set_reminder, settle, begin_anew])
def test_what_does_not_follow_or_is_not_usual_ends_no_run(change: Callable[[list[Commit]], None]) -> None:
    commits = build_commits([1] * 4)
    change(commits)
    assert expect_run(store(commits)[:2]).followed_by(decode_commit(*store(commits)[2])) is None


def test_a_commit_that_stands_before_a_run_does_not_end_it() -> None:
    rows = store(build_commits([1] * 3))
    assert expect_run(rows[:2]).followed_by(decode_commit(rows[0][0], *rows[2][1:])) is None


def test_headers_that_are_not_ours_are_looked_over() -> None:
    rows = [(sequence, block.replace(b"NATS/1.0\r\n", b"NATS/1.0\r\nNats-Batch-Id: x\r\n"), payload) for sequence, block, payload in store(build_commits([1] * 3))]
    assert list(expect_run(rows)) == [decode_commit(*row) for row in rows]


@pytest.mark.parametrize("sequences", [[1, 3, 2], [1, 1, 2]])
def test_sequences_that_do_not_rise_make_no_run(sequences: list[int]) -> None:
    rows = store(build_commits([1] * 3))
    assert run_of([(sequence, *row[1:]) for sequence, row in zip(sequences, rows, strict=True)]) is None


def test_nothing_is_no_run() -> None:
    assert run_of([]) is None


@pytest.mark.parametrize("sizes", [[1] * 4, [1, 2, 1, 2]])
@pytest.mark.parametrize(
    "payloads",
    [
        {1: b"garbage"},
        {1: b"[]"},
        {1: b"{}"},
        {1: b""},
        {1: "2", 2: "1"},
        {0: "3"},
    ],
)
def test_events_that_are_not_those_of_the_headers_are_refused(sizes: list[int], payloads: dict[int, Any]) -> None:
    rows = store(build_commits(sizes))
    for place, payload in payloads.items():
        rows[place] = (*rows[place][:2], rows[int(payload)][2] if isinstance(payload, str) else payload)
    with pytest.raises(InvalidEnvelope):
        expect_run(rows).events()


def test_batches_that_only_together_are_whole_are_refused() -> None:
    for sizes in ([1, 1, 1], [2, 1, 1]):
        rows = store(build_commits(sizes))
        both = rows[0][2] + b"," + rows[1][2]
        for cut in (*range(len(both)), *range(-3, 0)):
            parts = [(*rows[0][:2], both[:cut]), (*rows[1][:2], both[cut:].removeprefix(b",")), rows[2]]
            if parts[0][2] != rows[0][2]:
                with pytest.raises(InvalidEnvelope):
                    expect_run(parts).events()
