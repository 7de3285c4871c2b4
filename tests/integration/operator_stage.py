"""A cluster for tests of the operator: a real nats-server, a scripted API server, and pods that answer as a runtime does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from aether_api.control import (
    Assignment,
    AssignmentItem,
    AssignmentReply,
    AssignmentResult,
    FirstReport,
    FirstReports,
    Heartbeat,
    HeldActor,
    HeldPage,
    PodState,
    Verdict,
    decode_assignment,
    decode_held_question,
    encode,
)
from aether_api.errors import AetherError
from aether_api.identity import PodUid, PoolName
from aether_api.subjects import assign_subject, heartbeat_subject, held_subject, ping_subject, report_subject
from aether_kube.connection import anonymous_connection
from aether_kube.documents import JsonObject, objects_at, text_at
from aether_kube.kinds import ACTOR_MODELS, ACTOR_POOLS, ACTORS, PODS
from aether_kube.lease import LeaseRecord, parse_lease
from aether_nats.connection import NatsConnection, Subscription
from aether_nats.embedded import EmbeddedServer
from aether_nats.link import RECONNECT_DELAY_MAX_S
from aether_nats.message import Message
from aether_nats.settings import NatsSettings
from aether_operator.handlers.candidate import Candidate
from aether_operator.settings import OperatorSettings
from tests.fake_apiserver.server import FakeApiServer
from tests.histories.cluster import connected

NAMESPACE = "shop"
HEARTBEAT_S = 0.05
"""Seconds; six times as often as a runtime, as the test's windows are shorter."""

SETTINGS = OperatorSettings(
    suspect_after_s=0.3, ping_timeout_s=0.2, detection_window_s=0.4, lease_retry_s=0.2, watch_namespaces=(NAMESPACE,), hand_overs_at_once=1, rebalance_per_s=0
)
PATIENT = SETTINGS.model_copy(update={"detection_window_s": RECONNECT_DELAY_MAX_S})
"""As in real settings the window is no shorter than a pod may take to come back after us, else some pod is late now and then."""

LEASE = "/apis/coordination.k8s.io/v1/namespaces/aether-system/leases/aether-operator"
COURTESY = ("/apis/events.k8s.io", "/apis/coordination.k8s.io")
MODEL: JsonObject = {"commands": {"Open": {"emits": [{"event": "Opened"}]}}, "events": {"Opened": {}}}


@dataclass
class FakePod:
    """A process of a pod: heartbeats, and takes every assignment but the next few that it `ignores`.

    Attributes:
        says: what it says of an actor that it adopts, before the resource shows it; None for nothing.
    """

    connection: NatsConnection
    name: str
    boot_id: str = "boot-1"
    held: dict[str, int] = field(default_factory=dict)
    uids: dict[str, str] = field(default_factory=dict)
    heard: list[Assignment] = field(default_factory=list)
    questions: int = 0
    page_actors: int = 2
    term: int = 0
    refuses_below: int = 0
    ignores: int = 0
    mute: bool = False
    says: Callable[[AssignmentItem], FirstReport | None] = lambda item: None
    state: PodState = "ready"
    subscriptions: list[Subscription] = field(default_factory=list[Subscription])

    @property
    def uid(self) -> PodUid:
        return PodUid(f"uid-of-{self.name}")

    async def run(self) -> None:
        self.subscriptions = [
            self.connection.subscribe(assign_subject(NAMESPACE, PoolName("default"), self.uid), self._on_assign),
            self.connection.subscribe(ping_subject(NAMESPACE, self.uid), self._on_ping),
            self.connection.subscribe(held_subject(NAMESPACE, self.uid), self._on_held),
        ]
        while self.state == "ready":
            if not self.mute:
                self._send_heartbeat()
            await asyncio.sleep(HEARTBEAT_S)

    def leave(self) -> None:
        """Say good-bye and be gone, as a process that has let all of its actors go before the operator asked for them."""
        self.state = "leaving"
        self._send_heartbeat()
        for subscription in self.subscriptions:
            subscription.unsubscribe()

    def stop_taking(self) -> None:
        """Leave assignments without an answer, and live on."""
        self.subscriptions[0].unsubscribe()

    def _send_heartbeat(self) -> None:
        self._send(heartbeat_subject(NAMESPACE, PoolName("default"), self.uid), self._beat())

    def _beat(self) -> bytes:
        return encode(Heartbeat(self.uid, self.boot_id, self.name, self.state, len(self.held)))

    def _on_ping(self, message: Message) -> None:
        if not self.mute:
            self._send(message.reply, self._beat())

    def _on_assign(self, message: Message) -> None:
        assignment = decode_assignment(message.payload)
        if self.mute or assignment.boot_id != self.boot_id:
            return
        self.heard.append(assignment)
        if self.ignores:
            self.ignores -= 1
            return
        current = assignment.term >= self.term
        self.term = max(self.term, assignment.term)
        verdicts = [self._take(item) if current else "stale" for item in assignment.items]
        results = tuple(AssignmentResult(item.name, verdict, self.refuses_below) for item, verdict in zip(assignment.items, verdicts, strict=True))
        self._send(message.reply, encode(AssignmentReply(self.term, self.boot_id, results)))
        adopted = [item for item, verdict in zip(assignment.items, verdicts, strict=True) if item.action == "adopt" and verdict == "done"]
        said = tuple(report for item in adopted if (report := self.says(item)) is not None)
        if said:
            self._send(report_subject(NAMESPACE, self.uid), encode(FirstReports(self.uid, said)))

    def _take(self, item: AssignmentItem) -> Verdict:
        if item.epoch < self.refuses_below:
            return "stale"
        if item.action == "adopt":
            self.held[item.name], self.uids[item.name] = item.epoch, item.uid
        else:
            self.held.pop(item.name, None)
        return "done"

    def _on_held(self, message: Message) -> None:
        self.questions += 1
        if self.mute:
            return
        later = sorted(name for name in self.held if name > decode_held_question(message.payload).after)
        actors = tuple(HeldActor(name, self.uids[name], self.held[name]) for name in later[: self.page_actors])
        self._send(message.reply, encode(HeldPage(self.uid, self.boot_id, self.term, actors, more=len(later) > self.page_actors)))

    def _send(self, subject: str, payload: bytes) -> None:
        try:
            self.connection.publish(subject, payload)
        except AetherError:
            return


