"""The operator as a whole, on a real nats-server and a scripted API server, with pods that answer as a runtime does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from aether_api.commit_index import CommitIndex
from aether_api.control import Assignment, AssignmentReply, AssignmentResult, Heartbeat, decode_assignment, encode
from aether_api.envelope import Commit
from aether_api.errors import AetherError
from aether_api.identity import Epoch, PodUid, PoolName, parse_actor_id
from aether_api.subjects import assign_subject, heartbeat_subject, ping_subject
from aether_kube.client import KubeClient
from aether_kube.connection import anonymous_connection
from aether_kube.documents import JsonObject, integer_at, object_at, objects_at, text_at, value_at
from aether_kube.kinds import ACTOR_MODELS, ACTOR_POOLS, ACTORS, DEPLOYMENTS, PODS
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_nats.message import Message
from aether_nats.settings import NatsSettings
from aether_nats.streams import ensure_streams
from aether_operator.handlers.control_plane import ControlPlane
from aether_operator.settings import OperatorSettings
from tests.fake_apiserver.server import FakeApiServer, Fault

NAMESPACE = "shop"
HEARTBEAT_S = 0.05
"""Seconds; six times as often as a runtime, as the test's windows are shorter."""

SETTINGS = OperatorSettings(suspect_after_s=0.3, ping_timeout_s=0.2, detection_window_s=0.4, watch_namespaces=(NAMESPACE,), hand_overs_at_once=1, rebalance_per_s=0)
"""Without rebalancing, so that a pod that comes back stays empty unless a test wants otherwise."""
MODEL: JsonObject = {"commands": {"Open": {"emits": [{"event": "Opened"}]}}, "events": {"Opened": {}}}


@dataclass
class FakePod:
    """A process of a pod: heartbeats, and takes every assignment."""

    connection: NatsConnection
    name: str
    boot_id: str = "boot-1"
    held: dict[str, int] = field(default_factory=dict)
    heard: list[Assignment] = field(default_factory=list)
    refuses_below: int = 0
    mute: bool = False

    @property
    def uid(self) -> PodUid:
        return PodUid(f"uid-of-{self.name}")

    async def run(self) -> None:
        self.connection.subscribe(ping_subject(NAMESPACE, self.uid), self._on_ping)
        self.connection.subscribe(assign_subject(NAMESPACE, PoolName("default"), self.uid), self._on_assign)
        while True:
            if not self.mute:
                self._send(heartbeat_subject(NAMESPACE, PoolName("default"), self.uid), self._beat())
            await asyncio.sleep(HEARTBEAT_S)

    def _beat(self) -> bytes:
        return encode(Heartbeat(self.uid, self.boot_id, self.name, "ready", len(self.held)))

    def _on_ping(self, message: Message) -> None:
        if not self.mute:
            self._send(message.reply, self._beat())

    def _on_assign(self, message: Message) -> None:
        assignment = decode_assignment(message.payload)
        if self.mute or assignment.boot_id != self.boot_id:
            return
        self.heard.append(assignment)
        results = []
        for item in assignment.items:
            stale = item.epoch < self.refuses_below
            if item.action == "adopt" and not stale:
                self.held[item.name] = item.epoch
            elif item.action == "release":
                self.held.pop(item.name, None)
            results.append(AssignmentResult(item.name, "stale" if stale else "done", self.refuses_below))
        self._send(message.reply, encode(AssignmentReply(assignment.term, self.boot_id, tuple(results))))

    def _send(self, subject: str, payload: bytes) -> None:
        try:
            self.connection.publish(subject, payload)
        except AetherError:
            return


