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
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Final

from aether_api import logs
from aether_api.errors import Busy, ModelInvalid, Reason
from aether_api.identity import ActorId, Epoch, check_actor
from aether_api.messages import Command, Reply
from aether_api.v1alpha1 import ActorModel, ActorPhase
from aether_model.load import take_model
from aether_model.model import Model
from aether_nats.connection import Subscription
from aether_runtime.answers import build_late
from aether_runtime.assignments import Assignments
from aether_runtime.background import Background
from aether_runtime.backlog import Backlog
from aether_runtime.clock import LoopClock
from aether_runtime.command_feeds import CommandFeeds
from aether_runtime.core.restarts import Failures, count_failure, name_error, note_ready
from aether_runtime.departure import Departure
from aether_runtime.followers import Followers
from aether_runtime.held import HeldActors
from aether_runtime.inbox import DurableInbox
from aether_runtime.life import LEAVE_SLACK_S, Life
from aether_runtime.metrics import MetricSources
from aether_runtime.passivation import MESSAGES, Passivation
from aether_runtime.permits import Permit, Permits
from aether_runtime.pod_status import StatusAnswers
from aether_runtime.ports import ActorReport, DesiredActor, ShownStatus
from aether_runtime.presence import Presence, choose_pod
from aether_runtime.registry import VMRegistry
from aether_runtime.replays import Replays
from aether_runtime.reporter import Reporter
from aether_runtime.router import Router
from aether_runtime.runtime_config import RuntimeConfig, RuntimePorts
from aether_runtime.runtime_message import RuntimeMessage, check_home, send_until, take_command
from aether_runtime.single_flight import SingleFlight
from aether_runtime.snapshotter import Snapshotter
from aether_runtime.turn import Turn
from aether_runtime.unshown import UnshownPlacements
from aether_runtime.vm import VirtualMachine
from aether_runtime.vm_world import VmListener, VmServices

logger = logging.getLogger(__name__)

COMMIT_SHARE: Final = 4
"""A commit may use one in so many parts of the server's max_payload, the rest is for headers and growth."""

PROGRESS_S: Final = 0.1
"""Seconds until a new version reaches the reporter: a report for each commit would cost a tenth of a command, and a status waits for a quiet second anyway."""


