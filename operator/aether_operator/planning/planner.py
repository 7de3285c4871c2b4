"""Decides, from a snapshot, everything that must change: placements, statuses, finalizers, purges, what pods must be told.

Rules, in this order:

1. Of Actors with one identity the oldest has it (then the first by name); one that is being deleted has none.
2. An actor is taken off its pod when its user suspends or deletes it, or when it has no identity of its own.
3. An actor stays where it is while its pod is not surely dead. A pod that leaves keeps its actors until another has room.
   A model or pool is needed to be placed, not to stay: a mistake in a model stops nothing that runs.
4. Everybody else gets a pod that fits and has room (`placement`), or a status that says why not. Where room is short, a higher
   priority goes first; nobody who has a pod loses it to a higher priority, since displacing costs two pauses to avoid a wait.
5. Every change of placement raises the epoch above all that anybody is known to have seen, and above the clock, since an epoch
   must outlive the resource.

Equal snapshots give equal plans, and a snapshot in which a plan was carried out gives an empty one.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from aether_api.identity import Epoch, PodUid
from aether_kube.store import ObjectKey
from aether_operator.planning import statuses
from aether_operator.planning.affinity import carries, count_by_domain, fits
from aether_operator.planning.endings import find_endings
from aether_operator.planning.placement import Seat, Seats
from aether_operator.planning.plan import Introduction, PlacementChange, Plan, StatusChange
from aether_operator.planning.rules import Rules
from aether_operator.planning.snapshot import ActorView, Placed, PodView, Snapshot
from aether_operator.planning.standing import Standing, find_gap, find_rivals, sort_actors
from aether_operator.planning.statuses import Cause, DesiredCondition, Obstacle

NO_POD = PodUid("")


def make_plan(snapshot: Snapshot) -> Plan:
    """Return what must change."""
    actors = [snapshot.actors[key] for key in sorted(snapshot.actors)]
    standing = sort_actors(snapshot, actors, find_rivals(actors))
    placer = _Placer(snapshot, standing)
    placer.place_all()
    for actor, cause in standing.renewed:
        placer.raise_epoch(actor, cause)
    for actor, obstacle in standing.stopped:
        placer.stop(actor, obstacle)
    changes = sorted(placer.changes, key=lambda change: change.actor.key)
    finalizers, purges = find_endings(snapshot, actors)
    return Plan(
        changes=tuple(changes),
        statuses=_find_status_changes(placer.waiting),
        introductions=_introduce(snapshot, standing, {change.actor.key for change in changes}),
        releases=tuple(actor for actor in snapshot.vanished if _hears(snapshot, actor)),
        finalizers=finalizers,
        purges=purges,
    )


class _Group:
    """Actors that need the same: what hinders all of them, the seats that they share, and the texts of their statuses."""

    def __init__(self, gap: Obstacle | None, full: Obstacle, seats: Seats) -> None:
        self.gap = gap
        self.full = full
        self.seats = seats


class _Placer:
    """Places the movers of a standing one by one, and collects what changes by it."""

    def __init__(self, snapshot: Snapshot, standing: Standing) -> None:
        self._snapshot = snapshot
        self._standing = standing
        # Who is to leave a pod that takes others has its seat there until it is gone.
        self._undecided = Counter(_pod_uid(actor) for actor, cause in standing.movers if cause in statuses.HAND_OVERS)
        self._groups: dict[tuple[str, str, str, Rules], _Group] = {}
        self._crowds = _count_crowds(standing)
        self._seats: dict[ObjectKey, Seats] = {}
        self._texts: dict[tuple[PodUid, Cause, str], tuple[DesiredCondition, ...]] = {}
        self.changes: list[PlacementChange] = []
        self.waiting: list[tuple[ActorView, Obstacle]] = []

    def place_all(self) -> None:
        """Give each mover a pod, or say why it has none."""
        for actor, cause in sorted(self._standing.movers, key=lambda mover: _precedence(mover[0])):
            group = self._group(actor)
            pod = self._find_pod(actor, group.seats) if group.gap is None else None
            if pod is not None:
                self._change(actor, pod.name, pod.uid, cause)
            elif cause in statuses.HAND_OVERS:
                self._standing.staying[_pod_uid(actor)].append(actor)
            else:
                self.stop(actor, group.gap or group.full)

    def _find_pod(self, actor: ActorView, seats: Seats) -> PodView | None:
        spread = actor.rules.spread
        if spread is None:
            return seats.take(actor.rules)
        crowd = self._crowds[actor.key.namespace, spread.group]
        pod = seats.take_apart(actor.rules, spread, count_by_domain(spread, crowd, self._snapshot.pods))
        if pod is not None:
            crowd[pod.uid] += 1
        return pod

    def raise_epoch(self, actor: ActorView, cause: Cause) -> None:
        """Place an actor where it is, at a higher epoch."""
        self._change(actor, actor.home.pod if actor.home is not None else "", _pod_uid(actor), cause)

    def stop(self, actor: ActorView, obstacle: Obstacle) -> None:
        """Take an actor off its pod, if it has one, and say why."""
        if actor.home is None:
            self.waiting.append((actor, obstacle))
            return
        new = Placed("", NO_POD, self._next_epoch(actor))
        self.changes.append(PlacementChange(actor, new, "Unscheduled", statuses.build_unplaced_status(actor, new, obstacle)))

    def _change(self, actor: ActorView, pod: str, uid: PodUid, cause: Cause) -> None:
        new = Placed(pod, uid, self._next_epoch(actor))
        told = (uid, cause, actor.placement.pod if actor.placement is not None else "")
        conditions = self._texts.get(told)
        if conditions is None:
            conditions = self._texts[told] = statuses.build_placed_conditions(actor, new, cause)
        self.changes.append(PlacementChange(actor, new, cause, statuses.join_placed_status(actor, new, conditions)))

    def _group(self, actor: ActorView) -> _Group:
        needs = (actor.key.namespace, actor.model, actor.pool, actor.rules)
        group = self._groups.get(needs)
        if group is None:
            takers = [pod for pod in self._snapshot.pods.values() if pod.takes_actors and pod.pool_key == actor.pool_key]
            seats = self._fill(actor.pool_key, takers)
            group = self._groups[needs] = _Group(find_gap(self._snapshot, actor), self._explain(actor, takers), seats)
        return group

    def _explain(self, actor: ActorView, takers: list[PodView]) -> Obstacle:
        """Return what hinders an actor that found no seat."""
        if not takers:
            return statuses.no_ready_pods(actor)
        fitting = sum(fits(actor.rules, pod) for pod in takers)
        if not fitting:
            required = actor.rules.required
            nowhere = tuple(label for label in required if not any(carries(pod, (label,)) for pod in takers))
            return statuses.no_matching_pods(actor, nowhere or required)
        pool = self._snapshot.pools.get(actor.pool_key)
        return statuses.no_capacity(actor, fitting, pool.capacity if pool is not None else 0)

    def _fill(self, pool_key: ObjectKey, takers: list[PodView]) -> Seats:
        seats = self._seats.get(pool_key)
        if seats is None:
            pool = self._snapshot.pools.get(pool_key)
            capacity = pool.capacity if pool is not None else 0
            seats = self._seats[pool_key] = Seats(Seat(pod, len(self._standing.staying[pod.uid]) + self._undecided[pod.uid], capacity) for pod in takers)
        return seats

    def _next_epoch(self, actor: ActorView) -> Epoch:
        old = actor.placement.epoch if actor.placement is not None else 0
        known = max(self._snapshot.epoch_floors.get(actor.key, 0), actor.reported_epoch, old)
        return Epoch(max(known + 1, self._snapshot.now_ms))


def _precedence(actor: ActorView) -> tuple[int, bool, str, ObjectKey]:
    """Return the order in which actors get room: by priority, then who can go to fewer pods, then the oldest."""
    return -actor.priority, not actor.rules.required, actor.created, actor.key


def _count_crowds(standing: Standing) -> dict[tuple[str, str], Counter[PodUid]]:
    """Return, by namespace and spread group, how many actors of it stay on each pod."""
    crowds: dict[tuple[str, str], Counter[PodUid]] = defaultdict(Counter)
    for uid, actors in standing.staying.items():
        for actor in actors:
            if actor.rules.spread is not None:
                crowds[actor.key.namespace, actor.rules.spread.group][uid] += 1
    return crowds


def _pod_uid(actor: ActorView) -> PodUid:
    return actor.placement.pod_uid if actor.placement is not None else NO_POD


def _hears(snapshot: Snapshot, actor: ActorView) -> bool:
    pod = snapshot.pods.get(_pod_uid(actor))
    return pod is not None and pod.hears


def _find_status_changes(waiting: list[tuple[ActorView, Obstacle]]) -> tuple[StatusChange, ...]:
    desired = [StatusChange(actor, statuses.build_unplaced_status(actor, actor.placement, obstacle)) for actor, obstacle in waiting]
    return tuple(sorted((change for change in desired if not statuses.is_written(change.actor, change.status)), key=lambda change: change.actor.key))


def _introduce(snapshot: Snapshot, standing: Standing, changed: set[ObjectKey]) -> tuple[Introduction, ...]:
    newcomers = sorted((pod for pod in snapshot.pods.values() if pod.hears and not pod.introduced), key=lambda pod: pod.uid)
    return tuple(Introduction(pod, tuple(actor for actor in standing.staying[pod.uid] if actor.key not in changed)) for pod in newcomers)
