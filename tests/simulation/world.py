"""One run: processes on a simulated network, a storm, calm, and the end.

    world = World(seed)
    world.run()          # raises with what is wrong

Nothing but the seed decides what happens. `trace` tells all of it, line by line.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import random
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from unittest import mock

from aether_api.errors import AetherError
from aether_api.identity import ActorId, BootId, PodIdentity, PodUid, parse_actor_id
from aether_nats import appends, commit_reader, pull
from aether_nats.connection import NatsConnection
from aether_nats.heads import HeadComparison
from aether_nats.inbox import Inbox
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_nats.schedules import Schedules
from aether_nats.settings import NatsSettings
from aether_nats.streams import StreamPlan, ensure_streams
from aether_runtime.adapters.jetstream_snapshots import JetStreamSnapshotStore
from aether_runtime.passivation import SleepConfig
from aether_runtime.runtime import Runtime
from aether_runtime.runtime_config import RuntimeConfig, RuntimePorts
from tests.histories.alarm import Alarm
from tests.histories.bank import compile_account
from tests.histories.cluster import NAMESPACE, PARTITIONS
from tests.simulation.checks import Audit
from tests.simulation.clients import Client, Reader
from tests.simulation.determinism import START_S, determined
from tests.simulation.faults import Faults
from tests.simulation.importer import Importer, Save
from tests.simulation.loop import PROCESS, Process, State, VirtualLoop, launch
from tests.simulation.network import Network, outside
from tests.simulation.operator import POOL, Operator, Registry, Sink, Watch
from tests.simulation.record import Record
from tests.simulation.server.api import ApiEngine
from tests.simulation.server.broker import Broker
from tests.simulation.storm import Storm

RUN_MAX_S: Final = 600.0
"""Virtual seconds after which a run that is not over hangs."""

STOP_MAX_S: Final = 60.0
"""Virtual seconds for everything to stop in order."""

RESTART_S: Final = 1.0
"""Seconds until a process that ended by itself is started again."""

SERVER_URL: Final = "nats://simulated:4222"

PLACED: Final = (parse_actor_id(NAMESPACE, "account", "alice"), parse_actor_id(NAMESPACE, "account", "bob"), parse_actor_id(NAMESPACE, "alarm", "hall"))
"""Actors with resources."""

MORTAL: Final = parse_actor_id(NAMESPACE, "account", "eve")
"""An actor with a resource whose life is ended by purges."""

FREE: Final = (parse_actor_id(NAMESPACE, "account", "carl"), parse_actor_id(NAMESPACE, "alarm", "kitchen"), parse_actor_id(NAMESPACE, "alarm", "attic"))
"""Actors without resources."""

LOGGERS: Final = ("aether_runtime", "aether_nats", "asyncio")


class Clock:
    """The server's time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now_s(self) -> float:
        """Return unix time."""
        return START_S + self._loop.time()

    def later(self, delay_s: float, work: Callable[[], None]) -> None:
        """Do something later, and never inside of a process."""
        if delay_s:
            self._loop.call_later(delay_s, work, context=outside())
        else:
            work()


