"""Costs reach the pods they are meant for, and only if the newest plan still wants them."""

from __future__ import annotations

import asyncio

from aether_kube.client import KubeClient
from aether_kube.connection import anonymous_connection
from aether_kube.documents import JsonObject, texts_at
from aether_kube.kinds import PODS
from aether_operator.cluster.deletion_costs import DeletionCosts
from aether_operator.cluster.records import COST_ANNOTATION
from aether_operator.planning.plan import CostChange
from tests.fake_apiserver.server import FakeApiServer
from tests.unit.aether_operator.snapshots import pod


async def put_pod(api: FakeApiServer, uid: str) -> None:
    metadata: JsonObject = {"namespace": "shop", "name": f"pod-{uid}", "uid": uid, "annotations": {"of": "others"}}
    await api.put(PODS.path("shop", f"pod-{uid}"), {"metadata": metadata})


def annotations_of(api: FakeApiServer, uid: str) -> dict[str, str]:
    return texts_at(api.documents.objects[PODS.path("shop", f"pod-{uid}")], "metadata", "annotations")


async def test_the_newest_plan_decides_what_is_written() -> None:
    async with FakeApiServer() as api, KubeClient(anonymous_connection(api.url)) as client:
        for uid in ("a", "b"):
            await put_pod(api, uid)
        costs = DeletionCosts(client, later_s=0.01)
        running = asyncio.ensure_future(costs.queue.run())
        try:
            costs.submit([CostChange(pod("a"), 1), CostChange(pod("b"), 2), CostChange(pod("gone"), 3)])
            costs.submit([CostChange(pod("b"), 7), CostChange(pod("gone"), 3)])
            async with asyncio.timeout(10):
                while COST_ANNOTATION not in annotations_of(api, "b") or len(costs.queue):
                    await asyncio.sleep(0.01)
        finally:
            running.cancel()
            await asyncio.wait({running})

        assert annotations_of(api, "a") == {"of": "others"}
        assert annotations_of(api, "b") == {"of": "others", COST_ANNOTATION: "7"}
