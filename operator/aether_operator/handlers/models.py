"""Checks ActorModels: accepted, or not and why, with each problem and its field.

The check is level-based: whoever asks for it (kopf, the informer, the clock), it looks at the model as it is now, and writes
only what differs. The compiler ran when the model was read (`records`).
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Final

from aether_api import logs
from aether_api.errors import KubeConflict, KubeNotFound
from aether_api.v1alpha1.meta import Condition
from aether_kube.apply import differs
from aether_kube.client import KubeClient
from aether_kube.conditions import condition_document, settle_conditions
from aether_kube.documents import JsonObject, object_at, objects_at, text_at
from aether_kube.kinds import ACTOR_MODELS
from aether_kube.kube_events import Involved, KubeEvent, KubeEventRecorder
from aether_kube.store import ObjectKey, resource_version_of
from aether_operator.cluster.echoes import Echoes
from aether_operator.cluster.keyed_queue import KeyedQueue
from aether_operator.cluster.observe import Observer
from aether_operator.cluster.records import ModelRecord
from aether_operator.cluster.statuses import MANAGER

logger = logging.getLogger(__name__)

PROBLEMS_SHOWN: Final = 20
"""Lines of a message: a screen; who has more problems corrects these first."""

WORKERS: Final = 2
"""Models that are written at once: they are few."""

ACCEPTED: Final = "Accepted"
_OWNED: Final = (ACCEPTED,)


class ModelKeeper:
    """Writes the statuses of ActorModels."""

    def __init__(self, client: KubeClient, observer: Observer, recorder: KubeEventRecorder) -> None:
        """Make a keeper; `queue` is to be run."""
        self._client = client
        self._observer = observer
        self._recorder = recorder
        self._echoes = Echoes()
        self.queue: KeyedQueue[ObjectKey] = KeyedQueue("actormodel", self._check, workers=WORKERS)

    async def _check(self, key: ObjectKey) -> None:
        record = self._observer.models.get(key)
        if record is None:
            return
        desired = build_model_status(record, now=datetime.now(UTC))
        if not differs(desired, record.status, owned_conditions=_OWNED) or self._echoes.is_awaited(key, desired, record.resource_version):
            return
        document = ACTOR_MODELS.document(key.namespace, key.name)
        object_at(document, "metadata")["uid"] = record.uid
        document["status"] = desired
        try:
            answer = await self._client.apply(ACTOR_MODELS.path(key.namespace, key.name, "status"), document, field_manager=MANAGER)
        except (KubeNotFound, KubeConflict):
            return
        self._echoes.note(key, desired, resource_version_of(answer))
        logger.info("an ActorModel was checked", extra={logs.NAMESPACE: key.namespace, logs.MODEL: key.name, logs.COUNT: len(record.problems), logs.REASON: _reason(record)})
        if _reason_of(record.status) != _reason(record):
            self._recorder.record(build_kube_event(record))


def build_model_status(record: ModelRecord, *, now: datetime) -> JsonObject:
    """Return the status that an ActorModel shall have."""
    known = [_read_condition(item) for item in objects_at(record.status, "conditions")]
    status = "False" if record.problems else "True"
    accepted = Condition(type=ACCEPTED, status=status, reason=_reason(record), message=_message(record), observed_generation=record.generation)
    return {
        "observedGeneration": record.generation,
        "contentHash": record.content_hash,
        "commands": record.command_count,
        "events": record.event_count,
        "conditions": [condition_document(condition) for condition in settle_conditions([accepted], known, now=now)],
    }


def build_kube_event(record: ModelRecord) -> KubeEvent:
    """Return the Kubernetes Event that tells people of the verdict."""
    involved = Involved(ACTOR_MODELS, record.key.namespace, record.key.name, record.uid)
    return KubeEvent(involved, _reason(record), _message(record), "Check", "Warning" if record.problems else "Normal")


def _message(record: ModelRecord) -> str:
    if not record.problems and record.handler:
        return f"the model is in Python: runtime pods import {record.handler} from their image; one that cannot says so in Ready of its actors"
    if not record.problems:
        return "the model is sound; actors may be placed with it"
    shown = record.problems[:PROBLEMS_SHOWN]
    hidden = len(record.problems) - len(shown)
    return "\n".join([*shown, f"and {hidden} more"] if hidden else shown)


def _reason(record: ModelRecord) -> str:
    return "Invalid" if record.problems else "Accepted"


def _reason_of(status: JsonObject) -> str:
    return next((text_at(item, "reason") for item in objects_at(status, "conditions") if text_at(item, "type") == ACCEPTED), "")


def _read_condition(item: JsonObject) -> Condition:
    return Condition.model_validate(item)
