"""Writes the operator's part of an Actor's status, by server-side apply, each time whole.

The pods are told first, so a new owner may have reported before the placement is written, and its report must survive. Every
write therefore names the resourceVersion that it was built on; where that is no longer the newest, the Actor is read and the
write built anew: with the phase and `Ready=Unknown` while the owner is silent, without them once it has spoken for this epoch.

The first status of an Actor waits a moment for what the pod says of it over NATS, and is written with that in one go: of two writes of 5 ms for
each new actor, one is saved, and with it half of what ten thousand new ones cost the API server.

Writes wait by name, so a newer decision takes the place of an older one, and a decision that no longer stands is not written.
Failures come back. What the API server refuses for good comes back, too, after a growing wait: the pods were told, so the decision stands,
and decided anew at once it would be refused as often as plans can be made. It is given up, and the next plan decides anew, only once the
cache shows a placement that it cannot follow any more. A resource that is gone is none of that: the decision stands until the cache shows
the deletion, since only by it the pod that was told to adopt is known, and told to release.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import msgspec

from aether_api import logs
from aether_api.control import FirstReport
from aether_api.errors import KubeConflict, KubeForbidden, KubeInvalid, KubeNotFound, KubeUnavailable
from aether_api.identity import PodUid
from aether_api.v1alpha1.meta import Condition
from aether_kube.backoff import Backoff
from aether_kube.client import KubeClient
from aether_kube.conditions import condition_document, settle_conditions
from aether_kube.documents import JsonObject, object_at, objects_at, text_at
from aether_kube.kinds import ACTORS
from aether_kube.kube_events import Involved, KubeEvent, KubeEventRecorder
from aether_kube.store import ObjectKey, resource_version_of
from aether_operator.cluster.keyed_queue import KeyedQueue
from aether_operator.cluster.overlay import Overlay
from aether_operator.cluster.records import parse_actor
from aether_operator.planning.snapshot import ActorView, Placed
from aether_operator.planning.statuses import READY, DesiredCondition, DesiredStatus

logger = logging.getLogger(__name__)

MANAGER: Final = "aether-operator"
"""Field manager of all that the operator applies."""

WRITES_AT_ONCE: Final = 16
"""Status writes under way: two cores of an API server are busy with as many, more only wait longer."""

REBUILDS_MAX: Final = 4
"""Times that one write is built before it waits: two pods that report at once make two, more is a storm."""

FORBIDDEN_RETRY_S: Final = 10.0
"""Seconds until a forbidden write is tried again: somebody has to act first."""

REFUSED_RETRY: Final = Backoff(first_s=1.0, max_s=180.0)
"""From a cache that is behind to a resource that breaks the rules of its CRD, which only a person mends: 10,000 of them cost 60 writes a second."""

REPORT_WAIT_S: Final = 0.1
"""Seconds for which the first status of an Actor waits for what its pod says of it: a short history is replayed in a tenth of that, and nobody sees the rest."""

_QUIET_REASONS: Final = frozenset({"Suspended", "Deleting"})


class StatusWriter:
    """Decided statuses on their way to the API server."""

    def __init__(
        self,
        client: KubeClient,
        overlay: Overlay,
        recorder: KubeEventRecorder,
        *,
        find: Callable[[ObjectKey], ActorView | None],
        replan: Callable[[], None],
        refused_retry: Backoff = REFUSED_RETRY,
    ) -> None:
        """Make a writer; `queue` is to be run.

        Args:
            find: returns an Actor as the cache shows it, without decisions laid over it.
            replan: asked for when a write was given up.
            refused_retry: how long a write waits that was refused for good.
        """
        self._client = client
        self._find = find
        self._overlay = overlay
        self._recorder = recorder
        self._replan = replan
        self._refused_retry = refused_retry
        self._refusals: dict[ObjectKey, int] = {}
        self._pending: dict[ObjectKey, tuple[ActorView, DesiredStatus]] = {}
        self.queue: KeyedQueue[ObjectKey] = KeyedQueue("status", self._write, workers=WRITES_AT_ONCE)

    def submit(self, actor: ActorView, status: DesiredStatus) -> None:
        """Write a status soon, unless another one is decided meanwhile; that of a new actor, once its pod has said how it is, or a moment later."""
        if not self._overlay.is_current(actor.key, status):
            return
        self._pending[actor.key] = (actor, status)
        if is_first(actor, status) and self._overlay.find_report(actor.key, status) is None:
            self.queue.add_later(actor.key, REPORT_WAIT_S)
        else:
            self.queue.add(actor.key)

    def hear(self, key: ObjectKey, pod_uid: PodUid, report: FirstReport) -> None:
        """Take what a pod says of an actor that is new to it, to be written with its placement; what comes too late or from elsewhere is left to the pods."""
        if self._overlay.hear(key, pod_uid, report) and key in self._pending:
            self.queue.add(key)

    async def _write(self, key: ObjectKey) -> None:
        pending = self._pending.get(key)
        if pending is None:
            return
        actor, status = pending
        if self._overlay.is_current(key, status) and await self._apply(actor, status):
            self._recorder.record(build_kube_event(actor, status))
        self._refusals.pop(key, None)
        if self._pending.get(key) == pending:
            del self._pending[key]

    async def _apply(self, actor: ActorView, status: DesiredStatus) -> bool:
        """Write one status and return whether it stands now; a retryable failure is the queue's."""
        latest = self._find(actor.key) or actor
        for _ in range(REBUILDS_MAX):
            if latest.uid != actor.uid:
                raise _build_gone(actor)
            try:
                return await self._apply_once(latest, status)
            except KubeConflict:
                latest = await self._read(actor)
        raise KubeUnavailable("the Actor changes faster than its status can be written")

    async def _apply_once(self, actor: ActorView, status: DesiredStatus) -> bool:
        path = ACTORS.path(actor.key.namespace, actor.key.name, "status")
        report = self._overlay.find_report(actor.key, status) if is_first(actor, status) else None
        try:
            answer = await self._write_first(path, actor, status, report) if report is not None else None
            if answer is None:
                answer = await self._client.apply(path, build_status_document(actor, status, now=datetime.now(UTC)), field_manager=MANAGER)
        except KubeNotFound as exc:
            raise _build_gone(actor) from exc
        except KubeInvalid as exc:
            self._take_refusal(actor, status, exc)
            return False
        except KubeForbidden as exc:
            # Rights may be given later, and until then the decision stands: the pods know it.
            raise KubeUnavailable(f"may not write statuses: {exc}", retry_after_s=FORBIDDEN_RETRY_S) from exc
        self._overlay.note_written(actor.key, status, resource_version_of(answer))
        return True

    async def _write_first(self, path: str, actor: ActorView, status: DesiredStatus, report: FirstReport) -> JsonObject | None:
        """Write placement and report at once and return the Actor; None if that is refused, and then the placement is written alone."""
        document = build_first_document(actor, status, report, now=datetime.now(UTC))
        try:
            return await self._client.patch_merge(path, document, field_manager=MANAGER)
        except KubeInvalid as exc:
            logger.warning("a first report was refused and is left to its pod", extra={logs.NAMESPACE: actor.key.namespace, logs.ACTOR_ID: actor.key.name, logs.REASON: str(exc)})
            self._overlay.forget_report(actor.key, status)
            return None

    def _take_refusal(self, actor: ActorView, status: DesiredStatus, exc: KubeInvalid) -> None:
        """Give a decision up that another one has overtaken.

        Raises:
            KubeUnavailable: it still stands, and is tried again after a wait that grows with each refusal.
        """
        key, seen = actor.key, self._find(actor.key)
        told = {logs.NAMESPACE: key.namespace, logs.ACTOR_ID: key.name, logs.REASON: str(exc)}
        if seen is not None and is_overtaken(status, seen.placement):
            self._overlay.drop(key, status)
            logger.warning("a status was refused and is decided anew", extra=told)
            self._replan()
            return
        refusals = self._refusals[key] = self._refusals.get(key, 0) + 1
        wait_s = self._refused_retry.delay_s(refusals, random.random())
        logger.warning("a status was refused and is tried again later", extra={**told, logs.COUNT: refusals})
        raise KubeUnavailable(f"the status was refused: {exc}", retry_after_s=wait_s) from exc

    async def _read(self, actor: ActorView) -> ActorView:
        """Return the Actor as it is now; one that is gone has no UID."""
        try:
            return parse_actor(await self._client.get(ACTORS.path(actor.key.namespace, actor.key.name)))
        except KubeNotFound:
            return replace(actor, uid="")


