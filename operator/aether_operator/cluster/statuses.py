"""Writes the operator's part of an Actor's status, by server-side apply, each time whole.

Writes wait by name, so a newer decision takes the place of an older one, and a decision that no longer stands is not written.
Failures come back; what the API server refuses for good (the resource is gone, or its epoch is higher than the cache knew) is
given up, and the next plan decides anew on what the caches then show.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from aether_api import logs
from aether_api.errors import KubeConflict, KubeForbidden, KubeInvalid, KubeNotFound, KubeUnavailable
from aether_api.v1alpha1.meta import Condition
from aether_kube.client import KubeClient
from aether_kube.conditions import condition_document, settle_conditions
from aether_kube.documents import JsonObject, object_at
from aether_kube.kinds import ACTORS
from aether_kube.kube_events import Involved, KubeEvent, KubeEventRecorder
from aether_kube.store import ObjectKey, resource_version_of
from aether_operator.cluster.keyed_queue import KeyedQueue
from aether_operator.cluster.overlay import Overlay
from aether_operator.planning.snapshot import ActorView
from aether_operator.planning.statuses import DesiredCondition, DesiredStatus

logger = logging.getLogger(__name__)

MANAGER: Final = "aether-operator"
"""Field manager of all that the operator applies."""

WRITES_AT_ONCE: Final = 16
"""Status writes under way: two cores of an API server are busy with as many, more only wait longer."""

FORBIDDEN_RETRY_S: Final = 10.0
"""Seconds until a forbidden write is tried again: somebody has to act first."""

_QUIET_REASONS: Final = frozenset({"Suspended", "Deleting"})


class StatusWriter:
    """Decided statuses on their way to the API server."""

    def __init__(self, client: KubeClient, overlay: Overlay, recorder: KubeEventRecorder, replan: Callable[[], None]) -> None:
        """Make a writer; `queue` is to be run.

        Args:
            replan: asked for when a write was given up.
        """
        self._client = client
        self._overlay = overlay
        self._recorder = recorder
        self._replan = replan
        self._pending: dict[ObjectKey, tuple[ActorView, DesiredStatus]] = {}
        self.queue: KeyedQueue[ObjectKey] = KeyedQueue("status", self._write, workers=WRITES_AT_ONCE)

    def submit(self, actor: ActorView, status: DesiredStatus) -> None:
        """Write a status soon, unless another one is decided meanwhile."""
        if self._overlay.is_current(actor.key, status):
            self._pending[actor.key] = (actor, status)
            self.queue.add(actor.key)

    async def _write(self, key: ObjectKey) -> None:
        pending = self._pending.get(key)
        if pending is None:
            return
        actor, status = pending
        if self._overlay.is_current(key, status) and await self._apply(actor, status):
            self._recorder.record(build_kube_event(actor, status))
        if self._pending.get(key) == pending:
            del self._pending[key]

    async def _apply(self, actor: ActorView, status: DesiredStatus) -> bool:
        document = build_status_document(actor, status, now=datetime.now(UTC))
        path = ACTORS.path(actor.key.namespace, actor.key.name, "status")
        try:
            answer = await self._client.apply(path, document, field_manager=MANAGER)
        except (KubeNotFound, KubeConflict, KubeInvalid) as exc:
            self._overlay.drop(actor.key, status)
            if not isinstance(exc, KubeNotFound):
                logger.warning("a status was refused and is decided anew", extra={logs.NAMESPACE: actor.key.namespace, logs.ACTOR_ID: actor.key.name, logs.REASON: str(exc)})
                self._replan()
            return False
        except KubeForbidden as exc:
            # Rights may be given later, and until then the decision stands: the pods know it.
            raise KubeUnavailable(f"may not write statuses: {exc}", retry_after_s=FORBIDDEN_RETRY_S) from exc
        self._overlay.note_written(actor.key, status, resource_version_of(answer))
        return True


def build_status_document(actor: ActorView, status: DesiredStatus, *, now: datetime) -> JsonObject:
    """Return the document to apply; its UID guards against a resource of the same name that was made anew."""
    document = ACTORS.document(actor.key.namespace, actor.key.name)
    object_at(document, "metadata")["uid"] = actor.uid
    known = [Condition(type=item.type, status=item.status, last_transition_time=item.last_transition_time) for item in actor.conditions]
    conditions = settle_conditions([_condition(item, status.generation) for item in status.conditions], known, now=now)
    content: JsonObject = {"phase": status.phase.value, "conditions": [condition_document(condition) for condition in conditions]}
    if status.placement is not None:
        content["placement"] = {"pod": status.placement.pod, "podUID": status.placement.pod_uid, "epoch": int(status.placement.epoch)}
    document["status"] = content
    return document


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
