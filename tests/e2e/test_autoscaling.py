"""A HorizontalPodAutoscaler on what the pods tell of themselves: it alone says how many there are, and clients notice nothing."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.bank import Bank, wait_until
from tests.e2e.metrics_api import metrics_api, read_sum
from tests.e2e.traffic import open_accounts, steady_traffic

pytestmark = pytest.mark.cluster

SCALED_S: Final = 150.0
"""Seconds for the autoscaler to have looked (every 15), and for a pod to start."""

ACTORS_PER_POD: Final = 40
ACTORS: Final = 100
"""Of which 2.5 pods are full, so that it takes three."""


def build_autoscaler(name: str) -> dict[str, Any]:
    """Return an autoscaler of the default pool on the number of actors in its pods."""
    target = {"type": "AverageValue", "averageValue": str(ACTORS_PER_POD)}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "aether.flowmade.one/v1alpha1", "kind": "ActorPool", "name": "default"},
            "minReplicas": 2,
            "maxReplicas": 4,
            "metrics": [{"type": "External", "external": {"metric": {"name": "aether_vms"}, "target": target}}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    }


async def test_an_autoscaler_on_the_number_of_actors_scales_the_pool_up_and_down_once(bank: Bank, tmp_path: Path) -> None:
    if not bank.cluster.is_kind:
        pytest.skip("the metrics API is served from this host, which only nodes of kind reach")
    await asyncio.to_thread(bank.wait_settled, ())
    with metrics_api(bank, tmp_path), changes_of_replicas(bank) as changes:
        async with open_accounts(bank, "scaled-by-hpa", ACTORS) as traffic, steady_traffic(traffic):
            await asyncio.to_thread(wait_until, "the pods hold hardly any other actors", lambda: ACTORS <= read_sum(bank, "aether_vms") <= ACTORS + 15)
            await asyncio.to_thread(bank.apply, build_autoscaler("actors"))
            await asyncio.to_thread(wait_until, "three pods are ready", lambda: _read_ready(bank) == 3, timeout_s=SCALED_S)
        assert traffic.errors == []
        await asyncio.to_thread(wait_until, "two pods are left", lambda: len(bank.pods()) == 2, timeout_s=SCALED_S)
        bank.kubectl("delete", "hpa", "actors")

    assert changes == [2, 3, 2]


@contextmanager
def changes_of_replicas(bank: Bank) -> Iterator[list[int]]:
    """Watch the number of pods that the Deployment shall have; the list holds all that it was once the block is left."""
    arguments = ("--namespace", bank.namespace, "get", "deployment", "aether-default", "--watch", "--output=jsonpath={.spec.replicas}{'\\n'}")
    changes: list[int] = []
    with subprocess.Popen(bank.cluster.command("kubectl", *arguments), stdout=subprocess.PIPE, text=True) as watch:
        try:
            yield changes
        finally:
            watch.terminate()
            seen, _ = watch.communicate(timeout=10)
            changes += [int(replicas) for replicas, _ in groupby(seen.split())]


def _read_ready(bank: Bank) -> int:
    ready: int = bank.read("actorpool", "default")["status"].get("readyReplicas", 0)
    return ready
