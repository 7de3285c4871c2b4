"""What goes wrong on a real Kubernetes: processes that die, freeze or lose the network, and parts of the cluster that are away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest

from aether_api.envelope import StoredCommit
from bench.results import find_quantile
from tests.e2e.bank import Bank, wait_until
from tests.e2e.nodes import API_PORTS, NATS_PORTS, NodeProcess, find_control_plane, find_process, find_static_process
from tests.e2e.traffic import BEFORE_S, Traffic, aside, open_accounts, steady_traffic

pytestmark = pytest.mark.cluster

AWAY_S: Final = 12.0
"""Seconds for which something is away: longer than it takes to miss a pod (1), or to lose a lease (10)."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Accounts under traffic, one of whose pods is the victim.

    Attributes:
        lost: accounts of the victim.
    """

    traffic: Traffic
    victim: dict[str, Any]
    process: NodeProcess
    lost: list[str]

    async def wait_moved(self) -> None:
        """Wait until every account of the victim was given to another pod, or its process came back before anybody had missed it, and is told them again."""
        await asyncio.to_thread(wait_until, "all of the victim's actors were placed anew", lambda: set(self.lost) <= self.traffic.read_moved() or self.has_come_back())

    def has_come_back(self) -> bool:
        """Tell whether the kubelet has started the victim's process again, and it is ready."""
        before = self.victim["status"]["containerStatuses"][0]["restartCount"]
        states = [pod["status"]["containerStatuses"][0] for pod in self.traffic.bank.pods() if pod["metadata"]["uid"] == self.victim["metadata"]["uid"]]
        return any(state["restartCount"] > before and state["ready"] for state in states)


@asynccontextmanager
async def scene(bank: Bank, prefix: str) -> AsyncIterator[Scene]:
    """Set the scene."""
    if not bank.cluster.is_kind:
        pytest.skip("only on the nodes of kind processes can be frozen and cut off from here")
    async with open_accounts(bank, prefix) as traffic:
        victim = next(pod for pod in bank.pods() if any(place.pod_uid == pod["metadata"]["uid"] for place in traffic.places.values()))
        lost = [name for name, place in traffic.places.items() if place.pod_uid == victim["metadata"]["uid"]]
        yield Scene(traffic, victim, find_process(victim), lost)


@pytest.mark.parametrize("how", ["process", "pod"])
async def test_actors_of_what_was_killed_answer_elsewhere_and_nothing_is_lost(bank: Bank, how: str) -> None:
    async with scene(bank, f"killed-{how}") as at:
        async with steady_traffic(at.traffic):
            await asyncio.sleep(BEFORE_S)
            killed_at = await asyncio.to_thread(kill, at, how)
            probes = at.traffic.part(at.lost)
            await probes.send_all()
            pauses_s = sorted(one.ended - killed_at for one in probes.answered)
        await at.wait_moved()
        await asyncio.sleep(BEFORE_S)
        await probes.send_all()  # a pod that is deleted by force may have answered the first ones itself, in its last seconds
        places = await asyncio.to_thread(bank.read_places, at.traffic.names)
        at.traffic.add(probes)
        logs = await at.traffic.check()
        await asyncio.to_thread(at.traffic.wait_versions, logs)

    # The others stay, but for those that even out the pool when a pod or process has come in the place of the killed one.
    stayed = {name: place for name, place in at.traffic.places.items() if places[name].pod_uid == place.pod_uid and name not in at.lost}
    assert [name for name, place in stayed.items() if places[name].epoch != place.epoch] == []
    _assert_one_owner(at, logs)
    print(
        f"\n{len(at.lost)} actors of a killed {how} answered after p50 {find_quantile(pauses_s, 0.5):.2f} s, p99 {find_quantile(pauses_s, 0.99):.2f} s, last {pauses_s[-1]:.2f} s"
    )
    print(f"clients: {at.traffic.describe(killed_at - BEFORE_S)}")


def kill(at: Scene, how: str) -> float:
    """Kill the victim and return when, in unix seconds."""
    if how == "process":
        return at.process.kill()
    began = time.time()
    at.traffic.bank.kubectl("delete", "pod", at.victim["metadata"]["name"], "--grace-period=0", "--force", "--wait=false")
    return began


