"""Decides which pod takes which actor: the one with the fewest among those that fit, one actor after another.

- *Sticky*: an actor that has a pod is never an input here, so nothing moves for the sake of balance.
- *Deterministic*: the result depends on UIDs, loads and the order of the actors alone, not on the order of any container.
- *Even*: pods of equal standing end within one actor of each other, unless they began further apart.
- *Minimal*: when a pod is lost, only its own actors find new places.

Placements are remembered, by the resources and by the pods themselves, so nothing needs a function that finds them again: hashing
would only make the loads uneven (42 to 53 on a pod, for a thousand on 20) and compare every actor with every pod.

A heap holds the pods by load. Loads only rise while actors are placed, so an entry that is out of date is put right when it comes
up. That makes the cost of an actor independent of the number of pods.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace

from aether_operator.planning.snapshot import PodView


@dataclass(slots=True)
class Seat:
    """A pod that may take actors.

    Attributes:
        load: actors that it has, those given to it included.
        capacity: most actors that it may have.
    """

    pod: PodView
    load: int
    capacity: int

    @property
    def has_room(self) -> bool:
        """Whether it may take one more."""
        return self.load < self.capacity


class Seats:
    """The pods of one pool while they are filled."""

    def __init__(self, seats: Iterable[Seat]) -> None:
        """Begin with the loads that the seats have."""
        self._seats = sorted(seats, key=lambda seat: seat.pod.uid)
        self._heap = [(seat.load, number) for number, seat in enumerate(self._seats)]
        heapify(self._heap)

    def take(self) -> PodView | None:
        """Return the pod for the next actor and count it there; None when nobody has room."""
        heap = self._heap
        while heap:
            load, number = heap[0]
            seat = self._seats[number]
            if not seat.has_room:
                heappop(heap)
            elif seat.load != load:
                heapreplace(heap, (seat.load, number))
            else:
                seat.load += 1
                heapreplace(heap, (seat.load, number))
                return seat.pod
        return None