def build_status_document(actor: ActorView, status: DesiredStatus, *, now: datetime) -> JsonObject:
    """Return the document to apply to the Actor as it was last seen.

    Its UID guards against a resource of the same name that was made anew, its resourceVersion against a report in between.
    """
    document = ACTORS.document(actor.key.namespace, actor.key.name)
    object_at(document, "metadata").update({"uid": actor.uid, "resourceVersion": str(actor.resource_version)})
    spoken = has_spoken(actor, status)
    wanted = [item for item in status.conditions if not (spoken and item.type == READY)]
    known = [Condition(type=item.type, status=item.status, last_transition_time=item.last_transition_time) for item in actor.conditions]
    conditions = settle_conditions([_condition(item, status.generation) for item in wanted], known, now=now)
    content: JsonObject = {"conditions": [condition_document(condition) for condition in conditions]}
    if not spoken:
        content["phase"] = status.phase.value
    if status.placement is not None:
        content["placement"] = {"pod": status.placement.pod, "podUID": status.placement.pod_uid, "epoch": int(status.placement.epoch)}
    document["status"] = content
    return document


def build_first_document(actor: ActorView, status: DesiredStatus, report: FirstReport, *, now: datetime) -> JsonObject:
    """Return the document that writes the first status of an Actor whole, as a merge patch.

    It is no apply, since what an apply leaves out of what it once set is removed: the pod's fields would go with the operator's next one. A merge patch
    replaces the conditions, so there must be none of others.
    """
    document = build_status_document(actor, status, now=now)
    scheduled = [item for item in objects_at(document, "status", "conditions") if text_at(item, "type") != READY]
    told: JsonObject = msgspec.to_builtins(report.status)
    placement = object_at(document, "status", "placement")
    document["status"] = {**told, "placement": placement, "conditions": [*scheduled, *map(msgspec.to_builtins, report.status.conditions)]}
    return document


