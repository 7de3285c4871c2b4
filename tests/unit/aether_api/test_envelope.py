"""Commits on the wire: what is encoded reads back, and what no runtime of ours wrote is refused as an envelope."""

from __future__ import annotations

import sys
import tracemalloc
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aether_api import headers
from aether_api.commit_index import NO_COMMITS
from aether_api.envelope import (
    Commit,
    Event,
    build_event_id,
    build_source,
    build_tombstone,
    check_finite,
    check_nesting,
    decode_commit,
    decode_events,
    decode_fields,
    decode_found_commit,
    encode_commit,
    encode_event,
    encode_fields,
    encode_object,
    join_events,
)
from aether_api.errors import InternalError, InvalidEnvelope
from aether_api.identity import Epoch, parse_actor_id
from tests.histories.hostile import HOSTILE_JSON, damaged

ACTOR = parse_actor_id("default", "account", "alice")
TIME = "2026-07-01T12:00:00.000000Z"
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8"), max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=3),
    max_leaves=8,
)


def build_event(version: int, incarnation: int = 0, data: dict[str, Any] | None = None) -> Event:
    return Event("1.0", build_event_id(incarnation, version), build_source(ACTOR), "Deposited", TIME, encode_fields(data or {}), command_id=f"c-{version}")


def build_commit(first: int = 3, count: int = 2, **changes: Any) -> Commit:
    index = NO_COMMITS.appended(11).appended(15)
    payload = join_events([encode_event(build_event(version, changes.get("incarnation", 0))) for version in range(first, first + count)])
    return replace(Commit("c1", ACTOR, 15, first, first + count - 1, index, Epoch(4), "uid/boot", "account@abc", payload), **changes)


def block_of(commit: Commit) -> bytes:
    return headers.FIRST_LINE + b"\r\n" + encode_commit(commit)[0] + b"\r\n"


@given(st.integers(0, 3), st.integers(1, 10**9), st.integers(1, 5), st.integers(0, 2**53))
def test_a_commit_reads_back_as_it_was_written(incarnation: int, first: int, count: int, epoch: int) -> None:
    commit = build_commit(first, count, incarnation=incarnation, epoch=Epoch(epoch))
    stored = decode_commit(20, block_of(commit), commit.payload)
    assert (stored.id, stored.sequence, stored.n, stored.index()) == (commit.id, 20, 2, commit.index)
    assert (stored.first_version, stored.last_version) == (first, first + count - 1)
    assert (stored.epoch, stored.pod, stored.model, stored.incarnation, stored.tombstone) == (epoch, commit.pod, commit.model, incarnation, False)
    assert [event.version for event in stored.events()] == list(range(first, first + count))
    assert stored.next_index() == commit.index.appended(20)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), json_values, max_size=4))
def test_the_data_of_an_event_survives(data: dict[str, Any]) -> None:
    assert decode_events(join_events([encode_event(build_event(1, data=data))]))[0].fields() == data


def test_equal_commits_give_equal_bytes() -> None:
    assert encode_commit(build_commit()) == encode_commit(build_commit())


def test_a_commit_whose_versions_run_back_is_not_written() -> None:
    with pytest.raises(InternalError, match="versions 3 to 2"):
        encode_commit(build_commit(3, 0))


def test_an_event_holds_only_what_differs() -> None:
    assert encode_event(build_event(1)) == (
        b'{"specversion":"1.0","id":"1","source":"/aether/default/account/alice","type":"Deposited","time":"2026-07-01T12:00:00.000000Z","data":{},"commandid":"c-1"}'
    )


def test_a_tombstone_begins_its_incarnation_and_holds_no_event() -> None:
    tombstone = build_tombstone(id="t", actor=ACTOR, expected_sequence=9, epoch=Epoch(5), pod="uid/boot", incarnation=1)
    stored = decode_commit(10, block_of(tombstone), tombstone.payload)
    assert (stored.tombstone, stored.incarnation, stored.n, stored.events()) == (True, 1, 0, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Aether-Commit", None),
        ("Aether-Version", None),
        ("Aether-Version", "3"),
        ("Aether-Version", "3-x"),
        ("Aether-Version", "-3-4"),
        ("Aether-Version", "4-3"),
        ("Aether-Version", "0-1"),
        ("Aether-N", None),
        ("Aether-N", "-1"),
        ("Aether-N", "1_0"),
        ("Aether-N", "9" * 5000),
        ("Aether-Back", None),
        ("Aether-Epoch", "-1"),
        ("Aether-Epoch", "soon"),
        ("Aether-Incarnation", "-1"),
    ],
)
def test_a_header_that_is_not_what_its_name_says_is_refused(name: str, value: str | None) -> None:
    raw = headers.decode_headers(block_of(build_commit()))
    del raw[name]
    if value is not None:
        raw[name] = value
    with pytest.raises(InvalidEnvelope, match="sequence 20"):
        decode_commit(20, headers.FIRST_LINE + b"\r\n" + headers.encode_headers(raw) + b"\r\n", b"[]")


def test_a_message_without_headers_is_no_commit() -> None:
    with pytest.raises(InvalidEnvelope, match="sequence 20"):
        decode_commit(20, b"", b"hello")


def test_headers_that_are_no_text_are_no_commit() -> None:
    with pytest.raises(InvalidEnvelope):
        decode_commit(20, block_of(build_commit()).replace(b"uid/boot", b"\xff\xff"), b"[]")