async def test_a_frozen_pod_loses_its_actors_and_writes_nothing_when_it_wakes(bank: Bank) -> None:
    async with scene(bank, "frozen") as at:
        async with steady_traffic(at.traffic):
            await asyncio.sleep(BEFORE_S)
            began = time.time()
            async with aside(at.process.frozen()):
                await at.wait_moved()
                await asyncio.sleep(max(0.0, AWAY_S - (time.time() - began)))
            await asyncio.sleep(BEFORE_S)
        logs = await at.traffic.check()

    _assert_one_owner(at, logs)
    print(f"\nclients of a pod that froze for {AWAY_S:g} s: {at.traffic.describe(began)}")


@pytest.mark.parametrize("ports", [NATS_PORTS, (*NATS_PORTS, *API_PORTS)], ids=["NATS", "NATS and API server"])
async def test_a_pod_that_is_cut_off_loses_its_actors_and_serves_again_afterwards(bank: Bank, ports: tuple[int, ...]) -> None:
    async with scene(bank, f"cut-{len(ports)}") as at:
        async with steady_traffic(at.traffic):
            await asyncio.sleep(BEFORE_S)
            began = time.time()
            async with aside(at.process.cut_off(ports)):
                await at.wait_moved()
                await asyncio.sleep(max(0.0, AWAY_S - (time.time() - began)))
            await asyncio.sleep(BEFORE_S)
        logs = await at.traffic.check()
        await asyncio.to_thread(
            wait_until, "the pod gets actors again", lambda: at.victim["metadata"]["uid"] in {place.pod_uid for place in bank.read_places(at.traffic.names).values()}
        )

    _assert_one_owner(at, logs)
    print(f"\nclients of a pod that was cut off for {AWAY_S:g} s from {ports}: {at.traffic.describe(began)}")


async def test_a_pod_that_is_cut_off_from_the_api_server_keeps_its_actors_and_serves_them(bank: Bank) -> None:
    async with scene(bank, "mute") as at:
        async with steady_traffic(at.traffic):
            await asyncio.sleep(BEFORE_S)
            began = time.time()
            async with aside(at.process.cut_off(API_PORTS)):
                await asyncio.sleep(AWAY_S)
                moved = await asyncio.to_thread(at.traffic.read_moved)
        logs = await at.traffic.check()
        await asyncio.to_thread(at.traffic.wait_versions, logs)

    assert moved == set()
    print(f"\nclients of a pod that was cut off from the API server for {AWAY_S:g} s: {at.traffic.describe(began)}")


@pytest.mark.parametrize("part", ["operator", "NATS", "API server"])
async def test_an_outage_moves_nobody(bank: Bank, part: str) -> None:
    async with scene(bank, "calm-" + part.lower().replace(" ", "-")) as at:
        async with steady_traffic(at.traffic):
            await asyncio.sleep(BEFORE_S)
            began = time.time()
            async with aside(outage(bank, part)):
                await asyncio.sleep(AWAY_S)
        await asyncio.sleep(BEFORE_S)
        moved = await asyncio.to_thread(at.traffic.read_moved)
        await at.traffic.check()

    assert moved == set()
    print(f"\nclients during an outage of the {part}: {at.traffic.describe(began)}")


@contextmanager
def outage(bank: Bank, part: str) -> Iterator[None]:
    """Take a part of the cluster away for the length of a `with` block; NATS is killed and comes back by itself."""
    with ExitStack() as stack:
        if part == "operator":
            replicas = bank.read("deployment", "aether-operator")["spec"]["replicas"]
            stack.callback(bank.kubectl, "rollout", "status", "deployment/aether-operator", "--timeout=90s")
            stack.callback(bank.kubectl, "scale", "deployment/aether-operator", f"--replicas={replicas}")
            bank.kubectl("scale", "deployment/aether-operator", "--replicas=0")
        elif part == "NATS":
            find_process(bank.read("pod", "aether-nats-0")).kill()
        else:
            node = find_control_plane(bank.read("nodes"))
            stack.enter_context(find_static_process(node, "kube-apiserver").frozen())
        yield


def _assert_one_owner(at: Scene, logs: dict[str, list[StoredCommit]]) -> None:
    """No pod wrote after another one had: in the log, epochs never fall and each belongs to one process, or to one pod whose process came back before it was missed."""
    came_back = at.has_come_back()
    for name in at.lost:
        owners: dict[int, set[str]] = {}
        for commit in logs[name]:
            owners.setdefault(commit.epoch, set()).add(commit.pod.partition("/")[0] if came_back else commit.pod)
        assert all(len(pods) == 1 for pods in owners.values()), f"{name}: {owners}"
        assert came_back or max(owners) > at.traffic.places[name].epoch, f"{name} was not placed anew"
