"""What is known of the cluster at one moment: the only input of the planner.

Everything is a frozen value, so a plan can be made again from a logged snapshot. Only what the planner decides by is in here;
the version, say, of an actor is not, so traffic never causes planning. Objects are named by (namespace, name), pods by UID.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

import msgspec

from aether_api.identity import ActorId, BootId, Epoch, PodUid
from aether_api.v1alpha1.actor import RECOVERY_TARGET_DEFAULT_S
from aether_api.v1alpha1.meta import ConditionStatus
from aether_kube.store import ObjectKey
from aether_operator.planning.pace import Limits, Pace
from aether_operator.planning.rules import NO_RULES, Rules

FINALIZER: Final = "aether.flowmade.one/purge"
"""Holds an Actor with `deletionPolicy: Purge` until its events are gone."""

NO_BOOT: Final = BootId("")
Verdict = Literal["starting", "alive", "suspect", "dead", "leaving"]
Cordon = Literal["", "true", "drain"]
"""What people ask of a pod by annotation: take nobody new, or also hand over what is there."""


class Placed(msgspec.Struct, frozen=True, gc=False):
    """A placement: which pod, since which epoch; `pod` and `pod_uid` are empty when unplaced.

    A struct, like all that a plan holds once for each actor: built ten thousand at a time, they cost a third of frozen dataclasses.
    """

    pod: str
    pod_uid: PodUid
    epoch: Epoch

    @property
    def is_somewhere(self) -> bool:
        """Whether a pod is named."""
        return self.pod_uid != ""


@dataclass(frozen=True, slots=True)
class KnownCondition:
    """A condition as the API server holds it."""

    type: str
    status: ConditionStatus
    reason: str
    message: str
    observed_generation: int
    last_transition_time: str


@dataclass(frozen=True, slots=True)
class ActorView:
    """One Actor resource, as far as the operator cares.

    Attributes:
        created: RFC 3339; the oldest of several Actors with one identity wins.
        problem: why the spec cannot be used; empty when it can, and then `identity` is there.
        priority: who has a higher one gets room first.
        purges: `deletionPolicy` is Purge.
        held_by_us: our finalizer is on it.
        placement: None before the first one.
        reported_epoch: the highest epoch that a pod reported, its own or one that it met in the log.
        conditions: Scheduled, Suspended and Ready, where they exist.
        has_others: there are conditions of other types, too.
    """

    key: ObjectKey
    uid: str
    generation: int
    created: str
    resource_version: int = 0
    deleting: bool = False
    held_by_us: bool = False
    identity: ActorId | None = None
    problem: str = ""
    model: str = ""
    pool: str = "default"
    rules: Rules = NO_RULES
    priority: int = 0
    suspend: bool = False
    purges: bool = False
    snapshot_every: int = 0
    recovery_target_s: float = RECOVERY_TARGET_DEFAULT_S
    idle_after_s: float = 0.0
    placement: Placed | None = None
    reported_epoch: int = 0
    phase: str = ""
    conditions: tuple[KnownCondition, ...] = ()
    has_others: bool = False

    @property
    def pool_key(self) -> ObjectKey:
        """The pool that shall hold it."""
        return ObjectKey(self.key.namespace, self.pool)

    @property
    def model_key(self) -> ObjectKey:
        """The model that it follows."""
        return ObjectKey(self.key.namespace, self.model)

    @property
    def home(self) -> Placed | None:
        """The placement, if it names a pod."""
        return self.placement if self.placement is not None and self.placement.is_somewhere else None

    @property
    def precedence(self) -> tuple[int, bool, str, ObjectKey]:
        """The order in which actors get room: by priority, then who can go to fewer pods, then the oldest."""
        return -self.priority, not self.rules.required, self.created, self.key

    def condition(self, type_: str) -> KnownCondition | None:
        """Return one of the conditions, None when it is not there."""
        return next((condition for condition in self.conditions if condition.type == type_), None)


@dataclass(frozen=True, slots=True)
class PodView:
    """One runtime pod: its object and what NATS says of its process.

    Attributes:
        boot_id: of the process that last sent a heartbeat; empty before the first.
        verdict: see `liveness`.
        ready: Kubernetes' own condition Ready.
        introduced: this very process was told of every actor that is placed on the pod.
        labels: of its object.
        cordon: what its annotation asks.
        revision: hash of the pod template that it was made from.
        damped: it flapped lately, so it gets actors only where nobody else has room.
        deletion_cost: as its annotation says; 0 without one.
    """

    uid: PodUid
    namespace: str
    name: str
    pool: str
    boot_id: BootId = NO_BOOT
    verdict: Verdict = "alive"
    ready: bool = True
    introduced: bool = True
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    cordon: Cordon = ""
    revision: str = ""
    damped: bool = False
    deletion_cost: int = 0

    @property
    def pool_key(self) -> ObjectKey:
        """The pool it belongs to."""
        return ObjectKey(self.namespace, self.pool)

    @property
    def takes_actors(self) -> bool:
        """Whether actors may be placed on it."""
        return self.verdict == "alive" and self.ready and not self.cordon

    @property
    def hands_over(self) -> bool:
        """Whether it shall give away what it holds, while it lives."""
        return self.verdict == "leaving" or (self.cordon == "drain" and self.verdict == "alive")

    @property
    def keeps_actors(self) -> bool:
        """Whether what it holds may stay; a pod that leaves keeps them only until another one takes them."""
        return self.verdict != "dead"

    @property
    def hears(self) -> bool:
        """Whether it is worth sending it anything."""
        return self.boot_id != "" and self.verdict in ("alive", "suspect", "leaving")


@dataclass(frozen=True, slots=True)
class PoolView:
    """One ActorPool.

    Attributes:
        capacity: most actors that one pod may hold.
        revision: of its newest pods; empty when it is not known.
    """

    capacity: int
    revision: str = ""

    def replaces(self, pod: PodView) -> bool:
        """Return whether a rollout is going to replace a pod."""
        return bool(self.revision and pod.revision) and pod.revision != self.revision


@dataclass(frozen=True, slots=True)
class ModelView:
    """One ActorModel: whether actors may be placed with it."""

    accepted: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster at one moment.

    Attributes:
        now_ms: unix milliseconds, the ground floor of new epochs.
        settled: our own links were up for a full window; else nobody is taken from a pod because of silence.
        epoch_floors: the highest epoch that pods said they know, by actor, where it matters.
        vanished: Actors that were deleted while placed, whose pods were not yet told.
        purge_problems: why a purge under way does not come to its end, or the finalizer for it cannot be put on.
        now_s: monotonic seconds, by which budgets refill.
        limits: how fast actors may move.
        paces: what each pool has spent of them.
        under_way: hand-overs of earlier plans that are not over yet, by the pod that gives.
        writes_costs: pods shall say what their deletion costs.
    """

    now_ms: int
    actors: Mapping[ObjectKey, ActorView] = field(default_factory=lambda: MappingProxyType({}))
    pods: Mapping[PodUid, PodView] = field(default_factory=lambda: MappingProxyType({}))
    pools: Mapping[ObjectKey, PoolView] = field(default_factory=lambda: MappingProxyType({}))
    models: Mapping[ObjectKey, ModelView] = field(default_factory=lambda: MappingProxyType({}))
    settled: bool = True
    epoch_floors: Mapping[ObjectKey, Epoch] = field(default_factory=lambda: MappingProxyType({}))
    vanished: tuple[ActorView, ...] = ()
    purge_problems: Mapping[ObjectKey, str] = field(default_factory=lambda: MappingProxyType({}))
    now_s: float = 0.0
    limits: Limits = field(default_factory=Limits)
    paces: Mapping[ObjectKey, Pace] = field(default_factory=lambda: MappingProxyType({}))
    under_way: Mapping[PodUid, int] = field(default_factory=lambda: MappingProxyType({}))
    writes_costs: bool = True