def is_first(actor: ActorView, status: DesiredStatus) -> bool:
    """Return whether a status is the first one of an Actor, of which nobody else said anything yet, and gives it to a pod."""
    return actor.placement is None and not actor.reported_epoch and not actor.has_others and status.placement is not None and status.placement.is_somewhere


def _build_gone(actor: ActorView) -> KubeUnavailable:
    return KubeUnavailable(f"{actor.key.namespace}/{actor.key.name} of UID {actor.uid} is gone, which does not show yet")


def is_overtaken(status: DesiredStatus, seen: Placed | None) -> bool:
    """Return whether a placement that is seen keeps this status from ever being taken: its epoch is no lower, and it is another one."""
    return seen is not None and seen != status.placement and (status.placement is None or seen.epoch >= status.placement.epoch)


def has_spoken(actor: ActorView, status: DesiredStatus) -> bool:
    """Return whether the new owner reported for its epoch already, so that phase and Ready are its own."""
    return status.placement is not None and status.placement.is_somewhere and actor.reported_epoch >= status.placement.epoch


def build_kube_event(actor: ActorView, status: DesiredStatus) -> KubeEvent:
    """Return the Kubernetes Event that tells people of the change."""
    involved = Involved(ACTORS, actor.key.namespace, actor.key.name, actor.uid)
    placed = status.placement is not None and status.placement.is_somewhere
    told = next(condition for condition in status.conditions if condition.type == ("Ready" if placed else "Scheduled"))
    if placed:
        return KubeEvent(involved, told.reason, told.message, "Place", "Warning" if told.reason == "PodLost" else "Normal")
    return KubeEvent(involved, told.reason, told.message, "Unplace", "Normal" if told.reason in _QUIET_REASONS else "Warning")


def _condition(item: DesiredCondition, generation: int) -> Condition:
    return Condition(type=item.type, status=item.status, reason=item.reason, message=item.message, observed_generation=generation)
