"""One process of the runtime: brings the VMs that it holds to what is desired of it.

It is level-based. Assignments, the watch, calls for actors on demand and new models only change what is desired; `_converge`
then looks at one actor as it is and takes the next step, as often as needed, one task for an actor at a time. So the order
and the repetition of messages do not matter.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from aether_api import logs
from aether_api.errors import AetherError, Busy, ModelInvalid
from aether_api.identity import ActorId, Epoch, PodIdentity, PoolName
from aether_api.messages import Command, Reply
from aether_api.v1alpha1 import ActorModel, ActorPhase
from aether_model.load import build_model
from aether_model.model import Model
from aether_nats.connection import NatsConnection, Subscription
from aether_runtime.assignments import Assignments
from aether_runtime.command_feeds import CommandFeeds
from aether_runtime.core.group import Now
from aether_runtime.followers import COMPARE_EVERY_S, Followers
from aether_runtime.held import HeldActors
from aether_runtime.inbox import SWEEP_S, DurableInbox
from aether_runtime.metrics import MetricSources
from aether_runtime.passivation import MESSAGES, Passivation, SleepConfig
from aether_runtime.ports import ActorReport, ActorSource, DesiredActor, EventStore, Heads, InboxStore, ReminderStore, ReportSink, SnapshotStore
from aether_runtime.presence import Presence, choose_pod
from aether_runtime.registry import VMRegistry
from aether_runtime.reporter import Reporter
from aether_runtime.router import Router
from aether_runtime.snapshotter import Snapshotter
from aether_runtime.vm import VirtualMachine
from aether_runtime.vm_world import VmListener, VmServices

logger = logging.getLogger(__name__)

COMMIT_SHARE: Final = 4
"""A commit may use one in so many parts of the server's max_payload, the rest is for headers and growth."""

RESTART_MIN_S: Final = 1.0
"""Seconds before a failed VM is started again; doubles with each failure up to `RESTART_MAX_S`."""

RESTART_MAX_S: Final = 30.0
"""Seconds between restarts of a VM that keeps failing: somebody must act, and the log must not drown."""

PROGRESS_S: Final = 0.1
"""Seconds until a new version reaches the reporter: a report for each commit would cost a tenth of a command, and a status waits for a quiet second anyway."""

STOPS_AT_ONCE: Final = 64
"""VMs stopped at once at the end of the process: each writes a snapshot."""


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """What one process needs to know.

    Attributes:
        pod: UID of the pod and boot id of this process.
        recovery_permits: replays under way at once.
        status_budget_per_s: status writes of the whole namespace, shared by its live pods.
        sleep: how many actors stay awake, and for how long.
        inbox_sweep_s: seconds between looks at what waits in the namespace's inboxes.
        compare_every_s: seconds between comparisons of all VMs with the log.
    """

    namespace: str
    pool: PoolName
    pod: PodIdentity
    pod_name: str
    recovery_permits: int = 50
    status_budget_per_s: float = 50.0
    sleep: SleepConfig = field(default_factory=SleepConfig)
    inbox_sweep_s: float = SWEEP_S
    compare_every_s: float = COMPARE_EVERY_S


@dataclass(frozen=True, slots=True)
class RuntimeMessage:
    """A message to one actor, as `send_message` takes it."""

    command: Command


@dataclass(frozen=True, slots=True)
class RuntimePorts:
    """The outside world of one runtime.

    Attributes:
        inbox: None where there are no durable commands, and `reminders` where no command can set one.
        heads: None where VMs need not be compared with the log, since nobody else writes.
    """

    connection: NatsConnection
    events: EventStore
    snapshots: SnapshotStore
    source: ActorSource
    sink: ReportSink
    inbox: InboxStore | None = None
    reminders: ReminderStore | None = None
    heads: Heads | None = None


