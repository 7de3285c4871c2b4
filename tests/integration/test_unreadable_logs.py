"""Logs that cannot be read for a while, as those of a stream without a leader: their actors wait, and nobody else does."""

from __future__ import annotations

import asyncio
import time

import pytest

from aether_api.envelope import StoredCommit
from aether_api.errors import JetStreamError, Reason, StreamUnavailable
from aether_api.identity import ActorId, PodUid, parse_actor_id
from aether_api.messages import Reply
from aether_api.v1alpha1 import ActorPhase
from aether_nats.embedded import EmbeddedServer
from aether_nats.journal import Journal
from tests.histories.bank import build_command, read_account
from tests.histories.cluster import Placements, RunningPod, running_pod, until

POD = PodUid("pod-a")
PERMITS = 2
SICK = [parse_actor_id("default", "account", f"sick-{number}") for number in range(2 * PERMITS)]
HEALTHY = parse_actor_id("default", "account", "healthy")


def phase_of(pod: RunningPod, actor: ActorId) -> ActorPhase | None:
    vm = pod.runtime.get_active_vms().get(actor)
    return None if vm is None else vm.phase


async def test_actors_whose_logs_cannot_be_read_keep_no_permit_from_one_whose_log_can(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    sick, tried, read_head = set(SICK), list[ActorId](), Journal.read_head

    async def read_some(self: Journal, actor: ActorId) -> StoredCommit | None:
        tried.append(actor)
        if actor in sick:
            raise StreamUnavailable("no leader")
        return await read_head(self, actor)

    monkeypatch.setattr(Journal, "read_head", read_some)
    placements = Placements()
    for actor in (*SICK, HEALTHY):
        placements.place(actor, POD, 1)
    async with running_pod(nats_server.url, POD, placements, recovery_permits=PERMITS) as pod:
        await until(lambda: phase_of(pod, HEALTHY) is ActorPhase.READY)
        await until(lambda: min(tried.count(actor) for actor in SICK) > 1)
        views = [view for actor in SICK for view in pod.runtime.status.build(actor).actors]
        assert {(view.phase, view.message) for view in views} == {("Replaying", "the log cannot be read now, trying again: no leader")}
        assert sum(pod.runtime.metrics.replaying().values()) == len(SICK)
        sick.clear()
        await until(lambda: all(phase_of(pod, actor) is ActorPhase.READY for actor in SICK))
        assert pod.runtime.metrics.replaying() == {"running": 0, "waiting": 0}


async def test_what_waits_for_a_vm_that_cannot_start_is_answered_at_once(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that was deleted is an error that no waiting mends; before, the callers heard nothing at all."""
    gate = asyncio.Event()

    async def read_head(self: Journal, actor: ActorId) -> StoredCommit | None:
        await gate.wait()
        raise JetStreamError(404, 10059, "stream not found")

    answers: list[Reply] = []
    async with running_pod(nats_server.url, POD) as pod:
        pod.runtime.load_model(read_account())
        monkeypatch.setattr(Journal, "read_head", read_head)
        for id in ("a", "b"):
            pod.runtime.router.serve(build_command("Open", {"owner": "x"}, id=id, time_s=time.time(), actor=HEALTHY), answers.append)
        await until(lambda: HEALTHY in pod.runtime.get_active_vms() and pod.runtime.get_active_vms()[HEALTHY].mailbox_depth == 2)
        gate.set()
        await until(lambda: HEALTHY not in pod.runtime.get_active_vms())
        assert [(reply.command_id, reply.reason) for reply in answers] == [("a", Reason.BUSY), ("b", Reason.BUSY)]
