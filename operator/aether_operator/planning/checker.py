"""Refuses a plan that breaks a rule, before anything of it is carried out.

It checks results, not how they came about, and shares no decision with the planner but who owns an identity, so that a mistake
there is met by a second opinion. A plan that fails is a bug: the operator stops rather than move ten thousand actors wrongly.
Prior art: omicron's blueprint checker; the safety checks of Kubernetes' descheduler.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from aether_api.errors import InternalError
from aether_api.identity import PodUid
from aether_kube.store import ObjectKey
from aether_operator.planning.checker_pace import find_pace_problems
from aether_operator.planning.plan import PlacementChange, Plan
from aether_operator.planning.snapshot import ActorView, PodView, Snapshot
from aether_operator.planning.standing import find_gap, find_rivals, find_stop

PROBLEMS_SHOWN: Final = 5
"""Problems in the message: the first few tell what is wrong, ten thousand would only hide it."""


def check_plan(snapshot: Snapshot, plan: Plan) -> None:
    """Check a plan against the snapshot that it was made from.

    Raises:
        InternalError: with what is wrong.
    """
    problems = list(find_problems(snapshot, plan))
    if problems:
        shown = "; ".join(problems[:PROBLEMS_SHOWN])
        raise InternalError(f"a plan breaks {len(problems)} rules and is not carried out: {shown}")


def find_problems(snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """Yield every broken rule."""
    changes = {change.actor.key: change for change in plan.changes}
    if len(changes) != len(plan.changes):
        yield "an actor changes its placement twice"
    checked = _Checked(snapshot)
    for change in plan.changes:
        yield from _check_change(checked, change)
    loads = _Loads(snapshot, changes)
    yield from _check_everybody(checked, changes, loads)
    yield from _check_capacity(snapshot, changes, loads)
    yield from find_pace_problems(snapshot, plan.changes, loads.before, loads.after)
    for cost in plan.costs:
        if snapshot.pods.get(cost.pod.uid) is not cost.pod or cost.cost == cost.pod.deletion_cost:
            yield f"the deletion cost of pod {cost.pod.name} is written without need"
    for purge in plan.purges:
        if not purge.actor.deleting or purge.actor.home is not None:
            yield f"{purge.actor.key} is purged while it is not being deleted, or still placed"


class _Checked:
    """A snapshot, and what is asked of it for many actors alike: whether those of a model and a pool can be placed at all."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._complete: dict[tuple[str, str, str], bool] = {}

    def has_gap(self, actor: ActorView) -> bool:
        """Return whether the actor lacks its model or its pool."""
        needs = (actor.key.namespace, actor.model, actor.pool)
        complete = self._complete.get(needs)
        if complete is None:
            complete = self._complete[needs] = find_gap(self.snapshot, actor) is None
        return not complete


class _Loads:
    """How many actors each pod holds before and after the plan.

    Attributes:
        peak: seats of each pod that somebody has before or after; what moves away is not free in the same plan.
    """

    def __init__(self, snapshot: Snapshot, changes: Mapping[ObjectKey, PlacementChange]) -> None:
        placements = {key: actor.placement for key, actor in snapshot.actors.items()}
        self.before = Counter(placed.pod_uid for placed in placements.values() if placed is not None)
        self.after = self.before.copy()
        self.peak = self.before.copy()
        for change in changes.values():
            old = change.old.pod_uid if change.old is not None else PodUid("")
            if old != change.new.pod_uid:
                self.after[old] -= 1
                self.after[change.new.pod_uid] += 1
                self.peak[change.new.pod_uid] += 1


def _check_change(checked: _Checked, change: PlacementChange) -> list[str]:
    snapshot, actor, new = checked.snapshot, change.actor, change.new
    problems: list[str] = []
    seen = max(actor.placement.epoch if actor.placement is not None else 0, snapshot.epoch_floors.get(actor.key, 0), actor.reported_epoch)
    if new.epoch <= seen:
        problems.append(f"the epoch of {actor.key} does not rise: {seen} to {new.epoch}")
    if change.status.placement != new:
        problems.append(f"the status of {actor.key} does not tell its new placement")
    if snapshot.actors.get(actor.key) is not actor:
        problems.append(f"{actor.key} is not of this snapshot")
    if new.pod_uid and _moved(change):
        problems += _check_target(checked, change)
    return problems