class Runtime(VmListener):
    """Holds many VMs; `run` is its whole life, `start` and `stop` (or `async with`) are for a program that embeds it, in this event loop alone."""

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
        self._failures: dict[ActorId, Failures] = {}
        self._paused: set[ActorId] = set()
        self._converging = SingleFlight("converge", self._take_next_step, self.spawn)
        self._progressed: dict[ActorId, VirtualMachine] = {}
        self._permits = Permits(config.recovery_permits)
        self._background = Background()
        self._stop_wanted = asyncio.Event()
        self._life = Life()
        self.presence = Presence(ports.connection, config.namespace, config.pool, config.pod, pod_name=config.pod_name, held=lambda: len(self.registry.desired))
        self._reporter = Reporter(ports.sink, budget_per_s=self._status_budget)
        self._assignments = Assignments(ports.connection, config.namespace, config.pod, self.registry, self, spawn=self.spawn)
        self._unshown = UnshownPlacements(ports.source, config.pod.uid, self.registry, self._reporter, self)
        self._held = HeldActors(ports.connection, config.namespace, config.pod, self.registry, self._assignments)
        self.passivation = Passivation(config.sleep, self)
        self.router = Router(ports.connection, ports.source, self)
        self.inbox = None if ports.inbox is None else DurableInbox(ports.connection, ports.inbox, ports.reminders, self)
        self.router.set_vm_provider(self.registry.get)
        self.followers = Followers(ports.connection, ports.heads, self.registry, compare_every_s=config.compare_every_s)
        self.status = StatusAnswers(ports.connection, self)
        self.feeds = CommandFeeds(ports.connection, self.router.on_direct)
        self._services = VmServices(
            events=ports.events,
            snapshotter=Snapshotter(ports.snapshots, self._loop.time),
            writer=str(config.pod),
            now=LoopClock(self._loop).now,
            new_id=_build_ids(),
            spawn=self.spawn,
            may_keep=self._may_keep,
            bytes_max=ports.connection.max_payload // COMMIT_SHARE,
            reminders=ports.reminders,
            turn=Turn(ports.connection.write_queued),
            backlog=Backlog(self.registry.count_backlog, self._loop.time),
        )
        self.metrics = self._build_metric_sources()

    def _build_metric_sources(self) -> MetricSources:
        services, permits = self._services, self._permits
        return MetricSources(
            self.registry,
            services.tally,
            self._reporter,
            services.snapshotter,
            self._ports.connection,
            self._ports.events,
            models=lambda: {"accepted": len(self._models), "refused": len(self._refused)},
            replaying=lambda: {"running": permits.held, "waiting": max(0, len(self._starting) - permits.held)},
            replays=services.replays,
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

    async def start(self) -> None:
        """Run beside the caller; returns when commands can be sent. One runtime starts once.

        Raises:
            PermanentError: it was started before.
            RetryableError: NATS does not answer; nothing is left running.
        """
        await self._life.start(self.run)
        try:
            await self._ports.connection.flush()
        except BaseException:
            await self.stop()
            raise

    async def stop(self, *, timeout_s: float | None = None) -> None:
        """Leave in order: say so, take nothing new, stop every VM with a snapshot; after `timeout_s` what is left is cut short.

        Without `timeout_s` it is the `stop_timeout_s` of the configuration. Harmless to repeat, and before `start`. Raises what the
        runtime failed with, if it did.
        """
        self._ports.connection.check_loop()
        await self._life.stop(self.request_stop, timeout_s=self.config.stop_timeout_s + LEAVE_SLACK_S if timeout_s is None else timeout_s)

    async def stop_if_running(self) -> None:
        """Leave in order, if that has not happened: what `start` or `run` began must not outlive the connection."""
        if not self._life.is_over:
            await self.stop()

    async def __aenter__(self) -> Runtime:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def load_model(self, model: ActorModel | Model) -> None:
        """Register a model, as a resource or ready to run: its actors can start, those that run take it over.

        Raises:
            ModelInvalid: it is no model, does not compile, or cannot be imported here; an older version of it stays in use.
        """
        compiled = take_model(model)
        self._models[compiled.name] = compiled
        self._refused.pop(compiled.name, None)
        self._touch_model(compiled.name)

    async def send_message(self, message: RuntimeMessage) -> Reply:
        """Route a message to the actor's VM, wherever it lives, and return the reply; nothing is stored of what does not fit the model.

        The reply comes within the message's `timeout_s`, for as long as which the message is tried again while its actor moves or is
        busy. Where nobody could tell, the outcome is `Unknown`, and a repeat with the same id tells it.

        Raises:
            InvalidName: the actor is of another namespace than this runtime.
        """
        self._ports.connection.check_loop()
        return await send_until(self._try_message, take_command(message, self.config.namespace), may_go_on=lambda: self.is_running)

    async def _try_message(self, command: Command) -> Reply:
        reply: asyncio.Future[Reply] = self._loop.create_future()
        self.router.serve(command, lambda answer: None if reply.done() else reply.set_result(answer))
        try:
            async with asyncio.timeout(command.timeout_s):
                return await reply
        except TimeoutError:
            return build_late(command.id)

    def get_active_vms(self) -> Mapping[ActorId, VirtualMachine]:
        """Return the VMs of this process by actor, read only."""
        return self.registry.vms

    def create_vm(self, actor: ActorId | DesiredActor) -> VirtualMachine:
        """Hold an actor: return its VM, making one that begins to replay; `is_ready` tells when it has.

        Raises:
            InvalidName: the actor is of another namespace than this runtime.
            ModelInvalid: the actor's model is not there or does not compile.
            Busy: the runtime does not run.
        """
        desired = actor if isinstance(actor, DesiredActor) else DesiredActor(actor)
        check_home(desired.actor, self.config.namespace)
        vm = self.registry.get(desired.actor) or self._make_vm(desired)
        self.registry.want(desired)
        return vm

    async def stop_vm(self, actor: ActorId) -> None:
        """Let an actor go: finish, snapshot, stop. Its events stay."""
        self._ports.connection.check_loop()
        self.registry.unwant(check_actor(actor))
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
        self.status.subscribe()  # for as long as the process lives: also of one that leaves people want to know how it is
        calls, others, releases = self.router.subscribe(), (self._held.subscribe(), *hints), self._assignments.subscribe(self.config.pool)
        async with self._life.lasting(), asyncio.TaskGroup() as tasks:
            self._background.open(tasks)
            self._background.create(self._ports.source.run(self), "source of actors")
            self._background.create(self._reporter.run(), "reporter")
            self._background.create(self._unshown.run(), "placements that are not shown")
            self._background.create(self.presence.run(), "presence")
            self._background.create(self.passivation.run(), "passivation")
            self._background.create(self.followers.run(), "followers")
            if self.inbox is not None:
                self._background.create(self.inbox.run(), "durable commands")
            started()
            try:
                await self._stop_wanted.wait()
            finally:
                await self._leave(calls, others, releases)

    def request_stop(self) -> None:
        """Let `run` end in order."""
        self._stop_wanted.set()

    def spawn(self, work: Coroutine[None, None, None], name: str) -> bool:
        """Run work in the background as long as the runtime lives, and return whether it does; the work's failure is logged."""
        return self._background.spawn(work, name)

    async def _leave(self, calls: Sequence[Subscription], others: Sequence[Subscription], releases: Subscription) -> None:
        """Say that we go, serve until the operator has taken our actors, stop every VM that is left while its steps can still run, then end everything else.

        Releases are answered to the end: a rollout hands over in this way, and the next owner begins when the actor has stopped here.
        """
        self.presence.state = "leaving"
        self.presence.beat()
        for subscription in others:
            subscription.unsubscribe()
        try:
            departure = Departure(self._stop, within_s=self.config.stop_timeout_s, is_connected=lambda: self.is_connected)
            await departure.run(calls, lambda: list(self.registry.vms.values()), has_operator=bool(self._assignments.term))
        finally:
            releases.unsubscribe()
            self._background.close()

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
        if desired.name:
            self._reporter.show(desired.actor, desired.epoch)
        self._adopt(desired)

    def on_assign(self, desired: DesiredActor) -> None:
        """Hold an actor on the operator's word; how it is can be reported once its resource shows the placement."""
        if desired.epoch >= self.registry.known_epoch(desired.actor):
            self._reporter.hold(desired.actor, desired.epoch)
        self._adopt(desired)

    def _adopt(self, desired: DesiredActor) -> None:
        if desired.name and desired.epoch < self.registry.known_epoch(desired.actor):
            return
        if self.registry.desired.get(desired.actor) != desired:
            self.registry.want(desired)
            self._touch(desired.actor)

    def on_release(self, actor: ActorId, epoch: Epoch) -> None:
        """Let an actor go unless it was given to us again at a higher epoch."""
        desired = self.registry.desired.get(actor)
        if desired is None or desired.epoch <= epoch:
            self.registry.note_release(actor, epoch)
        if desired is not None and desired.epoch <= epoch:
            self.registry.unwant(actor)
            self._touch(actor)

    def on_status_shown(self, actor: ActorId, shown: ShownStatus) -> None:
        """Say again how the actor is, if its status tells something else and our last word was earlier."""
        if actor in self.registry.desired:
            self._reporter.see(actor, shown)

    def activate(self, desired: DesiredActor) -> VirtualMachine | None:
        """Hold an actor because somebody needs it now: wake it if it sleeps. Returns its VM, None if there is none yet.

        Whoever asks has looked the actor up, and it may have been released since.
        """
        actor = desired.actor
        if self.registry.is_released(desired):
            return self.registry.get(actor)
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
    def is_leaving(self) -> bool:
        """Whether no actor starts here any more."""
        return self.presence.state == "leaving"

    @property
    def is_running(self) -> bool:
        """Whether work can be started."""
        return self._background.is_open

    def explain_model(self, name: str) -> str:
        """Return why no actor of a model can start; empty while it can, or while nobody can say yet."""
        if name in self._models or not self._synced:
            return ""
        return self._refused.get(name, f"there is no ActorModel {name}; apply it")

    def explain_absence(self, actor: ActorId) -> ActorReport | None:
        """Return why an actor has no VM here; None where it should not have one."""
        desired = self.registry.desired.get(actor)
        return None if desired is None else self._explain_absence(desired)

    @property
    def replays(self) -> Replays:
        """The replays under way."""
        return self._services.replays

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
        self.followers.on_ready(vm)
        if actor in self._failures:
            self._failures[actor] = note_ready(self._failures[actor], self._loop.time())
        self.feeds.close(actor)
        if self.inbox is not None:
            self.inbox.on_ready(vm)
        self.resume(vm)

    def resume(self, vm: VirtualMachine) -> None:
        """Subscribe to the commands of a VM that takes them."""
        if vm.is_ready and self.registry.get(vm.get_actor_id()) is vm:
            self.feeds.open(vm)

    def forget(self, actor: ActorId) -> None:
        """Keep nothing of an actor without a resource that falls asleep; its next call finds it."""
        self.registry.unwant(actor)
        self._failures.pop(actor, None)

    def on_ended(self, vm: VirtualMachine) -> None:
        """A newer owner exists: hold the actor no longer, until a newer placement names us, or without a resource the next call."""
        if vm.desired.name:
            self._fenced[vm.get_actor_id()] = vm.desired.epoch
        else:
            self.registry.unwant(vm.get_actor_id())
        self.drop(vm)

    def on_quarantined(self, vm: VirtualMachine) -> None:
        """Keep it, so that whoever asks is told, but not in the place of another actor."""
        self.passivation.give_back_place(vm)

    def on_stale(self, vm: VirtualMachine) -> None:
        """Start another VM from what the log holds now."""
        self.followers.check_log()
        self.drop(vm)
        self._touch(vm.get_actor_id())

    def on_failed(self, vm: VirtualMachine, error: Exception) -> None:
        """Throw the VM away and start another from the log, later and later."""
        actor = vm.get_actor_id()
        logger.error("a VM failed and is started again", extra={logs.ACTOR_ID: str(actor)}, exc_info=error)
        self.followers.check_log()
        self.drop(vm)
        failures = self._failures[actor] = count_failure(self._failures.get(actor), name_error(error), self._loop.time())
        self._paused.add(actor)
        self._loop.call_later(failures.pause_s, self._end_pause, actor, failures.count)
        if actor in self.registry.desired:
            self.on_report(self._explain_absence(self.registry.desired[actor]))

    def _end_pause(self, actor: ActorId, count: int) -> None:
        """Start an actor whose VM failed, unless another one has failed since."""
        if actor not in self._failures or self._failures[actor].count == count:
            self._restart(actor)

    def _restart(self, actor: ActorId) -> None:
        self._paused.discard(actor)
        self._touch(actor)

    # Convergence.

    def _touch_model(self, name: str) -> None:
        for actor in [actor for actor in self.registry.desired if actor.model == name]:
            self._restart(actor)

    def _touch(self, actor: ActorId) -> None:
        """Look at an actor soon, or once more if somebody is looking at it now."""
        self._converging.begin(actor)

    async def _take_next_step(self, actor: ActorId) -> None:
        desired, vm = self.registry.desired.get(actor), self.registry.get(actor)
        if desired is None:
            if vm is not None:
                await self._stop(vm)
            if actor in self.registry.desired:
                return self._touch(actor)  # it was given back meanwhile, and what is known of its new placement stays
            self._reporter.forget(actor)
            self.passivation.forget(actor)
            self._failures.pop(actor, None)
        elif vm is None:
            if not self.passivation.keeps_asleep(desired):
                self._start_or_explain(desired)
        else:
            await self._adjust(vm, desired)

    def _start_or_explain(self, desired: DesiredActor) -> None:
        if self.is_leaving or self._is_fenced(desired):
            return
        if desired.actor.model in self._models and desired.actor not in self._paused:
            self._make_vm(desired)
        else:
            self.on_report(self._explain_absence(desired))

    def _explain_absence(self, desired: DesiredActor) -> ActorReport:
        """Return why an actor that is desired here has no VM."""
        model = desired.actor.model
        if self._is_fenced(desired):
            reason, message = Reason.FENCED.value, "another owner wrote; it starts here again when a newer placement says so"
        elif desired.actor in self._paused and desired.actor in self._failures:
            reason, message = "Restarting", self._failures[desired.actor].describe()
        elif model in self._models:
            reason, message = "Scheduled", "starts in a moment"
        else:
            reason, message = "ModelNotAccepted" if model in self._refused else "ModelNotFound", self.explain_model(model) or "its ActorModel has not been read yet"
        return ActorReport(desired, ActorPhase.SCHEDULED, None, 0, "", reason, message)

    def _is_fenced(self, desired: DesiredActor) -> bool:
        return bool(desired.epoch) and self._fenced.get(desired.actor) == desired.epoch

    async def _adjust(self, vm: VirtualMachine, desired: DesiredActor) -> None:
        model = self._models.get(desired.actor.model, vm.model)
        if model.fold != vm.model.fold or (vm.is_quarantined and (model.content_hash != vm.model.content_hash or desired != vm.desired)):
            await self._stop(vm, snapshot=False)
            return self._touch(desired.actor)  # which looks anew at what is desired: it may have changed meanwhile
        if model is not vm.model:
            vm.take_model(model)
        if vm.desired != desired:
            vm.take_placement(desired)
            self.passivation.note_idle_time(desired)

    def _make_vm(self, desired: DesiredActor) -> VirtualMachine:
        model = self._models.get(desired.actor.model)
        if model is None:
            raise ModelInvalid(desired.actor.model, (self._refused.get(desired.actor.model, "it does not exist"),))
        if not self.is_running:
            raise Busy("the runtime does not run; start it before it holds actors")
        vm = VirtualMachine(desired, model, self._services, self)
        self.registry.put(vm)
        self.passivation.on_awake(vm)
        self._starting[desired.actor] = self._background.create(self._start(vm), f"start {desired.actor}")
        return vm

    async def _start(self, vm: VirtualMachine) -> None:
        actor = vm.get_actor_id()
        began_s = self._loop.time()
        permit = Permit(self._permits)
        try:
            await permit.take()
            await self.passivation.make_room(vm)
            self.followers.watch(vm)
            await vm.start(permit)
            logger.debug("an actor started", extra={logs.ACTOR_ID: str(actor), logs.VERSION: vm.get_version(), logs.DURATION_S: round(self._loop.time() - began_s, 4)})
        except Exception as exc:
            vm.fail(exc)
        finally:
            permit.give_back()
            if not vm.is_ready:
                self.followers.leave(vm)
            if self._starting.get(actor) is asyncio.current_task():
                del self._starting[actor]

    async def _stop(self, vm: VirtualMachine, *, snapshot: bool = True) -> None:
        actor = vm.get_actor_id()
        starting = self._starting.pop(actor, None)
        if starting is not None:
            starting.cancel()
        try:
            await self.feeds.drain(self.feeds.take(actor))
            await vm.stop(snapshot=snapshot)
        finally:
            self.drop(vm)  # with the subscription that a passivation may have taken up again meanwhile

    def drop(self, vm: VirtualMachine) -> None:
        """Forget a VM, and its subscription unless another VM has taken its place; the dead VM still answers what is on its way."""
        actor = vm.get_actor_id()
        self.followers.leave(vm)
        self.passivation.give_back_place(vm)
        if self.registry.get(actor) is vm:
            self.registry.remove(vm)
            self.passivation.on_gone()
            feed = self.feeds.take(actor)
            if feed is not None:
                self.spawn(self.feeds.drain(feed), f"drain {actor}")

    def _may_keep(self, actor: ActorId) -> bool:
        """Among owners of equal epoch, stay where the placement is, since each has an epoch of its own; without a resource, where rendezvous hashing says.

        An owner without a resource that took its epoch from the log cannot know whether the actor has a resource again: it goes, and whoever
        is asked next looks.
        """
        vm = self.registry.get(actor)
        if vm is not None and (vm.desired.name or vm.desired.epoch):
            return bool(vm.desired.name)
        return choose_pod(actor, self.presence.pods.live()) in (self.config.pod.uid, None)

    def _status_budget(self) -> float:
        return self.config.status_budget_per_s / max(1, len(self.presence.pods.live()))


def _build_ids() -> Callable[[], str]:
    """Return a source of ids that no other process uses: a random beginning and a count (drawing each anew costs ten times as much)."""
    beginning, count = secrets.token_hex(6), itertools.count(1)
    return lambda: f"{beginning}-{next(count):x}"