class Stage:
    """One test's cluster."""

    def __init__(self, api: FakeApiServer, nats: EmbeddedServer, connection: NatsConnection, tasks: asyncio.TaskGroup) -> None:
        self.api = api
        self.nats = nats
        self.connection = connection
        self.tasks = tasks
        self._operator: asyncio.Task[None] | None = None

    async def start_operator(self) -> None:
        self._operator = self.tasks.create_task(self._run_operator(), name="operator")

    async def stop_operator(self) -> None:
        if self._operator is not None:
            self._operator.cancel()
            await asyncio.wait({self._operator})  # its cancellation must not become ours

    async def _run_operator(self) -> None:
        connection = await NatsConnection.open(NatsSettings(servers=(self.nats.url,)))
        try:
            async with KubeClient(anonymous_connection(self.api.url)) as client, asyncio.TaskGroup() as tasks:
                for name, work in ControlPlane(SETTINGS, client, connection).works().items():
                    tasks.create_task(work, name=name)
        finally:
            await connection.close()

    async def add_pod(self, name: str) -> FakePod:
        connection = await NatsConnection.open(NatsSettings(servers=(self.nats.url,)))
        pod = FakePod(connection, name)
        self.tasks.create_task(pod.run(), name=name)
        metadata: JsonObject = {"namespace": NAMESPACE, "name": name, "uid": pod.uid, "labels": {"aether.flowmade.one/pool": "default"}}
        await self.api.put(PODS.path(NAMESPACE, name), {"metadata": metadata, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}})
        return pod

    async def add_actor(self, name: str, **spec: object) -> None:
        await self.api.put(ACTORS.path(NAMESPACE, name), {**_document(name), "spec": {"model": "account", **spec}})  # type: ignore[dict-item]  # specs are JSON

    async def change(self, path: str, change: Callable[[JsonObject], None]) -> None:
        document = self.api.documents.objects[path]
        change(document)
        await self.api.put(path, document)

    def actor(self, name: str) -> JsonObject:
        return self.api.documents.objects.get(ACTORS.path(NAMESPACE, name), {})

    def pod_of(self, name: str) -> str:
        return text_at(self.actor(name), "status", "placement", "pod")

    def reason_of(self, name: str, type_: str = "Scheduled") -> str:
        return next((text_at(item, "reason") for item in objects_at(self.actor(name), "status", "conditions") if item["type"] == type_), "")

    def writes(self) -> list[str]:
        """Return the writes of the operator so far, Kubernetes Events apart, which follow at their own pace."""
        return [f"{request.method} {request.path}" for request in self.api.requests if request.method != "GET" and not request.path.startswith("/apis/events.k8s.io")]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a state of several processes, which no single event tells."""
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(HEARTBEAT_S / 5)  # as the docstring says


def _document(name: str) -> JsonObject:
    return {"metadata": {"namespace": NAMESPACE, "name": name, "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}}


@asynccontextmanager
async def staged(nats_server: EmbeddedServer) -> AsyncGenerator[Stage, None]:
    """Set a cluster up within the test's own task, which a TaskGroup needs and a fixture does not give."""
    async with FakeApiServer() as api:
        connection = await NatsConnection.open(NatsSettings(servers=(nats_server.url,)))
        await api.put(ACTOR_MODELS.path(NAMESPACE, "account"), {**_document("account"), "spec": MODEL})
        await api.put(ACTOR_POOLS.path(NAMESPACE, "default"), {**_document("default"), "spec": {"replicas": 2}})
        async with _cancelled_at_the_end() as tasks:
            made = Stage(api, nats_server, connection, tasks)
            await made.start_operator()
            yield made
        await connection.close()


@asynccontextmanager
async def _cancelled_at_the_end() -> AsyncGenerator[asyncio.TaskGroup, None]:
    class Over(Exception):
        pass

    async def end() -> None:
        raise Over

    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
            tasks.create_task(end())
    except* Over:
        pass


