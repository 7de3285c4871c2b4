"""Commands and replies on the wire, hostile headers included."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_api import headers
from aether_api.envelope import encode_fields
from aether_api.errors import InvalidEnvelope, Reason
from aether_api.identity import CommandId, parse_actor_id
from aether_api.messages import (
    SECOND_MAX,
    TIMEOUT_DEFAULT_MS,
    TIMEOUT_MAX_MS,
    Command,
    Reply,
    ReplyEvent,
    build_command,
    build_command_headers,
    build_error,
    decode_reply,
    encode_reply,
    format_time,
    parse_command,
    parse_second,
    parse_seconds,
    parse_time,
)
from tests.histories.hostile import HOSTILE_JSON

ACTOR = parse_actor_id("default", "account", "alice")
NOW = "2026-07-01T12:00:00.000000Z"
NOW_S = 1782907200.0
printable = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)


def parse(**found: str) -> Command:
    lines = {name.replace("_", "-"): value for name, value in found.items()}
    return parse_block(headers.encode_headers(lines))


def parse_block(lines: bytes, payload: bytes = b"{}") -> Command:
    return parse_command(ACTOR, "Open", headers.FIRST_LINE + b"\r\n" + lines + b"\r\n", payload, now_s=NOW_S, fresh_id=lambda: "fresh")


@given(printable, st.integers(1, TIMEOUT_MAX_MS), st.none() | st.integers(0, 10**12), st.booleans(), st.integers(0, 2))
def test_a_command_reads_back_as_it_was_sent(id: str, timeout_ms: int, expected: int | None, dry_run: bool, forwards: int) -> None:
    command = Command(ACTOR, "Open", CommandId(id), b'{"owner":"a"}', NOW, NOW_S, timeout_ms / 1000, expected, dry_run, forwards, "00-trace-01")
    assert parse_block(build_command_headers(command), command.payload) == command


@given(
    st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z", fullmatch=True),
    st.text(min_size=1, max_size=8),
    st.from_regex(r"[0-9]{1,10}", fullmatch=True),
)
def test_the_usual_headers_mean_the_same_in_any_order(time: str, id: str, timeout_ms: str) -> None:
    lines = [f"{headers.COMMAND}: {id}", f"{headers.TIME}: {time}", f"{headers.TIMEOUT_MS}: {timeout_ms}"]

    def read(ordered: list[str]) -> Command | str:
        try:
            return parse_block("".join(f"{line}\r\n" for line in ordered).encode())
        except InvalidEnvelope as exc:
            return str(exc)

    assert read(lines) == read(lines[::-1])


def test_what_a_sender_leaves_out_is_filled_in() -> None:
    command = parse_command(ACTOR, "Open", b"", b"", now_s=NOW_S, fresh_id=lambda: "fresh")
    assert (command.id, command.time, command.timeout_s, command.payload) == ("fresh", NOW, TIMEOUT_DEFAULT_MS / 1000, b"{}")
    assert (command.expected_version, command.dry_run, command.forwards) == (None, False, 0)


def test_a_deadline_beyond_the_window_of_known_commands_is_shortened() -> None:
    assert parse(Aether_Timeout_Ms="999999999").timeout_s == TIMEOUT_MAX_MS / 1000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Aether-Timeout-Ms", "0"),
        ("Aether-Timeout-Ms", "-5"),
        ("Aether-Timeout-Ms", "1.5"),
        ("Aether-Timeout-Ms", "٣"),
        ("Aether-Timeout-Ms", "9" * 5000),
        ("Aether-Expected-Version", "-1"),
        ("Aether-Expected-Version", ""),
        ("Aether-Expected-Version", "9" * 5000),
        ("Aether-Forwards", "many"),
        ("Aether-Dry-Run", "yes please"),
        ("Aether-Command", ""),
        ("Aether-Command", "a\tb"),
        ("Aether-Command", "x" * 129),
        ("Aether-Time", "yesterday"),
        ("Aether-Time", "2026-07-01T12:00:00"),
        ("Aether-Time", "9999-99-99T99:99:99.999999Z"),
        ("Aether-Time", "2026-02-30T12:00:00.000000Z"),
        ("Aether-Time", "²²²²-²²-²²T²²:²²:²²."),
        ("Aether-Time", "0001-01-01T00:00:00+14:00"),
        ("Aether-Time", "9999-12-31T23:59:59-14:00"),
    ],
)
def test_a_malformed_header_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(InvalidEnvelope, match=name):
        parse_block(headers.encode_headers({name: value}))


@given(
    st.sampled_from([headers.COMMAND, headers.TIME, headers.TIMEOUT_MS, headers.EXPECTED_VERSION, headers.DRY_RUN, headers.FORWARDS, headers.TRACEPARENT]), st.binary(max_size=40)
)
def test_whatever_a_header_holds_gives_a_command_that_can_be_passed_on_or_is_refused(name: str, value: bytes) -> None:
    try:
        command = parse_block(name.encode() + b": " + value + b"\r\n")
    except InvalidEnvelope:
        return
    parse_time(command.time)
    assert parse_block(build_command_headers(command)).id == command.id


@given(st.datetimes(min_value=datetime(1000, 1, 3), max_value=datetime(9999, 12, 28), timezones=st.timezones()))
def test_every_time_with_an_offset_becomes_one_form_in_utc(moment: Any) -> None:
    found = parse(Aether_Time=moment.isoformat()).time
    assert len(found) == len(NOW)
    assert found.endswith("Z")
    assert abs(parse_time(found).timestamp() - moment.timestamp()) < 1e-3


@given(st.floats(0, 4e9), st.floats(0, 4e9))
def test_the_order_of_times_is_the_order_of_their_texts(first: float, second: float) -> None:
    if round(first, 5) < round(second, 5):
        assert format_time(first) <= format_time(second)


@pytest.mark.parametrize("text", ["2026-W27-3T12:00:00.000000Z", "2026-07-01T12:00:00,000000Z", "2026-07-01 12:00:00.000000Z", "20260701T120000Z", "2026-07-01T14:00+02:00"])
def test_a_time_in_another_spelling_of_iso_8601_becomes_the_one_form(text: str) -> None:
    assert parse(Aether_Time=text).time == NOW


def test_a_trace_that_cannot_be_passed_on_is_left_out() -> None:
    assert parse_block(b"traceparent: a\nForged: 1\r\n").traceparent == ""


@given(
    st.sampled_from(["accepted", "rejected", "noop", "error"]),
    st.integers(-1, 2**53),
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.integers(0, 10_000),
)
def test_a_reply_reads_back_as_it_was_sent(outcome: Any, version: int, message: str, retry_after_ms: int) -> None:
    reply = Reply(outcome, version, (ReplyEvent("Opened", 1, NOW, encode_fields({"owner": message})),), "Busy", message, retry_after_ms, "c", dry_run=True, state={"a": 1})
    assert decode_reply(encode_reply(reply)) == reply


def test_an_error_names_its_reason_in_the_words_of_the_wire() -> None:
    assert encode_reply(build_error(Reason.BUSY, "later", command_id="c", retry_after_ms=100)) == (
        b'{"outcome":"error","reason":"Busy","message":"later","retryAfterMs":100,"commandId":"c"}'
    )


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b'{"outcome":"maybe"}', b"\xff"])
def test_what_is_no_reply_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidEnvelope):
        decode_reply(payload)


LINES = st.lists(
    st.tuples(
        st.sampled_from(("Aether-Command", "Aether-Time", "Aether-Timeout-Ms", "Aether-Expected-Version", "Aether-Dry-Run", "Aether-Forwards", "traceparent")),
        st.sampled_from((NOW, "2026-07-01T14:00:00+02:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "5", "true", "x", "", "a\nb", "9" * 30, "²"))
        | st.text(max_size=8),
    ),
    max_size=6,
)


@given(LINES, st.sampled_from((b"\r\n\r\n", b"\r\n", b"")))
def test_whatever_headers_arrive_a_command_is_read_or_refused_and_others_beside_them_change_nothing(lines: list[tuple[str, str]], end: bytes) -> None:
    raw = headers.FIRST_LINE + b"".join(f"\r\n{name}: {value}".encode() for name, value in lines) + end
    outcomes: list[Command | None] = []
    for block in (raw, headers.FIRST_LINE + b"\r\nX-One: 1\r\nX-Two: 2" + raw.removeprefix(headers.FIRST_LINE)):
        try:
            outcomes.append(parse_command(ACTOR, "Open", block, b"", now_s=NOW_S, fresh_id=lambda: "fresh"))
        except InvalidEnvelope:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


@given(st.builds(Reply, st.sampled_from(("accepted", "rejected", "noop", "error")), st.integers(-1, 2**53), st.just(()), printable, printable, st.integers(0, 10**6), printable))
def test_every_reply_reads_back(reply: Reply) -> None:
    assert decode_reply(encode_reply(reply)) == reply


@pytest.mark.parametrize("payload", [*HOSTILE_JSON, *(b'{"outcome":"noop","state":%b}' % data for data in HOSTILE_JSON)])
def test_hostile_json_is_no_reply(payload: bytes) -> None:
    with pytest.raises(InvalidEnvelope):
        decode_reply(payload)


@given(st.integers(0, SECOND_MAX), st.integers(0, 999_999))
def test_the_second_of_an_event_is_that_of_its_time(second: int, micros: int) -> None:
    assert parse_second(format_time(second + micros / 1_000_000)) == int(parse_time(format_time(second + micros / 1_000_000)).timestamp())


@pytest.mark.parametrize(
    "text",
    [
        "1969-12-31T23:59:59.999999Z",
        "1960-01-01T00:00:00Z",
        "2106-02-07T06:28:16.000000Z",
        "2400-01-01T00:00:00+01:00",
        "2026-07-01T12:00:00.\u0661\u0662\u0663\u0664\u0665\u0666Z",
        "soon",
        "",
    ],
)
def test_an_event_of_another_age_is_refused(text: str) -> None:
    """The window of known commands has 32 bits for a second."""
    with pytest.raises(InvalidEnvelope):
        parse_second(text)


MOMENTS = st.builds(lambda second, micros: format_time(second + micros / 1_000_000), st.integers(0, SECOND_MAX - 1), st.integers(0, 999_999))


@given(st.lists(MOMENTS, min_size=1, max_size=20))
def test_the_seconds_of_many_events_are_those_of_each(times: list[str]) -> None:
    assert parse_seconds(times) == [parse_second(time) for time in times]


@given(
    st.lists(MOMENTS, max_size=4),
    st.lists(MOMENTS, max_size=4),
    st.sampled_from(
        [
            [""],
            ["2026-07-01T12:00:00Z"],
            ["2026-07-01T12:00:00.000000+00:00"],
            ["2026-07-91T12:00:00.000000Z"],
            ["2026-07-01T12:00:00.00000\u0661Z"],
            ["2026-07-01T12:00:00,000000Z"],
            [NOW + NOW, ""],
            [NOW[:20], NOW[20:]],
            [NOW[:26], NOW[26:] + NOW],
            [NOW + NOW[:4], NOW[4:]],
            ["2126-07-01T12:00:00.000000Z"],
        ]
    ),
)
def test_many_times_are_refused_where_one_has_another_form(before: list[str], after: list[str], odd: list[str]) -> None:
    with pytest.raises(InvalidEnvelope):
        parse_seconds([*before, *odd, *after])


class _Whole:
    """A whole number that is no int, as those of numpy."""

    def __index__(self) -> int:
        return 3


def test_an_expected_version_is_any_whole_number_but_no_truth_value() -> None:
    actor = parse_actor_id("bank", "account", "alice")
    command = build_command(actor, "Deposit", {}, command_id="c", now_s=0.0, expected_version=cast("int", _Whole()))
    assert (command.expected_version, type(command.expected_version)) == (3, int)
    for wrong in (True, 1.0, "1", -1):
        with pytest.raises(InvalidEnvelope, match="expected_version must be a whole number"):
            build_command(actor, "Deposit", {}, command_id="c", now_s=0.0, expected_version=cast("int", wrong))
