"""The account of the bank example: the model that people see first."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
import yaml

from aether_api.v1alpha1 import ActorModel
from aether_model.advance import advance
from aether_model.check import check_model
from aether_model.compile import compile_model
from aether_model.decide import CompiledModel
from aether_model.model import CommandInput, Emitted, Rejected, State

MANIFEST = Path(__file__).parents[3] / "examples" / "bank" / "10-account-model.yaml"
TIME = "2026-07-01T12:00:00.000000Z"


@pytest.fixture(scope="module")
def account() -> CompiledModel:
    resource = ActorModel.model_validate(yaml.safe_load(MANIFEST.read_text()))
    assert check_model(resource.spec) == []
    return compile_model(resource.metadata.name, resource.spec)


def run(model: CompiledModel, *commands: tuple[str, dict[str, object]]) -> tuple[State, list[str]]:
    """Send commands to a new account; return its state, and for each command its events or reason."""
    state: State = model.initial_state()
    version, outcomes = 0, list[str]()
    for name, payload in commands:
        after = advance(model, state, CommandInput(name, orjson.dumps(payload), "ann", version), event_time=TIME)
        state, version = after.state, after.version
        match after.decision:
            case Emitted(events=events):
                outcomes += [event.type for event in events]
            case Rejected(reason=reason, message=message):
                outcomes.append(f"{reason}: {message}")
            case _:
                outcomes.append("NoOp")
    return state, outcomes


OPEN: tuple[str, dict[str, object]] = ("Open", {"owner": "Ann"})


def test_an_account_starts_at_its_first_command(account: CompiledModel) -> None:
    assert (account.name, account.version, account.on_demand) == ("account", "1.0.0", True)
    assert account.initial_state() == {"owner": "", "balance": 0, "open": False}


def test_money_goes_in_and_out(account: CompiledModel) -> None:
    state, outcomes = run(account, OPEN, ("Deposit", {"amount": 70}), ("Withdraw", {"amount": 20}))
    assert state == {"owner": "Ann", "balance": 50, "open": True}
    assert outcomes == ["Opened", "Deposited", "Withdrawn"]


@pytest.mark.parametrize(
    ("commands", "outcome"),
    [
        ([("Deposit", {"amount": 1})], "AccountClosed: the account is closed"),
        ([("Withdraw", {"amount": 1})], "AccountClosed: the account is closed"),
        ([("Close", {})], "AccountClosed: the account is closed"),
        ([OPEN, OPEN], "AlreadyOpen: the account is open already"),
        ([OPEN, ("Withdraw", {"amount": 1})], "InsufficientFunds: the balance of 0 is below 1"),
        ([OPEN, ("Deposit", {"amount": 5}), ("Close", {})], "BalanceNotZero: withdraw the balance of 5 first"),
        ([OPEN, ("Deposit", {"amount": 0})], "InvalidCommand: Deposit: amount: 0 is less than the minimum of 1"),
        ([("Open", {"owner": ""})], 'InvalidCommand: Open: owner: "" is shorter than 1 character'),
        ([OPEN, ("Close", {}), ("Deposit", {"amount": 5})], "AccountClosed: the account is closed"),
    ],
)
def test_what_is_not_allowed_is_rejected_with_its_reason(account: CompiledModel, commands: list[tuple[str, dict[str, object]]], outcome: str) -> None:
    assert run(account, *commands)[1][-1] == outcome


def test_a_closed_account_can_be_opened_again(account: CompiledModel) -> None:
    state, _ = run(account, OPEN, ("Close", {}), ("Open", {"owner": "Bob"}))
    assert state == {"owner": "Bob", "balance": 0, "open": True}
