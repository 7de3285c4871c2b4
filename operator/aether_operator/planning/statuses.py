"""Decides what the operator's part of an Actor's status says, and finds the words for it.

The operator owns the placement and the condition Scheduled always; the phase, `Ready=Unknown` and Suspended only while no pod
speaks for the actor. A status is applied only together with a change of placement, or while the actor has no pod: written again
over an unchanged placement it would take the phase away from the pod that reports it.

Messages say what to do next and hold no moving numbers, so an unchanged situation is never written twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import msgspec

from aether_api.v1alpha1 import ActorPhase
from aether_api.v1alpha1.meta import DUPLICATE_IDENTITY, GROUP, ConditionStatus
from aether_kube.store import ObjectKey
from aether_operator.planning.rules import Labels
from aether_operator.planning.snapshot import FINALIZER, ActorView, KnownCondition, Placed

CORDON_ANNOTATION: Final = f"{GROUP}/cordon"
"""On a runtime pod: `true` keeps new actors away, `drain` also moves those away that are there."""

SCHEDULED: Final = "Scheduled"
READY: Final = "Ready"
SUSPENDED: Final = "Suspended"

Cause = Literal["Scheduled", "Moving", "PodLost", "PoolChanged", "PlacementChanged", "Rebalanced", "EpochRaised", "StatusRepaired", "Unscheduled"]
"""Why a placement changes: a first or new place, a pod that leaves, a pod that is gone, another pool, a pod that lacks a required
label, a pod that holds more than others, a higher epoch in the log, a status that others damaged, or no place any more."""

HAND_OVERS: Final[frozenset[Cause]] = frozenset({"Moving", "PoolChanged", "PlacementChanged", "Rebalanced"})
"""Moves away from a pod that lives: until another one has room, the actor stays."""

UnplacedReason = Literal[
    "InvalidSpec",
    "DuplicateIdentity",
    "FinalizerNotSet",
    "ModelNotFound",
    "ModelNotAccepted",
    "PoolNotFound",
    "NoReadyPods",
    "PodsCordoned",
    "NoMatchingPods",
    "NoCapacity",
    "Suspended",
    "Deleting",
]


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why an actor has no pod, and what to do about it."""

    reason: UnplacedReason
    message: str


@dataclass(frozen=True, slots=True)
class DesiredCondition:
    """A condition to be written."""

    type: str
    status: ConditionStatus
    reason: str
    message: str


class DesiredStatus(msgspec.Struct, frozen=True):
    """The operator's part of a status, whole: what is not in here is given up.

    Attributes:
        placement: None only before the first placement.
        generation: of the spec that it speaks of.
    """

    placement: Placed | None
    phase: ActorPhase
    generation: int
    conditions: tuple[DesiredCondition, ...]


def build_placed_status(actor: ActorView, placement: Placed, cause: Cause) -> DesiredStatus:
    """Return the status of an actor that just got its pod."""
    return join_placed_status(actor, placement, build_placed_conditions(actor, placement, cause))


def join_placed_status(actor: ActorView, placement: Placed, conditions: tuple[DesiredCondition, ...]) -> DesiredStatus:
    """Return the same, of conditions that were built before."""
    return DesiredStatus(placement, ActorPhase.MOVING if actor.home is not None else ActorPhase.SCHEDULED, actor.generation, conditions)


def build_placed_conditions(actor: ActorView, placement: Placed, cause: Cause) -> tuple[DesiredCondition, ...]:
    """Return the conditions of an actor that just got its pod; they are the same for all that go the same way."""
    ready = {
        "Moving": f"pod {_old_pod(actor)} hands over; pod {placement.pod} takes over",
        "PodLost": f"pod {_old_pod(actor)} is gone; pod {placement.pod} takes over",
        "Rebalanced": f"pod {_old_pod(actor)} holds more than its share; pod {placement.pod} takes over",
        "PlacementChanged": f"pod {_old_pod(actor)} lacks a label that spec.placement requires; pod {placement.pod} takes over",
    }.get(cause, f"pod {placement.pod} takes it")
    return (
        DesiredCondition(SCHEDULED, "True", "Scheduled", f"placed on pod {placement.pod}"),
        DesiredCondition(READY, "Unknown", cause, ready),
    )


def build_unplaced_status(actor: ActorView, placement: Placed | None, obstacle: Obstacle) -> DesiredStatus:
    """Return the status of an actor that has no pod."""
    suspended = obstacle.reason == "Suspended"
    conditions = [
        DesiredCondition(SCHEDULED, "False", obstacle.reason, obstacle.message),
        DesiredCondition(READY, "Unknown", obstacle.reason, obstacle.message),
    ]
    if suspended:
        conditions.append(DesiredCondition(SUSPENDED, "True", "SuspendedBySpec", obstacle.message))
    return DesiredStatus(placement, ActorPhase.SUSPENDED if suspended else ActorPhase.PENDING, actor.generation, tuple(conditions))


