"""Models in both languages in a runtime on a real server: what a model says of reminders rings, and a class is found where its pod looks."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from aether_api.identity import parse_actor_id
from aether_api.v1alpha1 import ActorModelSpec
from aether_model.compile import compile_model
from aether_model.model import Model
from aether_model.python import After, CancelReminder, CommandFields, EventFields, PythonModel, Remind, StateFields, applies, handles, upcasts
from aether_model.python_compile import compile_python
from aether_nats.client import CommandClient
from aether_nats.embedded import EmbeddedServer
from tests.histories.bank import ALICE, FOLDER
from tests.histories.cluster import WAIT_S, RunningPod, RuntimeProcess, connected, running_pod

ANN = parse_actor_id("default", "debt", "ann")
SPEC: dict[str, Any] = {
    "onDemand": True,
    "state": {"properties": {"debt": {"type": "integer", "default": 0}, "dunned": {"type": "integer", "default": 0}}},
    "commands": {
        "Borrow": {
            "schema": {"required": ["amount"], "properties": {"amount": {"type": "integer", "minimum": 1}}},
            "emits": [{"event": "Borrowed", "with": {"amount": "command.amount"}}],
            "reminders": [{"set": "dun", "command": "Dun", "with": {"times": "state.dunned + 1"}, "after": "duration('300ms')"}],
        },
        "Repay": {"emits": [{"event": "Borrowed", "with": {"amount": "0 - state.debt"}}], "reminders": [{"cancel": "dun"}]},
        "Dun": {"schema": {"required": ["times"], "properties": {"times": {"type": "integer"}}}, "emits": [{"event": "Dunned", "with": {"times": "command.times"}}]},
    },
    "events": {
        "Borrowed": {"schema": {"required": ["amount"], "properties": {"amount": {"type": "integer"}}}, "set": {"debt": "state.debt + event.amount"}},
        "Dunned": {"schema": {"required": ["times"], "properties": {"times": {"type": "integer"}}}, "set": {"dunned": "event.times"}},
    },
}


class DebtState(StateFields, frozen=True):
    debt: int = 0
    dunned: int = 0


class Borrow(CommandFields, frozen=True):
    amount: int


class Repay(CommandFields, frozen=True):
    pass


class Dun(CommandFields, frozen=True):
    times: int


class Borrowed(EventFields, frozen=True):
    amount: int


class Dunned(EventFields, frozen=True):
    times: int


class Debt(PythonModel[DebtState]):
    """The same as SPEC says."""

    name = "debt"
    on_demand = True

    @handles
    def borrow(self, state: DebtState, command: Borrow) -> tuple[Borrowed, Remind]:
        return Borrowed(command.amount), Remind("dun", Dun(state.dunned + 1), After(0.3))

    @handles
    def repay(self, state: DebtState, command: Repay) -> tuple[Borrowed, CancelReminder]:
        return Borrowed(-state.debt), CancelReminder("dun")

    @handles
    def dun(self, state: DebtState, command: Dun) -> Dunned:
        return Dunned(command.times)

    @applies
    def borrowed(self, state: DebtState, event: Borrowed) -> DebtState:
        return replace(state, debt=state.debt + event.amount)

    @applies
    def dunned(self, state: DebtState, event: Dunned) -> DebtState:
        return replace(state, dunned=event.times)


each_kind = pytest.mark.parametrize("model", [compile_model("debt", ActorModelSpec.model_validate(SPEC)), compile_python(Debt)], ids=["cel", "python"])


async def until_state(pod: RunningPod, **fields: object) -> None:
    async with asyncio.timeout(WAIT_S):
        while pod.runtime.get_active_vms()[ANN].get_state() != fields:
            await asyncio.sleep(0.02)


@each_kind
async def test_a_reminder_that_a_model_sets_rings(nats_server: EmbeddedServer, model: Model) -> None:
    async with running_pod(nats_server.url, "pod-a", models=[model]) as pod, connected(nats_server.url) as connection:
        reply = await CommandClient(connection).send(ANN, "Borrow", {"amount": 5})
        assert (reply.outcome, reply.version) == ("accepted", 1)
        await until_state(pod, debt=5, dunned=1)
        assert pod.runtime.get_active_vms()[ANN].get_version() == 2


@each_kind
async def test_a_reminder_that_a_model_cancels_never_rings(nats_server: EmbeddedServer, model: Model) -> None:
    async with running_pod(nats_server.url, "pod-a", models=[model]) as pod, connected(nats_server.url) as connection:
        client = CommandClient(connection)
        await client.send(ANN, "Borrow", {"amount": 5})
        assert (await client.send(ANN, "Repay")).version == 2
        assert dict(pod.runtime.get_active_vms()[ANN].reminders) == {}


class PairedState(StateFields, frozen=True):
    total: int = 0


class Pay(CommandFields, frozen=True):
    cents: int


class Paid(EventFields, frozen=True):
    euros: int


class PaidLater(EventFields, frozen=True):
    schema_version: ClassVar[int] = 2
    cents: int


class Old(PythonModel[PairedState]):
    name = "purse"
    on_demand = True

    @handles
    def pay(self, state: PairedState, command: Pay) -> Paid:
        return Paid(command.cents // 100)

    @applies
    def paid(self, state: PairedState, event: Paid) -> PairedState:
        return PairedState(state.total + event.euros * 100)


class New(PythonModel[PairedState]):
    name = "purse"
    on_demand = True
    state_version = 2

    @handles
    def pay(self, state: PairedState, command: Pay) -> PaidLater:
        return PaidLater(command.cents)

    @applies("Paid")
    def paid(self, state: PairedState, event: PaidLater) -> PairedState:
        return PairedState(state.total + event.cents)

    @upcasts("Paid", 1)
    def paid_1(self, data: dict[str, Any]) -> dict[str, Any]:
        return {"cents": data["euros"] * 100}


async def test_events_of_an_older_version_of_a_class_replay_through_its_upcasts(nats_server: EmbeddedServer) -> None:
    purse = parse_actor_id("default", "purse", "p")
    async with connected(nats_server.url) as connection:
        client = CommandClient(connection)
        async with running_pod(nats_server.url, "pod-a", models=[compile_python(Old)]):
            await client.send(purse, "Pay", {"cents": 300})
        async with running_pod(nats_server.url, "pod-b", models=[compile_python(New)]) as pod:
            reply = await client.send(purse, "Pay", {"cents": 50})
            assert (reply.version, reply.events[0].fields()) == (2, {"cents": 50})
            assert pod.runtime.get_active_vms()[purse].get_state() == {"total": 350}
        async with running_pod(nats_server.url, "pod-c", models=[compile_python(New)]) as pod:
            assert (await client.send(purse, "Pay", {"cents": 1})).version == 3
            assert pod.runtime.get_active_vms()[purse].get_state() == {"total": 351}


async def test_a_process_finds_the_class_of_a_manifest_in_its_own_environment(nats_server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = FOLDER.parent / "python-bank"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(example), os.environ.get("PYTHONPATH", "")]))
    shutil.copy(example / "10-account-model.yaml", tmp_path)
    async with RuntimeProcess(tmp_path, nats_server.url), connected(nats_server.url) as connection:
        client = CommandClient(connection)
        assert (await client.send(ALICE, "Open", {"owner": "alice"}, timeout_s=WAIT_S)).version == 1
        assert (await client.send(ALICE, "Withdraw", {"amount": 1}, timeout_s=WAIT_S)).message == "the balance of 0 is below 1"
