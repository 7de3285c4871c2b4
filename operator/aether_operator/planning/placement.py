"""Decides which pod takes which actor: rendezvous hashing with bounded loads, over pods that already hold something.

- *Sticky*: an actor that has a pod is never an input here, so nothing moves for the sake of balance.
- *Deterministic*: the result depends on names, UIDs and loads alone, not on the order of any container.
- *Bounded*: no pod is given actors beyond its capacity, nor beyond its share of the whole by more than `SLACK`, while another
  one has room. An actor goes to the pod that scores highest for it among those with room.
- *Minimal*: when a pod is lost, only its own actors find new places; the others' scores do not change.

Prior art: Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads"; rendezvous in place of a ring, since with
tens of pods comparing all of them is cheaper than keeping a ring, and spreads a lost pod's actors evenly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from aether_api.identity import PodUid

SLACK: Final = 1.05
"""How far above its even share a pod may be filled: half of the 10 % of imbalance that users may see, the rest is rounding."""

_MASK: Final = (1 << 64) - 1
_MIX: Final = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio: multiplying by it spreads differences of low bits into the high ones."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A pod that may take actors.

    Attributes:
        held: actors that it has now.
        capacity: most actors that it may have.
    """

    uid: PodUid
    held: int
    capacity: int


@dataclass(slots=True)
class _Candidate:
    seat: Seat
    seed: int
    load: int


def choose_pods(actors: Sequence[str], seats: Iterable[Seat]) -> Mapping[str, PodUid]:
    """Return a pod for each actor, given as stable names in order of precedence; those for which there is no room are left out."""
    candidates = [_Candidate(seat, _hash(seat.uid), seat.held) for seat in sorted(seats, key=lambda seat: seat.uid)]
    candidates = [candidate for candidate in candidates if candidate.load < candidate.seat.capacity]
    total = sum(candidate.load for candidate in candidates) + len(actors)
    chosen: dict[str, PodUid] = {}
    share = 0
    open_candidates: list[_Candidate] = []
    for name in actors:
        if not open_candidates:
            # Pods that were full from the start, or became so, leave more to the others.
            candidates = [candidate for candidate in candidates if candidate.load < candidate.seat.capacity]
            if not candidates:
                break
            share = _next_share(candidates, total, share)
            open_candidates = [candidate for candidate in candidates if candidate.load < share]
        best = _best(name, open_candidates)
        best.load += 1
        chosen[name] = best.seat.uid
        if best.load >= min(share, best.seat.capacity):
            open_candidates.remove(best)
    return chosen


def _next_share(candidates: list[_Candidate], total: int, share: int) -> int:
    """Return a bound under which at least one candidate has room."""
    even = math.ceil(SLACK * total / len(candidates))
    return max(even, share + 1, min(candidate.load for candidate in candidates) + 1)


def _best(name: str, candidates: list[_Candidate]) -> _Candidate:
    seed = _hash(name)
    # A plain loop, since this line runs once for each actor and pod [10,000 actors on 20 pods: half the time of `max`].
    best, highest = candidates[0], -1
    for candidate in candidates:
        score = ((seed ^ candidate.seed) * _MIX) & _MASK
        if score > highest:
            best, highest = candidate, score
    return best


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
