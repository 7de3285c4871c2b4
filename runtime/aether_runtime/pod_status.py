"""Answers whoever asks how this pod is and what it does for an actor; looking never wakes an actor.

`aether status` asks all pods of a namespace at once; each answers, also one that holds nothing, so that the one who asks knows
when all have. A pod that leaves answers until its end.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

from aether_api import logs
from aether_api.control import ActorView, PodStatus, encode
from aether_api.errors import AetherError
from aether_api.identity import ActorId
from aether_api.subjects import parse_status_subject, status_wildcard
from aether_api.v1alpha1 import ActorPhase
from aether_nats.connection import NatsConnection, Subscription
from aether_nats.message import Message
from aether_runtime.ports import ActorReport
from aether_runtime.vm import VirtualMachine

if TYPE_CHECKING:
    from aether_runtime.runtime import Runtime

logger = logging.getLogger(__name__)

SHOWN_MAX: Final = 200
"""Actors that one answer lists, mostly 100 KB: more than anybody reads, and the counts tell how many there are."""

MESSAGE_MAX: Final = 1_000
"""Characters of what is said of each, so that the answer fits into a message of 1 MB, NATS' default: a model tells all of its problems for each of its actors, or raises with a whole state."""


class StatusAnswers:
    """Tells how one runtime is."""

    def __init__(self, connection: NatsConnection, runtime: Runtime) -> None:
        self._connection = connection
        self._runtime = runtime

    def subscribe(self) -> Subscription:
        """Begin to answer."""
        return self._connection.subscribe(status_wildcard(self._runtime.config.namespace), self._on_question)

    def build(self, actor: ActorId | None) -> PodStatus:
        """Return how the pod is, with what it does for one actor, or else with all actors that something keeps from their work."""
        runtime, config = self._runtime, self._runtime.config
        vms, replays = runtime.registry.vms, runtime.replays
        actors = self._find_hindered() if actor is None else self._find(actor)
        return PodStatus(
            config.pod.uid,
            config.pod.boot_id,
            config.pod_name,
            config.pool,
            runtime.presence.state,
            len({*runtime.presence.pods.live(), config.pod.uid}),
            len(runtime.registry.desired),
            Counter(vm.phase.value for vm in vms.values()),
            replays.to_go,
            round(replays.oldest_s, 3),
            tuple(islice(actors, SHOWN_MAX)),
        )

    def _on_question(self, message: Message) -> None:
        try:
            self._connection.respond(message.raw_reply, encode(self.build(parse_status_subject(message.subject))))
        except AetherError as exc:
            logger.debug("a question for the status could not be answered", extra={logs.REASON: str(exc)})

    def _find_hindered(self) -> Iterator[ActorView]:
        registry = self._runtime.registry
        yield from (self._view_vm(vm) for vm in registry.vms.values() if vm.phase is not ActorPhase.READY)
        yield from (view for actor in registry.desired if actor not in registry.vms and self._runtime.passivation.find(actor) is None for view in self._find(actor))

    def _find(self, actor: ActorId) -> Iterator[ActorView]:
        vm = self._runtime.registry.get(actor)
        if vm is not None:
            yield self._view_vm(vm)
            return
        report = self._runtime.passivation.find_report(actor) or self._runtime.explain_absence(actor)
        if report is not None:
            yield _build_view(report, report.message)

    def _view_vm(self, vm: VirtualMachine) -> ActorView:
        report, message = vm.build_report(), vm.message
        if vm.replaying is not None and vm.phase is ActorPhase.REPLAYING:
            message = vm.replaying.describe()
        return _build_view(report, message, vm.mailbox_depth)


def _build_view(report: ActorReport, message: str, waiting: int = 0) -> ActorView:
    desired = report.desired
    return ActorView(
        f"{desired.actor.model}/{desired.actor.id}",
        desired.name,
        desired.epoch,
        report.phase.value,
        report.version,
        report.snapshot_version,
        report.model_version,
        report.reason,
        message if len(message) <= MESSAGE_MAX else f"{message[: MESSAGE_MAX - 1]}…",
        waiting,
    )
