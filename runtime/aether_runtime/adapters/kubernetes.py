"""Actors from the Kubernetes API, and their status back into it.

A pod watches only the actors that are placed on it, by a field selector on `.status.placement.podUID`, and the models of its
namespace. Status is written by server-side apply with one manager name for all pods, so a new owner takes the fields over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec
from pydantic import ValidationError

from aether_api import logs
from aether_api.control import FirstReport
from aether_api.errors import InvalidEnvelope, InvalidName, KubeConflict, KubeForbidden, KubeNotFound, KubeUnavailable
from aether_api.identity import ActorId, Epoch, PodUid
from aether_api.messages import make_encodable
from aether_api.v1alpha1 import Actor, ActorModel, Condition
from aether_api.v1alpha1.meta import DUPLICATE_IDENTITY, ConditionStatus
from aether_kube.client import KubeClient
from aether_kube.conditions import condition_document, settle_conditions
from aether_kube.documents import JsonObject, JsonValue, objects_at, text_at
from aether_kube.informer import Informer, Selection
from aether_kube.kinds import ACTOR_MODELS, ACTORS
from aether_kube.store import Change
from aether_runtime.adapters.manifests import describe_invalid
from aether_runtime.ports import POD_CONDITIONS, ActorReport, DesiredActor, DesiredListener, Home, ShownStatus, ToldCondition

logger = logging.getLogger(__name__)

MANAGER: Final = "aether-runtime"
"""Field manager of all pods: one name, so that fields move with the actor."""


FORBIDDEN_RETRY_S: Final = 1.0
"""Seconds until a forbidden status is tried again: the operator's writes lag by a few seconds when it moves thousands."""

MESSAGE_MAX: Final = 2_000
"""Characters of a condition's message: some twenty lines for `kubectl describe`, a sixteenth of what the API server takes."""

LOOKUPS_AT_ONCE: Final = 8
"""Look-ups under way: those for the callers of a lost pod's actors come by the hundred, and must not keep reports of who is back waiting."""


class KubernetesSource:
    """Watches the models of a namespace and the actors placed on one pod."""

    def __init__(self, client: KubeClient, namespace: str, pod_uid: PodUid) -> None:
        self._client = client
        self._namespace = namespace
        self._pod_uid = pod_uid
        self._lookups = asyncio.Semaphore(LOOKUPS_AT_ONCE)

    async def run(self, listener: DesiredListener) -> None:
        """Tell the listener of every change until cancelled."""
        models = Informer(self._client, Selection(ACTOR_MODELS, self._namespace), parse=_parse_model, on_change=lambda change: tell_model(listener, change))
        mine = Selection(ACTORS, self._namespace, field_selector=f"status.placement.podUID={self._pod_uid}")
        actors = Informer(self._client, mine, parse=Actor.model_validate, on_change=lambda change: _tell_actor(listener, change))
        async with asyncio.TaskGroup() as informers:
            informers.create_task(models.run(), name="informer of models")
            informers.create_task(actors.run(), name="informer of actors")
            await models.synced.wait()
            listener.on_synced()

    async def find(self, actor: ActorId) -> Home | None:
        """Look the actor's resource up: by its name, which is the id of most actors, and by its spec unless the operator has said that the first is it."""
        async with self._lookups:
            named = await self._read_by_name(actor)
            found = named if named is not None and _is_known_owner(named) else _find_owner([*await self._read_by_spec(actor), *filter(None, [named])])
        if found is None:
            return None
        placement = found.status.placement
        return Home(PodUid(placement.pod_uid if placement else ""), build_desired(found), found.spec.suspend)

    async def _read_by_name(self, actor: ActorId) -> Actor | None:
        try:
            found = Actor.model_validate(await self._client.get(ACTORS.path(actor.namespace, actor.id.lower())))
        except (KubeNotFound, InvalidName, ValidationError):
            return None
        return found if found.identity == actor else None

    async def _read_by_spec(self, actor: ActorId) -> list[Actor]:
        escaped = actor.id.replace("=", "\\=")
        documents = await self._client.list_all(ACTORS.path(actor.namespace), query={"fieldSelector": f"spec.model={actor.model},spec.id={escaped}"})
        return [parsed for document in documents if (parsed := _parse_actor(document)) is not None]


