"""What is said of an actor's log, whatever stands in it."""

from __future__ import annotations

from msgspec.structs import replace

from aether_api.commit_index import NO_COMMITS
from aether_api.envelope import StoredCommit, encode_event, join_events
from aether_api.identity import Epoch
from aether_nats.deliveries import Unreadable
from aether_runtime.core.replay_result import ReplayReader, ReplayResult, join_results
from tests.histories.bank import ALICE
from tests.histories.commits import build_events


def commit(sequence: int, first: int, last: int | None = None, *, incarnation: int = 0) -> StoredCommit:
    last = last or first
    payload = join_events([encode_event(event) for event in build_events(ALICE, first, last - first + 1, incarnation=incarnation)])
    return StoredCommit(f"c{sequence}", sequence, 0, NO_COMMITS.text, first, last, Epoch(1), "pod/boot", "account@x", incarnation, tombstone=False, payload=payload)


def tombstone(sequence: int, incarnation: int) -> StoredCommit:
    return replace(commit(sequence, 1, incarnation=incarnation), tombstone=True, first_version=0, last_version=0, payload=b"[]")


def versions(result: ReplayResult) -> list[int]:
    return [event.version for event in result.events]


def errors(result: ReplayResult) -> list[tuple[int, str]]:
    return [(error.sequence, error.reason) for error in result.errors]


def test_batches_continue_each_other() -> None:
    reader = ReplayReader(ALICE, 2)
    assert versions(reader.take([commit(1, 1, 3)])) == [2, 3]
    assert versions(reader.take([commit(4, 4), commit(9, 5)])) == [4, 5]
    assert reader.sequence == 9


def test_reading_may_begin_in_the_middle() -> None:
    result = ReplayReader(ALICE, 6, is_start=False).take([commit(5, 5, 6), commit(7, 7)])
    assert (versions(result), result.is_whole) == ([6, 7], True)


def test_versions_that_come_twice_are_told_and_left_out() -> None:
    result = ReplayReader(ALICE).take([commit(1, 1, 2), commit(2, 2), commit(3, 3)])
    assert versions(result) == [1, 2, 3]
    assert errors(result) == [(2, "it holds versions 2 to 2, but version 3 should come next")]


def test_errors_of_earlier_versions_are_left_out_where_their_versions_are_known() -> None:
    result = ReplayReader(ALICE, 3).take([replace(commit(1, 1), payload=b"x"), Unreadable(ALICE, 2, "garbage"), commit(3, 2), commit(4, 3)])
    assert (versions(result), errors(result)) == ([3], [(2, "garbage")])


def test_a_tombstone_makes_what_came_before_it_void() -> None:
    reader = ReplayReader(ALICE)
    first = reader.take([commit(1, 1), Unreadable(ALICE, 2, "garbage")])
    second = reader.take([commit(3, 2), tombstone(4, 1), commit(5, 1, incarnation=1), commit(6, 3), commit(7, 2, incarnation=1)])
    whole = join_results([first, second])
    assert ([event.id for event in whole.events], whole.incarnation) == (["1.1", "1.2"], 1)
    assert errors(whole) == [(6, "it is of incarnation 0, the actor's is 1")]


def test_nothing_is_whole() -> None:
    assert join_results([]) == ReplayResult()
    assert ReplayResult().is_whole
