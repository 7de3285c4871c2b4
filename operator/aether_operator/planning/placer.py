"""Gives movers their pods, within what may move at once, and evens the loads when nothing else is going on.

An accumulator that lives for one plan: it counts seats and budgets down while actors are placed, and what it decided stands in
`changes` (who gets, changes or loses a pod), `waiting` (who has none and why) and `budgets`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Final

from aether_api.identity import Epoch, PodUid
from aether_kube.store import ObjectKey
from aether_operator.planning import statuses
from aether_operator.planning.affinity import Crowds, carries, fits
from aether_operator.planning.budgets import Budgets
from aether_operator.planning.placement import Line, Seat, Seats
from aether_operator.planning.plan import PlacementChange
from aether_operator.planning.rebalance import BEGIN_SHARE, END_SHARE, Holder, find_moves, group_by_rules, is_uneven
from aether_operator.planning.rules import Rules
from aether_operator.planning.snapshot import ActorView, Placed, PodView, PoolView, Snapshot
from aether_operator.planning.standing import Standing, find_gap
from aether_operator.planning.statuses import Cause, DesiredCondition, Obstacle

NO_POD: Final = PodUid("")


class _Group:
    """Actors that need the same: what hinders all of them, what hinders those who find no seat, and the seats that suit them."""

    def __init__(self, gap: Obstacle | None, full: Obstacle, line: Line) -> None:
        self.gap = gap
        self.full = full
        self.line = line


class Placer:
    """Places the movers of a standing one by one, and collects what changes by it."""

    def __init__(self, snapshot: Snapshot, standing: Standing) -> None:
        self._snapshot = snapshot
        self._standing = standing
        # Who is to leave a pod that lives has its seat there until it is gone.
        self._undecided = Counter(pod_uid_of(actor) for actor, cause in standing.movers if cause in statuses.HAND_OVERS)
        self._pods: dict[ObjectKey, list[PodView]] = defaultdict(list)
        for pod in snapshot.pods.values():
            self._pods[pod.pool_key].append(pod)
        self._kept: set[ObjectKey] = set()
        self._handing_over: set[ObjectKey] = set()
        self._groups: dict[tuple[str, str, str, Rules], _Group] = {}
        self._crowds = _count_crowds(snapshot, standing)
        self._seats: dict[ObjectKey, Seats] = {}
        self._texts: dict[tuple[PodUid, Cause, str], tuple[DesiredCondition, ...]] = {}
        self.budgets = Budgets(snapshot, self._held)
        self.changes: list[PlacementChange] = []
        self.waiting: list[tuple[ActorView, Obstacle]] = []

    def place_all(self) -> None:
        """Give each mover a pod, or say why it has none."""
        for actor, cause in sorted(self._admit(), key=lambda mover: mover[0].precedence):
            home = pod_uid_of(actor)
            handed_over = cause in statuses.HAND_OVERS
            if handed_over and self.budgets.hand_overs_left(home) <= 0:
                self._keep(actor)
                continue
            group = self._group(actor)
            pod = self._find_pod(actor, group.line) if group.gap is None else None
            if pod is not None:
                self._change(actor, pod.name, pod.uid, cause)
                if handed_over:
                    self.budgets.hand_over(home)
                    self._handing_over.add(self._snapshot.pods[home].pool_key)
            elif handed_over:
                self._keep(actor)
            else:
                self.stop(actor, group.gap or group.full)

    def count_after(self) -> Counter[PodUid]:
        """Return how many actors each pod holds once all changes so far are carried out."""
        loads = Counter({uid: len(actors) for uid, actors in self._standing.staying.items()})
        for change in self.changes:
            if change.cause in ("EpochRaised", "StatusRepaired"):
                continue  # it is counted among those that stay
            loads[change.new.pod_uid] += 1
            loads[pod_uid_of(change.actor)] -= change.cause == "Rebalanced"
        return loads

    def rebalance(self) -> None:
        """Move actors from full pods to emptier ones, in pools in which nothing else is going on."""
        fixed = self._kept | {change.actor.key for change in self.changes}
        for key, pool in sorted(self._snapshot.pools.items()):
            begins = END_SHARE if self.budgets.pace(key).is_evening else BEGIN_SHARE
            seats = [seat for seat in self._fill(key) if not seat.reserve] if self._is_calm(key, pool) else []
            if is_uneven([seat.load for seat in seats], begins):
                self._rebalance_pool(key, seats, fixed)
            elif self.budgets.pace(key).is_evening:
                self.budgets.rebalance(key, 0, goes_on=False)

    def _rebalance_pool(self, key: ObjectKey, seats: list[Seat], fixed: set[ObjectKey]) -> None:
        even = sum(seat.load for seat in seats) / len(seats)
        holders: list[Holder] = []
        for seat in seats:
            uid = seat.pod.uid
            staying = [actor for actor in self._standing.staying[uid] if actor.key not in fixed] if seat.load > even else []
            holders.append(Holder(seat, self.budgets.hand_overs_left(uid), group_by_rules(staying)))
        moves, goes_on = find_moves(holders, self._crowds, self.budgets.moves_left(key))
        for move in moves:
            self.budgets.hand_over(pod_uid_of(move.actor))
            self._change(move.actor, move.to.name, move.to.uid, "Rebalanced")
        self.budgets.rebalance(key, len(moves), goes_on=goes_on)

    def _is_calm(self, key: ObjectKey, pool: PoolView) -> bool:
        """Return whether no pod of the pool is about to go or just gives actors away, and nobody waits for the loss of one."""
        if self._snapshot.limits.rebalance_per_s <= 0 or not self._snapshot.settled or self.budgets.holds_back(key):
            return False
        if key in self._handing_over:
            return False  # the seats that are being left still count, so a pod may look fuller than it is about to be
        living = [pod for pod in self._pods[key] if pod.verdict != "dead"]
        return not any(pod.verdict in ("leaving", "suspect") or pool.replaces(pod) or (pod.hands_over and self._held(pod.uid)) for pod in living)

    def _admit(self) -> list[tuple[ActorView, Cause]]:
        """Return the movers without those of lost pods that have to wait for their turn."""
        lost: dict[ObjectKey, list[ActorView]] = defaultdict(list)
        for actor, cause in self._standing.movers:
            if cause == "PodLost":
                lost[actor.pool_key].append(actor)
        admitted = {actor.key for pool, actors in lost.items() for actor in self.budgets.admit_losses(pool, actors)}
        return [mover for mover in self._standing.movers if mover[1] != "PodLost" or mover[0].key in admitted]

    def _held(self, uid: PodUid) -> int:
        return len(self._standing.staying[uid]) + self._undecided[uid]

    def _keep(self, actor: ActorView) -> None:
        """Leave an actor that shall move where it is, for now."""
        home = pod_uid_of(actor)
        self._standing.staying[home].append(actor)
        self._undecided[home] -= 1
        self._kept.add(actor.key)
        self._crowds.add(actor, home)

    def _find_pod(self, actor: ActorView, line: Line) -> PodView | None:
        spread = actor.rules.spread
        if spread is None:
            return line.take()
        pod = line.take_apart(spread, self._crowds.count(actor.key.namespace, spread))
        if pod is not None:
            self._crowds.add(actor, pod.uid)
        return pod

    def raise_epoch(self, actor: ActorView, cause: Cause) -> None:
        """Place an actor where it is, at a higher epoch."""
        self._change(actor, actor.home.pod if actor.home is not None else "", pod_uid_of(actor), cause)

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
            group = self._groups[needs] = _Group(find_gap(self._snapshot, actor), self._explain(actor), self._fill(actor.pool_key).line(actor.rules))
        return group

    def _explain(self, actor: ActorView) -> Obstacle:
        """Return what hinders an actor that found no seat."""
        pods = self._pods[actor.pool_key]
        takers = [pod for pod in pods if pod.takes_actors]
        if not takers:
            cordoned = any(pod.cordon and pod.ready and pod.verdict == "alive" for pod in pods)
            return statuses.pods_cordoned(actor) if cordoned else statuses.no_ready_pods(actor)
        fitting = sum(fits(actor.rules, pod) for pod in takers)
        if not fitting:
            required = actor.rules.required
            nowhere = tuple(label for label in required if not any(carries(pod, (label,)) for pod in takers))
            return statuses.no_matching_pods(actor, nowhere or required)
        pool = self._snapshot.pools.get(actor.pool_key)
        return statuses.no_capacity(actor, fitting, pool.capacity if pool is not None else 0)

    def _fill(self, key: ObjectKey) -> Seats:
        """Return the seats of a pool, as they are filled so far."""
        seats = self._seats.get(key)
        if seats is None:
            pool = self._snapshot.pools.get(key, PoolView(0))
            takers = [pod for pod in self._pods[key] if pod.takes_actors]
            seats = self._seats[key] = Seats(Seat(pod, self._held(pod.uid), pool.capacity, pool.replaces(pod) + 2 * pod.damped) for pod in takers)
        return seats

    def _next_epoch(self, actor: ActorView) -> Epoch:
        old = actor.placement.epoch if actor.placement is not None else 0
        known = max(self._snapshot.epoch_floors.get(actor.key, 0), actor.reported_epoch, old)
        return Epoch(max(known + 1, self._snapshot.now_ms))


def pod_uid_of(actor: ActorView) -> PodUid:
    """Return the pod that holds an actor, empty for none."""
    return actor.placement.pod_uid if actor.placement is not None else NO_POD


def _count_crowds(snapshot: Snapshot, standing: Standing) -> Crowds:
    crowds = Crowds(snapshot.pods)
    for uid, actors in standing.staying.items():
        for actor in actors:
            crowds.add(actor, uid)
    return crowds
