"""The account of the bank example, and commands for it."""

from __future__ import annotations

import sys
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, cast

import orjson
import yaml
from msgspec.structs import replace

from aether_api.errors import InvalidEnvelope
from aether_api.identity import ActorId, CommandId, parse_actor_id
from aether_api.messages import Command, format_time
from aether_api.v1alpha1 import ActorModel
from aether_model.compile import compile_model
from aether_model.decide import CompiledModel
from aether_model.load import build_model
from aether_model.model import Model, State

FOLDER = Path(__file__).parents[2] / "examples" / "bank"
ALICE = parse_actor_id("default", "account", "alice")

START_S = 1_782_907_200.0
"""Unix time at which tests with a clock of their own begin: 2026-07-01T12:00:00Z."""


@cache
def read_account() -> ActorModel:
    """Read the resource."""
    return ActorModel.model_validate(yaml.safe_load((FOLDER / "10-account-model.yaml").read_text()))


@cache
def compile_account() -> CompiledModel:
    """Compile the model as it is in the example."""
    resource = read_account()
    return compile_model(resource.metadata.name, resource.spec)


@cache
def compile_account_with_stricter_guard() -> CompiledModel:
    """Compile the model with another guard, which leaves the state as it is: the content differs, the fold does not."""
    document = read_account().model_dump(mode="json", by_alias=True, exclude_defaults=True)
    document["spec"]["commands"]["Deposit"]["guards"].append({"rule": "command.amount <= 1000", "reason": "TooMuch", "message": "at most 1000"})
    return compile_model("account", ActorModel.model_validate(document).spec)


@cache
def compile_account_in_other_units() -> CompiledModel:
    """Compile the model with a balance in hundredths of a cent: the same events fold into another state."""
    document = read_account().model_dump(mode="json", by_alias=True, exclude_defaults=True)
    document["spec"]["events"]["Deposited"]["set"]["balance"] = "state.balance + event.amount * 100"
    return compile_model("account", ActorModel.model_validate(document).spec)


class UnspeakableAccount(CompiledModel):
    """The account, with a state that JSON cannot hold."""

    def encode_state(self, state: State) -> bytes:
        """Fail, as a model in Python does whose state holds an object of any class."""
        raise InvalidEnvelope("the state is no JSON")


@cache
def compile_unspeakable_account() -> UnspeakableAccount:
    """Compile the model with a state that cannot be encoded."""
    return UnspeakableAccount(**{field.name: getattr(compile_account(), field.name) for field in fields(CompiledModel)})


@cache
def load_python_account() -> Model:
    """Import the account in Python as a pod whose image holds it would."""
    folder = FOLDER.parent / "python-bank"
    resource = ActorModel.model_validate(yaml.safe_load((folder / "10-account-model.yaml").read_text()))
    sys.path.insert(0, str(folder))
    try:
        return build_model(resource.metadata.name, resource.spec)
    finally:
        sys.path.remove(str(folder))


def fields_of(state: State) -> dict[str, Any]:
    """Return the fields of a state of the account."""
    return cast("dict[str, Any]", state)


def build_command(name: str, fields: dict[str, object], *, id: str, time_s: float = START_S, actor: ActorId = ALICE, **options: object) -> Command:
    """Return a command that was made at `time_s`; `options` are further fields of `Command`."""
    command = Command(actor, name, CommandId(id), orjson.dumps(fields), format_time(time_s), time_s, 10.0)
    return replace(command, **options)
