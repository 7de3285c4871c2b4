"""The form of a snapshot: what comes out is what went in, or nothing."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aether_api import headers
from aether_api.commit_index import NO_COMMITS
from aether_api.durable import InboxPosition
from aether_api.errors import InvalidEnvelope
from aether_model.python import CommandFields, PythonModel, StateFields, handles
from aether_model.python_compile import compile_python
from aether_runtime.core.history import History, Position
from aether_runtime.core.snapshots import FORMAT, build_snapshot, decode_snapshot, restore_history
from aether_runtime.core.window import CommandWindow
from tests.histories.bank import START_S, compile_account
from tests.histories.hostile import damaged

INDEX = NO_COMMITS.appended(10).appended(12)


class Temperature(StateFields, frozen=True):
    lowest: float | None = None


class Measure(CommandFields, frozen=True):
    pass


class Thermometer(PythonModel[Temperature]):
    name = "thermometer"

    @handles
    def measure(self, state: Temperature, command: Measure) -> None:
        pass


def build_history(balance: int = 7) -> History:
    window = CommandWindow()
    window.add("c-1", 10, START_S)
    window.add("c-2", 12, START_S + 0.25)
    return History(
        compile_account(),
        Position(3, 12, INDEX, 1, "id-1", "2026-07-01T12:00:00.000000Z"),
        {"owner": "é", "balance": balance, "open": True},
        window,
        InboxPosition(7, 40),
        {"dunning": "t1"},
    )


def raw(lines: bytes) -> bytes:
    return headers.FIRST_LINE + b"\r\n" + lines + b"\r\n"


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_history_comes_back_whole(balance: int) -> None:
    history = build_history(balance)
    snapshot = build_snapshot(history)
    restored = restore_history(history.model, decode_snapshot(raw(snapshot.headers), snapshot.payload), INDEX)
    assert (restored.state, restored.position, restored.window.entries()) == (history.state, history.position, history.window.entries())
    assert (restored.inbox, restored.reminders) == (InboxPosition(7, 40), {"dunning": "t1"})


def test_a_time_that_a_foreign_event_left_in_a_snapshot_comes_back_as_one_that_can_be_compared() -> None:
    history = build_history()
    history.position = replace(history.position, last_time="2026-07-01T14:00:00+02:00")
    snapshot = build_snapshot(history)
    restored = restore_history(history.model, decode_snapshot(raw(snapshot.headers), snapshot.payload), INDEX)
    assert restored.position.last_time == "2026-07-01T12:00:00.000000Z"


@pytest.mark.parametrize("lowest", [inf, -inf, nan])
def test_a_state_with_a_number_that_is_not_finite_makes_no_snapshot_since_it_would_come_back_as_another(lowest: float) -> None:
    model = compile_python(Thermometer)
    history = History(model, build_history().position, Temperature(lowest))
    with pytest.raises(InvalidEnvelope, match=r"field lowest is -?(inf|nan), for which JSON has no number"):
        build_snapshot(history)
    assert model.decode_state(model.encode_state(history.state)) == Temperature(None)
    history.state = Temperature(None)
    assert build_snapshot(history).version == 3


def test_its_name_is_that_of_the_fold_and_its_headers_name_the_commit() -> None:
    snapshot = build_snapshot(build_history())
    found = headers.decode_headers(raw(snapshot.headers))
    assert (snapshot.fold, snapshot.version) == (compile_account().fold, 3)
    assert (found["Aether-Format"], found["Aether-Commit"], found["Aether-Sequence"], found["Aether-Version"]) == (FORMAT, "id-1", "12", "3")


def test_one_wrong_bit_is_noticed() -> None:
    snapshot = build_snapshot(build_history())
    broken = snapshot.payload.replace(b'"balance":7', b'"balance":8')
    assert broken != snapshot.payload
    with pytest.raises(InvalidEnvelope, match="checksum"):
        decode_snapshot(raw(snapshot.headers), broken)


def test_another_format_is_no_snapshot() -> None:
    snapshot = build_snapshot(build_history())
    with pytest.raises(InvalidEnvelope, match="format '9'"):
        decode_snapshot(raw(snapshot.headers.replace(f"Aether-Format: {FORMAT}".encode(), b"Aether-Format: 9")), snapshot.payload)


@pytest.mark.parametrize("lines", [b"", b"Aether-Format: \xff\r\n"])
def test_a_foreign_message_is_no_snapshot(lines: bytes) -> None:
    with pytest.raises(InvalidEnvelope):
        decode_snapshot(raw(lines), b"{}")


def test_a_body_that_is_not_ours_is_no_snapshot() -> None:
    payload = b'{"state":[]}'
    lines = headers.encode_headers({headers.SNAPSHOT_FORMAT: FORMAT, headers.SNAPSHOT_SHA256: hashlib.sha256(payload).hexdigest()})
    with pytest.raises(InvalidEnvelope, match="body"):
        decode_snapshot(raw(lines), payload)


SNAPSHOT = build_snapshot(build_history())


@given(st.integers(0, 8 * len(SNAPSHOT.payload) - 1))
def test_any_flipped_bit_of_the_body_is_noticed(bit: int) -> None:
    with pytest.raises(InvalidEnvelope):
        decode_snapshot(raw(SNAPSHOT.headers), flip(SNAPSHOT.payload, bit))


@given(st.integers(0, 8 * len(SNAPSHOT.headers) - 1))
def test_a_flipped_bit_of_the_headers_is_noticed_or_changes_nothing(bit: int) -> None:
    try:
        body = decode_snapshot(raw(flip(SNAPSHOT.headers, bit)), SNAPSHOT.payload)
    except InvalidEnvelope:
        return
    assert body == decode_snapshot(raw(SNAPSHOT.headers), SNAPSHOT.payload)


@given(damaged(SNAPSHOT.payload))
def test_a_damaged_body_is_no_snapshot_even_if_its_checksum_fits(payload: bytes) -> None:
    lines = headers.encode_headers({headers.SNAPSHOT_FORMAT: FORMAT, headers.SNAPSHOT_SHA256: hashlib.sha256(payload).hexdigest()})
    with suppress(InvalidEnvelope):
        body = decode_snapshot(raw(lines), payload)
        restore_history(compile_account(), body, INDEX)


def flip(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]