@dataclass(eq=False)
class Pod:
    """A pod, through the lives of its process."""

    uid: PodUid
    process: Process
    runtime: Runtime | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Attributes:
        digest: of the trace; equal for equal seeds.
        counts: how often what happened.
    """

    seed: int
    digest: str
    counts: dict[str, int]


@dataclass
class World:
    """Everything that there is in one run.

    Attributes:
        is_verbose: the trace also has what the runtime logs for debugging.
        worse: parts of the climate that are not left to the seed.
        run_min: commits from which on a history is read through a consumer.
        batch_min: appends that wait for a batch, as where the server fsyncs each write; 0 where all go alone.
    """

    seed: int
    is_verbose: bool = False
    worse: Mapping[str, Any] | None = None
    loop: VirtualLoop = field(default_factory=VirtualLoop)
    trace: list[str] = field(default_factory=list[str])
    placed: tuple[ActorId, ...] = (*PLACED, MORTAL)
    mortal: ActorId = MORTAL
    actors: tuple[ActorId, ...] = (*PLACED, MORTAL, *FREE)
    record: Record = field(default_factory=Record)
    registry: Registry = field(default_factory=Registry)
    pods: dict[PodUid, Pod] = field(default_factory=dict[PodUid, Pod])
    runtimes: list[Runtime] = field(default_factory=list[Runtime])
    processes: list[Process] = field(default_factory=list[Process])
    saves: list[Save] = field(default_factory=list[Save])
    counts: dict[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        self.faults = Faults(self.loop, self.source("faults"), self.worse)
        self.broker = Broker(Clock(self.loop), self.faults)
        self.broker.trace = self.log
        self.engine = ApiEngine(self.broker)
        self.network = self.loop.network = Network(self.loop, self.broker, self.faults)
        self.operator = Operator(self, self.source("operator"))
        self.batch_min = self.source("batches").choice((0, 0, 1, 2))
        self.run_min = self.source("runs").choice((commit_reader.RUN_MIN, 2, 8))
        self.journals: list[Journal] = []
        self.is_over = False
        self._boots = 0

    def source(self, name: str) -> random.Random:
        """Return a source of chance of its own for one part of the world."""
        return random.Random(f"{self.seed} {name}")

    def log(self, line: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.loop.time():.6f} {line}")

    def count(self, what: str) -> None:
        """Count something that happened."""
        self.counts[what] = self.counts.get(what, 0) + 1

    def run(self) -> Outcome:
        """Live through the run and check it.

        Raises:
            AssertionError: a promise was broken; `trace` says how it came to that.
        """
        with _keeping_logs(self), determined(self.loop, self.seed), _batching(self.batch_min), _reading_in_runs(self.run_min):
            try:
                self.loop.run(self._live(), until_s=RUN_MAX_S)
            finally:
                self._bury()
                self._forget()
                gc.collect()  # what a forgotten task failed with is told to the loop now
        self._count_all()
        problems = [*self.record.problems, *self.loop.unhandled]
        assert not problems, "\n".join(problems)
        return Outcome(self.seed, hashlib.blake2b("\n".join(self.trace).encode(), digest_size=8).hexdigest(), self.counts)

    def _count_all(self) -> None:
        tallies = [tally for runtime in self.runtimes for tally in runtime.metrics.tally.models.values()]
        self.counts |= {what: sum(getattr(tally, what) for tally in tallies) for what in ("conflicts", "fenced", "failed")}
        self.counts["batched"] = sum(journal.batched for journal in self.journals)

    # The life of a run.

    async def _live(self) -> None:
        self.log(f"climate {self.faults.climate}")
        self.start_process("operator", self.operator.run)
        for _ in range(self.faults.climate.pods):
            self.start_pod()
        for number in range(2):
            self.start_client(f"client{number}")
        self.start_reader()
        for number in range(2 if self.faults.climate.imports_per_s else 0):
            name = f"importer{number}"
            self.start_process(name, Importer(self, name, self.source(name)).run)
        storm = Storm(self, self.source("storm"))
        await storm.run()
        audit = Audit(self)
        await self._visit("auditor", audit.run)
        await self._stop()
        self.record.problems += audit.problems

    async def _visit(self, name: str, work: Callable[[NatsConnection], Coroutine[None, None, None]]) -> None:
        """Run a process to its end."""
        done = self.loop.create_future()

        async def live() -> None:
            connection = await NatsConnection.open(NatsSettings((SERVER_URL,), name))
            try:
                await work(connection)
            except BaseException as exc:
                done.set_exception(exc)
                raise
            finally:
                await connection.close()
            done.set_result(None)

        process = self._build_process(name)
        root = launch(self.loop, process, live()).root
        root.add_done_callback(lambda task: task.cancelled() or task.exception())
        await done

    async def _stop(self) -> None:
        """End all that lives, in order; nothing may be left."""
        self.log("everything stops")
        self.is_over = True
        for pod in self.pods.values():
            if pod.process.state is State.RUNNING and pod.runtime is not None:
                pod.runtime.request_stop()
        for process in self.living():
            if process.name.startswith(("operator", "client", "importer", "reader")):
                _cancel(process)
        end_s = self.loop.time() + STOP_MAX_S
        while any(process.pending() for process in self.living()) and self.loop.time() < end_s:
            await asyncio.sleep(0.1)
        left = [f"{process.name} does not end: {task.get_name()} {task.get_stack(limit=1)}" for process in self.living() for task in process.pending()]
        self.record.problems += left[:20]

    def living(self) -> list[Process]:
        """Return the processes that were not killed."""
        return [process for process in self.processes if process.state is not State.DEAD]

    def _bury(self) -> None:
        """Let what the killed processes would have done come to its end, cut off from everything, so that Python has nothing to complain of."""
        dead = [process for process in self.processes if process.pending()]
        known, self.loop.unhandled = self.loop.unhandled, []
        self.is_over = True
        self.network.stop()

        async def end() -> None:
            for process in dead:
                self.loop.resume(process)
                _cancel(process)
            end_s = self.loop.time() + STOP_MAX_S
            while any(process.pending() for process in dead) and self.loop.time() < end_s:
                for process in dead:
                    _cancel(process)
                await asyncio.sleep(1.0)

        trace, self.trace = self.trace, []
        self.loop.run(end(), until_s=RUN_MAX_S * 2)
        for task in [task for process in dead for task in process.tasks.values() if task.done() and not task.cancelled()]:
            task.exception()  # looked at, so that nobody complains of it
        self.trace = trace
        self.loop.unhandled = known

    def _forget(self) -> None:
        self.loop.close()
        for process in self.processes:
            process.tasks.clear()
            process.held.clear()
        self.network.forget()

    # Processes.

    def _build_process(self, name: str) -> Process:
        skew_s = self.faults.climate.skew_max_s
        process = Process(name, self.faults.draw(-skew_s, skew_s))
        self.processes.append(process)
        return process

    def start_process(self, name: str, work: Callable[[NatsConnection], Coroutine[None, None, None]]) -> Process:
        """Start a process that works over one connection, and begins anew when it cannot connect."""
        process = self._build_process(name)

        async def live() -> None:
            while True:
                try:
                    connection = await NatsConnection.open(NatsSettings((SERVER_URL,), name))
                except AetherError as exc:
                    self.log(f"{name} cannot connect: {exc}")
                    await asyncio.sleep(RESTART_S)
                    continue
                try:
                    return await work(connection)
                finally:
                    await connection.close()

        launch(self.loop, process, live())
        return process

    def start_client(self, name: str) -> Process:
        """Start a sender."""
        self._boots += 1
        unique = f"{name}.{self._boots}"
        return self.start_process(unique, Client(self, unique.replace(".", "-"), self.source(unique)).run)

    def start_reader(self) -> Process:
        """Start the subscriber."""
        self._boots += 1
        return self.start_process(f"reader.{self._boots}", Reader(self).run)

    def start_pod(self, uid: PodUid | None = None) -> Pod:
        """Start a pod, or another process of one."""
        self._boots += 1
        uid = uid or PodUid(f"pod{self._boots}")
        process = self._build_process(f"{uid}.{self._boots}")
        pod = self.pods[uid] = Pod(uid, process)
        launch(self.loop, process, self._live_pod(pod, BootId(f"b{self._boots}"), self.source(process.name)))
        return pod

    async def _live_pod(self, pod: Pod, boot: BootId, source: random.Random) -> None:
        while not self.is_over:
            try:
                connection = await NatsConnection.open(NatsSettings((SERVER_URL,), pod.uid))
            except AetherError as exc:
                self.log(f"{pod.uid} cannot connect: {exc}")
                await asyncio.sleep(RESTART_S)
                continue
            try:
                layout = await ensure_streams(connection, NAMESPACE, StreamPlan(PARTITIONS, self.faults.climate.replicas))
                self.journals.append(journal := Journal(JetStream(connection), layout.partitions, batches=bool(self.batch_min) and layout.takes_batches))
                pod.runtime = self._build_runtime(pod, boot, journal, source)
                if not self.is_over:
                    return await pod.runtime.run()
            except AetherError as exc:
                self.log(f"{pod.uid} begins anew: {exc}")
                await asyncio.sleep(RESTART_S)
            finally:
                await connection.close()

    def _build_runtime(self, pod: Pod, boot: BootId, journal: Journal, source: random.Random) -> Runtime:
        js = JetStream(journal.connection)
        ports = RuntimePorts(
            journal.connection,
            journal,
            JetStreamSnapshotStore(js),
            Watch(self, pod.uid, source),
            Sink(self),
            Inbox(js, NAMESPACE),
            Schedules(js),
            HeadComparison(js, NAMESPACE, journal.partitions),
        )
        sleep = SleepConfig(awake_max=source.choice((3, 100)), on_demand_idle_s=source.choice((2.0, 600.0)), read_memory=lambda: None)
        self.runtimes.append(runtime := Runtime(RuntimeConfig(NAMESPACE, POOL, PodIdentity(pod.uid, boot), pod.uid, sleep=sleep, inbox_sweep_s=3.0, compare_every_s=15.0), ports))
        for model in (compile_account(), Alarm()):
            runtime.load_model(model)
        return runtime

    def kill(self, process: Process, *, silently: bool) -> None:
        """End a process between two of its steps."""
        process.state = State.DEAD
        self.network.bury(process, silently=silently)

    def pause(self, process: Process, for_s: float) -> None:
        """Stop a process for a while; its links stay open."""
        process.state = State.PAUSED
        self.loop.call_later(for_s, partial(self.resume, process))

    def resume(self, process: Process) -> None:
        """Let a paused process go on."""
        if process.state is State.PAUSED:
            self.loop.resume(process)


class _Keeper(logging.Handler):
    """Adds what the production code logs to the trace; what must not happen is a problem."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.DEBUG if world.is_verbose else logging.WARNING)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        found, process = vars(record), PROCESS.get()
        text = f"{record.getMessage()} {found.get('actor_id', '')} {found.get('reason', '')}"
        self._world.log(f"{process.name if process else ''} {record.levelname} {text}")
        if record.exc_info or "quarantined" in text:
            self._world.record.problems.append(f"at {self._world.loop.time():.3f} s logged: {text} {record.exc_info[1] if record.exc_info else ''!r}")


@contextmanager
def _batching(batch_min: int) -> Iterator[None]:
    """Let so few appends travel together that the few actors of a run send batches."""
    with mock.patch.object(appends, "SINGLES_MAX", 1), mock.patch.object(appends, "BATCH_MIN", batch_min or appends.BATCH_MIN):
        yield


@contextmanager
def _reading_in_runs(run_min: int) -> Iterator[None]:
    """Let short histories be read as long ones are, a few commits at a time."""
    with mock.patch.object(commit_reader, "RUN_MIN", run_min), mock.patch.object(pull, "ASKED_FIRST", 2), mock.patch.object(pull, "ASKED_MAX", 4):
        yield


@contextmanager
def _keeping_logs(world: World) -> Iterator[None]:
    """Take what the production code logs, for the length of a `with` block."""
    keeper, loggers = _Keeper(world), [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(keeper)
        logger.setLevel(keeper.level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(keeper)
            logger.setLevel(level)
            logger.propagate = propagate


def _cancel(process: Process) -> None:
    for task in process.pending():
        task.cancel()
