"""Decides, from a snapshot, everything that must change: placements, statuses, finalizers, purges, what pods must be told.

Rules, in this order:

1. Of Actors with one identity the oldest has it (then the first by name); one that is being deleted has none.
2. An actor is taken off its pod when its user suspends or deletes it, or when it has no identity of its own.
3. An actor stays where it is while its pod is not surely dead. A pod that leaves keeps its actors until another has room.
   A model or pool is needed to be placed, not to stay: a mistake in a model stops nothing that runs.
4. Everybody else gets a pod with room (`placement`), or a status that says why not.
5. Every change of placement raises the epoch above all that anybody is known to have seen, and above the clock, since an epoch
   must outlive the resource.

Equal snapshots give equal plans, and a snapshot in which a plan was carried out gives an empty one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aether_api.identity import ActorId, Epoch, PodUid
from aether_kube.store import ObjectKey
from aether_operator.planning import statuses
from aether_operator.planning.placement import Seat, choose_pods
from aether_operator.planning.snapshot import ActorView, Placed, PodView, Snapshot
from aether_operator.planning.statuses import Cause, DesiredStatus, Obstacle

NO_POD = PodUid("")


@dataclass(frozen=True, slots=True)
class PlacementChange:
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


@dataclass(frozen=True, slots=True)
class StatusChange:
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
class Plan:
    """Everything to be done, each list in the order of names.

    Attributes:
        releases: Actors that are gone while a pod still holds them.
        placed: actors on each pod once the plan is carried out.
    """

    changes: tuple[PlacementChange, ...] = ()
    statuses: tuple[StatusChange, ...] = ()
    introductions: tuple[Introduction, ...] = ()
    releases: tuple[ActorView, ...] = ()
    finalizers: tuple[FinalizerChange, ...] = ()
    purges: tuple[Purge, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.changes or self.statuses or self.introductions or self.releases or self.finalizers or self.purges)


def make_plan(snapshot: Snapshot) -> Plan:
    """Return what must change."""
    actors = [snapshot.actors[key] for key in sorted(snapshot.actors)]
    owners = find_owners(actors)
    standing = _Standing(snapshot, owners)
    for actor in actors:
        standing.take(actor)
    chosen = _choose(snapshot, standing)
    changes, waiting = _settle_movers(snapshot, standing, chosen)
    changes += [_unplace(snapshot, actor, obstacle) for actor, obstacle in standing.stopped if actor.home is not None]
    changes += [_raise_epoch(snapshot, actor, cause) for actor, cause in standing.renewed]
    waiting += [(actor, obstacle) for actor, obstacle in standing.stopped if actor.home is None]
    changes.sort(key=lambda change: change.actor.key)
    return Plan(
        changes=tuple(changes),
        statuses=_find_status_changes(waiting),
        introductions=_introduce(snapshot, standing, {change.actor.key for change in changes}),
        releases=tuple(actor for actor in snapshot.vanished if _hears(snapshot, actor)),
        finalizers=_find_finalizer_changes(actors, owners),
        purges=_find_purges(snapshot, actors, owners),
    )


def find_owners(actors: Iterable[ActorView]) -> Mapping[ActorId, ObjectKey]:
    """Return which Actor has each identity."""
    oldest: dict[ActorId, ActorView] = {}
    for actor in actors:
        if actor.identity is None or actor.deleting:
            continue
        known = oldest.get(actor.identity)
        if known is None or (actor.created, actor.key) < (known.created, known.key):
            oldest[actor.identity] = actor
    return {identity: actor.key for identity, actor in oldest.items()}


def find_stop(actor: ActorView, owners: Mapping[ActorId, ObjectKey], problem: str = "") -> Obstacle | None:
    """Return why the actor must not run at all, whatever pods there are."""
    if actor.deleting:
        return statuses.deleting(actor, problem)
    if actor.identity is None:
        return statuses.invalid_spec(actor)
    owner = owners[actor.identity]
    if owner != actor.key:
        return statuses.duplicate_identity(actor, owner)
    return statuses.suspended() if actor.suspend else None


def find_gap(snapshot: Snapshot, actor: ActorView) -> Obstacle | None:
    """Return what is missing for the actor to be placed anew, pods apart."""
    model = snapshot.models.get(actor.model_key)
    if model is None:
        return statuses.model_not_found(actor)
    if not model.accepted:
        return statuses.model_not_accepted(actor)
    return statuses.pool_not_found(actor) if actor.pool_key not in snapshot.pools else None


class _Standing:
    """Sorts actors by what becomes of them before anybody is placed."""

    def __init__(self, snapshot: Snapshot, owners: Mapping[ActorId, ObjectKey]) -> None:
        self._snapshot = snapshot
        self._owners = owners
        self.stopped: list[tuple[ActorView, Obstacle]] = []
        self.staying: dict[PodUid, list[ActorView]] = defaultdict(list)
        self.renewed: list[tuple[ActorView, Cause]] = []
        self.movers: dict[ObjectKey, list[tuple[ActorView, Cause]]] = defaultdict(list)
        self.undecided: Counter[PodUid] = Counter()

    def take(self, actor: ActorView) -> None:
        """Put one actor where it belongs."""
        stop = find_stop(actor, self._owners, self._snapshot.purge_problems.get(actor.key, ""))
        if stop is not None:
            self.stopped.append((actor, stop))
            return
        cause = self._find_cause(actor)
        if cause is None:
            self.staying[_pod_uid(actor)].append(actor)
        elif cause in ("EpochRaised", "StatusRepaired"):
            self.staying[_pod_uid(actor)].append(actor)
            self.renewed.append((actor, cause))
        else:
            self.movers[actor.pool_key].append((actor, cause))
            # It goes to another pool if that has room, so its seat here is not free yet.
            self.undecided[_pod_uid(actor)] += cause == "PoolChanged"

    def _find_cause(self, actor: ActorView) -> Cause | None:
        """Return why the actor needs a new placement; None when it may stay as it is."""
        if actor.home is None:
            return "Scheduled"
        pod = self._snapshot.pods.get(actor.home.pod_uid)
        if pod is None or not pod.keeps_actors:
            return "PodLost" if self._snapshot.settled else None
        if pod.pool_key != actor.pool_key:
            return "PoolChanged"
        if pod.verdict == "leaving":
            return "Moving"
        return self._find_repair(actor)

    def _find_repair(self, actor: ActorView) -> Cause | None:
        if actor.home is not None and _highest_known(self._snapshot, actor) > actor.home.epoch:
            return "EpochRaised"
        scheduled = actor.condition(statuses.SCHEDULED)
        return "StatusRepaired" if scheduled is None or scheduled.status != "True" else None


def _choose(snapshot: Snapshot, standing: _Standing) -> Mapping[ObjectKey, PodUid]:
    """Return the new pods, by actor, of those that move or have none yet."""
    pods: dict[ObjectKey, list[PodView]] = defaultdict(list)
    for pod in snapshot.pods.values():
        if pod.takes_actors:
            pods[pod.pool_key].append(pod)
    chosen: dict[ObjectKey, PodUid] = {}
    for pool_key, movers in standing.movers.items():
        pool = snapshot.pools.get(pool_key)
        if pool is None:
            continue
        placeable = sorted((actor for actor, _ in movers if find_gap(snapshot, actor) is None), key=lambda actor: (actor.created, actor.key))
        seats = [Seat(pod.uid, len(standing.staying[pod.uid]) + standing.undecided[pod.uid], pool.capacity) for pod in pods[pool_key]]
        by_name = {str(actor.identity): actor.key for actor in placeable}
        chosen.update((by_name[name], uid) for name, uid in choose_pods(list(by_name), seats).items())
    return chosen


def _settle_movers(snapshot: Snapshot, standing: _Standing, chosen: Mapping[ObjectKey, PodUid]) -> tuple[list[PlacementChange], list[tuple[ActorView, Obstacle]]]:
    """Return the changes of those that move, and those that have no pod and get none."""
    changes: list[PlacementChange] = []
    waiting: list[tuple[ActorView, Obstacle]] = []
    ready_pools = {pod.pool_key for pod in snapshot.pods.values() if pod.takes_actors}
    for movers in standing.movers.values():
        for actor, cause in movers:
            uid = chosen.get(actor.key)
            if uid is not None:
                changes.append(_place(snapshot, actor, snapshot.pods[uid], cause))
            elif cause in ("Moving", "PoolChanged"):
                standing.staying[_pod_uid(actor)].append(actor)
            else:
                obstacle = _explain(snapshot, actor, ready_pools)
                changes += [_unplace(snapshot, actor, obstacle)] if actor.home is not None else []
                waiting += [(actor, obstacle)] if actor.home is None else []
    return changes, waiting


def _explain(snapshot: Snapshot, actor: ActorView, ready_pools: set[ObjectKey]) -> Obstacle:
    gap = find_gap(snapshot, actor)
    if gap is not None:
        return gap
    return statuses.no_capacity(actor) if actor.pool_key in ready_pools else statuses.no_ready_pods(actor)


def _place(snapshot: Snapshot, actor: ActorView, pod: PodView, cause: Cause) -> PlacementChange:
    new = Placed(pod.name, pod.uid, _next_epoch(snapshot, actor))
    return PlacementChange(actor, new, cause, statuses.build_placed_status(actor, new, cause))


def _raise_epoch(snapshot: Snapshot, actor: ActorView, cause: Cause) -> PlacementChange:
    home = actor.home
    pod = home.pod if home is not None else ""
    new = Placed(pod, _pod_uid(actor), _next_epoch(snapshot, actor))
    return PlacementChange(actor, new, cause, statuses.build_placed_status(actor, new, cause))


def _unplace(snapshot: Snapshot, actor: ActorView, obstacle: Obstacle) -> PlacementChange:
    new = Placed("", NO_POD, _next_epoch(snapshot, actor))
    return PlacementChange(actor, new, "Unscheduled", statuses.build_unplaced_status(actor, new, obstacle))


def _next_epoch(snapshot: Snapshot, actor: ActorView) -> Epoch:
    old = actor.placement.epoch if actor.placement is not None else 0
    return Epoch(max(old + 1, _highest_known(snapshot, actor) + 1, snapshot.now_ms))


def _highest_known(snapshot: Snapshot, actor: ActorView) -> int:
    return max(snapshot.epoch_floors.get(actor.key, 0), actor.reported_epoch)


def _pod_uid(actor: ActorView) -> PodUid:
    return actor.home.pod_uid if actor.home is not None else NO_POD


def _hears(snapshot: Snapshot, actor: ActorView) -> bool:
    pod = snapshot.pods.get(_pod_uid(actor))
    return pod is not None and pod.hears


def _find_status_changes(waiting: list[tuple[ActorView, Obstacle]]) -> tuple[StatusChange, ...]:
    desired = [StatusChange(actor, statuses.build_unplaced_status(actor, actor.placement, obstacle)) for actor, obstacle in waiting]
    return tuple(sorted((change for change in desired if not statuses.is_written(change.actor, change.status)), key=lambda change: change.actor.key))


def _introduce(snapshot: Snapshot, standing: _Standing, changed: set[ObjectKey]) -> tuple[Introduction, ...]:
    newcomers = sorted((pod for pod in snapshot.pods.values() if pod.hears and not pod.introduced), key=lambda pod: pod.uid)
    return tuple(Introduction(pod, tuple(actor for actor in standing.staying[pod.uid] if actor.key not in changed)) for pod in newcomers)


def _find_finalizer_changes(actors: list[ActorView], owners: Mapping[ActorId, ObjectKey]) -> tuple[FinalizerChange, ...]:
    changes = [FinalizerChange(actor, True) for actor in actors if actor.purges and not actor.held_by_us and not actor.deleting]
    changes += [FinalizerChange(actor, False) for actor in actors if actor.held_by_us and not _must_hold(actor, owners)]
    return tuple(sorted(changes, key=lambda change: change.actor.key))


def _must_hold(actor: ActorView, owners: Mapping[ActorId, ObjectKey]) -> bool:
    """Return whether the finalizer still has a purpose: the events are to be purged, and belong to nobody else."""
    if not actor.purges:
        return False
    return not actor.deleting or (actor.identity is not None and actor.identity not in owners)


def _find_purges(snapshot: Snapshot, actors: list[ActorView], owners: Mapping[ActorId, ObjectKey]) -> tuple[Purge, ...]:
    purges: list[Purge] = []
    for actor in actors:
        ended = actor.deleting and actor.held_by_us and actor.home is None
        if ended and actor.identity is not None and _must_hold(actor, owners):
            epoch = actor.placement.epoch if actor.placement is not None else Epoch(snapshot.now_ms)
            purges.append(Purge(actor, actor.identity, epoch))
    return tuple(purges)