class Stage:
    """One test's cluster."""

    def __init__(self, api: FakeApiServer, nats: NatsSettings, connection: NatsConnection, opened: AsyncExitStack, tasks: asyncio.TaskGroup, *, settings: OperatorSettings) -> None:
        self.api = api
        self._opened = opened
        self._nats = nats
        self.connection = connection
        self.tasks = tasks
        self._settings = settings
        self._operator: asyncio.Task[None] | None = None

    async def start_operator(self) -> None:
        self._operator = self.tasks.create_task(self._run_operator(), name="operator")

    async def stop_operator(self) -> None:
        if self._operator is not None:
            self._operator.cancel()
            await asyncio.wait({self._operator})  # its cancellation must not become ours

    async def _run_operator(self) -> None:
        async with connected(self._nats, "operator") as connection:
            await Candidate(self._settings, anonymous_connection(self.api.url), connection).run()

    async def add_pod(self, name: str, nats: NatsSettings | None = None) -> FakePod:
        """Start a pod; it finds NATS as the operator does, unless told otherwise."""
        connection = await self._opened.enter_async_context(connected(nats or self._nats))
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

    @property
    def lease(self) -> LeaseRecord:
        return parse_lease(self.api.documents.objects.get(LEASE, {}))

    def actor(self, name: str) -> JsonObject:
        return self.api.documents.objects.get(ACTORS.path(NAMESPACE, name), {})

    def pod_of(self, name: str) -> str:
        return text_at(self.actor(name), "status", "placement", "pod")

    def reason_of(self, name: str, type_: str = "Scheduled") -> str:
        return self._condition_of(name, type_, "reason")

    def message_of(self, name: str, type_: str = "Scheduled") -> str:
        return self._condition_of(name, type_, "message")

    def _condition_of(self, name: str, type_: str, field: str) -> str:
        return next((text_at(item, field) for item in objects_at(self.actor(name), "status", "conditions") if item["type"] == type_), "")

    def writes(self) -> list[str]:
        """Return the writes of the operator so far, but Kubernetes Events and renewals, which follow at their own pace."""
        return [f"{request.method} {request.path}" for request in self.api.requests if request.method != "GET" and not request.path.startswith(COURTESY)]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a state of several processes, which no single event tells."""
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(HEARTBEAT_S / 5)  # as the docstring says


def _document(name: str) -> JsonObject:
    return {"metadata": {"namespace": NAMESPACE, "name": name, "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}}


@asynccontextmanager
async def staged(nats: EmbeddedServer | NatsSettings, *, operator: bool = True, settings: OperatorSettings = SETTINGS) -> AsyncGenerator[Stage, None]:
    """Set a cluster up within the test's own task, which a TaskGroup needs and a fixture does not give."""
    found = nats if isinstance(nats, NatsSettings) else NatsSettings(servers=(nats.url,))
    async with FakeApiServer() as api, AsyncExitStack() as opened:
        connection = await opened.enter_async_context(connected(found))
        await api.put(ACTOR_MODELS.path(NAMESPACE, "account"), {**_document("account"), "spec": MODEL})
        await api.put(ACTOR_POOLS.path(NAMESPACE, "default"), {**_document("default"), "spec": {"replicas": 2}})
        async with _cancelled_at_the_end() as tasks:
            made = Stage(api, found, connection, opened, tasks, settings=settings)
            if operator:
                await made.start_operator()
            yield made


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
