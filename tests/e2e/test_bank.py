"""The main job on a real Kubernetes, as its users see it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest

from aether_api.messages import Reply
from aether_nats.client import CommandClient
from tests.e2e.bank import EXAMPLES, READY_S, Bank, build_actor, wait_until

pytestmark = pytest.mark.cluster

COMMANDS = 1000
ACTORS = 20
CLIENTS = 16
KILL_AFTER = 300
"""Acknowledged commands after which a pod is killed."""


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


def test_a_watch_shows_the_phases_of_an_actor_in_order(bank: Bank) -> None:
    bank.apply_accounts(["walter"])
    bank.wait_ready(["walter"])
    manager_order = [entry["manager"] for entry in bank.read("actor", "walter", "--show-managed-fields")["metadata"]["managedFields"] if entry.get("subresource") == "status"]

    assert set(manager_order) == {"aether-operator", "aether-runtime"}


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


async def test_an_actor_without_a_resource_starts_at_its_first_command(bank: Bank) -> None:
    async with bank.connect() as connection:
        reply = await CommandClient(connection).send(bank.actor("dave"), "Open", {"owner": "dave"})
        events = await bank.read_events(connection, "dave")

    assert reply.outcome == "accepted"
    assert [event.type for event in events] == ["Opened"]


@dataclass
class Traffic:
    """What the clients saw."""

    acknowledged: dict[str, Reply] = field(default_factory=dict)
    first_answer_after_kill: dict[str, float] = field(default_factory=dict)
    killed_at: float = 0.0
    victim: str = ""
    enough: asyncio.Event = field(default_factory=asyncio.Event)


async def test_a_pod_killed_under_load_loses_nothing_and_its_actors_answer_elsewhere(bank: Bank) -> None:
    names = [f"load-{number}" for number in range(ACTORS)]
    bank.apply_accounts(names)
    bank.wait_ready(names)
    traffic = Traffic()
    async with bank.connect() as connection:
        client = CommandClient(connection)
        for name in names:
            assert (await client.send(bank.actor(name), "Open", {"owner": name})).outcome == "accepted"
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_send_all(bank, client, names, traffic), name="traffic")
            tasks.create_task(_kill_a_pod(bank, names, traffic), name="kill")
        await _probe_all(bank, client, names, traffic)
        logs = {name: await bank.read_events(connection, name) for name in names}

    _assert_exactly_once(logs, traffic)
    await asyncio.to_thread(_assert_statuses_follow, bank, {name: len(events) for name, events in logs.items()})
    slowest = max(traffic.first_answer_after_kill.values()) - traffic.killed_at
    print(f"\nkilled {traffic.victim} with grace period 0: the last of {ACTORS} actors answered {slowest:.2f} s later")


async def _send_all(bank: Bank, client: CommandClient, names: list[str], traffic: Traffic) -> None:
    numbers = iter(range(COMMANDS))

    async def work() -> None:
        for number in numbers:
            name, command_id = names[number % ACTORS], f"deposit-{number}"
            reply = await client.send(bank.actor(name), "Deposit", {"amount": 1}, command_id=command_id, timeout_s=60)
            assert reply.outcome == "accepted", f"{command_id} to {name}: {reply}"
            traffic.acknowledged[command_id] = reply
            if len(traffic.acknowledged) >= KILL_AFTER:
                traffic.enough.set()

    async with asyncio.TaskGroup() as workers:
        for number in range(CLIENTS):
            workers.create_task(work(), name=f"client {number}")


async def _kill_a_pod(bank: Bank, names: list[str], traffic: Traffic) -> None:
    await traffic.enough.wait()
    actors = (await asyncio.to_thread(bank.read, "actors", *names))["items"]
    traffic.victim = Counter(actor["status"]["placement"]["pod"] for actor in actors).most_common(1)[0][0]
    traffic.killed_at = time.monotonic()
    await asyncio.to_thread(bank.kubectl, "delete", "pod", traffic.victim, "--grace-period=0", "--force", "--wait=false")


async def _probe_all(bank: Bank, client: CommandClient, names: list[str], traffic: Traffic) -> None:
    """Ask every actor once more; the traffic itself may have ended before the kill took effect."""

    async def probe(name: str) -> None:
        reply = await client.send(bank.actor(name), "Withdraw", {"amount": 1}, command_id=f"probe-{name}", timeout_s=60)
        assert reply.outcome == "accepted", f"{name}: {reply}"
        traffic.acknowledged[f"probe-{name}"] = reply
        traffic.first_answer_after_kill[name] = time.monotonic()

    async with asyncio.TaskGroup() as probes:
        for name in names:
            probes.create_task(probe(name), name=f"probe {name}")


def _assert_exactly_once(logs: dict[str, list], traffic: Traffic) -> None:
    stored = Counter(event.command_id for events in logs.values() for event in events)
    for events in logs.values():
        assert [event.version for event in events] == list(range(1, len(events) + 1))
    assert len(traffic.acknowledged) == COMMANDS + ACTORS
    assert {command_id: stored[command_id] for command_id in traffic.acknowledged} == dict.fromkeys(traffic.acknowledged, 1)
    by_command = {event.command_id: event.version for events in logs.values() for event in events}
    assert {command_id: reply.version for command_id, reply in traffic.acknowledged.items()} == {command_id: by_command[command_id] for command_id in traffic.acknowledged}


def _assert_statuses_follow(bank: Bank, versions: dict[str, int]) -> None:
    def find_late() -> dict[str, dict]:
        statuses = {actor["metadata"]["name"]: actor["status"] for actor in bank.read("actors", *versions)["items"]}
        return {name: status for name, status in statuses.items() if status.get("version") != versions[name] or not _is_ready(status)}

    deadline = time.monotonic() + READY_S
    while late := find_late():
        assert time.monotonic() < deadline, f"the log holds {versions}; these statuses do not follow: {late}"
        time.sleep(0.5)


def _is_ready(status: dict) -> bool:
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in status["conditions"])


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


def _moved(bank: Bank, name: str, before: dict) -> bool:
    status = bank.read("actor", name)["status"]
    return status["placement"]["podUID"] not in ("", before["status"]["placement"]["podUID"]) and _is_ready(status) and status["version"] == 1


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
def test_the_api_server_refuses_a_wrong_actor_and_names_the_field(bank: Bank, manifest: dict, words: tuple[str, ...]) -> None:
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


def _condition(bank: Bank, kind: str, name: str, type: str) -> dict:
    conditions = bank.read(kind, name).get("status", {}).get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == type), {})