def is_written(actor: ActorView, desired: DesiredStatus) -> bool:
    """Return whether the status of an actor without a pod says already what it shall."""
    if actor.placement != desired.placement or actor.phase != desired.phase or len(actor.conditions) != len(desired.conditions):
        return False
    return all(_is_known(actor, item, desired.generation) for item in desired.conditions)


def _is_known(actor: ActorView, wanted: DesiredCondition, generation: int) -> bool:
    known = actor.condition(wanted.type)
    if known is None:
        return False
    return (known.status, known.reason, known.message, known.observed_generation) == (wanted.status, wanted.reason, wanted.message, generation)


def with_status(actor: ActorView, status: DesiredStatus) -> ActorView:
    """Return the actor as it will look when the status is written: what caches show late is planned with at once."""
    conditions = tuple(KnownCondition(item.type, item.status, item.reason, item.message, status.generation, "") for item in status.conditions)
    return replace(actor, placement=status.placement, phase=status.phase, conditions=conditions)


def invalid_spec(actor: ActorView) -> Obstacle:
    """The spec cannot be used."""
    return Obstacle("InvalidSpec", f"{actor.problem}; correct it or delete this Actor")


def duplicate_identity(actor: ActorView, owner: ObjectKey) -> Obstacle:
    """An older Actor has the same model and id."""
    return Obstacle(DUPLICATE_IDENTITY, f"Actor {owner.name} has the same model and id ({actor.identity}) and is older; delete one of the two")


def finalizer_not_set(problem: str) -> Obstacle:
    """Nothing would hold the resource until its events are gone."""
    return Obstacle(
        "FinalizerNotSet",
        f"with spec.deletionPolicy Purge it starts once the finalizer {FINALIZER} is on it; that failed and is tried again: {problem};"
        " to start it without, set spec.deletionPolicy to Retain",
    )


def suspended() -> Obstacle:
    """The user wants it so."""
    return Obstacle("Suspended", "spec.suspend is true; set it to false to start the actor")


def model_not_found(actor: ActorView) -> Obstacle:
    """The ActorModel is missing."""
    return Obstacle("ModelNotFound", f"there is no ActorModel {actor.model} in namespace {actor.key.namespace}; apply it")


def model_not_accepted(actor: ActorView) -> Obstacle:
    """The ActorModel has problems."""
    return Obstacle("ModelNotAccepted", f"ActorModel {actor.model} is not accepted; correct what its condition Accepted names: kubectl describe actormodel {actor.model}")


def pool_not_found(actor: ActorView) -> Obstacle:
    """The ActorPool is missing."""
    return Obstacle("PoolNotFound", f"there is no ActorPool {actor.pool} in namespace {actor.key.namespace}; apply it or name another in spec.pool")


def no_ready_pods(actor: ActorView) -> Obstacle:
    """The pool has no pod that could take anything."""
    return Obstacle("NoReadyPods", f"no pod of pool {actor.pool} is ready yet; if it stays so: kubectl get pods -l aether.flowmade.one/pool={actor.pool}")


def pods_cordoned(actor: ActorView) -> Obstacle:
    """People keep all pods of the pool from taking actors."""
    undo = f"kubectl annotate pods -l aether.flowmade.one/pool={actor.pool} {CORDON_ANNOTATION}-"
    return Obstacle("PodsCordoned", f"every ready pod of pool {actor.pool} is cordoned; take the annotation off or scale the pool up: {undo}")


def no_matching_pods(actor: ActorView, missing: Labels) -> Obstacle:
    """No ready pod of the pool carries what the actor requires: the labels that nobody carries, or all if it is their combination."""
    labels = ", ".join(f"{name}={value}" for name, value in missing)
    where = "spec.placement.affinity.required"
    return Obstacle(
        "NoMatchingPods", f"no ready pod of pool {actor.pool} is labelled {labels}, as {where} asks; set it in the pool's spec.podTemplate.metadata.labels or change {where}"
    )


def no_capacity(actor: ActorView, pods: int, capacity: int) -> Obstacle:
    """All pods that fit are full."""
    fitting = "that fit " if actor.rules.required else ""
    return Obstacle("NoCapacity", f"all {pods} ready pods {fitting}of pool {actor.pool} hold the {capacity} actors that they may; scale the pool up or raise its actorsPerPod")


def deleting(actor: ActorView, problem: str) -> Obstacle:
    """The resource is on its way out."""
    if not actor.held_by_us:
        return Obstacle("Deleting", "the resource is being deleted; finalizers of others hold it")
    waiting = f"; not yet done, it is tried again: {problem}; to keep them and let the resource go, set spec.deletionPolicy to Retain" if problem else ""
    return Obstacle("Deleting", f"its events are being purged, as spec.deletionPolicy says{waiting}")


def _old_pod(actor: ActorView) -> str:
    return actor.placement.pod if actor.placement is not None else ""
