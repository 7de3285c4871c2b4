"""Decides, from a snapshot, everything that must change: placements, statuses, finalizers, purges, what pods must be told.

Rules, in this order:

1. Of Actors with one identity the oldest has it (then the first by name); one that is being deleted has none.
2. An actor is taken off its pod when its user suspends or deletes it, or when it has no identity of its own.
3. An actor stays where it is while its pod is not surely dead. A pod that leaves or is drained keeps its actors until another has room.
   A model or pool is needed to be placed, not to stay: a mistake in a model stops nothing that runs.
4. An actor whose events are to be purged gets a pod only once our finalizer is on it: whoever deletes it before leaves no events of it.
   One that has a pod already keeps it, and is never held up when that pod is lost.
5. Everybody else gets a pod that fits and has room (`placement`), or a status that says why not. Where room is short, a higher
   priority goes first; nobody who has a pod loses it to a higher priority, since displacing costs two pauses to avoid a wait.
6. Every change of placement raises the epoch above all that anybody is known to have seen, and above the clock, since an epoch
   must outlive the resource.
7. What moves is bounded (`pace`): from a living pod by what is under way there, from several lost pods and for the sake of balance
   (`rebalance`) by a rate. A lost pod's actors never wait for any of it.

Equal snapshots give equal plans, and a snapshot in which a plan was carried out gives an empty one.
"""

from __future__ import annotations

from aether_kube.store import ObjectKey
from aether_operator.planning import statuses
from aether_operator.planning.deletion_cost import find_cost_changes
from aether_operator.planning.endings import find_endings
from aether_operator.planning.placer import Placer, pod_uid_of
from aether_operator.planning.plan import Introduction, Plan, StatusChange
from aether_operator.planning.snapshot import ActorView, Snapshot
from aether_operator.planning.standing import Standing, find_rivals, sort_actors
from aether_operator.planning.statuses import Obstacle


def make_plan(snapshot: Snapshot) -> Plan:
    """Return what must change."""
    actors = [snapshot.actors[key] for key in sorted(snapshot.actors)]
    standing = sort_actors(snapshot, actors, find_rivals(actors))
    placer = Placer(snapshot, standing)
    placer.place_all()
    for actor, cause in standing.renewed:
        placer.raise_epoch(actor, cause)
    for actor, obstacle in standing.stopped:
        placer.stop(actor, obstacle)
    placer.rebalance()
    changes = sorted(placer.changes, key=lambda change: change.actor.key)
    finalizers, purges = find_endings(snapshot, actors)
    return Plan(
        changes=tuple(changes),
        statuses=_find_status_changes(placer.waiting),
        introductions=_introduce(snapshot, standing, {change.actor.key for change in changes}),
        releases=tuple(actor for actor in snapshot.vanished if _hears(snapshot, actor)),
        finalizers=finalizers,
        purges=purges,
        costs=find_cost_changes(snapshot, placer.count_after()) if snapshot.writes_costs else (),
        paces=placer.budgets.paces,
        again_after_s=placer.budgets.again_after_s,
    )


def _hears(snapshot: Snapshot, actor: ActorView) -> bool:
    pod = snapshot.pods.get(pod_uid_of(actor))
    return pod is not None and pod.hears


def _find_status_changes(waiting: list[tuple[ActorView, Obstacle]]) -> tuple[StatusChange, ...]:
    desired = [StatusChange(actor, statuses.build_unplaced_status(actor, actor.placement, obstacle)) for actor, obstacle in waiting]
    return tuple(sorted((change for change in desired if not statuses.is_written(change.actor, change.status)), key=lambda change: change.actor.key))


def _introduce(snapshot: Snapshot, standing: Standing, changed: set[ObjectKey]) -> tuple[Introduction, ...]:
    newcomers = sorted((pod for pod in snapshot.pods.values() if pod.hears and not pod.introduced), key=lambda pod: pod.uid)
    return tuple(Introduction(pod, tuple(actor for actor in standing.staying[pod.uid] if actor.key not in changed)) for pod in newcomers)
