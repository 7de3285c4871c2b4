"""Which pod takes which actor: bounded, even, and independent of any order."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from aether_api.identity import PodUid
from aether_operator.planning.placement import Seat, Seats
from aether_operator.planning.snapshot import PodView


def seats(*held: int, capacity: int = 1000) -> list[Seat]:
    return [Seat(PodView(PodUid(f"pod-{i}"), "shop", f"pod-{i}", "default"), count, capacity) for i, count in enumerate(held)]


def fill(count: int, given_seats: list[Seat]) -> list[PodUid]:
    """Place a number of actors and return the pods of those that found one."""
    room = Seats(given_seats).line()
    return [pod.uid for _ in range(count) if (pod := room.take()) is not None]


def test_an_empty_pod_is_filled_before_full_ones() -> None:
    assert Counter(fill(100, seats(100, 100, 0))) == {PodUid("pod-2"): 100}


def test_no_pods_take_nobody() -> None:
    assert fill(3, []) == []
    assert fill(3, seats(5, 7, capacity=5)) == []


@given(st.integers(0, 400), st.lists(st.integers(0, 40), min_size=1, max_size=10), st.integers(1, 60))
def test_everybody_is_placed_while_there_is_room_and_no_pod_is_overfilled(count: int, held: list[int], capacity: int) -> None:
    room = sum(max(0, capacity - load) for load in held)

    chosen = fill(count, seats(*held, capacity=capacity))

    assert len(chosen) == min(count, room)
    loads = Counter(chosen)
    assert all(loads[PodUid(f"pod-{i}")] <= max(0, capacity - load) for i, load in enumerate(held))


@given(st.integers(0, 1000), st.lists(st.integers(0, 40), min_size=1, max_size=12))
def test_whoever_is_given_an_actor_ends_within_one_of_the_emptiest(count: int, held: list[int]) -> None:
    given_seats = seats(*held)

    receivers = set(fill(count, given_seats))

    least = min(seat.load for seat in given_seats)
    assert all(seat.load <= least + 1 for seat in given_seats if seat.pod.uid in receivers)


@given(st.permutations(range(6)))
def test_the_order_of_the_pods_does_not_matter(order: list[int]) -> None:
    given_seats = seats(0, 3, 1, 0, 9, 2)

    assert fill(50, [given_seats[i] for i in order]) == fill(50, seats(0, 3, 1, 0, 9, 2))
