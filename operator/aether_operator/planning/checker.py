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
from aether_operator.planning.planner import PlacementChange, Plan, find_gap, find_owners, find_stop
from aether_operator.planning.snapshot import ActorView, Placed, Snapshot

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
    for change in plan.changes:
        yield from _check_change(snapshot, change)
    yield from _check_everybody(snapshot, changes)
    yield from _check_capacity(snapshot, changes)
    for purge in plan.purges:
        if not purge.actor.deleting or purge.actor.home is not None:
            yield f"{purge.actor.key} is purged while it is not being deleted, or still placed"


def _check_change(snapshot: Snapshot, change: PlacementChange) -> Iterator[str]:
    actor, new = change.actor, change.new
    seen = max(actor.placement.epoch if actor.placement is not None else 0, snapshot.epoch_floors.get(actor.key, 0), actor.reported_epoch)
    if new.epoch <= seen:
        yield f"the epoch of {actor.key} does not rise: {seen} to {new.epoch}"
    if change.status.placement != new:
        yield f"the status of {actor.key} does not tell its new placement"
    if snapshot.actors.get(actor.key) is not actor:
        yield f"{actor.key} is not of this snapshot"
    if new.is_somewhere and new.pod_uid != _pod_uid(actor.home):
        yield from _check_target(snapshot, change)


def _check_target(snapshot: Snapshot, change: PlacementChange) -> Iterator[str]:
    actor, pod = change.actor, snapshot.pods.get(change.new.pod_uid)
    if pod is None or not pod.takes_actors or pod.name != change.new.pod:
        yield f"{actor.key} is placed on {change.new.pod}, which takes no actors"
    elif pod.pool_key != actor.pool_key:
        yield f"{actor.key} is placed on {change.new.pod}, which is not of its pool"
    if find_gap(snapshot, actor) is not None:
        yield f"{actor.key} is placed without its model or its pool"


def _check_everybody(snapshot: Snapshot, changes: Mapping[ObjectKey, PlacementChange]) -> Iterator[str]:
    owners = find_owners(snapshot.actors.values())
    open_pools = _find_open_pools(snapshot, changes)
    for key, actor in snapshot.actors.items():
        change = changes.get(key)
        after = change.new if change is not None else actor.placement
        somewhere = after is not None and after.is_somewhere
        if find_stop(actor, owners) is not None:
            if somewhere:
                yield f"{key} must not run and has a pod"
        elif not somewhere:
            if actor.pool_key in open_pools and find_gap(snapshot, actor) is None:
                yield f"{key} could be placed and is not"
            if change is not None and _holds_well(snapshot, actor):
                yield f"{key} is taken off a pod that could keep it"
        elif change is not None and _moved(change) and _holds_well(snapshot, actor):
            yield f"{key} is moved without a cause"


def _holds_well(snapshot: Snapshot, actor: ActorView) -> bool:
    """Return whether the actor has a pod of its pool that is neither lost nor leaving."""
    if actor.home is None:
        return False
    pod = snapshot.pods.get(actor.home.pod_uid)
    if pod is None or pod.verdict == "dead":
        return not snapshot.settled
    return pod.verdict != "leaving" and pod.pool_key == actor.pool_key


def _moved(change: PlacementChange) -> bool:
    return change.new.pod_uid != _pod_uid(change.actor.home)


def _check_capacity(snapshot: Snapshot, changes: Mapping[ObjectKey, PlacementChange]) -> Iterator[str]:
    counts = _count_after(snapshot, changes)
    receivers = {change.new.pod_uid for change in changes.values() if change.new.is_somewhere and _moved(change)}
    for uid in receivers:
        pod = snapshot.pods.get(uid)
        pool = snapshot.pools.get(pod.pool_key) if pod is not None else None
        if pod is not None and pool is not None and counts[uid] > pool.capacity:
            yield f"pod {pod.name} would hold {counts[uid]} actors, more than {pool.capacity}"


def _find_open_pools(snapshot: Snapshot, changes: Mapping[ObjectKey, PlacementChange]) -> set[ObjectKey]:
    """Return the pools in which a pod has room that nobody had before the plan and nobody has after it."""
    counts = _count_after(snapshot, changes)
    counts.update(change.actor.home.pod_uid for change in changes.values() if change.actor.home is not None and _moved(change))
    pods = [pod for pod in snapshot.pods.values() if pod.takes_actors and pod.pool_key in snapshot.pools]
    return {pod.pool_key for pod in pods if counts[pod.uid] < snapshot.pools[pod.pool_key].capacity}


def _count_after(snapshot: Snapshot, changes: Mapping[ObjectKey, PlacementChange]) -> Counter[PodUid]:
    after = [changes[key].new if key in changes else actor.placement for key, actor in snapshot.actors.items()]
    return Counter(placed.pod_uid for placed in after if placed is not None and placed.is_somewhere)


def _pod_uid(placed: Placed | None) -> PodUid:
    return placed.pod_uid if placed is not None else PodUid("")
