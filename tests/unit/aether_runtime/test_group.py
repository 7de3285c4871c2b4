"""Deciding a group of waiting commands: what is answered at once, what is stored, what waits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, cast

import pytest

from aether_api.commit_index import NO_COMMITS
from aether_api.durable import InboxPosition, Tick
from aether_api.envelope import Event, decode_events, encode_object, join_events
from aether_api.errors import Reason
from aether_api.identity import CommandId, parse_actor_id
from aether_api.messages import Command, Reply, decode_reply, encode_reply, format_time
from aether_model.decide import CompiledModel
from aether_model.model import CommandInput, Decision, DomainEvent, Emitted, Rejected, State
from aether_runtime.core.group import COMMANDS_MAX, Group, InboxEntry, Now, Waiting, decide_group
from aether_runtime.core.history import History, Position
from aether_runtime.core.window import AGE_MAX_S, SKEW_S
from tests.histories.alarm import CLOCK, Alarm
from tests.histories.bank import START_S, build_command, compile_account, fields_of

BYTES_MAX = 1 << 20

_T = TypeVar("_T")


def events_of(group: Group) -> list[Event]:
    """Return what the group would store."""
    return decode_events(join_events(group.encoded))


def build_history(balance: int = 100) -> History:
    history = History.empty(compile_account())
    history.state = {"owner": "alice", "balance": balance, "open": True}
    history.position = Position(3, 30, NO_COMMITS.appended(10).appended(20).appended(30), 0, "c", "2026-07-01T11:00:00.000000Z")
    return history


def wait(command: Command, deadline_s: float = 10.0) -> Waiting:
    def answer(reply: Reply) -> None:
        raise AssertionError("a group answers nobody by itself")

    return Waiting(command, deadline_s, answer)


def decide(*commands: Command, history: History | None = None, elapsed_s: float = 0.0, bytes_max: int = BYTES_MAX) -> Group:
    return decide_group(history or build_history(), [wait(command) for command in commands], Now(START_S + elapsed_s, elapsed_s), bytes_max=bytes_max)


def deposit(amount: int = 1, id: str = "d", **options: object) -> Command:
    return build_command("Deposit", {"amount": amount}, id=id, **options)  # type: ignore[arg-type]  # options of the command


def replies(group: Group) -> list[Reply]:
    return [reply for _, reply in group.answers]


def test_each_command_is_decided_on_the_state_that_the_earlier_ones_made() -> None:
    group = decide(deposit(20, "a"), build_command("Withdraw", {"amount": 120}, id="b"), build_command("Withdraw", {"amount": 1}, id="c"))
    assert [(reply.outcome, reply.version, reply.reason) for reply in replies(group)] == [("accepted", 4, ""), ("accepted", 5, ""), ("rejected", 5, "InsufficientFunds")]
    assert (fields_of(group.state)["balance"], group.version) == (0, 5)
    assert [(event.id, event.type, event.command_id) for event in decode_events(join_events(group.encoded))] == [("4", "Deposited", "a"), ("5", "Withdrawn", "b")]


class Echo(Alarm):
    """Stores what it is told."""

    def decide(self, state: State, command: CommandInput) -> Decision:
        return Emitted((DomainEvent("Rang", command.payload),))

    def apply(self, state: State, event_type: str, data: bytes, *, time: str, version: int, schema_version: int = 1) -> State:
        return state


def nest(levels: int) -> dict[str, object]:
    value: object = "[[[{"
    for _ in range(levels - 1):
        value = [value, '\\"']
    return {"label": value}


def call_from(depth: int, work: Callable[[], _T]) -> _T:
    return work() if not depth else call_from(depth - 1, work)


def test_what_is_accepted_can_be_read_by_whoever_stands_deep_in_calls() -> None:
    """Python counts the levels of JSON together with calls, so what a VM could just apply quarantined the one that replayed it."""
    history = History.empty(Echo())
    deepest, deeper = (Command(CLOCK, "Ring", CommandId(f"n{levels}"), encode_object(nest(levels)), format_time(START_S), START_S, 10.0) for levels in (512, 513))
    group = decide(deepest, deeper, history=history)
    assert [(reply.outcome, reply.reason) for reply in replies(group)] == [("accepted", ""), ("error", "CommandFailed")]
    assert "nested 513 levels deep, more than 512; nothing was stored" in replies(group)[1].message
    (event,) = call_from(300, lambda: events_of(group))
    assert call_from(300, event.fields) == nest(512)


def test_the_history_itself_does_not_move() -> None:
    history = build_history()
    decide(deposit(20), history=history)
    assert (fields_of(history.state)["balance"], history.position.version, len(history.window)) == (100, 3, 0)


def test_a_command_past_its_deadline_is_not_run() -> None:
    group = decide(deposit(id="late"), elapsed_s=10.5)
    assert group.answers == []
    assert [(item.command.id, reply.reason, reply.retry_after_ms > 0) for item, reply in group.immediate] == [("late", Reason.EXPIRED, True)]


def test_a_command_that_is_too_old_is_never_run() -> None:
    old = deposit(id="old", time_s=START_S - AGE_MAX_S - 1)
    group = decide(old, deposit(id="new", time_s=START_S - AGE_MAX_S + 1))
    assert [(item.command.id, reply.reason, reply.retry_after_ms) for item, reply in group.immediate] == [("old", Reason.EXPIRED, 0)]
    assert [reply.command_id for reply in replies(group)] == ["new"]


def test_a_command_from_a_future_beyond_all_clock_skew_is_never_run() -> None:
    """Its id could leave the window long before it is too old, and a repeat would then take effect twice."""
    group = decide(deposit(id="future", time_s=START_S + SKEW_S + 1), deposit(id="ahead", time_s=START_S + SKEW_S - 1))
    assert [(item.command.id, reply.reason) for item, reply in group.immediate] == [("future", Reason.EXPIRED)]
    assert [reply.command_id for reply in replies(group)] == ["ahead"]


def test_a_command_that_may_have_left_a_window_cut_short_is_never_run() -> None:
    history = build_history()
    history.window.floor_s = int(START_S) - 60
    group = decide(deposit(id="old", time_s=START_S - 60 + SKEW_S - 1), deposit(id="new", time_s=START_S - 60 + SKEW_S + 1), history=history)
    assert [(item.command.id, reply.reason, reply.retry_after_ms) for item, reply in group.immediate] == [("old", Reason.EXPIRED, 0)]
    assert [reply.command_id for reply in replies(group)] == ["new"]


def test_a_known_id_is_looked_up_instead_of_run() -> None:
    history = build_history()
    history.window.add("known", 20, START_S)
    group = decide(deposit(id="known"), history=history)
    assert ([(item.command.id, list(sequences)) for item, sequences in group.repeats], group.answers, events_of(group)) == ([("known", [20])], [], [])


def test_all_commits_that_may_hold_an_id_are_looked_up_and_those_that_were_are_not_again() -> None:
    history, item = build_history(), wait(deposit(id="twin"))
    for sequence in (10, 20):
        history.window.add("twin", sequence, START_S)
    assert [list(sequences) for _, sequences in decide_group(history, [item], Now(START_S, 0.0), bytes_max=BYTES_MAX).repeats] == [[20, 10]]
    item.cleared = 20
    assert [event.command_id for event in events_of(decide_group(history, [item], Now(START_S, 0.0), bytes_max=BYTES_MAX))] == ["twin"]
    history.window.add("twin", 30, START_S)
    assert [list(sequences) for _, sequences in decide_group(history, [item], Now(START_S, 0.0), bytes_max=BYTES_MAX).repeats] == [[30, 20, 10]]


def test_the_same_id_twice_in_a_group_takes_effect_once() -> None:
    group = decide(deposit(5, "same"), deposit(5, "same"))
    assert replies(group)[0] == replies(group)[1]
    assert (len(events_of(group)), fields_of(group.state)["balance"]) == (1, 105)


def test_a_rejected_id_is_decided_anew_in_the_same_group() -> None:
    withdraw = build_command("Withdraw", {"amount": 110}, id="same")
    group = decide(withdraw, deposit(20, "more"), withdraw)
    assert [reply.outcome for reply in replies(group)] == ["rejected", "accepted", "accepted"]


def test_the_expected_version_is_compared_with_the_version_that_earlier_commands_made() -> None:
    group = decide(deposit(id="a", expected_version=3), deposit(id="b", expected_version=3), deposit(id="c", expected_version=4))
    assert [(reply.outcome, reply.reason) for reply in replies(group)] == [("accepted", ""), ("rejected", Reason.WRONG_VERSION), ("accepted", "")]


def test_a_dry_run_shows_what_would_be_and_stores_nothing() -> None:
    group = decide(deposit(20, "try", dry_run=True), deposit(1, "real"))
    dry, real = replies(group)
    assert (dry.outcome, dry.dry_run, dry.version, dry.state) == ("accepted", True, 4, {"owner": "alice", "balance": 120, "open": True})
    assert [event.type for event in dry.events] == ["Deposited"]
    assert (real.version, fields_of(group.state)["balance"], len(events_of(group))) == (4, 101, 1)


def test_a_rejected_dry_run_shows_the_state_as_it_is() -> None:
    reply = replies(decide(build_command("Withdraw", {"amount": 500}, id="try", dry_run=True)))[0]
    assert (reply.outcome, reply.dry_run, reply.state) == ("rejected", True, {"owner": "alice", "balance": 100, "open": True})


def test_a_command_larger_than_a_commit_is_refused_and_the_others_go_on() -> None:
    large = build_command("Open", {"owner": "x" * 90}, id="large")
    history = History.empty(compile_account())
    group = decide(large, build_command("Deposit", {"amount": 1}, id="next"), history=history, bytes_max=200)
    assert [(reply.outcome, reply.reason) for reply in replies(group)] == [("error", Reason.COMMIT_TOO_LARGE), ("rejected", "AccountClosed")]
    assert (events_of(group), fields_of(group.state)["open"]) == ([], False)


def test_a_group_ends_before_the_command_that_would_not_fit() -> None:
    size = len(decide(deposit(id="0")).encoded[0])
    group = decide(*(deposit(id=str(number)) for number in range(5)), bytes_max=3 * size)
    assert [reply.command_id for reply in replies(group)] == ["0", "1", "2"]
    assert [item.command.id for item in group.rest] == ["3", "4"]


def test_a_group_ends_at_its_largest_number_of_commands() -> None:
    group = decide(*(deposit(id=str(number)) for number in range(COMMANDS_MAX + 2)))
    assert (len(group.answers), [item.command.id for item in group.rest]) == (COMMANDS_MAX, ["256", "257"])


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"{", Reason.INVALID_COMMAND),
        (b"[]", Reason.INVALID_COMMAND),
        (b"null", Reason.INVALID_COMMAND),
        (b"\xff", Reason.INVALID_COMMAND),
        (b'{"amount":"1"}', Reason.INVALID_COMMAND),
        (b'{"amount":0}', Reason.INVALID_COMMAND),
        (b'{"amount":1,"more":2}', Reason.INVALID_COMMAND),
        (b'{"amount":1.5}', Reason.INVALID_COMMAND),
        (b"[" * 5000, Reason.INVALID_COMMAND),
        (b'{"amount":' + b"[" * 900 + b"]" * 900 + b"}", Reason.INVALID_COMMAND),
        (b'{"amount":9223372036854775807}', Reason.COMMAND_FAILED),
        (b'{"amount":9223372036854775808}', None),
        (b'{"amount":18446744073709551615}', None),
        (b'{"amount":123456789012345678901234567890}', None),
        (b'{"amount":1e400}', None),
    ],
)
def test_a_hostile_payload_fails_only_its_own_command(payload: bytes, reason: Reason | None) -> None:
    group = decide(deposit(id="bad", payload=payload), deposit(1, "good"))
    bad, good = replies(group)
    assert bad.outcome in ("rejected", "error")
    assert reason is None or bad.reason == reason
    assert (good.outcome, good.version, fields_of(group.state)["balance"]) == ("accepted", 4, 101)


def test_an_unknown_command_is_rejected_by_name() -> None:
    assert replies(decide(build_command("Steal", {}, id="s")))[0].reason == Reason.UNKNOWN_COMMAND


def test_the_time_of_events_never_runs_back() -> None:
    history = build_history()
    history.position = Position(3, 30, history.position.index, 0, "c", "2026-07-01T13:00:00.000000Z")
    assert events_of(decide(deposit(), history=history))[0].time == "2026-07-01T13:00:00.000000Z"


def test_events_after_a_purge_carry_their_incarnation() -> None:
    history = History.empty(compile_account())
    history.position = Position(0, 40, NO_COMMITS.appended(40), 2, "t", "")
    assert [event.id for event in events_of(decide(build_command("Open", {"owner": "a"}, id="o"), history=history))] == ["2.1"]


class Unlucky(CompiledModel):
    """The account, with a mistake that no type could find."""

    def decide(self, state: State, command: CommandInput) -> Decision:
        if b"13" in command.payload:
            raise ZeroDivisionError("unlucky")
        return super().decide(state, command)


def test_a_handler_that_meets_something_unforeseen_fails_only_its_own_command() -> None:
    history = build_history()
    history.model = Unlucky(**{field.name: getattr(compile_account(), field.name) for field in dataclasses.fields(CompiledModel)})
    group = decide(deposit(1, "a"), deposit(13, "b"), deposit(1, "c"), history=history)
    assert [(reply.outcome, reply.reason) for reply in replies(group)] == [("accepted", ""), ("error", Reason.COMMAND_FAILED), ("accepted", "")]
    assert fields_of(group.state)["balance"] == 102


class Refusing(CompiledModel):
    """The account, whose withdrawals are refused with the texts that a test hands in."""

    def decide(self, state: State, command: CommandInput) -> Decision:
        return super().decide(state, command) if command.name != "Withdraw" else REFUSALS[command.actor_id]

    @classmethod
    def build_history(cls) -> History:
        history = build_history()
        history.model = cls(**{field.name: getattr(history.model, field.name) for field in dataclasses.fields(CompiledModel)})
        return history


NO_TEXT: Any = ValueError("the author passed the exception itself")

REFUSALS = {"no-text": Rejected("Invalid", NO_TEXT), "no-reason": Rejected(NO_TEXT, "no"), "surrogate": Rejected("Invalid", "bad \ud800 text")}


@pytest.mark.parametrize(
    ("actor", "outcome", "reason", "told"),
    [("no-text", "error", Reason.COMMAND_FAILED, "ValueError"), ("no-reason", "error", Reason.COMMAND_FAILED, "ValueError"), ("surrogate", "rejected", "Invalid", "bad ? text")],
)
def test_what_a_model_says_that_no_reply_can_carry_costs_its_own_command_only(actor: str, outcome: str, reason: str, told: str) -> None:
    refused = build_command("Withdraw", {"amount": 1}, id="w", actor=parse_actor_id("default", "account", actor))
    group = decide(deposit(id="a"), refused, deposit(id="b"), history=Refusing.build_history())
    assert [reply.outcome for reply in replies(group)] == ["accepted", outcome, "accepted"]
    read = decode_reply(encode_reply(replies(group)[1]))
    assert (read.reason, told in read.message) == (reason, True)


def test_what_a_model_raises_reaches_the_caller_as_a_text_that_can_be_sent() -> None:
    class Raising(Refusing):
        def decide(self, state: State, command: CommandInput) -> Decision:
            raise ValueError("bad \ud800 text")

    (reply,) = replies(decide(deposit(), history=Raising.build_history()))
    assert "bad ? text" in decode_reply(encode_reply(reply)).message


class Chime(Alarm):
    """Rings twice, under two schemas, and keeps which versions it was told."""

    def decide(self, state: State, command: CommandInput) -> Decision:
        return Emitted(tuple(DomainEvent("Rang", b'{"label":"%d"}' % number, schema_version=number) for number in (1, 2)))

    def apply(self, state: State, event_type: str, data: bytes, *, time: str, version: int, schema_version: int = 1) -> State:
        return {"rang": [*cast("dict[str, Any]", state)["rang"], (version, schema_version)]}


def test_each_event_of_a_command_has_a_version_of_its_own() -> None:
    group = decide(*(build_command("Ring", {}, id=id, actor=CLOCK) for id in "ab"), history=History.empty(Chime()))
    stored = [(event.version, event.schema_version) for event in events_of(group)]
    assert stored == [(1, 1), (2, 2), (3, 1), (4, 2)]
    assert (group.state, group.version) == ({"rang": stored}, 4)
    assert [(reply.version, [event.version for event in reply.events]) for reply in replies(group)] == [(2, [1, 2]), (4, [3, 4])]


def test_a_tick_whose_reminder_an_earlier_command_of_the_group_has_ended_is_not_run() -> None:
    history = History.empty(Alarm())
    history.reminders = {"morning": "t"}
    tick = wait(build_command("Ring", {}, id="tick", actor=CLOCK))
    tick.inbox = InboxEntry(InboxPosition(7, 50), Tick("morning", "t", "late", "2026-07-01T12:00:00Z", recurring=False))
    group = decide_group(history, [wait(build_command("Cancel", {"name": "morning"}, id="cancel", actor=CLOCK)), tick], Now(START_S, 0.0), bytes_max=BYTES_MAX)
    assert [(reply.outcome, reply.reason) for reply in replies(group)] == [("accepted", ""), ("noop", "ReminderGone")]
