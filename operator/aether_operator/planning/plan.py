"""What a plan consists of: values that say what is to be done, and to whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import msgspec

from aether_api.identity import ActorId, Epoch
from aether_kube.store import ObjectKey
from aether_operator.planning.pace import Pace
from aether_operator.planning.snapshot import ActorView, Placed, PodView
from aether_operator.planning.statuses import Cause, DesiredStatus


class PlacementChange(msgspec.Struct, frozen=True):
    """One actor gets, changes or loses its pod.

    Attributes:
        new: the placement with its new epoch.
        status: what to write once the pods were told.
    """

    actor: ActorView
    new: Placed
    cause: Cause
    status: DesiredStatus

    @property
    def old(self) -> Placed | None:
        """The placement that ends, if it names a pod."""
        return self.actor.home


class StatusChange(msgspec.Struct, frozen=True):
    """One actor without a pod needs another status."""

    actor: ActorView
    status: DesiredStatus


@dataclass(frozen=True, slots=True)
class Introduction:
    """A process that has not been told yet what it holds: adopting is idempotent, so telling it twice does no harm."""

    pod: PodView
    actors: tuple[ActorView, ...]


@dataclass(frozen=True, slots=True)
class FinalizerChange:
    """Put our finalizer on an Actor, or take it off."""

    actor: ActorView
    wanted: bool


@dataclass(frozen=True, slots=True)
class Purge:
    """Delete an actor's history, fenced by `epoch`; then take the finalizer off."""

    actor: ActorView
    identity: ActorId
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class CostChange:
    """Say at a pod what its deletion costs: scaling down takes the cheapest."""

    pod: PodView
    cost: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything to be done, each list in the order of names.

    Attributes:
        releases: Actors that are gone while a pod still holds them.
        paces: what each pool has spent of its budgets, for the next snapshot.
        again_after_s: when to plan again although nothing changes, since a budget held somebody back.
    """

    changes: tuple[PlacementChange, ...] = ()
    statuses: tuple[StatusChange, ...] = ()
    introductions: tuple[Introduction, ...] = ()
    releases: tuple[ActorView, ...] = ()
    finalizers: tuple[FinalizerChange, ...] = ()
    purges: tuple[Purge, ...] = ()
    costs: tuple[CostChange, ...] = ()
    paces: Mapping[ObjectKey, Pace] = field(default_factory=lambda: MappingProxyType({}))
    again_after_s: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.changes or self.statuses or self.introductions or self.releases or self.finalizers or self.purges or self.costs)