class _Told:
    """What was told last of an actor's conditions, as far as transition times hang on it: of 100,000 actors every word would be 200 MB."""

    __slots__ = ("conditions", "uid")

    def __init__(self) -> None:
        self.uid = ""
        self.conditions: tuple[tuple[str, ConditionStatus, str], ...] = ()

    def find(self, uid: str) -> Iterator[Condition]:
        """Yield the conditions of the resource of this UID."""
        return (Condition(type=type, status=status, last_transition_time=time) for type, status, time in (self.conditions if uid == self.uid else ()))

    def note(self, uid: str, conditions: Iterable[Condition]) -> None:
        """Take note of what was written."""
        self.uid = uid
        self.conditions = tuple((condition.type, condition.status, condition.last_transition_time) for condition in conditions)


class KubernetesSink:
    """Writes reports into `status`, each as the full set of fields of the manager."""

    def __init__(self, client: KubeClient, tell: Callable[[FirstReport], None] | None = None) -> None:
        """Make a sink; `tell` takes first reports to the operator, without it nobody hears of them."""
        self._client = client
        self._tell = tell
        self._told: dict[ActorId, _Told] = {}

    async def write(self, report: ActorReport) -> int:
        """Apply one status and return its resourceVersion; conditions keep their transition times while this pod holds the actor."""
        desired = report.desired
        told, conditions = self._settle(report)
        path, document = ACTORS.path(desired.actor.namespace, desired.name, "status"), build_status_document(report, conditions)
        try:
            written = await self._client.apply(path, document, field_manager=MANAGER)
        except KubeForbidden as exc:
            # The placement may be on its way into the resource still; only the log or a release ends a VM.
            raise KubeUnavailable(f"the status of {desired.name} is not ours to write now: {exc}", retry_after_s=FORBIDDEN_RETRY_S) from exc
        told.note(desired.uid, conditions)
        written = await self._remove_false_conditions(path, written, conditions)
        return int(text_at(written, "metadata", "resourceVersion") or 0)

    def say(self, report: ActorReport) -> None:
        """Tell the operator; what is written later has the same transition times."""
        if self._tell is None:
            return
        told, conditions = self._settle(report)
        told.note(report.desired.uid, conditions)
        try:
            self._tell(build_first_report(report, conditions))
        except InvalidEnvelope as exc:
            logger.debug("a first report is not told", extra={logs.ACTOR_ID: str(report.desired.actor), logs.REASON: str(exc)})

    def _settle(self, report: ActorReport) -> tuple[_Told, tuple[Condition, ...]]:
        told = self._told.setdefault(report.desired.actor, _Told())
        return told, settle_conditions(build_conditions(report), told.find(report.desired.uid), now=datetime.now(UTC))

    def forget(self, actor: ActorId) -> None:
        """Drop what was told of an actor."""
        self._told.pop(actor, None)

    async def _remove_false_conditions(self, path: str, written: JsonObject, true: Iterable[Condition]) -> JsonObject:
        """Remove conditions of ours that somebody else put there, which applying leaves alone, and return the Actor as it is then."""
        shown = objects_at(written, "status", "conditions")
        false = POD_CONDITIONS - {condition.type for condition in true}
        kept: list[JsonValue] = [condition for condition in shown if text_at(condition, "type") not in false]
        if len(kept) == len(shown):
            return written
        revision = text_at(written, "metadata", "resourceVersion")
        try:
            return await self._client.patch_merge(path, {"metadata": {"resourceVersion": revision}, "status": {"conditions": kept}}, field_manager=MANAGER)
        except (KubeConflict, KubeForbidden):
            return written  # somebody wrote meanwhile, so the status is looked at again


def build_desired(actor: Actor) -> DesiredActor:
    """Return what a resource wants of the pod that it is placed on."""
    epoch = actor.status.placement.epoch if actor.status.placement else 0
    metadata, snapshot, passivation = actor.metadata, actor.spec.snapshot, actor.spec.passivation
    return DesiredActor(actor.identity, metadata.name, metadata.uid, Epoch(epoch), metadata.generation, snapshot.every, snapshot.recovery_target_s, passivation.idle_after_s)


def build_shown(actor: Actor) -> ShownStatus:
    """Return what a resource tells of its actor."""
    status = actor.status
    conditions: frozenset[ToldCondition] = frozenset((item.type, item.status, item.reason) for item in status.conditions if item.type in POD_CONDITIONS)
    return ShownStatus(
        int(actor.metadata.resource_version),
        status.phase,
        status.version,
        status.snapshot_version,
        status.reported_epoch,
        status.model_version,
        status.observed_generation,
        conditions,
    )