async def test_an_actor_is_told_to_its_pod_and_written_to_its_status(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        await stage.add_actor("alice")

        await stage.until(lambda: stage.pod_of("alice") == "a")

        status = stage.actor("alice")["status"]
        assert pod.held == {"alice": integer_at(status, "placement", "epoch")}
        assert (text_at(status, "placement", "podUID"), text_at(status, "phase")) == (pod.uid, "Scheduled")
        assert stage.reason_of("alice") == "Scheduled"


async def test_a_drained_pod_hands_its_actors_over_one_by_one(nats_server: EmbeddedServer) -> None:
    def drain(document: JsonObject) -> None:
        object_at(document, "metadata")["annotations"] = {"aether.flowmade.one/cordon": "drain"}

    async with staged(nats_server) as stage:
        first = await stage.add_pod("a")
        names = ["alice", "bob", "carol"]
        for name in names:
            await stage.add_actor(name)
        await stage.until(lambda: all(stage.pod_of(name) == "a" for name in names))
        second = await stage.add_pod("b")

        await stage.change(PODS.path(NAMESPACE, "a"), drain)
        await stage.until(lambda: all(stage.pod_of(name) == "b" for name in names))

        assert (first.held, sorted(second.held)) == ({}, names)
        assert max(len(assignment.items) for assignment in second.heard) == 1


async def test_a_report_that_came_before_the_status_is_not_written_over(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")

        def reported(request: web.Request) -> bool:
            """Report as soon as the operator wants to write, and let that write be refused as the API server would."""
            alice = stage.api.documents.objects[ACTORS.path(NAMESPACE, "alice")]
            if request.method != "PATCH" or not request.path.endswith("/alice/status"):
                return False
            alice["status"] = {"phase": "Ready", "reportedEpoch": pod.held["alice"], "conditions": [{"type": "Ready", "status": "True", "reason": "Ready"}]}
            return True

        stage.api.faults.append(Fault(reported, 409))
        await stage.add_actor("alice")

        await stage.until(lambda: stage.pod_of("alice") == "a")

        assert text_at(stage.actor("alice"), "status", "phase") == "Ready"


async def test_actors_of_a_pod_that_falls_silent_move_and_it_is_told_when_it_is_back(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        first, second = await stage.add_pod("a"), await stage.add_pod("b")
        for name in ("alice", "bob", "carol"):
            await stage.add_actor(name)
        await stage.until(lambda: len(first.held) + len(second.held) == 3 and bool(stage.pod_of("carol")))
        lost, left = (first, second) if first.held else (second, first)
        before = dict(lost.held)

        lost.mute = True
        await stage.until(lambda: len(left.held) == 3)
        lost.mute = False
        await stage.until(lambda: lost.held == {})

        assert all(left.held[name] > epoch for name, epoch in before.items())
        await stage.until(lambda: {stage.pod_of(name) for name in before} == {left.name})
        assert {stage.reason_of(name, "Ready") for name in before} == {"PodLost"}


async def test_an_outage_of_nats_moves_nobody(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod, other = await stage.add_pod("a"), await stage.add_pod("b")
        await stage.add_actor("alice")
        await stage.until(lambda: stage.pod_of("alice") != "")
        before = stage.actor("alice")["status"]

        await stage.nats.stop()
        await stage.until(lambda: not stage.connection.is_connected)
        await asyncio.sleep(3 * SETTINGS.suspect_after_s)  # longer than any silence that counts while the link is up
        await stage.nats.run()
        await stage.until(lambda: stage.connection.is_connected)
        await asyncio.sleep(3 * SETTINGS.detection_window_s)  # the full window after which silence counts again

        assert stage.actor("alice")["status"] == before
        assert len(pod.held) + len(other.held) == 1


async def test_a_new_operator_tells_every_process_what_it_holds_and_moves_nobody(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        await stage.add_actor("alice")
        await stage.until(lambda: stage.pod_of("alice") == "a")
        epoch, term = pod.held["alice"], pod.heard[0].term
        await stage.stop_operator()
        pod.held.clear()

        await stage.start_operator()
        await stage.until(lambda: pod.held == {"alice": epoch})

        assert pod.heard[-1].term > term


async def test_a_restarted_process_is_told_what_the_one_before_held(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        await stage.add_actor("alice")
        await stage.until(lambda: stage.pod_of("alice") == "a")
        epoch = pod.held.pop("alice")

        pod.boot_id = "boot-2"

        await stage.until(lambda: pod.held == {"alice": epoch})


async def test_a_pod_that_knows_a_higher_epoch_raises_ours(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        pod.refuses_below = 9_000_000_000_000
        await stage.add_actor("alice")

        await stage.until(lambda: pod.held == {"alice": 9_000_000_000_001})
        await stage.until(lambda: integer_at(stage.actor("alice"), "status", "placement", "epoch") == 9_000_000_000_001)


async def test_a_deleted_actor_is_released(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        await stage.add_actor("alice")
        await stage.until(lambda: stage.pod_of("alice") == "a")

        await stage.api.remove(ACTORS.path(NAMESPACE, "alice"))

        await stage.until(lambda: pod.held == {})


async def test_a_purge_releases_buries_the_events_and_lets_the_resource_go(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        alice = parse_actor_id(NAMESPACE, "account", "alice")
        journal = Journal(JetStream(stage.connection), (await ensure_streams(stage.connection, NAMESPACE)).partitions)
        await journal.append(Commit("c", alice, 0, 1, 1, CommitIndex(), Epoch(1), "pod/boot", "account@x", b"[]"))
        await stage.add_actor("alice", deletionPolicy="Purge")
        await stage.until(lambda: stage.pod_of("alice") == "a" and bool(value_at(stage.actor("alice"), "metadata", "finalizers")))

        await stage.change(ACTORS.path(NAMESPACE, "alice"), lambda actor: actor["metadata"].update({"deletionTimestamp": "2026-01-01T00:00:01Z"}))  # type: ignore[union-attr]  # metadata is an object

        await stage.until(lambda: value_at(stage.actor("alice"), "metadata", "finalizers") == [])
        head = await journal.read_head(alice)
        assert pod.held == {}
        assert head is not None
        assert (head.tombstone, head.incarnation) == (True, 1)
        assert head.epoch == integer_at(stage.actor("alice"), "status", "placement", "epoch")


async def test_what_an_actor_waits_for_is_said_and_mended_when_it_comes(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        await stage.add_actor("alice")
        await stage.until(lambda: stage.reason_of("alice") == "NoReadyPods")

        await stage.add_pod("a")

        await stage.until(lambda: stage.pod_of("alice") == "a")


async def test_a_deployment_that_somebody_deletes_comes_back(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        path = DEPLOYMENTS.path(NAMESPACE, "aether-default")
        await stage.until(lambda: path in stage.api.documents.objects)

        await stage.api.remove(path)

        await stage.until(lambda: path in stage.api.documents.objects)


async def test_a_settled_cluster_is_left_alone(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        await stage.add_pod("a")
        await stage.add_actor("alice")
        await stage.until(lambda: stage.pod_of("alice") == "a" and value_at(stage.api.documents.objects[ACTOR_POOLS.path(NAMESPACE, "default")], "status", "actors") == 1)
        before = stage.writes()

        await asyncio.sleep(2 * SETTINGS.detection_window_s)  # time in which an unstable operator would write

        assert stage.writes() == before
