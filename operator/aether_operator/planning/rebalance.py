"""Decides which actors move for the sake of an even load: few, slowly, and only while nothing else is going on.

It begins when a pod is more than a tenth away from even (and more than one actor), and ends when all are within a twentieth, so
that actors who come and go cause no moves at the edge. Each move goes from a pod to one that holds at least two fewer: the sum of
squares of the loads falls with each, so none is ever taken back. What has to stay where it is (required labels, preferences,
spread) is left there, whatever the load.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from aether_operator.planning.affinity import Crowds, domain_of, fits, score
from aether_operator.planning.placement import Seat
from aether_operator.planning.rules import Rules
from aether_operator.planning.snapshot import ActorView, PodView

BEGIN_SHARE: Final = 0.10
"""How far from even a load may be before rebalancing begins: the imbalance that users may see."""

END_SHARE: Final = 0.05
"""How far from even a load may be when rebalancing ends: half of the other, which keeps it from beginning again at once."""

ACTORS_FREE: Final = 1.0
"""Actors from even that never matter: three actors on two pods cannot be even."""


@dataclass(frozen=True, slots=True)
class Move:
    """One actor goes to another pod."""

    actor: ActorView
    to: PodView


@dataclass(slots=True)
class Holder:
    """A pod that may give or take.

    Attributes:
        gives: how many it may hand over now.
        actors: those that it holds and that are not moving, by their rules; the most important first.
    """

    seat: Seat
    gives: int
    actors: Mapping[Rules, list[ActorView]]


def is_uneven(loads: Sequence[int], share: float) -> bool:
    """Return whether a load is further from even than this share of it."""
    if len(loads) < 2:
        return False
    even = sum(loads) / len(loads)
    return max(max(loads) - even, even - min(loads)) > max(ACTORS_FREE, share * even)


def group_by_rules(actors: Iterable[ActorView]) -> Mapping[Rules, list[ActorView]]:
    """Return the actors by their rules, the most important first."""
    groups: dict[Rules, list[ActorView]] = defaultdict(list)
    for actor in sorted(actors, key=lambda actor: actor.precedence):
        groups[actor.rules].append(actor)
    return groups


def find_moves(holders: Sequence[Holder], crowds: Crowds, budget: int) -> tuple[list[Move], bool]:
    """Return at most `budget` moves, and whether there is more to be done; the holders' seats are counted up and down."""
    moves: list[Move] = []
    while is_uneven([holder.seat.load for holder in holders], END_SHARE):
        move = _find_move(holders, crowds)
        if move is None:
            return moves, False
        if len(moves) >= budget:
            return moves, True
        source, target, actor = move
        _carry_out(source, target, actor, crowds)
        moves.append(Move(actor, target.seat.pod))
    return moves, False


def _find_move(holders: Sequence[Holder], crowds: Crowds) -> tuple[Holder, Holder, ActorView] | None:
    """Return the best move: from the fullest to the emptiest, of those that are possible."""
    by_load = sorted(holders, key=lambda holder: (holder.seat.load, holder.seat.pod.uid))
    for source in reversed(by_load):
        for target in by_load:
            if source.seat.load - target.seat.load < 2:
                break
            actor = _choose_actor(source, target, crowds) if source.gives > 0 and target.seat.has_room else None
            if actor is not None:
                return source, target, actor
    return None


def _choose_actor(source: Holder, target: Holder, crowds: Crowds) -> ActorView | None:
    """Return the least important actor that would not be worse off."""
    here, there = source.seat.pod, target.seat.pod
    last = [actors[-1] for rules, actors in source.actors.items() if actors and fits(rules, there) and score(rules, there) >= score(rules, here)]
    return max((actor for actor in last if not _crowds_more(actor, here, there, crowds)), key=lambda actor: actor.precedence, default=None)


def _crowds_more(actor: ActorView, here: PodView, there: PodView, crowds: Crowds) -> bool:
    spread = actor.rules.spread
    if spread is None:
        return False
    counts = crowds.count(actor.key.namespace, spread)
    old, new = domain_of(spread, here), domain_of(spread, there)
    return old != new and counts[new] >= counts[old]


def _carry_out(source: Holder, target: Holder, actor: ActorView, crowds: Crowds) -> None:
    source.actors[actor.rules].pop()
    source.gives -= 1
    source.seat.load -= 1
    target.seat.load += 1
    crowds.add(actor, source.seat.pod.uid, -1)
    crowds.add(actor, target.seat.pod.uid)
