"""Runtimes on one real NATS server: several pods in this process, or processes that a test may kill."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from inspect import isawaitable
from pathlib import Path
from typing import Final

from aether_api.identity import ActorId, BootId, Epoch, PodIdentity, PodUid, PoolName
from aether_api.messages import Reply
from aether_api.v1alpha1 import ActorModel, ActorPhase
from aether_model.model import Model
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.heads import HeadComparison
from aether_nats.inbox import Inbox
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_nats.schedules import Schedules
from aether_nats.settings import NatsSettings
from aether_nats.streams import StreamPlan, ensure_streams
from aether_runtime.adapters.folder import LatestReports
from aether_runtime.adapters.jetstream_inbox import KeptInbox
from aether_runtime.adapters.jetstream_snapshots import JetStreamSnapshotStore
from aether_runtime.followers import COMPARE_EVERY_S
from aether_runtime.inbox import SWEEP_S, DurableInbox
from aether_runtime.passivation import SleepConfig
from aether_runtime.ports import ActorSource, DesiredActor, DesiredListener, Home, InboxStore, ReportSink
from aether_runtime.runtime import Runtime
from aether_runtime.runtime_config import RuntimeConfig, RuntimePorts
from tests.histories.bank import read_account

NAMESPACE: Final = "default"
PARTITIONS: Final = 2

WAIT_S: Final = 20.0
"""Seconds after which a test that waits has failed; a busy machine is slow."""


async def until(condition: Callable[[], object], *, within_s: float = WAIT_S) -> None:
    """Wait until a condition holds, as `if` would take it; one that returns an awaitable is awaited first."""
    async with asyncio.timeout(within_s):
        while True:
            holds = condition()
            if await holds if isawaitable(holds) else holds:
                return
            await asyncio.sleep(0.01)


@dataclass(slots=True)
class Placements:
    """What an operator would have decided: where each actor lives, and at which epoch.

    Attributes:
        looks: how often pods looked an actor up.
        hangs: nobody is told where an actor is, however long he waits.
    """

    homes: dict[ActorId, Home] = field(default_factory=dict[ActorId, Home])
    models: list[ActorModel] = field(default_factory=lambda: [read_account()])
    listeners: dict[PodUid, DesiredListener] = field(default_factory=dict[PodUid, DesiredListener])
    looks: int = 0
    hangs: bool = False

    def place(self, actor: ActorId, pod: PodUid, epoch: int, *, tell_old: bool = True) -> None:
        """Move an actor; without `tell_old` its old pod lives on as a zombie that knows nothing."""
        old = self.homes.get(actor)
        desired = DesiredActor(actor, actor.id, f"uid-{actor.id}", Epoch(epoch), 1, 50)
        self.homes[actor] = Home(pod, desired)
        if old is not None and old.pod_uid in self.listeners and tell_old:
            self.listeners[old.pod_uid].on_release(actor, old.desired.epoch)
        if pod in self.listeners:
            self.listeners[pod].on_adopt(desired)


class PlacementSource:
    """The source of one pod: its share of the placements."""

    def __init__(self, placements: Placements, pod: PodUid) -> None:
        self._placements = placements
        self._pod = pod

    async def run(self, listener: DesiredListener) -> None:
        """Tell everything that is placed here, then what changes."""
        self._placements.listeners[self._pod] = listener
        for model in self._placements.models:
            listener.on_model(model)
        listener.on_synced()
        for home in list(self._placements.homes.values()):
            if home.pod_uid == self._pod:
                listener.on_adopt(home.desired)
        await asyncio.Event().wait()

    async def find(self, actor: ActorId) -> Home | None:
        """Return where the actor is placed."""
        self._placements.looks += 1
        if self._placements.hangs:
            await asyncio.Event().wait()
        return self._placements.homes.get(actor)


@dataclass(frozen=True, slots=True)
class Outside:
    """Where a pod hears of its actors, and where it reports them, in the place of `Placements`."""

    namespace: str
    source: ActorSource
    sink: ReportSink


@dataclass(slots=True)
class RunningPod:
    """A runtime in this process."""

    runtime: Runtime
    sink: LatestReports
    connection: NatsConnection

    @property
    def inbox(self) -> DurableInbox:
        """Its durable commands, which every pod here takes."""
        assert self.runtime.inbox is not None
        return self.runtime.inbox


@asynccontextmanager
async def connected(url: str | NatsSettings, name: str = "test") -> AsyncIterator[NatsConnection]:
    """Connect for the length of a `with` block."""
    connection = await NatsConnection.open(NatsSettings((url,), name) if isinstance(url, str) else replace(url, name=name))
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def running_pod(
    url: str | NatsSettings,
    name: str,
    placements: Placements | None = None,
    *,
    sleep: SleepConfig | None = None,
    models: Sequence[Model] = (),
    sweep_s: float = SWEEP_S,
    compare_every_s: float = COMPARE_EVERY_S,
    plan: StreamPlan | None = None,
    wrap_inbox: Callable[[Inbox], InboxStore] = lambda inbox: inbox,
    outside: Outside | None = None,
    recovery_permits: int = 50,
) -> AsyncIterator[RunningPod]:
    """Run a runtime for the length of a `with` block; it leaves in order.

    Args:
        models: loaded beside those of the placements.
    """
    async with connected(url, name) as connection:
        namespace = outside.namespace if outside is not None else NAMESPACE
        layout = await ensure_streams(connection, namespace, plan or StreamPlan(PARTITIONS))
        js = JetStream(connection)
        pod = PodIdentity(PodUid(name), BootId(f"boot-{name}"))
        sink = LatestReports()
        ports = RuntimePorts(
            connection,
            Journal(js, layout.partitions),
            JetStreamSnapshotStore(js),
            outside.source if outside is not None else PlacementSource(placements or Placements(), pod.uid),
            outside.sink if outside is not None else sink,
            wrap_inbox(KeptInbox(js, namespace)),
            Schedules(js),
            HeadComparison(js, namespace, layout.partitions),
        )
        config = RuntimeConfig(namespace, PoolName("default"), pod, name, recovery_permits, sleep=sleep or SleepConfig(), inbox_sweep_s=sweep_s, compare_every_s=compare_every_s)
        runtime = Runtime(config, ports)
        for model in models:
            runtime.load_model(model)
        started = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(runtime.run(started=started.set), name=f"runtime {name}")
            await started.wait()
            await connection.flush()
            try:
                yield RunningPod(runtime, sink, connection)
            finally:
                runtime.request_stop()


async def open_journal(connection: NatsConnection, namespace: str = NAMESPACE) -> Journal:
    """Return a journal of its own, for looking at what is stored."""
    layout = await ensure_streams(connection, namespace, StreamPlan(PARTITIONS))
    return Journal(JetStream(connection), layout.partitions)


def tells_ready(pod: RunningPod, actor: ActorId) -> bool:
    """Whether a pod has reported that it serves an actor."""
    report = pod.sink.reports.get(actor)
    return report is not None and report.phase is ActorPhase.READY


async def until_live(pods: Sequence[RunningPod]) -> None:
    """Wait until every pod has heard of every other one."""
    async with asyncio.timeout(WAIT_S):
        while any(len(pod.runtime.presence.pods.live()) < len(pods) for pod in pods):
            await asyncio.sleep(0.02)


class RuntimeProcess:
    """A runtime as a process of its own, on a folder of manifests."""

    def __init__(self, folder: Path, url: str, *, log: Path | None = None, pod_uid: str = "", settings: Mapping[str, str] | None = None) -> None:
        self._arguments = ("-m", "aether_runtime", "--folder", str(folder), "--nats", url, "--namespace", NAMESPACE, "--http-port", "0")
        self._environment = {**os.environ, **({"AETHER_POD_UID": pod_uid} if pod_uid else {}), **(settings or {})}
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The process, once it runs."""
        assert self._process is not None
        return self._process

    async def __aenter__(self) -> RuntimeProcess:
        await self.run()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def run(self) -> None:
        """Start it, for the first time or again."""
        output = self._log.open("ab") if self._log is not None else None
        try:
            self._process = await asyncio.create_subprocess_exec(sys.executable, *self._arguments, env=self._environment, stderr=output or asyncio.subprocess.DEVNULL)
        finally:
            if output is not None:
                output.close()

    async def end(self, number: signal.Signals, *, timeout_s: float = WAIT_S) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        async with asyncio.timeout(timeout_s):
            return await self.process.wait()


