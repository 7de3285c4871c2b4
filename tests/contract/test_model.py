"""The contract of models, on the account in CEL and on the same account in Python: equal histories, equal answers, equal states."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_api.errors import EventInvalid, InvalidEnvelope
from aether_model.advance import advance, replay
from aether_model.model import CommandInput, Decision, Emitted, Model, NoOp, Rejected, State
from tests.histories.bank import compile_account, load_python_account

TIME = "2026-07-01T12:00:00.000000Z"
OPEN = ("Open", {"owner": "Ann"})
few = settings(max_examples=60)


MODELS: dict[str, Model] = {"cel": compile_account(), "python": load_python_account()}
each_kind = pytest.mark.parametrize("model", list(MODELS.values()), ids=list(MODELS))


def run(model: Model, *commands: tuple[str, Any]) -> tuple[State, list[Decision], list[tuple[str, bytes, str]]]:
    """Send commands to a new account; return its state, every decision, and its history."""
    state, version = model.initial_state(), 0
    decisions, history = list[Decision](), list[tuple[str, bytes, str]]()
    for name, payload in commands:
        encoded = payload if isinstance(payload, bytes) else orjson.dumps(payload)
        after = advance(model, state, CommandInput(name, encoded, "ann", version, TIME), event_time=TIME)
        state, version = after.state, after.version
        decisions.append(after.decision)
        if isinstance(after.decision, Emitted):
            history += [(event.type, event.data, TIME) for event in after.decision.events]
    return state, decisions, history


def shown(model: Model, state: State) -> Any:
    return orjson.loads(model.encode_state(state))


def summary(decision: Decision) -> object:
    match decision:
        case Emitted(events=events):
            return [(event.type, orjson.loads(event.data), event.schema_version) for event in events]
        case Rejected(reason="InvalidCommand"):
            return "InvalidCommand"
        case Rejected(reason=reason, message=message):
            return (reason, message)
        case NoOp():
            return "NoOp"


@each_kind
def test_it_has_the_name_of_its_resource_and_hashes_that_name_it(model: Model) -> None:
    assert (model.name, model.version, model.on_demand) == ("account", "1.0.0", True)
    assert [len(text) == 16 and int(text, 16) >= 0 for text in (model.content_hash, model.fold)] == [True, True]


@each_kind
def test_money_goes_in_and_out(model: Model) -> None:
    state, decisions, _ = run(model, OPEN, ("Deposit", {"amount": 70}), ("Withdraw", {"amount": 20}))
    assert shown(model, state) == {"owner": "Ann", "balance": 50, "open": True}
    assert [summary(decision) for decision in decisions] == [[("Opened", {"owner": "Ann"}, 1)], [("Deposited", {"amount": 70}, 1)], [("Withdrawn", {"amount": 20}, 1)]]


@each_kind
@pytest.mark.parametrize(
    ("commands", "rejected"),
    [
        ([("Deposit", {"amount": 1})], Rejected("AccountClosed", "the account is closed")),
        ([OPEN, OPEN], Rejected("AlreadyOpen", "the account is open already")),
        ([OPEN, ("Withdraw", {"amount": 1})], Rejected("InsufficientFunds", "the balance of 0 is below 1")),
        ([OPEN, ("Deposit", {"amount": 5}), ("Close", {})], Rejected("BalanceNotZero", "withdraw the balance of 5 first")),
        ([("Steal", {})], Rejected("UnknownCommand", "model account has no command 'Steal'; known are Close, Deposit, Open, Withdraw")),
    ],
)
def test_what_is_not_allowed_is_rejected_with_its_reason(model: Model, commands: list[tuple[str, Any]], rejected: Rejected) -> None:
    assert run(model, *commands)[1][-1] == rejected


@each_kind
@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "the payload is not JSON"),
        (b"{", "the payload is not JSON"),
        (b"\xff", "the payload is not JSON"),
        (b'{"amount":1}}', "the payload is not JSON"),
        (b"null", "the payload must be a JSON object with the command's fields"),
        (b"[1]", "the payload must be a JSON object with the command's fields"),
        (b'"x"', "the payload must be a JSON object with the command's fields"),
        (b"{}", "Deposit: amount is required"),
        (b'{"amount":"1"}', "Deposit: amount: "),
        (b'{"amount":null}', "Deposit: amount: "),
        (b'{"amount":0}', "Deposit: amount: "),
        (b'{"amount":1.5}', "Deposit: amount: "),
        (b'{"amount":123456789012345678901234567890}', "Deposit: amount: "),
        (b'{"amount":1,"more":2}', "Deposit: unknown field more; known are amount"),
        (b"[" * 900 + b"]" * 900, "the payload must be a JSON object with the command's fields"),
    ],
)
def test_a_payload_that_does_not_fit_is_rejected_and_the_field_named(model: Model, payload: bytes, words: str) -> None:
    decision = run(model, OPEN, ("Deposit", payload))[1][-1]
    assert isinstance(decision, Rejected)
    assert decision.reason == "InvalidCommand"
    assert words in decision.message


@each_kind
@pytest.mark.parametrize(
    ("event_type", "data"),
    [("Stolen", b"{}"), ("Deposited", b"{}"), ("Deposited", b'{"amount":"1"}'), ("Deposited", b"[]"), ("Deposited", b"null"), ("Deposited", b"{"), ("Deposited", b"\xff")],
)
def test_a_stored_event_that_it_cannot_apply_is_invalid(model: Model, event_type: str, data: bytes) -> None:
    with pytest.raises(EventInvalid, match=event_type):
        model.apply(model.initial_state(), event_type, data, time=TIME, version=1)


@each_kind
def test_fields_of_a_newer_model_in_a_stored_event_are_passed_over(model: Model) -> None:
    state, _, history = run(model, OPEN)
    more = replay(model, [*history, ("Deposited", b'{"amount":5,"note":"new"}', TIME)])
    assert shown(model, more) == {"owner": "Ann", "balance": 5, "open": True}
    assert shown(model, state) == {"owner": "Ann", "balance": 0, "open": True}


@each_kind
def test_a_state_comes_back_from_its_bytes_and_foreign_bytes_are_no_state(model: Model) -> None:
    state, _, _ = run(model, ("Open", {"owner": "Zoë"}), ("Deposit", {"amount": 2**40}))
    assert model.decode_state(model.encode_state(state)) == state
    for foreign in (b"", b"{", b"[]", b"null", b"\xff"):
        with pytest.raises(InvalidEnvelope):
            model.decode_state(foreign)


commands = st.lists(
    st.tuples(
        st.sampled_from(["Open", "Deposit", "Withdraw", "Close", "Steal"]), st.fixed_dictionaries({}, optional={"owner": st.text(max_size=3), "amount": st.integers(-3, 20)})
    ),
    max_size=12,
)


@few
@given(commands)
def test_both_kinds_decide_alike_and_come_to_the_same_state(sent: list[tuple[str, dict[str, object]]]) -> None:
    sent = [(name, payload) for name, payload in sent if "\0" not in str(payload.get("owner", ""))]  # CEL refuses NUL, Python has no need to
    outcomes = {kind: run(model, OPEN, *sent) for kind, model in MODELS.items()}
    assert [summary(decision) for decision in outcomes["cel"][1]] == [summary(decision) for decision in outcomes["python"][1]]
    assert outcomes["cel"][2] == outcomes["python"][2]
    assert shown(MODELS["cel"], outcomes["cel"][0]) == shown(MODELS["python"], outcomes["python"][0])


@few
@given(commands)
def test_deciding_and_applying_are_pure_and_replay_gives_what_was_live(sent: list[tuple[str, dict[str, object]]]) -> None:
    for model in MODELS.values():
        live, decisions, history = run(model, OPEN, *sent)
        assert replay(model, history) == live
        before = model.encode_state(live)
        assert run(model, OPEN, *sent)[1] == decisions
        for name, payload in sent:
            command = CommandInput(name, orjson.dumps(payload), "ann", len(history), TIME)
            first = model.decide(live, command)
            assert model.decide(live, command) == first
            for event in first.events if isinstance(first, Emitted) else ():
                once, twice = (model.apply(live, event.type, event.data, time=TIME, version=9) for _ in range(2))
                assert once == twice
        assert model.encode_state(live) == before
