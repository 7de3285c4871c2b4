"""Releases over a real nats-server: the operator hears of them when the actor has stopped, and is never held up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from aether_api.control import Action, Assignment, AssignmentItem, AssignmentReply, decode_assignment_reply, encode
from aether_api.identity import ActorId, PodUid, PoolName, parse_actor_id
from aether_api.subjects import assign_subject
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_runtime.adapters.jetstream_snapshots import JetStreamSnapshotStore
from aether_runtime.assignments import STILL_GOING
from aether_runtime.core.snapshots import Snapshot
from tests.histories.bank import ALICE
from tests.histories.cluster import NAMESPACE, WAIT_S, Placements, RunningPod, connected, running_pod, until

pytestmark = pytest.mark.asyncio

BOB = parse_actor_id(NAMESPACE, "account", "bob")


@dataclass(slots=True)
class SlowSnapshots:
    """Holds every snapshot back until it is told to go on; a VM stops after it."""

    begun: int = 0
    going_on: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowSnapshots:
    slow, write = SlowSnapshots(), JetStreamSnapshotStore.write

    async def write_later(store: JetStreamSnapshotStore, actor: ActorId, snapshot: Snapshot) -> None:
        slow.begun += 1
        await slow.going_on.wait()
        await write(store, actor, snapshot)

    monkeypatch.setattr(JetStreamSnapshotStore, "write", write_later)
    return slow


@asynccontextmanager
async def holding_alice(server: EmbeddedServer) -> AsyncGenerator[tuple[RunningPod, NatsConnection]]:
    """A pod with an actor that has something to write down before it goes, and the operator's link."""
    placements = Placements()
    placements.place(ALICE, PodUid("pod-a"), 5)
    async with connected(server.url) as connection, running_pod(server.url, "pod-a", placements) as pod:
        assert (await CommandClient(connection).send(ALICE, "Open", {"owner": "alice"})).version == 1
        yield pod, connection


async def say(connection: NatsConnection, *changes: tuple[Action, ActorId, int]) -> AssignmentReply:
    items = tuple(AssignmentItem(action, actor.id, f"uid-{actor.id}", actor.model, actor.id, epoch) for action, actor, epoch in changes)
    subject = assign_subject(NAMESPACE, PoolName("default"), PodUid("pod-a"))
    answer = await connection.request(subject, encode(Assignment(1, "pod-a", "boot-pod-a", items)), timeout_s=WAIT_S)
    return decode_assignment_reply(answer.payload)


async def test_a_release_is_answered_when_the_actor_has_stopped(nats_server: EmbeddedServer, slow: SlowSnapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.assignments.RELEASE_WAIT_S", WAIT_S)
    async with holding_alice(nats_server) as (pod, connection), asyncio.TaskGroup() as tasks:
        release = tasks.create_task(say(connection, ("release", ALICE, 5)), name="release")
        await until(lambda: slow.begun == 1)
        repeat = tasks.create_task(say(connection, ("release", ALICE, 5)), name="the same release")
        assert [result.verdict for result in (await say(connection, ("adopt", BOB, 7))).results] == ["done"], "other assignments do not queue behind it"
        await until(lambda: BOB in pod.runtime.get_active_vms())
        assert (release.done(), repeat.done()) == (False, False)
        slow.going_on.set()
        for reply in (await release, await repeat):
            assert [(result.verdict, result.epoch, result.message) for result in reply.results] == [("done", 5, "")]
            assert ALICE not in pod.runtime.get_active_vms()
        assert slow.begun == 1, "it stopped once"


async def test_a_release_is_answered_in_time_by_an_actor_that_does_not_stop(nats_server: EmbeddedServer, slow: SlowSnapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.assignments.RELEASE_WAIT_S", 0.05)
    async with holding_alice(nats_server) as (pod, connection):
        reply = await say(connection, ("release", ALICE, 5), ("release", BOB, 5))
        assert [(result.name, result.verdict, result.message) for result in reply.results] == [("alice", "done", STILL_GOING), ("bob", "done", "")]
        assert ALICE in pod.runtime.get_active_vms()
        slow.going_on.set()
        await until(lambda: ALICE not in pod.runtime.get_active_vms())


async def test_a_release_that_a_newer_placement_here_overtakes_is_answered_at_once(nats_server: EmbeddedServer, slow: SlowSnapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.assignments.RELEASE_WAIT_S", WAIT_S)
    async with holding_alice(nats_server) as (pod, connection), asyncio.TaskGroup() as tasks:
        release = tasks.create_task(say(connection, ("release", ALICE, 5)), name="release")
        await until(lambda: slow.begun == 1)
        await say(connection, ("adopt", ALICE, 6))
        assert [(result.verdict, result.message) for result in (await release).results] == [("done", "")]
        slow.going_on.set()
        await until(lambda: ALICE in pod.runtime.get_active_vms() and pod.runtime.get_active_vms()[ALICE].is_ready)
        assert pod.runtime.get_active_vms()[ALICE].desired.epoch == 6


async def test_a_pod_that_leaves_serves_each_actor_until_it_is_taken(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.departure.HAND_OVER_PATIENCE_S", 1.0)
    async with holding_alice(nats_server) as (pod, connection):
        await say(connection, ("adopt", BOB, 7))
        client = CommandClient(connection)
        assert (await client.send(BOB, "Open", {"owner": "bob"})).version == 1
        pod.runtime.request_stop()
        await until(lambda: pod.runtime.is_leaving)
        assert [result.message for result in (await say(connection, ("release", ALICE, 5))).results] == [""]
        assert list(pod.runtime.get_active_vms()) == [BOB]
        assert (await client.send(BOB, "Deposit", {"amount": 1}, timeout_s=WAIT_S)).version == 2
        began_s = asyncio.get_running_loop().time()
        await until(lambda: not pod.runtime.get_active_vms())
        assert asyncio.get_running_loop().time() - began_s < WAIT_S, "nobody takes the last one, and that is waited for no longer than a while"


async def test_a_pod_that_leaves_answers_releases_as_its_actors_stop(nats_server: EmbeddedServer, slow: SlowSnapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.assignments.RELEASE_WAIT_S", WAIT_S)
    async with holding_alice(nats_server) as (pod, connection), asyncio.TaskGroup() as tasks:
        pod.runtime.request_stop()
        await until(lambda: slow.begun == 1)
        release = tasks.create_task(say(connection, ("release", ALICE, 5)), name="release")
        assert [result.verdict for result in (await say(connection, ("release", BOB, 5))).results] == ["done"]
        assert not release.done()
        slow.going_on.set()
        assert [(result.verdict, result.message) for result in (await release).results] == [("done", "")]
        assert slow.begun == 1
