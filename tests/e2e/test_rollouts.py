"""What people do on purpose: roll a pool, drain a node, empty a pod, scale. Clients send all the while, and none of them sees an error."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from aether_api.envelope import StoredCommit
from tests.e2e.bank import POOL, Bank, is_even, wait_until
from tests.e2e.traffic import BEFORE_S, Traffic, open_accounts, steady_traffic

pytestmark = pytest.mark.cluster

ROLLED_S: Final = 180
"""Seconds for a pool to roll, or a node to drain: some ten for each pod."""


async def test_a_rolling_update_costs_no_client_an_error(bank: Bank) -> None:
    def roll(traffic: Traffic) -> None:
        before = read_pod_uids(bank)
        annotate_pods(bank, rolled=str(time.time()))
        wait_until("all pods are new", lambda: not before & read_pod_uids(bank), timeout_s=ROLLED_S)

    logs = await _act_under_traffic(bank, "rolled", "rolling update", roll)

    owners = [len({commit.pod for commit in commits}) for commits in logs.values()]
    print(f"an actor had {sum(owners) / len(owners):.2f} pods")


async def test_a_drain_of_a_node_costs_no_client_an_error(bank: Bank) -> None:
    spared = bank.read("pod", "aether-nats-0")["spec"]["nodeName"]  # its events would go with it
    bank.kubectl("cordon", spared)
    try:
        bank.kubectl("delete", "pod", bank.pods()[0]["metadata"]["name"])
        wait_until("a pod runs elsewhere", lambda: bool(_find_nodes(bank) - {spared}))
    finally:
        bank.kubectl("uncordon", spared)
    node = (_find_nodes(bank) - {spared}).pop()

    def drain(traffic: Traffic) -> None:
        try:
            bank.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={ROLLED_S}s", timeout_s=ROLLED_S + 30)
            assert node not in _find_nodes(bank)
        finally:
            bank.kubectl("uncordon", node)

    await _act_under_traffic(bank, "drained", "drain", drain)


async def test_a_pod_that_is_cordoned_for_drain_is_emptied_and_gets_actors_again(bank: Bank) -> None:
    pod = bank.pods()[0]["metadata"]

    def empty(traffic: Traffic) -> None:
        bank.kubectl("annotate", "pod", pod["name"], "aether.flowmade.one/cordon=drain")
        wait_until("the pod is empty", lambda: pod["uid"] not in count_actors(traffic))
        bank.kubectl("annotate", "pod", pod["name"], "aether.flowmade.one/cordon-")
        wait_until("the pod has its share again", lambda: are_shared(traffic))

    await _act_under_traffic(bank, "emptied", "cordon and its end", empty)


async def test_a_pool_that_grows_and_shrinks_is_evened_out_and_loses_its_emptiest_pod(bank: Bank) -> None:
    def scale(traffic: Traffic) -> None:
        with scaled(bank, 3):
            wait_until("three pods share the actors", lambda: len(read_pod_uids(bank)) == 3 and are_shared(traffic))
            # The dearest one: costs that are in order already are left alone, so the cheapest one's need never be written.
            spared = max(bank.pods(), key=_read_cost)["metadata"]
            others = read_pod_uids(bank) - {spared["uid"]}
            bank.kubectl("annotate", "pod", spared["name"], "aether.flowmade.one/cordon=drain")
            wait_until("one of them is empty", lambda: spared["uid"] not in count_actors(traffic))
            wait_until("and cheapest to delete", lambda: _is_cheapest(bank, spared["name"]))
        wait_until("the emptied one went", lambda: read_pod_uids(bank) == others)

    await _act_under_traffic(bank, "scaled", "growth and shrinking", scale)


async def _act_under_traffic(bank: Bank, prefix: str, what: str, act: Callable[[Traffic], None]) -> dict[str, list[StoredCommit]]:
    """Do something while clients send, and return the logs once all is checked."""
    async with open_accounts(bank, prefix) as traffic:
        async with steady_traffic(traffic):
            await asyncio.sleep(BEFORE_S)
            began = time.time()
            await asyncio.to_thread(act, traffic)
            await asyncio.sleep(BEFORE_S)
        logs = await traffic.check()
        await asyncio.to_thread(traffic.wait_versions, logs)
    print(f"\nclients during a {what} of {time.time() - began:.0f} s: {traffic.describe(began)}")
    return logs


@contextmanager
def scaled(bank: Bank, replicas: int) -> Iterator[None]:
    """Let the pool have another number of pods for the length of a `with` block."""
    before = bank.read("actorpool", "default")["spec"]["replicas"]
    try:
        bank.kubectl("scale", POOL, f"--replicas={replicas}")
        yield
    finally:
        bank.kubectl("scale", POOL, f"--replicas={before}")


def annotate_pods(bank: Bank, **annotations: str) -> None:
    """Change the pool's template, as an upgrade would."""
    bank.kubectl("patch", POOL, "--type=merge", "--patch", json.dumps({"spec": {"podTemplate": {"metadata": {"annotations": annotations}}}}))


def read_pod_uids(bank: Bank) -> set[str]:
    """Return the pool's pods that are not about to end."""
    return {pod["metadata"]["uid"] for pod in bank.pods()}


def count_actors(traffic: Traffic) -> Counter[str]:
    """Return how many of the accounts each pod has."""
    return Counter(place.pod_uid for place in traffic.bank.read_places(traffic.names).values())


def are_shared(traffic: Traffic) -> bool:
    """Tell whether every pod has its share of the accounts."""
    return is_even(traffic.bank.read_places(traffic.names), read_pod_uids(traffic.bank))


def _find_nodes(bank: Bank) -> set[str]:
    return {pod["spec"].get("nodeName", "") for pod in bank.pods()} - {""}


def _is_cheapest(bank: Bank, name: str) -> bool:
    costs = {pod["metadata"]["name"]: _read_cost(pod) for pod in bank.pods()}
    return all(costs[name] < cost for other, cost in costs.items() if other != name)


def _read_cost(pod: dict[str, Any]) -> int:
    return int(pod["metadata"].get("annotations", {}).get("controller.kubernetes.io/pod-deletion-cost", 0))
