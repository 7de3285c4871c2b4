"""The main job on a real Kubernetes, as its users see it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aether_nats.client import CommandClient
from tests.e2e.bank import EXAMPLES, Bank, build_actor, is_ready, wait_until

pytestmark = pytest.mark.cluster


def test_applied_actors_become_ready_and_kubectl_shows_them_well(bank: Bank) -> None:
    bank.kubectl("apply", f"--filename={EXAMPLES}")
    bank.wait_ready(["alice", "bob", "carol"])

    table = bank.kubectl("get", "actors")
    header, *rows = table.splitlines()
    assert header.split() == ["NAME", "READY", "PHASE", "MODEL", "VERSION", "POD", "AGE"]
    alice = next(row.split() for row in rows if row.startswith("alice"))
    assert alice[1:5] == ["True", "Ready", "account", "0"]
    assert alice[5] in {pod["metadata"]["name"] for pod in bank.pods()}
    wide = bank.kubectl("get", "actors", "--output=wide").splitlines()[0].split()
    assert wide[-2:] == ["REASON", "SNAPSHOT"] or {"REASON", "SNAPSHOT"} <= set(wide)
    described = bank.kubectl("describe", "actor", "alice")
    for word in ("Scheduled", "Replayed", "Ready", "Placement", "Epoch"):
        assert word in described
    print("\n".join(("", table, bank.kubectl("get", "actors", "--output=wide"), described)))


async def test_commands_over_nats_raise_the_version_in_the_status(bank: Bank) -> None:
    bank.apply_accounts(["vera"])
    bank.wait_ready(["vera"])
    async with bank.connect() as connection:
        client = CommandClient(connection)
        opened = await client.send(bank.actor("vera"), "Open", {"owner": "vera"})
        refused = await client.send(bank.actor("vera"), "Withdraw", {"amount": 5})

    assert (opened.outcome, opened.version) == ("accepted", 1)
    assert (refused.outcome, refused.reason) == ("rejected", "InsufficientFunds")
    await asyncio.to_thread(wait_until, "the status shows version 1", lambda: bank.read("actor", "vera")["status"].get("version") == 1)
    shown = await asyncio.to_thread(bank.read, "actor", "vera", "--show-managed-fields")
    writers = {entry["manager"] for entry in shown["metadata"]["managedFields"] if entry.get("subresource") == "status"}
    assert writers == {"aether-operator", "aether-runtime"}, "its first status may be the operator's alone, its version is the pod's word"


async def test_an_actor_without_a_resource_starts_at_its_first_command(bank: Bank) -> None:
    async with bank.connect() as connection:
        reply = await CommandClient(connection).send(bank.actor("dave"), "Open", {"owner": "dave"})
        events = await bank.read_events(connection, "dave")

    assert reply.outcome == "accepted"
    assert [event.type for event in events] == ["Opened"]


async def test_deleting_a_pod_moves_its_actors_at_the_same_version(bank: Bank) -> None:
    bank.apply_accounts(["mover"])
    bank.wait_ready(["mover"])
    async with bank.connect() as connection:
        client = CommandClient(connection)
        await client.send(bank.actor("mover"), "Open", {"owner": "mover"})
        before = await asyncio.to_thread(bank.read, "actor", "mover")
        await asyncio.to_thread(bank.kubectl, "delete", "pod", before["status"]["placement"]["pod"], "--wait=false")
        await asyncio.to_thread(wait_until, "it is placed on another pod and ready", lambda: _moved(bank, "mover", before))
        after = await client.send(bank.actor("mover"), "Deposit", {"amount": 7})

    assert after.version == 2


def _moved(bank: Bank, name: str, before: dict[str, Any]) -> bool:
    actor = bank.read("actor", name)
    return actor["status"]["placement"]["podUID"] not in ("", before["status"]["placement"]["podUID"]) and is_ready(actor) and actor["status"]["version"] == 1


@pytest.mark.parametrize(("policy", "events_left"), [("Retain", 1), ("Purge", 0)])
async def test_deleting_an_actor_keeps_or_purges_its_events(bank: Bank, policy: str, events_left: int) -> None:
    name = f"leaver-{policy.lower()}"
    bank.apply_accounts([name], deletionPolicy=policy)
    bank.wait_ready([name])
    async with bank.connect() as connection:
        await CommandClient(connection).send(bank.actor(name), "Open", {"owner": name})
        await asyncio.to_thread(bank.kubectl, "delete", "actor", name, "--timeout=60s")
        events = await bank.read_events(connection, name)

    assert len(events) == events_left


async def test_an_actor_applied_again_after_retain_goes_on_where_it_was(bank: Bank) -> None:
    bank.apply_accounts(["phoenix"])
    bank.wait_ready(["phoenix"])
    async with bank.connect() as connection:
        client = CommandClient(connection)
        await client.send(bank.actor("phoenix"), "Open", {"owner": "phoenix"})
        await asyncio.to_thread(bank.kubectl, "delete", "actor", "phoenix", "--timeout=60s")
        await asyncio.to_thread(bank.apply_accounts, ["phoenix"])
        await asyncio.to_thread(bank.wait_ready, ["phoenix"])
        reply = await client.send(bank.actor("phoenix"), "Deposit", {"amount": 1})

    assert (reply.outcome, reply.version) == ("accepted", 2)


def test_a_suspended_actor_leaves_its_pod_and_comes_back(bank: Bank) -> None:
    bank.apply_accounts(["sleeper"])
    bank.wait_ready(["sleeper"])
    bank.kubectl("patch", "actor", "sleeper", "--type=merge", "--patch", '{"spec":{"suspend":true}}')
    wait_until("it is suspended and off its pod", lambda: bank.read("actor", "sleeper")["status"]["placement"]["podUID"] == "")
    assert bank.read("actor", "sleeper")["status"]["phase"] == "Suspended"

    bank.kubectl("patch", "actor", "sleeper", "--type=merge", "--patch", '{"spec":{"suspend":false}}')
    bank.wait_ready(["sleeper"])


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (build_actor("a1", id="no.dots"), ("spec.id",)),
        (build_actor("a2", modle="account"), ("spec.modle", "unknown field")),
        (build_actor("a3", pool=""), ("spec.pool",)),
        (build_actor("with.dot"), ("dot",)),
        ({**build_actor("a4"), "spec": {}}, ("spec.model",)),
    ],
    ids=["wrong id", "unknown field", "empty pool", "name with a dot and no id", "no model"],
)
def test_the_api_server_refuses_a_wrong_actor_and_names_the_field(bank: Bank, manifest: dict[str, Any], words: tuple[str, ...]) -> None:
    import json

    answer = bank.kubectl("apply", "--filename=-", stdin=json.dumps(manifest), check=False)

    assert all(word in answer for word in words), answer
    assert bank.kubectl("get", "actor", manifest["metadata"]["name"], "--ignore-not-found") == ""


def test_an_actor_whose_model_is_missing_says_so_and_is_not_placed(bank: Bank) -> None:
    bank.apply(build_actor("orphan", model="nothing"))

    wait_until("the condition names the model", lambda: "nothing" in _condition(bank, "actor", "orphan", "Scheduled").get("message", ""))
    condition = _condition(bank, "actor", "orphan", "Scheduled")
    assert (condition["status"], condition["reason"]) == ("False", "ModelNotFound")
    assert "placement" not in bank.read("actor", "orphan")["status"]


def test_a_model_with_a_cel_error_is_refused_with_field_and_column_and_runs_nothing(bank: Bank) -> None:
    model = bank.read("actormodel", "account")
    broken = {"apiVersion": model["apiVersion"], "kind": "ActorModel", "metadata": {"name": "broken"}, "spec": model["spec"]}
    broken["spec"]["commands"]["Withdraw"]["guards"][1]["rule"] = "state.balanec >= command.amount"
    bank.apply(broken, build_actor("of-broken", model="broken"))

    wait_until("the model is refused", lambda: _condition(bank, "actormodel", "broken", "Accepted").get("status") == "False")
    message = _condition(bank, "actormodel", "broken", "Accepted")["message"]
    assert "spec.commands.Withdraw.guards[1].rule" in message
    assert "state.balanec" in message
    wait_until("its actor says why", lambda: _condition(bank, "actor", "of-broken", "Scheduled").get("reason") == "ModelNotAccepted")
    assert "placement" not in bank.read("actor", "of-broken")["status"]


def _condition(bank: Bank, kind: str, name: str, type: str) -> dict[str, Any]:
    conditions = bank.read(kind, name).get("status", {}).get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == type), {})
