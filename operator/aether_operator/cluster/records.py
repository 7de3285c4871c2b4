"""Reads documents of the API server into what the operator keeps of them, which is little: ten thousand of them are held.

A spec that cannot be used is kept with its problem, because somebody must be told in a condition; only what has no name at all
fails to parse. Models are compiled while they are read (at most 0.1 s, once for each generation), so no snapshot ever holds a
model of which it is not known whether it is accepted.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, cast

from pydantic import ValidationError

from aether_api.durations import parse_duration_s
from aether_api.errors import InvalidName, ModelInvalid
from aether_api.identity import ActorId, Epoch, PodUid, parse_actor_id
from aether_api.v1alpha1 import ActorModelSpec, ActorPoolSpec
from aether_api.v1alpha1.actor import RECOVERY_TARGET_DEFAULT_S
from aether_api.v1alpha1.meta import ConditionStatus
from aether_api.v1alpha1.words import describe_problem
from aether_kube.documents import JsonObject, integer_at, object_at, objects_at, text_at, texts_at, value_at
from aether_kube.store import ObjectKey
from aether_model.check import check_model
from aether_model.compile import compile_model
from aether_operator.manifests.pool import CONTAINER, POOL_LABEL
from aether_operator.planning.liveness import PodFacts
from aether_operator.planning.rules import NO_RULES, Labels, Preference, Rules, Spread
from aether_operator.planning.snapshot import FINALIZER, ActorView, Cordon, KnownCondition, Placed
from aether_operator.planning.statuses import CORDON_ANNOTATION

SNAPSHOT_EVERY_DEFAULT: Final = 500
"""Events; the default of the CRD, for a resource that was made before it had one."""

HASH_LABEL: Final = "pod-template-hash"
REVISION_ANNOTATION: Final = "deployment.kubernetes.io/revision"
"""How Kubernetes' Deployment controller marks which pods and ReplicaSets belong together, and which are the newest."""

COST_ANNOTATION: Final = "controller.kubernetes.io/pod-deletion-cost"
"""How Kubernetes is told which pods of a ReplicaSet to delete first: those with the lowest number."""

RULES_KEPT: Final = 1024
"""Different rules of actors that share one object each: thousands of actors have few."""

_OURS: Final = frozenset({"Scheduled", "Suspended", "Ready"})


@dataclass(frozen=True, slots=True)
class PodRecord:
    """One runtime pod.

    Attributes:
        revision: hash of the pod template that it was made from.
    """

    key: ObjectKey
    uid: PodUid
    pool: str
    ready: bool
    facts: PodFacts
    revision: str
    labels: Mapping[str, str]
    cordon: Cordon
    deletion_cost: int


