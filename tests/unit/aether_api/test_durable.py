"""Durable commands, ticks and dead letters on the wire."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aether_api import headers
from aether_api.durable import (
    NEVER_S,
    NO_INBOX,
    DeadLetter,
    DurableCommand,
    InboxPosition,
    Tick,
    build_dead_forms,
    build_dead_headers,
    build_durable_headers,
    build_retry_headers,
    parse_durable,
    parse_inbox_position,
    read_dead_letter,
)
from aether_api.errors import InvalidEnvelope
from aether_api.headers import FIRST_LINE, decode_headers, encode_headers
from aether_api.identity import CommandId, parse_actor_id
from aether_api.messages import Command
from tests.histories.hostile import damaged

ALICE = parse_actor_id("bank", "account", "alice")
SENT = "2026-01-31T12:00:00.000000Z"
STORED = "2026-01-31T12:00:01.123456789Z"
STORED_MICROS = "2026-01-31T12:00:01.123456Z"
DEPOSIT = Command(ALICE, "Deposit", CommandId("c-1"), b'{"amount":5}', SENT, 1769860800.0, 10.0, expected_version=3, traceparent="00-1-2-01")


def block(lines: bytes) -> bytes:
    return FIRST_LINE + b"\r\n" + lines + b"\r\n"


def build_tick(**values: str) -> bytes:
    lines = {headers.COMMAND_NAME: "Remind", headers.REMINDER: "dunning:t1", headers.MISSED: "collapse", **values}
    return block(encode_headers({name: value for name, value in lines.items() if value}))


def test_a_durable_command_arrives_as_it_was_sent_and_waits_for_ever() -> None:
    found = parse_durable(ALICE, InboxPosition(5, 7), block(build_durable_headers(DEPOSIT)), DEPOSIT.payload, stored=STORED)
    assert found.command.timeout_s == NEVER_S
    assert (found.sequence, found.tick) == (7, None)
    assert (found.command.name, found.command.id, found.command.payload, found.command.time) == ("Deposit", "c-1", b'{"amount":5}', SENT)
    assert (found.command.expected_version, found.command.traceparent) == (3, "00-1-2-01")


def test_the_server_can_drop_a_repeat_by_its_id() -> None:
    assert decode_headers(block(build_durable_headers(DEPOSIT)))["Nats-Msg-Id"] == "account/alice/c-1"


def test_a_command_without_an_id_is_known_by_its_place() -> None:
    found = parse_durable(ALICE, InboxPosition(5, 7), block(encode_headers({headers.COMMAND_NAME: "Close"})), b"", stored=STORED)
    assert (found.command.id, found.command.time, found.command.payload) == ("inbox:5.7", STORED_MICROS, b"{}")


def test_a_dry_run_cannot_be_durable() -> None:
    with pytest.raises(InvalidEnvelope, match="dry run"):
        build_durable_headers(Command(ALICE, "Deposit", CommandId("c"), b"{}", SENT, 0.0, 1.0, dry_run=True))


@pytest.mark.parametrize(
    "lines",
    [
        {},
        {headers.COMMAND_NAME: "not a name"},
        {headers.COMMAND_NAME: "Deposit", headers.DRY_RUN: "true"},
        {headers.COMMAND_NAME: "Deposit", headers.REMINDER: "x"},
        {headers.COMMAND_NAME: "Deposit", headers.REMINDER: "x:1", headers.MISSED: "never"},
        {headers.COMMAND_NAME: "Deposit", headers.REMINDER: "x:1", headers.DUE: "tomorrow"},
        {headers.COMMAND_NAME: "Deposit", headers.EXPECTED_VERSION: "-1"},
    ],
)
def test_what_never_will_be_a_command_is_told(lines: dict[str, str]) -> None:
    with pytest.raises(InvalidEnvelope):
        parse_durable(ALICE, InboxPosition(5, 7), block(encode_headers(lines)), b"{}", stored=STORED)


def test_a_tick_of_a_recurring_reminder_is_a_command_of_its_own_each_time() -> None:
    found = parse_durable(ALICE, InboxPosition(5, 7), build_tick(), b"{}", stored=STORED)
    assert found.tick == Tick("dunning", "t1", "collapse", STORED_MICROS, recurring=True)
    assert (found.command.id, found.command.time) == ("dunning:5.7", STORED_MICROS)


def test_a_tick_that_a_killed_server_makes_again_is_the_same_command() -> None:
    def name(position: InboxPosition, following: str, token: str = "t1") -> str:
        raw = build_tick(**{headers.REMINDER: f"dunning:{token}", headers.SCHEDULE_NEXT: following})
        return parse_durable(ALICE, position, raw, b"{}", stored=STORED).command.id

    first = name(InboxPosition(5, 7), "2026-02-01T06:00:00Z")
    assert first == name(InboxPosition(5, 9), "2026-02-01T06:00:00Z") == name(InboxPosition(6, 1), "2026-02-01T07:00:00+01:00")
    others = [name(InboxPosition(5, 9), "2026-03-01T06:00:00Z"), name(InboxPosition(5, 9), "2026-02-01T06:00:00Z", token="t2"), name(InboxPosition(5, 9), "soon")]
    assert len({first, *others}) == 4


def test_the_same_place_in_a_stream_that_was_made_anew_is_another_command() -> None:
    for raw in (block(encode_headers({headers.COMMAND_NAME: "Close"})), build_tick()):
        ids = [parse_durable(ALICE, InboxPosition(incarnation, 7), raw, b"{}", stored=STORED).command.id for incarnation in (5, 6)]
        assert ids[0] != ids[1]


def test_a_one_shot_is_the_same_command_however_often_it_comes() -> None:
    found = parse_durable(ALICE, InboxPosition(5, 7), build_tick(**{headers.DUE: SENT}), b"{}", stored=STORED)
    again = parse_durable(ALICE, InboxPosition(5, 9), build_tick(**{headers.DUE: SENT}), b"{}", stored=STORED)
    assert found.tick == Tick("dunning", "t1", "collapse", SENT, recurring=False)
    assert found.command.id == again.command.id == "dunning:t1"
    assert found.command.time == SENT


def test_a_dead_letter_says_what_it_was_and_why_it_was_given_up() -> None:
    dead = block(build_dead_headers(block(build_durable_headers(DEPOSIT)), 7, "CommandFailed", "division\r\nby zero"))
    letter = read_dead_letter(9, dead, DEPOSIT.payload, stored=STORED)
    assert (letter.sequence, letter.command, letter.command_id) == (9, "Deposit", "c-1")
    assert (letter.reason, letter.message, letter.payload) == ("CommandFailed", "division by zero", '{"amount":5}')


def test_headers_that_cannot_be_read_do_not_keep_a_message_from_its_grave() -> None:
    dead = block(build_dead_headers(b"NATS/1.0\r\nAether-Command: \xff\r\n\r\n", 7, "InvalidCommand", "broken"))
    assert read_dead_letter(9, dead, b"\xff", stored=STORED).reason == "InvalidCommand"


def test_a_dead_letter_goes_back_as_the_command_it_was() -> None:
    dead = block(build_dead_headers(block(build_durable_headers(DEPOSIT)), 7, "CommandFailed", "x"))
    retried = block(build_retry_headers(dead, 9))
    found = parse_durable(ALICE, InboxPosition(5, 12), retried, DEPOSIT.payload, stored=STORED)
    assert (found.command.id, found.command.name, found.command.expected_version) == ("c-1", "Deposit", 3)
    assert decode_headers(retried)["Nats-Msg-Id"] == "retry:9"


def test_a_dead_tick_goes_back_as_an_ordinary_command() -> None:
    retried = block(build_retry_headers(block(build_dead_headers(build_tick(), 7, "CommandFailed", "x")), 9))
    assert parse_durable(ALICE, InboxPosition(5, 12), retried, b"{}", stored=STORED).tick is None


@given(st.integers(0, 2**50), st.integers(0, 2**50))
def test_a_position_parses_back(incarnation: int, sequence: int) -> None:
    position = InboxPosition(incarnation, sequence)
    assert parse_inbox_position(str(position)) == position


@pytest.mark.parametrize("text", ["", "7", "7:", ":7", "a:1", "1:2:3", "-1:2"])
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(InvalidEnvelope, match="Aether-Inbox"):
        parse_inbox_position(text)


def test_a_position_says_nothing_about_another_stream() -> None:
    position = InboxPosition(5, 100)
    assert position.covers(InboxPosition(5, 100))
    assert not position.covers(InboxPosition(5, 101))
    assert not position.covers(InboxPosition(6, 1))
    assert not NO_INBOX.covers(InboxPosition(5, 1))


printable = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)


@given(printable, st.none() | st.integers(0, 10**12), st.binary(min_size=1, max_size=20), st.sampled_from(("", "00-1-2-01")))
def test_every_durable_command_arrives_as_it_was_sent(id: str, expected: int | None, payload: bytes, trace: str) -> None:
    command = replace(DEPOSIT, id=CommandId(id), expected_version=expected, payload=payload, traceparent=trace)
    found = parse_durable(ALICE, InboxPosition(5, 7), block(build_durable_headers(command)), payload, stored=STORED)
    assert found == DurableCommand(7, replace(command, timeout_s=NEVER_S))


@given(damaged(block(build_durable_headers(DEPOSIT))))
def test_a_damaged_command_is_read_or_buried(raw: bytes) -> None:
    with suppress(InvalidEnvelope):
        parse_durable(ALICE, InboxPosition(5, 7), raw, b"{}", stored=STORED)
    assert read_dead_letter(9, block(build_dead_headers(raw, 7, "InvalidCommand", "broken")), b"", stored=STORED).reason == "InvalidCommand"


@given(damaged(build_tick(**{headers.DUE: SENT})))
def test_a_damaged_tick_is_read_or_buried(raw: bytes) -> None:
    with suppress(InvalidEnvelope):
        parse_durable(ALICE, InboxPosition(5, 7), raw, b"{}", stored=STORED)
    assert read_dead_letter(9, block(build_dead_headers(raw, 7, "InvalidCommand", "broken")), b"", stored=STORED).reason == "InvalidCommand"


def test_a_line_break_in_what_a_stranger_sent_does_not_keep_it_from_its_grave() -> None:
    raw = block(b"Aether-Command: a\nb  c\r\nAether-Odd\nName: 1\r\n")
    dead = block(build_dead_headers(raw, 7, "InvalidCommand", "broken"))
    assert read_dead_letter(9, dead, b"", stored=STORED).command_id == "a b  c"
    assert read_dead_letter(9, block(build_retry_headers(dead, 9)), b"", stored=STORED).command_id == "a b  c"


@given(st.text(max_size=30))
def test_whatever_text_stands_for_a_position_it_is_read_or_refused(text: str) -> None:
    with suppress(InvalidEnvelope):
        assert parse_inbox_position(str(parse_inbox_position(text))) == parse_inbox_position(text)


def read_form(lines: bytes, payload: bytes) -> DeadLetter:
    return read_dead_letter(9, block(lines), payload, stored=STORED)


def test_a_dead_letter_that_does_not_fit_loses_its_explanation_first_and_its_payload_last() -> None:
    raw = block(build_durable_headers(DEPOSIT) + encode_headers({"Aether-Tenant": "t" * 5000}))
    forms = list(build_dead_forms(raw, DEPOSIT.payload, 7, "CommandFailed", "why " * 1000))
    sizes = [len(lines) + len(payload) for lines, payload in forms]
    assert sizes[0] > sizes[1] > sizes[2]
    assert forms[0] == (build_dead_headers(raw, 7, "CommandFailed", "why " * 1000), DEPOSIT.payload)
    letters = [read_form(*form) for form in forms]
    assert {(letter.command, letter.command_id, letter.reason, letter.message[:7]) for letter in letters} == {("Deposit", "c-1", "CommandFailed", "why why")}
    assert [letter.lost_bytes for letter in letters] == [0, 0, 0, len(DEPOSIT.payload)]
    assert [decode_headers(block(lines))["Nats-Msg-Id"] for lines, _ in forms] == ["dead:7"] * 4
    for lines, payload in forms[:3]:
        found = parse_durable(ALICE, InboxPosition(5, 12), block(build_retry_headers(block(lines), 9)), payload, stored=STORED)
        assert (found.command.id, found.command.expected_version, found.command.time) == ("c-1", 3, SENT)


def test_a_dead_letter_that_lost_its_payload_says_so_and_cannot_be_retried() -> None:
    *_, (lines, payload) = build_dead_forms(block(build_durable_headers(DEPOSIT)), DEPOSIT.payload, 7, "CommandFailed", "x")
    assert f"payload of {len(DEPOSIT.payload)} bytes did not fit" in read_form(lines, payload).message
    with pytest.raises(InvalidEnvelope, match="payload of dead letter 9, 12 bytes"):
        build_retry_headers(block(lines), 9)


def test_a_dead_letter_without_payload_loses_none() -> None:
    *_, last = build_dead_forms(block(build_durable_headers(DEPOSIT)), b"", 7, "CommandFailed", "x")
    assert read_form(*last).lost_bytes == 0


def test_the_shortest_dead_letter_is_short_whatever_a_stranger_sent() -> None:
    raw = block(encode_headers({headers.COMMAND: "c" * 70_000, headers.COMMAND_NAME: "n" * 70_000, "Aether-X": "x" * 70_000}))
    *_, (lines, _) = build_dead_forms(raw, b"{}", 7, "InvalidCommand", "e" * 70_000)
    assert len(lines) < 1500