@dataclass(slots=True)
class Load:
    """Deposits from several clients at once; every reply is kept."""

    client: CommandClient
    actors: Sequence[ActorId]
    replies: list[tuple[ActorId, Reply]] = field(default_factory=list[tuple[ActorId, Reply]])
    sent: int = 0

    async def open(self) -> None:
        """Open all accounts."""
        for actor in self.actors:
            self.replies.append((actor, await self.client.send(actor, "Open", {"owner": actor.id}, command_id=f"open-{actor.id}", timeout_s=WAIT_S)))

    async def deposit(self, numbers: Iterable[int], *, clients: int = 16) -> None:
        """Deposit 1 for each number, each with an id of its own, repeated until its outcome is known."""
        waiting = iter(numbers)

        async def work() -> None:
            for number in waiting:
                self.sent += 1
                actor = self.actors[number % len(self.actors)]
                self.replies.append((actor, await self.client.send(actor, "Deposit", {"amount": 1}, command_id=f"d-{number}", timeout_s=2 * WAIT_S)))

        async with asyncio.TaskGroup() as workers:
            for _ in range(clients):
                workers.create_task(work())

    def has_sent(self, count: int) -> bool:
        """Whether so many deposits were sent."""
        return self.sent > count

    def replies_of(self, actor: ActorId) -> list[Reply]:
        """Return the replies of one actor."""
        return [reply for owner, reply in self.replies if owner == actor]