@dataclass(frozen=True, slots=True)
class RevisionRecord:
    """One ReplicaSet of a pool: the pods of one pod template.

    Attributes:
        revision: hash of the template, as its pods are labelled.
        number: rises with each rollout, and names the newest of a Deployment's ReplicaSets.
    """

    key: ObjectKey
    pool: str
    revision: str
    number: int


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One ActorModel and what the compiler says of it.

    Attributes:
        problems: one line each, with the path of the field; empty for an accepted model.
        status: as the API server holds it.
        handler: the class of a model in Python, which only runtime pods can look into; empty for one in YAML.
    """

    key: ObjectKey
    uid: str
    generation: int
    problems: tuple[str, ...]
    content_hash: str
    command_count: int
    event_count: int
    status: JsonObject
    handler: str = ""
    resource_version: int = 0


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """One ActorPool; `spec` is None when it cannot be used, and `problems` say why."""

    key: ObjectKey
    uid: str
    generation: int
    deleting: bool
    spec: ActorPoolSpec | None
    problems: tuple[str, ...]
    status: JsonObject
    resource_version: int = 0


@dataclass(frozen=True, slots=True)
class DeploymentRecord:
    """The Deployment of a pool.

    Attributes:
        refusal: why Kubernetes makes no more pods of it, such as a quota; empty while it does.
    """

    key: ObjectKey
    pool: str
    replicas: int
    ready_replicas: int
    document: JsonObject
    refusal: str = ""


def parse_actor(document: JsonObject) -> ActorView:
    """Read an Actor."""
    metadata, spec, status = object_at(document, "metadata"), object_at(document, "spec"), object_at(document, "status")
    key = key_of(document)
    identity, problem = _read_identity(key, spec)
    return ActorView(
        key=key,
        uid=text_at(metadata, "uid"),
        generation=integer_at(metadata, "generation"),
        created=text_at(metadata, "creationTimestamp"),
        resource_version=_version(metadata),
        deleting=bool(text_at(metadata, "deletionTimestamp")),
        held_by_us=FINALIZER in _items(metadata, "finalizers"),
        identity=identity,
        problem=problem,
        model=sys.intern(text_at(spec, "model")),
        pool=sys.intern(text_at(spec, "pool") or "default"),
        rules=_read_rules(spec),
        priority=integer_at(spec, "placement", "priority"),
        suspend=value_at(spec, "suspend") is True,
        purges=text_at(spec, "deletionPolicy") == "Purge",
        snapshot_every=integer_at(spec, "snapshot", "every") if value_at(spec, "snapshot", "every") is not None else SNAPSHOT_EVERY_DEFAULT,
        recovery_target_s=parse_duration_s(text_at(spec, "snapshot", "recoveryTarget"), default_s=RECOVERY_TARGET_DEFAULT_S),
        idle_after_s=parse_duration_s(text_at(spec, "passivation", "idleAfter"), default_s=0.0),
        placement=_read_placement(status),
        reported_epoch=integer_at(status, "reportedEpoch"),
        phase=sys.intern(text_at(status, "phase")),
        conditions=tuple(_read_condition(item) for item in objects_at(status, "conditions") if text_at(item, "type") in _OURS),
        has_others=any(text_at(item, "type") not in _OURS for item in objects_at(status, "conditions")),
    )


def parse_pod(document: JsonObject) -> PodRecord:
    """Read a runtime pod."""
    metadata, status = object_at(document, "metadata"), object_at(document, "status")
    labels = texts_at(metadata, "labels")
    return PodRecord(
        key=key_of(document),
        uid=PodUid(text_at(metadata, "uid")),
        pool=sys.intern(labels.get(POOL_LABEL, "")),
        ready=any(text_at(item, "type") == "Ready" and text_at(item, "status") == "True" for item in objects_at(status, "conditions")),
        facts=_read_facts(metadata, status),
        revision=labels.get(HASH_LABEL, ""),
        labels=labels,
        cordon=_read_cordon(metadata),
        deletion_cost=_read_number(texts_at(metadata, "annotations").get(COST_ANNOTATION, "")),
    )


def parse_replica_set(document: JsonObject) -> RevisionRecord:
    """Read a ReplicaSet of a pool."""
    metadata = object_at(document, "metadata")
    labels, number = texts_at(metadata, "labels"), texts_at(metadata, "annotations").get(REVISION_ANNOTATION, "")
    return RevisionRecord(key_of(document), sys.intern(labels.get(POOL_LABEL, "")), labels.get(HASH_LABEL, ""), _read_number(number))


def parse_model(document: JsonObject) -> ModelRecord:
    """Read an ActorModel and compile it."""
    key, metadata = key_of(document), object_at(document, "metadata")
    content_hash, handler, command_count, event_count = "", "", 0, 0
    problems: tuple[str, ...] = ()
    try:
        spec = ActorModelSpec.model_validate(object_at(document, "spec"))
        command_count, event_count = len(spec.commands), len(spec.events)
        handler = spec.python.handler if spec.python is not None else ""
        problems = tuple(map(str, check_model(spec))) if handler else ()
        content_hash = compile_model(key.name, spec).content_hash if not handler else ""
    except ValidationError as exc:
        problems = describe_invalid(exc)
    except ModelInvalid as exc:
        problems = exc.problems
    return ModelRecord(
        key=key,
        uid=text_at(metadata, "uid"),
        generation=integer_at(metadata, "generation"),
        problems=problems,
        content_hash=content_hash,
        command_count=command_count,
        event_count=event_count,
        status=object_at(document, "status"),
        handler=handler,
    )


def parse_pool(document: JsonObject) -> PoolRecord:
    """Read an ActorPool."""
    key, metadata = key_of(document), object_at(document, "metadata")
    spec: ActorPoolSpec | None = None
    problems: tuple[str, ...] = ()
    try:
        spec = ActorPoolSpec.model_validate(object_at(document, "spec"))
    except ValidationError as exc:
        problems = describe_invalid(exc)
    deleting = bool(text_at(metadata, "deletionTimestamp"))
    return PoolRecord(key, text_at(metadata, "uid"), integer_at(metadata, "generation"), deleting, spec, problems, object_at(document, "status"), _version(metadata))


def parse_deployment(document: JsonObject) -> DeploymentRecord:
    """Read the Deployment of a pool."""
    return DeploymentRecord(
        key=key_of(document),
        pool=texts_at(document, "metadata", "labels").get(POOL_LABEL, ""),
        replicas=integer_at(document, "status", "replicas"),
        ready_replicas=integer_at(document, "status", "readyReplicas"),
        document=document,
        refusal=_read_refusal(document),
    )


def key_of(document: JsonObject) -> ObjectKey:
    """Return namespace and name of a document."""
    return ObjectKey(text_at(document, "metadata", "namespace"), text_at(document, "metadata", "name"))


def describe_invalid(error: ValidationError) -> tuple[str, ...]:
    """Return one line for each field that is wrong, with its path."""
    return tuple(f"spec.{'.'.join(map(str, item['loc']))}: {describe_problem(item)}" for item in error.errors())


def _read_identity(key: ObjectKey, spec: JsonObject) -> tuple[ActorId | None, str]:
    id_ = text_at(spec, "id")
    try:
        return parse_actor_id(key.namespace, text_at(spec, "model"), id_ or key.name), ""
    except InvalidName as exc:
        named_after_resource = not id_ and str(exc).startswith("id ")
        return None, f"metadata.name is its id: {exc}" if named_after_resource else f"spec.{exc}"


def _read_rules(spec: JsonObject) -> Rules:
    placement = object_at(spec, "placement")
    if not placement:
        return NO_RULES
    affinity = object_at(placement, "affinity")
    preferred = tuple(Preference(integer_at(item, "weight") or 1, _read_labels(item)) for item in objects_at(affinity, "preferred"))
    apart = isinstance(value_at(placement, "spread"), dict)
    # A spread without a group is over all actors of the model.
    spread = Spread(text_at(placement, "spread", "group") or text_at(spec, "model"), text_at(placement, "spread", "topologyKey")) if apart else None
    return _share(Rules(_read_labels(object_at(affinity, "required")), preferred, spread))


def _read_labels(selector: JsonObject) -> Labels:
    return tuple(sorted(texts_at(selector, "matchLabels").items()))


@lru_cache(RULES_KEPT)
def _share(rules: Rules) -> Rules:
    """Return the one object for equal rules."""
    return rules


def _read_placement(status: JsonObject) -> Placed | None:
    if not isinstance(value_at(status, "placement"), dict):
        return None
    return Placed(text_at(status, "placement", "pod"), PodUid(text_at(status, "placement", "podUID")), Epoch(integer_at(status, "placement", "epoch")))


def _read_condition(item: JsonObject) -> KnownCondition:
    status = text_at(item, "status")
    return KnownCondition(
        type=sys.intern(text_at(item, "type")),
        status=cast("ConditionStatus", sys.intern(status)) if status in ("True", "False") else "Unknown",
        reason=sys.intern(text_at(item, "reason")),
        message=text_at(item, "message"),
        observed_generation=integer_at(item, "observedGeneration"),
        last_transition_time=text_at(item, "lastTransitionTime"),
    )


def _read_cordon(metadata: JsonObject) -> Cordon:
    """Return what a pod's annotation asks; whoever writes anything but `false` or `drain` means that nobody shall come."""
    value = texts_at(metadata, "annotations").get(CORDON_ANNOTATION, "").strip().lower()
    if value in ("", "false"):
        return ""
    return "drain" if value == "drain" else "true"


