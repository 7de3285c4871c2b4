"""The `Actor` resource: one event-sourced actor that the operator places and a runtime pod holds.

`status` has two writers with a server-side-apply manager each: `aether-operator` (placement, Scheduled, and the phases
while no pod holds the actor) and `aether-runtime` (everything else). Only the first status of an Actor is written whole by the
operator, if its pod has said by then how it is. An epoch rises on every change of placement, so a
late writer can be told from the owner.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field

from aether_api.durations import DURATION_LENGTH_MAX, DURATION_PATTERN, parse_duration_s
from aether_api.identity import ID_LENGTH_MAX, ID_PATTERN, NAME_PATTERN, ActorId, parse_actor_id
from aether_api.v1alpha1.meta import Condition, ResourceClass, ReturnedByCluster, TypedByPeople

RECOVERY_TARGET_DEFAULT_S: Final = 1.0
"""Seconds that a replay may take where nobody says otherwise: callers repeat after one, and a fail-over takes as long."""


LABELS_MAX: Final = 16
"""Labels or preferences of one rule: more than people write, and each costs a look at every pod."""

LabelValue = Annotated[str, Field(max_length=63)]


class DeletionPolicy(StrEnum):
    """What becomes of the events when the resource is deleted."""

    RETAIN = "Retain"
    PURGE = "Purge"


class ActorPhase(StrEnum):
    """Where an actor is in its life: the first four are the operator's, the others the pod's."""

    PENDING = "Pending"
    SCHEDULED = "Scheduled"
    MOVING = "Moving"
    SUSPENDED = "Suspended"
    REPLAYING = "Replaying"
    READY = "Ready"
    PASSIVE = "Passive"
    QUARANTINED = "Quarantined"
    STOPPING = "Stopping"


class SnapshotSpec(TypedByPeople):
    """When snapshots are taken."""

    every: int = Field(default=500, ge=0, le=1_000_000, description="Take a snapshot after this many events; 0 takes none by count.")
    recovery_target: str = Field(
        default="1s",
        pattern=DURATION_PATTERN,
        max_length=DURATION_LENGTH_MAX,
        description="Take a snapshot also when replaying the events after the last one would take longer than this, by the rate that the pod measures; 0s is off.",
    )

    @property
    def recovery_target_s(self) -> float:
        """`recovery_target` in seconds."""
        return parse_duration_s(self.recovery_target, default_s=RECOVERY_TARGET_DEFAULT_S)


class PassivationSpec(TypedByPeople):
    """When an actor that nobody uses leaves memory; the next command brings it back."""

    idle_after: str = Field(
        default="0s",
        pattern=DURATION_PATTERN,
        max_length=DURATION_LENGTH_MAX,
        description="Let the actor sleep after it had no command for so long; 0s keeps it awake while there is room.",
    )

    @property
    def idle_after_s(self) -> float:
        """`idle_after` in seconds, 0 for never."""
        return parse_duration_s(self.idle_after, default_s=0.0)


class LabelSelector(TypedByPeople):
    """Labels of a runtime pod, all of them."""

    match_labels: dict[str, LabelValue] = Field(description="Labels that a pod carries, all of them.", min_length=1, max_length=LABELS_MAX)


class PreferredLabels(LabelSelector):
    """Labels that a pod had better carry."""

    weight: int = Field(default=1, ge=1, le=100, description="What these labels count beside other preferences.", json_schema_extra={"format": "int32"})


class AffinitySpec(TypedByPeople):
    """Which pods of the pool suit the actor, by the pods' labels."""

    required: LabelSelector | None = Field(default=None, description="Labels without which a pod does not get the actor, and does not keep it once another one has room.")
    preferred: tuple[PreferredLabels, ...] = Field(
        default=(), description="A new place is where the weights of the preferences met are highest and there is room, however full it is.", max_length=LABELS_MAX
    )