@pytest.mark.parametrize(
    "ids",
    [[], ["3"], ["3", "5"], ["4", "3"], ["3", "4", "5"], ["3", "four"], ["3", "1.4"], ["3", ""], ["3", "4_0"], ["3", "٤"]],
)
def test_events_whose_ids_are_not_the_promised_versions_are_refused(ids: list[str]) -> None:
    payload = join_events([encode_event(Event("1.0", id, build_source(ACTOR), "Deposited", TIME, encode_fields({}))) for id in ids])
    with pytest.raises(InvalidEnvelope, match="versions 3 to 4"):
        decode_commit(20, block_of(build_commit()), payload).events()


@pytest.mark.parametrize("payload", [b"", b"{}", b"[1]", b"[", b'[{"id":"3"}]', b"\xff"])
def test_a_payload_that_is_no_batch_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidEnvelope):
        decode_commit(20, block_of(build_commit()), payload).events()


def test_ids_after_a_purge_name_their_incarnation() -> None:
    commit = build_commit(1, 1, incarnation=2)
    stored = decode_commit(20, block_of(commit), commit.payload)
    assert [(event.id, event.version) for event in stored.events()] == [("2.1", 1)]


DIRECT_GET = b"Nats-Stream: S\r\nNats-Subject: a.b\r\nNats-Sequence: 20\r\nNats-Time-Stamp: 2026-07-01T12:00:00Z\r\n"
AS_READ = block_of(build_commit())[:-2] + DIRECT_GET + b"\r\n"


@given(st.integers(1, 3), st.integers(1, 10**17), st.integers(0, 10**17), st.sampled_from(("", "aether@1")))
def test_the_quick_ways_to_read_a_commit_agree_with_the_slow_one(incarnation: int, first: int, epoch: int, model: str) -> None:
    """The quick ones take only the order of headers in which commits are written."""
    commit = build_commit(first, 2, incarnation=incarnation, epoch=Epoch(epoch), model=model)
    quick = block_of(commit)
    *lines, last = quick.split(b"\r\n")[1:-2]
    slow = b"\r\n".join([headers.FIRST_LINE, last, *lines, b"", b""])
    assert decode_commit(20, quick, commit.payload) == decode_commit(20, slow, commit.payload)
    assert decode_found_commit(slow, commit.payload) is None
    assert decode_found_commit(quick[:-2] + DIRECT_GET + b"\r\n", commit.payload) == decode_commit(20, slow, commit.payload)


@given(damaged(AS_READ))
def test_whatever_became_of_a_commit_it_is_read_alike_in_every_way_or_refused(raw: bytes) -> None:
    in_run = decode_found_commit(raw, b"[]")
    try:
        commit = decode_commit(in_run.sequence if in_run else 20, raw, b"[]")
    except InvalidEnvelope:
        assert in_run is None
        return
    assert in_run is None or in_run == commit
    assert commit.tombstone or 1 <= commit.first_version <= commit.last_version
    assert commit.n >= 0


@given(damaged(build_commit(3, 3).payload))
def test_whatever_became_of_a_payload_it_gives_the_promised_versions_or_is_refused(payload: bytes) -> None:
    stored = decode_commit(20, block_of(build_commit(3, 3)), payload)
    try:
        events = stored.events()
    except InvalidEnvelope:
        return
    assert [event.version for event in events] == [3, 4, 5]


@pytest.mark.parametrize("data", HOSTILE_JSON)
def test_hostile_json_is_refused_as_an_envelope(data: bytes) -> None:
    with pytest.raises(InvalidEnvelope):
        decode_fields(msgspec.Raw(data))
    with pytest.raises(InvalidEnvelope):
        decode_events(encode_event(build_event(1)).join((b"[", b"]")).replace(b'"data":{}', b'"data":{},"metadata":' + data))


def test_of_an_attribute_that_comes_twice_the_last_counts() -> None:
    payload = join_events([encode_event(build_event(3)).replace(b'"id":"3"', b'"id":"9","id":"3"')])
    assert [event.id for event in decode_events(payload)] == ["3"]


def test_an_index_that_names_what_is_not_before_its_commit_is_refused() -> None:
    """Its successor could not be written: distances would be negative."""
    commit = build_commit()
    for sequence in (11, 15):
        with pytest.raises(InvalidEnvelope, match="not before"):
            decode_commit(sequence, block_of(commit), commit.payload).next_index()


def test_fields_that_are_json_already_may_begin_with_blanks() -> None:
    assert encode_object(msgspec.Raw(b' \n{"a":1}')) == b'{"a":1}'


def test_a_long_text_is_looked_through_in_little_memory() -> None:
    data = encode_object({"source": '{"a": [1]}\n' * 100_000})
    tracemalloc.start()
    try:
        check_nesting(data)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(data)
    finally:
        tracemalloc.stop()


def test_what_is_nested_too_deep_to_be_looked_through_for_numbers_is_refused() -> None:
    value: object = None
    for _ in range(5_000):
        value = [value]
    with pytest.raises(InvalidEnvelope, match="nested too deep"):
        check_finite(value, b"null")


def test_fields_nested_too_deep_to_be_looked_through_are_refused() -> None:
    value: object = None
    for depth in range(sys.getrecursionlimit()):
        value = [value]
        if depth % 6 == 0:  # some of the depths are too deep for the look alone
            with suppress(InvalidEnvelope):
                encode_object({"a": value})