def _read_number(text: str) -> int:
    """Return a number that people may have written, 0 for what is none."""
    try:
        return int(text)
    except ValueError:
        return 0


def _read_facts(metadata: JsonObject, status: JsonObject) -> PodFacts:
    deleted = bool(text_at(metadata, "deletionTimestamp"))
    containers = [item for item in objects_at(status, "containerStatuses") if text_at(item, "name") == CONTAINER]
    # A container that has not started yet is no witness of a death.
    down = any(
        value_at(item, "state", "terminated") is not None or (value_at(item, "state", "waiting") is not None and integer_at(item, "restartCount") > 0) for item in containers
    )
    return PodFacts(
        finished=text_at(status, "phase") in ("Succeeded", "Failed"),
        process_down=down,
        grace_s=integer_at(metadata, "deletionGracePeriodSeconds") if deleted else None,
    )


def _read_refusal(deployment: JsonObject) -> str:
    conditions = objects_at(deployment, "status", "conditions")
    return next((text_at(item, "message") for item in conditions if text_at(item, "type") == "ReplicaFailure" and text_at(item, "status") == "True"), "")


def _version(metadata: JsonObject) -> int:
    return int(text_at(metadata, "resourceVersion") or 0)


def _items(document: JsonObject, name: str) -> list[object]:
    value = document.get(name)
    return list(value) if isinstance(value, list) else []