class SpreadSpec(TypedByPeople):
    """Which actors are kept apart, as far as there is room elsewhere."""

    group: str = Field(default="", description="Name of the actors of this namespace that are kept apart; empty takes the model's name.", max_length=63)
    topology_key: str = Field(
        default="", description="Label of the pods by whose values actors are kept apart, such as topology.kubernetes.io/zone; empty keeps pods apart.", max_length=317
    )


class PlacementSpec(TypedByPeople):
    """Where the actor may be, and who goes first."""

    affinity: AffinitySpec = Field(default_factory=AffinitySpec, description="Which pods of the pool suit the actor.")
    spread: SpreadSpec | None = Field(default=None, description="Place the actor where fewest of its group are; preferences go before, an even load after.")
    priority: int = Field(
        default=0, ge=-1_000_000, le=1_000_000, description="Who has a higher one gets room first; nobody loses a pod by it.", json_schema_extra={"format": "int32"}
    )


class ActorSpec(TypedByPeople):
    """What a user wants."""

    model: str = Field(description="Name of an ActorModel of the same namespace. Immutable.", pattern=NAME_PATTERN, max_length=63)
    id: str | None = Field(
        default=None, description="Id of the actor within its model; the resource's name by default. Immutable.", pattern=ID_PATTERN, min_length=1, max_length=ID_LENGTH_MAX
    )
    pool: str = Field(default="default", description="Name of the ActorPool whose pods hold the actor.", pattern=NAME_PATTERN, max_length=63)
    placement: PlacementSpec = Field(default_factory=PlacementSpec, description="Which pods of the pool suit the actor, and who goes first where room is short.")
    suspend: bool = Field(default=False, description="True takes the actor off its pod and keeps it off; its events stay.")
    snapshot: SnapshotSpec = Field(default_factory=SnapshotSpec, description="When snapshots are taken.")
    passivation: PassivationSpec = Field(default_factory=PassivationSpec, description="When the actor leaves memory until it is used again.")
    deletion_policy: DeletionPolicy = Field(default=DeletionPolicy.RETAIN, description="Retain keeps the events when the resource is deleted, Purge deletes them.")


class Placement(ReturnedByCluster):
    """Which process may write the actor; empty names mean none."""

    pod: str = Field(default="", description="Name of the pod; empty when unplaced.")
    pod_uid: str = Field(default="", alias="podUID", description="UID of the pod; empty when unplaced.")
    epoch: int = Field(default=0, ge=0, description="Rises with every change of placement.", json_schema_extra={"format": "int64"})


class ActorStatus(ReturnedByCluster):
    """What is."""

    observed_generation: int = Field(default=0, description="The generation that the runtime acts on.", json_schema_extra={"format": "int64"})
    placement: Placement | None = Field(default=None, description="Where the operator put the actor.")
    phase: ActorPhase | None = Field(default=None, description="Where the actor is in its life.")
    version: int | None = Field(default=None, ge=0, description="Number of events stored.", json_schema_extra={"format": "int64"})
    snapshot_version: int | None = Field(default=None, ge=0, description="Version of the newest snapshot.", json_schema_extra={"format": "int64"})
    model_version: str | None = Field(default=None, description="Model and content hash that the pod runs; of an actor that sleeps those that it ran last.")
    reported_epoch: int | None = Field(default=None, ge=0, description="Placement epoch that the pod reports for.", json_schema_extra={"format": "int64"})
    conditions: tuple[Condition, ...] = Field(
        default=(), description="Scheduled, Replayed, Ready; Fenced, Quarantined, Suspended, SnapshotTooLarge, SnapshotImpossible when they are true."
    )


class Actor(ResourceClass):
    """An event-sourced actor."""

    kind: Literal["Actor"] = "Actor"
    spec: ActorSpec
    status: ActorStatus = Field(default_factory=ActorStatus)

    @property
    def identity(self) -> ActorId:
        """The actor's full name; raises `InvalidName` where the API server's checks were by-passed."""
        return parse_actor_id(self.metadata.namespace, self.spec.model, self.spec.id or self.metadata.name)
