"""Counts down, during one plan, how many actors may still move: what `pace` allows, pod by pod and pool by pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from aether_api.identity import PodUid
from aether_kube.store import ObjectKey
from aether_operator.planning.pace import NO_PACE, Bucket, Pace, hand_over_limit, is_fresh, loss_tokens, move_tokens
from aether_operator.planning.snapshot import ActorView, Snapshot

LOSSES_AGAIN_S: Final = 0.2
"""Seconds until more actors of several lost pods may move: steps of a tenth of the burst, which nobody feels."""

MOVES_AGAIN_S: Final = 1.0
"""Seconds until more actors are rebalanced: with one burst a second, planning costs little meanwhile."""


class Budgets:
    """The budgets of one plan.

    Attributes:
        paces: what the pools will have spent.
        again_after_s: when a budget that held somebody back is worth another plan; None when none did.
    """

    def __init__(self, snapshot: Snapshot, held: Callable[[PodUid], int]) -> None:
        """Begin with what earlier plans left.

        Args:
            held: returns how many actors a pod has.
        """
        self._snapshot = snapshot
        self._held = held
        self._hand_overs: dict[PodUid, int] = {}
        self._held_back: set[ObjectKey] = set()
        self.paces = {key: pace for key, pace in snapshot.paces.items() if not is_fresh(snapshot.limits, pace, snapshot.now_s)}
        self.again_after_s: float | None = None

    def hand_overs_left(self, uid: PodUid) -> int:
        """Return how many more actors a pod may hand over now."""
        left = self._hand_overs.get(uid)
        if left is None:
            limit = hand_over_limit(self._snapshot.limits, self._held(uid))
            left = self._hand_overs[uid] = max(0, limit - self._snapshot.under_way.get(uid, 0))
        return left

    def hand_over(self, uid: PodUid) -> None:
        """Count one actor that a pod hands over."""
        self._hand_overs[uid] = self.hand_overs_left(uid) - 1

    def admit_losses(self, pool: ObjectKey, actors: Iterable[ActorView]) -> list[ActorView]:
        """Return which actors of lost pods may move now: all of one pod, of several as many as the rate allows, the most important first."""
        lost = list(actors)
        if len({actor.placement.pod_uid for actor in lost if actor.placement is not None}) < 2:
            return lost
        pace = self.pace(pool)
        tokens = loss_tokens(self._snapshot.limits, pace, self._snapshot.now_s)
        lost.sort(key=lambda actor: actor.precedence)
        admitted = lost[: int(tokens)]
        self.paces[pool] = replace(pace, losses=Bucket(tokens - len(admitted), self._snapshot.now_s))
        if len(admitted) < len(lost):
            self._held_back.add(pool)
            self._plan_again(LOSSES_AGAIN_S)
        return admitted

    def holds_back(self, pool: ObjectKey) -> bool:
        """Return whether actors of the pool's lost pods wait for their turn."""
        return pool in self._held_back

    def moves_left(self, pool: ObjectKey) -> int:
        """Return how many actors of a pool may be rebalanced now."""
        return int(move_tokens(self._snapshot.limits, self.pace(pool), self._snapshot.now_s))

    def rebalance(self, pool: ObjectKey, moved: int, *, goes_on: bool) -> None:
        """Count actors that are rebalanced, and remember whether there are more to come."""
        pace = replace(self.pace(pool), is_evening=goes_on)
        if moved:
            tokens = move_tokens(self._snapshot.limits, pace, self._snapshot.now_s) - moved
            pace = replace(pace, moves=Bucket(tokens, self._snapshot.now_s))
        if pace != NO_PACE:
            self.paces[pool] = pace
        else:
            self.paces.pop(pool, None)
        if goes_on:
            self._plan_again(MOVES_AGAIN_S)

    def pace(self, pool: ObjectKey) -> Pace:
        """Return what a pool has spent."""
        return self.paces.get(pool, NO_PACE)

    def _plan_again(self, after_s: float) -> None:
        self.again_after_s = after_s if self.again_after_s is None else min(self.again_after_s, after_s)