def _check_target(checked: _Checked, change: PlacementChange) -> list[str]:
    actor, pod = change.actor, checked.snapshot.pods.get(change.new.pod_uid)
    problems: list[str] = []
    if pod is None or not pod.takes_actors or pod.name != change.new.pod:
        problems.append(f"{actor.key} is placed on {change.new.pod}, which takes no actors")
    elif not _is_of_pool(pod, actor):
        problems.append(f"{actor.key} is placed on {change.new.pod}, which is not of its pool")
    elif not _carries_required(pod, actor):
        problems.append(f"{actor.key} is placed on {change.new.pod}, which lacks a label that it requires")
    if actor.home is None and _awaits_finalizer(actor):
        problems.append(f"{actor.key} is to be purged in the end and gets a pod before anything holds its resource")
    if checked.has_gap(actor):
        problems.append(f"{actor.key} is placed without its model or its pool")
    return problems


def _check_everybody(checked: _Checked, changes: Mapping[ObjectKey, PlacementChange], loads: _Loads) -> Iterator[str]:
    snapshot = checked.snapshot
    rivals = find_rivals(snapshot.actors.values())
    for key, actor in snapshot.actors.items():
        change = changes.get(key)
        if change is None and actor.placement is not None and actor.placement.pod_uid and not (actor.deleting or actor.suspend or actor.identity is None or rivals):
            continue  # it stays where it is, and nothing forbids it
        after = change.new if change is not None else actor.placement
        somewhere = after is not None and after.is_somewhere
        if find_stop(actor, rivals) is not None:
            if somewhere:
                yield f"{key} must not run and has a pod"
        elif not somewhere:
            if not _awaits_finalizer(actor) and _has_room(checked, actor, loads):
                yield f"{key} could be placed and is not"
            if change is not None and _holds_well(snapshot, actor):
                yield f"{key} is taken off a pod that could keep it"
        elif change is not None and _moved(change) and change.cause != "Rebalanced" and _holds_well(snapshot, actor):
            yield f"{key} is moved without a cause"


def _holds_well(snapshot: Snapshot, actor: ActorView) -> bool:
    """Return whether the actor has a pod of its pool that is neither lost, leaving nor drained, and carries what it requires."""
    if actor.home is None:
        return False
    pod = snapshot.pods.get(actor.home.pod_uid)
    if pod is None or pod.verdict == "dead":
        return not snapshot.settled
    given_away = pod.verdict == "leaving" or (pod.verdict == "alive" and pod.cordon == "drain")
    return not given_away and _is_of_pool(pod, actor) and _carries_required(pod, actor)


def _moved(change: PlacementChange) -> bool:
    old = change.actor.placement
    return old is None or change.new.pod_uid != old.pod_uid


def _is_of_pool(pod: PodView, actor: ActorView) -> bool:
    return pod.pool == actor.pool and pod.namespace == actor.key.namespace


def _awaits_finalizer(actor: ActorView) -> bool:
    return actor.purges and not actor.held_by_us


def _carries_required(pod: PodView, actor: ActorView) -> bool:
    required = actor.rules.required
    return not required or all(pod.labels.get(name) == value for name, value in required)


def _check_capacity(snapshot: Snapshot, changes: Mapping[ObjectKey, PlacementChange], loads: _Loads) -> Iterator[str]:
    for uid in {change.new.pod_uid for change in changes.values() if change.new.is_somewhere and _moved(change)}:
        pod = snapshot.pods.get(uid)
        pool = snapshot.pools.get(pod.pool_key) if pod is not None else None
        if pod is not None and pool is not None and loads.after[uid] > pool.capacity:
            yield f"pod {pod.name} would hold {loads.after[uid]} actors, more than {pool.capacity}"


def _has_room(checked: _Checked, actor: ActorView, loads: _Loads) -> bool:
    """Return whether a pod has a seat for the actor that nobody had before the plan and nobody has after it."""
    snapshot = checked.snapshot
    pool = snapshot.pools.get(actor.pool_key)
    if pool is None or checked.has_gap(actor):
        return False
    return any(pod.takes_actors and _is_of_pool(pod, actor) and _carries_required(pod, actor) and loads.peak[pod.uid] < pool.capacity for pod in snapshot.pods.values())
