"""Sorts actors by what becomes of them before anybody is placed: stopped, staying, renewed or to be placed.

This runs over every actor in every plan, while almost all of them stay as they are; so it compares texts that are interned and
builds nothing for those [10,000 actors at rest: a third of the time of the version with a method for each question].
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from aether_api.identity import ActorId, PodUid
from aether_kube.store import ObjectKey
from aether_operator.planning import statuses
from aether_operator.planning.affinity import fits
from aether_operator.planning.snapshot import ActorView, Snapshot
from aether_operator.planning.statuses import Cause, Obstacle


@dataclass(slots=True)
class Standing:
    """The actors by what becomes of them, each list in the order of names.

    Attributes:
        stopped: must not run at all, or not yet.
        staying: on each pod, those that stay there.
        renewed: of those that stay, who needs a higher epoch.
        movers: who needs a pod, or another one.
    """

    stopped: list[tuple[ActorView, Obstacle]] = field(default_factory=list[tuple[ActorView, Obstacle]])
    staying: dict[PodUid, list[ActorView]] = field(default_factory=lambda: defaultdict(list))
    renewed: list[tuple[ActorView, Cause]] = field(default_factory=list[tuple[ActorView, Cause]])
    movers: list[tuple[ActorView, Cause]] = field(default_factory=list[tuple[ActorView, Cause]])


def find_rivals(actors: Iterable[ActorView]) -> Mapping[ObjectKey, ObjectKey]:
    """Return the Actors whose identity another one has, and which: the oldest, then the first by name."""
    oldest: dict[ActorId, ActorView] = {}
    rivals: list[ActorView] = []
    for actor in actors:
        identity = actor.identity
        if identity is None or actor.deleting:
            continue
        known = oldest.setdefault(identity, actor)
        if known is not actor:
            younger = actor
            if (actor.created, actor.key) < (known.created, known.key):
                oldest[identity], younger = actor, known
            rivals.append(younger)
    return {rival.key: oldest[rival.identity].key for rival in rivals if rival.identity is not None}


def find_stop(actor: ActorView, rivals: Mapping[ObjectKey, ObjectKey], problem: str = "") -> Obstacle | None:
    """Return why the actor must not run at all, whatever pods there are."""
    if actor.deleting:
        return statuses.deleting(actor, problem)
    if actor.identity is None:
        return statuses.invalid_spec(actor)
    if actor.key in rivals:
        return statuses.duplicate_identity(actor, rivals[actor.key])
    return statuses.suspended() if actor.suspend else None


def find_gap(snapshot: Snapshot, actor: ActorView) -> Obstacle | None:
    """Return what is missing for the actor to be placed anew, pods apart."""
    model = snapshot.models.get(actor.model_key)
    if model is None:
        return statuses.model_not_found(actor)
    if not model.accepted:
        return statuses.model_not_accepted(actor)
    return statuses.pool_not_found(actor) if actor.pool_key not in snapshot.pools else None


def sort_actors(snapshot: Snapshot, actors: Iterable[ActorView], rivals: Mapping[ObjectKey, ObjectKey]) -> Standing:
    """Put every actor where it belongs."""
    standing = Standing()
    for actor in actors:
        if actor.deleting or actor.suspend or actor.identity is None or (rivals and actor.key in rivals):
            stop = find_stop(actor, rivals, snapshot.purge_problems.get(actor.key, ""))
            if stop is not None:
                standing.stopped.append((actor, stop))
            continue
        cause = _find_cause(snapshot, actor)
        if cause == "Scheduled" and actor.purges and not actor.held_by_us:
            # A moment later the finalizer is on; only if it cannot be put on there is something to say.
            problem = snapshot.purge_problems.get(actor.key, "")
            if problem:
                standing.stopped.append((actor, statuses.finalizer_not_set(problem)))
            continue
        if cause is None or cause in ("EpochRaised", "StatusRepaired"):
            standing.staying[actor.placement.pod_uid if actor.placement is not None else PodUid("")].append(actor)
        if cause in ("EpochRaised", "StatusRepaired"):
            standing.renewed.append((actor, cause))
        elif cause is not None:
            standing.movers.append((actor, cause))
    return standing


def _find_cause(snapshot: Snapshot, actor: ActorView) -> Cause | None:
    """Return why the actor needs a new placement; None when it may stay as it is."""
    placement = actor.placement
    if placement is None or not placement.pod_uid:
        return "Scheduled"
    pod = snapshot.pods.get(placement.pod_uid)
    if pod is None or not pod.keeps_actors:
        return "PodLost" if snapshot.settled else None
    if pod.pool != actor.pool or pod.namespace != actor.key.namespace:
        return "PoolChanged"
    if actor.rules.required and not fits(actor.rules, pod):
        return "PlacementChanged"
    if pod.hands_over:
        return "Moving"
    if actor.reported_epoch > placement.epoch or (snapshot.epoch_floors and snapshot.epoch_floors.get(actor.key, 0) > placement.epoch):
        return "EpochRaised"
    for condition in actor.conditions:
        if condition.type == statuses.SCHEDULED:
            return None if condition.status == "True" else "StatusRepaired"
    return "StatusRepaired"