class Runtime(VmListener):
    """Holds many VMs; `run` is its whole life."""

    def __init__(self, config: RuntimeConfig, ports: RuntimePorts) -> None:
        self.config = config
        self.registry = VMRegistry()
        self._ports = ports
        self._loop = asyncio.get_running_loop()
        self._models: dict[str, Model] = {}
        self._refused: dict[str, str] = {}
        self._synced = False
        self._starting: dict[ActorId, asyncio.Task[None]] = {}
        self._fenced: dict[ActorId, Epoch] = {}
        self._failures: dict[ActorId, int] = {}
        self._converging: dict[ActorId, bool] = {}
        self._progressed: dict[ActorId, VirtualMachine] = {}
        self._permits = asyncio.Semaphore(config.recovery_permits)
        self._tasks: asyncio.TaskGroup | None = None
        self._owned: set[asyncio.Task[None]] = set()
        self._stop_wanted = asyncio.Event()
        self.presence = Presence(ports.connection, config.namespace, config.pool, config.pod, pod_name=config.pod_name, held=lambda: len(self.registry.desired))
        self._reporter = Reporter(ports.sink, budget_per_s=self._status_budget)
        self._assignments = Assignments(ports.connection, config.namespace, config.pod, self.registry, self)
        self._held = HeldActors(ports.connection, config.namespace, config.pod, self.registry, self._assignments)
        self.passivation = Passivation(config.sleep, self)
        self.router = Router(ports.connection, ports.source, self)
        self.inbox = None if ports.inbox is None else DurableInbox(ports.connection, ports.inbox, ports.reminders, self)
        self.router.set_vm_provider(self.registry.get)
        self.followers = Followers(ports.connection, ports.heads, self.registry, compare_every_s=config.compare_every_s)
        self.feeds = CommandFeeds(ports.connection, self.router.on_direct)
        self._services = VmServices(
            events=ports.events,
            snapshotter=Snapshotter(ports.snapshots, self._loop.time),
            writer=str(config.pod),
            now=lambda: Now(time.time(), self._loop.time()),
            new_id=_build_ids(),
            spawn=self.spawn,
            may_keep=self._may_keep,
            bytes_max=ports.connection.max_payload // COMMIT_SHARE,
            reminders=ports.reminders,
        )
        self.metrics = self._build_metric_sources()

    def _build_metric_sources(self) -> MetricSources:
        services, permits = self._services, self.config.recovery_permits
        return MetricSources(
            self.registry,
            services.tally,
            self._reporter,
            services.snapshotter,
            self._ports.connection,
            self._ports.events,
            models=lambda: {"accepted": len(self._models), "refused": len(self._refused)},
            replaying=lambda: {"running": min(len(self._starting), permits), "waiting": max(0, len(self._starting) - permits)},
            subscriptions=lambda: len(self.feeds),
            searching=lambda: self.router.searching,
            sleeps=lambda: {reason: self.passivation.counts[reason] for reason in MESSAGES},
            asleep=lambda: self.passivation.asleep,
            behind=lambda: self.followers.behind,
            live_pods=lambda: len(self.presence.pods.live()),
            durable=lambda: self.inbox.count_done() if self.inbox else {},
            backlog=lambda: self.inbox.count_backlog() if self.inbox else {},
        )

    # What the seed names.

    def load_model(self, model: ActorModel | Model) -> None:
        """Register a model, as a resource or ready to run: its actors can start, those that run take it over.

        Raises:
            ModelInvalid: it does not compile, or cannot be imported here; an older version of it stays in use.
        """
        compiled = build_model(model.metadata.name, model.spec) if isinstance(model, ActorModel) else model
        self._models[compiled.name] = compiled
        self._refused.pop(compiled.name, None)
        self._touch_model(compiled.name)

    async def send_message(self, message: RuntimeMessage) -> Reply:
        """Route a message to the actor's VM, wherever it lives, and return the reply."""
        reply: asyncio.Future[Reply] = self._loop.create_future()
        self.router.serve(message.command, lambda answer: None if reply.done() else reply.set_result(answer))
        return await reply

    def get_active_vms(self) -> Mapping[ActorId, VirtualMachine]:
        """Return the VMs of this process by actor, read only."""
        return self.registry.vms

    def create_vm(self, desired: DesiredActor) -> VirtualMachine:
        """Hold an actor: return its VM, making one that begins to replay.

        Raises:
            ModelInvalid: the actor's model is not there or does not compile.
        """
        self.registry.want(desired)
        vm = self.registry.get(desired.actor)
        if vm is None:
            vm = self._make_vm(desired)
        return vm

    async def stop_vm(self, actor: ActorId) -> None:
        """Let an actor go: finish, snapshot, stop. Its events stay."""
        self.registry.unwant(actor)
        vm = self.registry.get(actor)
        if vm is not None:
            await self._stop(vm)
        self._touch(actor)  # it may have been given to us again meanwhile

    # Life.

    async def run(self, *, started: Callable[[], None] = lambda: None) -> None:
        """Serve until `request_stop` or cancellation, then leave in order.

        Args:
            started: called when all subscriptions are in place.
        """
        hints = () if self.inbox is None else self.inbox.subscribe()
        subscriptions = (*self.router.subscribe(), self._assignments.subscribe(self.config.pool), self._held.subscribe(), *hints)
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._create_task(self._ports.source.run(self), "source of actors")
            self._create_task(self._reporter.run(), "reporter")
            self._create_task(self.presence.run(), "presence")
            self._create_task(self.passivation.run(), "passivation")
            self._create_task(self.followers.run(), "followers")
            if self.inbox is not None:
                self._create_task(self.inbox.run(), "durable commands")
            started()
            try:
                await self._stop_wanted.wait()
            finally:
                await self._leave(subscriptions)

    def request_stop(self) -> None:
        """Let `run` end in order."""
        self._stop_wanted.set()

    def spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        """Run work in the background as long as the runtime lives; its failure is logged."""
        if self._tasks is None:
            work.close()
        else:
            self._create_task(_supervise(work, name), name)

    def _create_task(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        if self._tasks is None:
            work.close()
            raise Busy("the runtime is stopping")
        task = self._tasks.create_task(work, name=name)
        self._owned.add(task)
        task.add_done_callback(self._owned.discard)
        return task

    async def _leave(self, subscriptions: Sequence[Subscription]) -> None:
        """Say that we go, take nothing new, stop every VM while its steps can still run, then end everything else."""
        self.presence.state = "leaving"
        self.presence.beat()
        for subscription in subscriptions:
            subscription.unsubscribe()
        await self._stop_all()
        self._tasks = None
        for task in list(self._owned):
            task.cancel()

    # What the source and the operator say.

    def on_model(self, model: ActorModel) -> None:
        """Take a model; one that does not compile is remembered with its reason."""
        try:
            self.load_model(model)
        except ModelInvalid as exc:
            logger.warning("a model does not compile", extra={logs.MODEL: model.metadata.name, logs.REASON: str(exc)})
            self._refused[model.metadata.name] = str(exc)
            self._touch_model(model.metadata.name)

    def on_model_gone(self, name: str) -> None:
        """Forget a model; VMs that run go on with it, none starts."""
        self._models.pop(name, None)
        self._refused.pop(name, None)

    def on_synced(self) -> None:
        """From now on a model that is not known does not exist."""
        self._synced = True

    def on_adopt(self, desired: DesiredActor) -> None:
        """Hold an actor; an older placement than a known one is ignored. Without a resource there is no placement, whatever was before."""
        if desired.name and desired.epoch < self.registry.known_epoch(desired.actor):
            return
        if self.registry.desired.get(desired.actor) != desired:
            self.registry.want(desired)
            self._touch(desired.actor)

    def on_release(self, actor: ActorId, epoch: Epoch) -> None:
        """Let an actor go unless it was given to us again at a higher epoch."""
        desired = self.registry.desired.get(actor)
        if desired is not None and desired.epoch <= epoch:
            self.registry.unwant(actor)
            self._touch(actor)

    def on_status_overwritten(self, actor: ActorId, revision: int) -> None:
        """Say again how the actor is, if our last word was earlier."""
        if actor in self.registry.desired:
            self._reporter.repeat(actor, revision)

    def activate(self, desired: DesiredActor) -> VirtualMachine | None:
        """Hold an actor because somebody needs it now: wake it if it sleeps. Returns its VM, None if there is none yet."""
        actor = desired.actor
        self.passivation.forget(actor)
        if not self.is_running or actor in self._converging or self.registry.get(actor) is not None:
            self.on_adopt(desired)
        elif not desired.name or desired.epoch >= self.registry.known_epoch(actor):
            self.registry.want(desired)
            self._start_or_explain(desired)
        return self.registry.get(actor)

    @property
    def is_connected(self) -> bool:
        """Whether the link to NATS is up."""
        return self._ports.connection.is_connected

    @property
    def is_running(self) -> bool:
        """Whether work can be started."""
        return self._tasks is not None

    def explain_model(self, name: str) -> str:
        """Return why no actor of a model can start; empty while it can, or while nobody can say yet."""
        if name in self._models or not self._synced:
            return ""
        return self._refused.get(name, f"there is no ActorModel {name}; apply it")

    def find_model(self, name: str) -> Model | None:
        """Return a model that compiled."""
        return self._models.get(name)

    # What VMs say.

    def on_report(self, report: ActorReport) -> None:
        """Pass a report on, if the actor has a resource and is still ours."""
        if report.desired.name and report.desired.actor in self.registry.desired:
            self._reporter.report(report)

    def on_progress(self, vm: VirtualMachine) -> None:
        """Note that the actor's version moved; it is reported in a moment, with all others that moved meanwhile."""
        if not vm.desired.name:
            return
        if not self._progressed:
            self._loop.call_later(PROGRESS_S, self._report_progress)
        self._progressed[vm.desired.actor] = vm

    def _report_progress(self) -> None:
        progressed, self._progressed = self._progressed, {}
        for actor, vm in progressed.items():
            if self.registry.get(actor) is vm:
                self.on_report(vm.build_report())

    def on_ready(self, vm: VirtualMachine) -> None:
        """Take the actor's commands directly from now on."""
        actor = vm.get_actor_id()
        if vm.took_over:
            self.followers.follow(vm)
        self._failures.pop(actor, None)
        self.feeds.close(actor)
        if self.inbox is not None:
            self.inbox.on_ready(vm)
        self.resume(vm)

    def resume(self, vm: VirtualMachine) -> None:
        """Subscribe to the commands of a VM that takes them."""
        if vm.is_ready and self.registry.get(vm.get_actor_id()) is vm:
            self.feeds.open(vm)

    def on_ended(self, vm: VirtualMachine) -> None:
        """A newer owner exists: hold the actor no longer, until a newer placement names us, or without a resource the next call."""
        self._fenced[vm.get_actor_id()] = vm.desired.epoch
        if not vm.desired.name:
            self.registry.unwant(vm.get_actor_id())
        self._drop(vm)

    def on_stale(self, vm: VirtualMachine) -> None:
        """Start another VM from what the log holds now."""
        self._drop(vm)
        self._touch(vm.get_actor_id())

    def on_failed(self, vm: VirtualMachine, error: Exception) -> None:
        """Throw the VM away and start another from the log, later and later."""
        actor = vm.get_actor_id()
        logger.error("a VM failed and is started again", extra={logs.ACTOR_ID: str(actor)}, exc_info=error)
        self._drop(vm)
        failures = self._failures[actor] = self._failures.get(actor, 0) + 1
        self._loop.call_later(min(RESTART_MIN_S * 2 ** (failures - 1), RESTART_MAX_S), self._touch, actor)

    # Convergence.

    def _touch_model(self, name: str) -> None:
        for actor in [actor for actor in self.registry.desired if actor.model == name]:
            self._touch(actor)

    def _touch(self, actor: ActorId) -> None:
        """Look at an actor soon, or once more if somebody is looking at it now."""
        if actor in self._converging:
            self._converging[actor] = True
            return
        self._converging[actor] = False
        self.spawn(self._converge(actor), f"converge {actor}")

    async def _converge(self, actor: ActorId) -> None:
        try:
            while True:
                self._converging[actor] = False
                await self._take_next_step(actor)
                if not self._converging[actor]:
                    return
        finally:
            del self._converging[actor]

    async def _take_next_step(self, actor: ActorId) -> None:
        desired, vm = self.registry.desired.get(actor), self.registry.get(actor)
        if desired is None:
            if vm is not None:
                await self._stop(vm)
            self._reporter.forget(actor)
            self.passivation.forget(actor)
        elif vm is None:
            if not self.passivation.keeps_asleep(desired):
                self._start_or_explain(desired)
        else:
            await self._adjust(vm, desired)

    def _start_or_explain(self, desired: DesiredActor) -> None:
        if self.presence.state == "leaving" or (self._fenced.get(desired.actor) == desired.epoch and desired.epoch):
            return
        if desired.actor.model in self._models:
            self._make_vm(desired)
            return
        reason = "ModelNotAccepted" if desired.actor.model in self._refused else "ModelNotFound"
        self.on_report(ActorReport(desired, ActorPhase.SCHEDULED, 0, 0, "", reason, self.explain_model(desired.actor.model)))

    async def _adjust(self, vm: VirtualMachine, desired: DesiredActor) -> None:
        model = self._models.get(desired.actor.model, vm.model)
        if model.fold != vm.model.fold:
            await self._stop(vm, snapshot=False)
            self._make_vm(desired)
            return
        if model is not vm.model:
            vm.take_model(model)
        if vm.desired != desired:
            vm.take_placement(desired)

    def _make_vm(self, desired: DesiredActor) -> VirtualMachine:
        model = self._models.get(desired.actor.model)
        if model is None:
            raise ModelInvalid(desired.actor.model, (self._refused.get(desired.actor.model, "it does not exist"),))
        vm = VirtualMachine(desired, model, self._services, self)
        self.registry.put(vm)
        self.passivation.on_awake(vm)
        self._starting[desired.actor] = self._create_task(self._start(vm), f"start {desired.actor}")
        return vm

    async def _start(self, vm: VirtualMachine) -> None:
        actor = vm.get_actor_id()
        began_s = self._loop.time()
        try:
            async with self._permits:
                await self.passivation.make_room()
                await vm.start()
            logger.debug("an actor started", extra={logs.ACTOR_ID: str(actor), logs.VERSION: vm.get_version(), logs.DURATION_S: round(self._loop.time() - began_s, 4)})
        except Exception as exc:
            self.on_failed(vm, exc)
        finally:
            if self._starting.get(actor) is asyncio.current_task():
                del self._starting[actor]

    async def _stop(self, vm: VirtualMachine, *, snapshot: bool = True) -> None:
        actor = vm.get_actor_id()
        starting = self._starting.pop(actor, None)
        if starting is not None:
            starting.cancel()
        try:
            await self.feeds.drain(actor)
            await vm.stop(snapshot=snapshot)
        finally:
            self.registry.remove(vm)
            self.passivation.on_gone()

    async def _stop_all(self) -> None:
        """Stop every VM, many at once; what is cut short is only a snapshot."""
        slots = asyncio.Semaphore(STOPS_AT_ONCE)

        async def stop(vm: VirtualMachine) -> None:
            async with slots:
                await _supervise(self._stop(vm), f"stop {vm.get_actor_id()}")

        async with asyncio.TaskGroup() as stops:
            for vm in list(self.registry.vms.values()):
                stops.create_task(stop(vm), name=f"stop {vm.get_actor_id()}")

    def _drop(self, vm: VirtualMachine) -> None:
        """Forget a VM, and its subscription unless another VM has taken its place."""
        if self.registry.get(vm.get_actor_id()) is vm:
            self.registry.remove(vm)
            self.passivation.on_gone()
            self.feeds.close(vm.get_actor_id())

    def _may_keep(self, actor: ActorId) -> bool:
        """Among owners of equal epoch, the pod that rendezvous hashing names stays."""
        return choose_pod(actor, self.presence.pods.live()) in (self.config.pod.uid, None)

    def _status_budget(self) -> float:
        return self.config.status_budget_per_s / max(1, len(self.presence.pods.live()))


def _build_ids() -> Callable[[], str]:
    """Return a source of ids that no other process uses: a random beginning and a count (drawing each anew costs ten times as much)."""
    beginning, count = secrets.token_hex(6), itertools.count(1)
    return lambda: f"{beginning}-{next(count):x}"


async def _supervise(work: Coroutine[None, None, None], name: str) -> None:
    """Run background work to its end; what it raises harms nothing else."""
    try:
        await work
    except AetherError as exc:
        logger.warning("background work failed", extra={logs.NAME: name, logs.REASON: str(exc)})
    except Exception:
        logger.exception("background work met something that must not happen", extra={logs.NAME: name})