def build_status_document(report: ActorReport, conditions: tuple[Condition, ...]) -> JsonObject:
    """Return the document that the status apply sends; the UID guards against a resource of the same name made anew."""
    desired = report.desired
    document = ACTORS.document(desired.actor.namespace, desired.name)
    metadata = document["metadata"]
    if desired.uid and isinstance(metadata, dict):
        metadata["uid"] = desired.uid
    version: JsonObject = {} if report.version is None else {"version": report.version}
    document["status"] = {
        "observedGeneration": desired.generation,
        "phase": report.phase.value,
        **version,
        "snapshotVersion": report.snapshot_version,
        "modelVersion": report.model_version,
        "reportedEpoch": int(report.told_epoch),
        "conditions": [condition_document(condition) for condition in conditions],
    }
    return document


def build_first_report(report: ActorReport, conditions: Iterable[Condition]) -> FirstReport:
    """Return what the operator is told of an actor that is well; `InvalidEnvelope` if it is not."""
    status = build_status_document(report, tuple(conditions))["status"]
    try:
        return msgspec.convert({"name": report.desired.name, "uid": report.desired.uid, "status": status}, FirstReport)
    except msgspec.ValidationError as exc:
        raise InvalidEnvelope(f"not a first report: {exc}") from exc


def build_conditions(report: ActorReport) -> tuple[Condition, ...]:
    """Return the conditions that the pod owns."""
    problem, generation = report.snapshot_problem, report.desired.generation
    messages: dict[str, str] = {problem.condition: problem.message} if problem else {}
    return tuple(
        Condition(type=type, status=status, reason=reason, message=_cut(messages.get(type, report.message)), observed_generation=generation)
        for type, status, reason in report.conditions
    )


def _cut(message: str) -> str:
    """Return what the API server takes of a text: some hold what a model's author raised, of any length and any characters."""
    printable = make_encodable(message)
    return printable if len(printable) <= MESSAGE_MAX else f"{printable[: MESSAGE_MAX - 1]}…"


def _parse_model(document: JsonObject) -> ActorModel:
    try:
        return ActorModel.model_validate(document)
    except ValidationError as exc:
        raise ValueError(describe_invalid(exc)) from exc


def _parse_actor(document: JsonObject) -> Actor | None:
    """Read a resource; one that by-passed the API server's checks is nobody's home."""
    try:
        return Actor.model_validate(document)
    except ValidationError as exc:
        logger.warning("a resource cannot be read and is ignored", extra={logs.REASON: describe_invalid(exc)})
        return None


def _find_owner(found: Iterable[Actor]) -> Actor | None:
    """Return which of several resources of one identity has it, as the operator decides: the oldest, then the first by name, of those that are not being deleted.

    One that is being deleted is returned where there is no other, so that its actor does not start without a resource while its events are purged.
    """
    return min(found, key=lambda one: (one.metadata.deletion_timestamp is not None, one.metadata.creation_timestamp, one.metadata.name), default=None)


def _is_known_owner(actor: Actor) -> bool:
    """Tell whether the operator has found that a resource has its identity: it has placed it, or named another reason why not. Spares most actors a list."""
    if actor.metadata.deletion_timestamp is not None:
        return False
    if actor.status.placement is not None and actor.status.placement.pod_uid:
        return True
    return any(condition.type == "Scheduled" and condition.reason != DUPLICATE_IDENTITY for condition in actor.status.conditions)


def tell_model(listener: DesiredListener, change: Change[ActorModel]) -> None:
    """Pass a model on when what it says is new."""
    if change.new is not None:
        if change.old is None or change.old.spec != change.new.spec:  # the operator counts actors in its status, which is no news
            listener.on_model(change.new)
    elif change.old is not None:
        listener.on_model_gone(change.old.metadata.name)


def _tell_actor(listener: DesiredListener, change: Change[Actor]) -> None:
    """Adopt what is placed here; what vanishes from the selection was moved or deleted."""
    try:
        if change.new is not None:
            listener.on_adopt(build_desired(change.new))
            listener.on_status_shown(change.new.identity, build_shown(change.new))
        elif change.old is not None:
            listener.on_release(change.old.identity, build_desired(change.old).epoch)
    except InvalidName as exc:
        logger.warning("an actor with an impossible name is ignored", extra={logs.REASON: str(exc)})
