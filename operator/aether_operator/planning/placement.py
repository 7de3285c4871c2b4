"""Decides which pod takes which actor: the one with the fewest among those that fit, one actor after another.

- *Sticky*: an actor that has a pod is never an input here, so nothing moves for the sake of balance.
- *Deterministic*: the result depends on UIDs, loads and the order of the actors alone, not on the order of any container.
- *Even*: pods of equal standing end within one actor of each other, unless they began further apart.
- *Minimal*: when a pod is lost, only its own actors find new places.

Pods that will be replaced soon, or that flap, are a reserve: they get actors only while no other pod that fits has room. An actor with preferences goes to a pod that pleases it more, however full, before an emptier one; an actor of a spread group to
where fewest of the group are.

Placements are remembered, by the resources and by the pods themselves, so nothing needs a function that finds them again: hashing
would only make the loads uneven (42 to 53 on a pod, for a thousand on 20) and compare every actor with every pod.

A heap for each set of rules holds the pods by load. Loads only rise while actors are placed, so an entry that is out of date is
put right when it comes up. That makes the cost of an actor independent of the number of pods.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace

from aether_operator.planning.affinity import domain_of, fits, score
from aether_operator.planning.rules import NO_RULES, Rules, Spread
from aether_operator.planning.snapshot import PodView


@dataclass(slots=True)
class Seat:
    """A pod that may take actors.

    Attributes:
        load: actors that it has, those given to it included.
        capacity: most actors that it may have.
        reserve: it gets actors only where nobody of a lower number has room: 1 for a pod that a rollout replaces, 2 more for one that flaps.
    """

    pod: PodView
    load: int
    capacity: int
    reserve: int = 0

    @property
    def has_room(self) -> bool:
        """Whether it may take one more."""
        return self.load < self.capacity


_Entry = tuple[int, int, int, int]
"""A seat in a heap: its reserve, how little it pleases, its load, its number."""


class Seats:
    """The pods of one pool while they are filled."""

    def __init__(self, seats: Iterable[Seat]) -> None:
        """Begin with the loads that the seats have."""
        self._seats = sorted(seats, key=lambda seat: seat.pod.uid)
        self._lines: dict[Rules, Line] = {}

    def __iter__(self) -> Iterator[Seat]:
        """Iterate over the seats, in the order of UIDs."""
        return iter(self._seats)

    def line(self, rules: Rules = NO_RULES) -> Line:
        """Return the seats that suit these rules."""
        line = self._lines.get(rules)
        if line is None:
            line = self._lines[rules] = Line(self._seats, rules)
        return line


class Line:
    """The seats that suit the same rules, the best first; other lines may fill them too."""

    def __init__(self, seats: Sequence[Seat], rules: Rules) -> None:
        """Line up the seats of pods that fit."""
        self._seats = seats
        self._heap = [(seat.reserve, -score(rules, seat.pod), seat.load, number) for number, seat in enumerate(seats) if fits(rules, seat.pod)]
        heapify(self._heap)

    def take(self) -> PodView | None:
        """Return the pod for the next actor and count it there; None when nobody that fits has room."""
        heap = self._heap
        while heap:
            reserve, displeasure, load, number = heap[0]
            seat = self._seats[number]
            if seat.load >= seat.capacity:
                heappop(heap)
            elif seat.load != load:
                heapreplace(heap, (reserve, displeasure, seat.load, number))
            else:
                seat.load += 1
                heapreplace(heap, (reserve, displeasure, seat.load, number))
                return seat.pod
        return None

    def take_apart(self, spread: Spread, crowd: Mapping[str, int]) -> PodView | None:
        """Do the same for an actor that shall be kept apart; `crowd` counts its group in each domain."""
        open_entries = [entry for entry in self._heap if self._seats[entry[3]].has_room]
        if not open_entries:
            return None
        _, _, _, number = min(open_entries, key=lambda entry: self._rank_apart(entry, spread, crowd))
        seat = self._seats[number]
        seat.load += 1
        return seat.pod

    def _rank_apart(self, entry: _Entry, spread: Spread, crowd: Mapping[str, int]) -> tuple[int, int, int, int, int]:
        reserve, displeasure, _, number = entry
        seat = self._seats[number]
        return reserve, displeasure, crowd.get(domain_of(spread, seat.pod), 0), seat.load, number
