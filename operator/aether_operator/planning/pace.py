"""Decides how many actors may move at once, and how fast: budgets as values, which go into a plan and come out of it.

- *Hand-overs* from a pod that lives are bounded by how many are under way there, so that an actor waits for its own hand-over only,
  not for those of all others on its pod.
- *Losses*: the actors of one lost pod move at once. When several pods of a pool are lost together, the cause may be a network that
  is back in a moment, and the pods that are left must not be flooded; so they follow at a rate, the most important first.
- *Rebalancing* is never urgent, and has the lowest rate.

A token bucket knows no clock: it is asked with the time of the snapshot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

REBALANCE_PER_S: Final = 20.0
"""Actors a second and pool: a pod that joins 20 pods of 500 actors is filled within half a minute, and each pause is on its own."""

MASS_MOVES_PER_S: Final = 500.0
"""Actors a second and pool when several pods are lost: what the pods that are left replay without their own actors waiting."""

MASS_BURST_S: Final = 2.0
"""Seconds of that rate that may be spent at once: two pods of 500 actors on one node come back as fast as one."""

HAND_OVERS_AT_ONCE: Final = 16
"""Actors that one pod hands over at once: their snapshots and replays run side by side, and take as long as one on a quiet pod."""

HAND_OVER_SHARE: Final = 64
"""Part of its actors that a pod hands over at once where that is more: 10,000 actors leave in some 200 steps, within the grace of 120 s."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How fast actors may move; see the constants of the same names."""

    rebalance_per_s: float = REBALANCE_PER_S
    mass_moves_per_s: float = MASS_MOVES_PER_S
    hand_overs_at_once: int = HAND_OVERS_AT_ONCE


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tokens that were left at a moment, in monotonic seconds."""

    tokens: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Pace:
    """What a pool has spent. None is a bucket that is full.

    Attributes:
        is_evening: its loads are being evened out, and go on to be until they are well within what starts it.
    """

    losses: Bucket | None = None
    moves: Bucket | None = None
    is_evening: bool = False


NO_PACE: Final = Pace()


def hand_over_limit(limits: Limits, held: int) -> int:
    """Return how many actors a pod that holds so many may hand over at once."""
    return max(limits.hand_overs_at_once, math.ceil(held / HAND_OVER_SHARE))


def loss_tokens(limits: Limits, pace: Pace, now_s: float) -> float:
    """Return how many actors of several lost pods may move now."""
    return _refill(pace.losses, limits.mass_moves_per_s, limits.mass_moves_per_s * MASS_BURST_S, now_s)


def move_tokens(limits: Limits, pace: Pace, now_s: float) -> float:
    """Return how many actors may be rebalanced now."""
    return _refill(pace.moves, limits.rebalance_per_s, max(1.0, limits.rebalance_per_s), now_s) if limits.rebalance_per_s > 0 else 0.0


def is_fresh(limits: Limits, pace: Pace, now_s: float) -> bool:
    """Return whether a pool has spent nothing that it has not got back."""
    spent = (pace.losses is not None and loss_tokens(limits, pace, now_s) < limits.mass_moves_per_s * MASS_BURST_S) or (
        pace.moves is not None and move_tokens(limits, pace, now_s) < max(1.0, limits.rebalance_per_s)
    )
    return not spent and not pace.is_evening


def _refill(bucket: Bucket | None, per_s: float, burst: float, now_s: float) -> float:
    return burst if bucket is None else min(burst, bucket.tokens + max(0.0, now_s - bucket.at_s) * per_s)
