"""What the operator makes of NATS servers that are lost while others serve: nobody is moved for it."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from tests.histories.nats_cluster import NatsCluster
from tests.integration.operator_stage import PATIENT, Stage, staged

pytestmark = pytest.mark.slow

NAMES: Final = ("alice", "bob", "carol", "dave")


async def place_all(stage: Stage) -> dict[str, object]:
    """Make actors, and return what their statuses say once all have a pod."""
    for name in NAMES:
        await stage.add_actor(name)
    await stage.until(lambda: all(stage.pod_of(name) for name in NAMES))
    assert {stage.pod_of(name) for name in NAMES} == {"a", "b"}
    return read_statuses(stage)


def read_statuses(stage: Stage) -> dict[str, object]:
    return {name: stage.actor(name)["status"] for name in NAMES}


async def test_the_loss_of_one_of_three_servers_moves_nobody_whichever_it_is(nats_cluster: NatsCluster) -> None:
    async with staged(nats_cluster.settings(nats_cluster.open_account()), settings=PATIENT) as stage:
        pods = [await stage.add_pod(name) for name in ("a", "b")]
        before = await place_all(stage)

        for member in nats_cluster.members:
            member.kill()
            await asyncio.sleep(1.5 * PATIENT.detection_window_s)  # the full window after which silence counts again
            assert read_statuses(stage) == before, f"after the loss of {member.name}"
            nats_cluster.run()
            await asyncio.to_thread(nats_cluster.wait_healthy)

        assert sum(len(pod.held) for pod in pods) == len(NAMES)


async def test_pods_that_only_other_servers_reach_keep_their_actors_while_those_hang_and_until_the_last_is_back(nats_cluster: NatsCluster) -> None:
    """Our own server answers, and knows of nobody who would; as when the routes between servers are cut."""
    account = nats_cluster.open_account()
    ours, first, second = nats_cluster.members
    async with staged(nats_cluster.settings(account, ours), settings=PATIENT) as stage:
        pods = [await stage.add_pod(name, nats_cluster.settings(account, member)) for name, member in (("a", first), ("b", second))]
        before = await place_all(stage)
        told = [len(pod.heard) for pod in pods]

        with second.frozen():
            with first.frozen():
                await asyncio.sleep(10 * (PATIENT.suspect_after_s + PATIENT.ping_timeout_s))  # ten times what a death takes otherwise
            await asyncio.sleep(PATIENT.detection_window_s / 2)  # as they seldom come back at one time
        await asyncio.to_thread(nats_cluster.wait_healthy)

        assert read_statuses(stage) == before
        assert [len(pod.heard) for pod in pods] == told
