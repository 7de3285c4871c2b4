"""Which pod takes which actor: bounded, even, and stable when pods come and go."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from aether_api.identity import PodUid
from aether_operator.planning.placement import Seat, choose_pods


def seats(*held: int, capacity: int = 1000) -> list[Seat]:
    return [Seat(PodUid(f"pod-{i}"), count, capacity) for i, count in enumerate(held)]


def names(count: int) -> list[str]:
    return [f"shop/account/actor-{i}" for i in range(count)]


def test_an_empty_pod_takes_more_than_full_ones() -> None:
    chosen = choose_pods(names(100), seats(100, 100, 0))

    assert Counter(chosen.values())[PodUid("pod-2")] >= 90


def test_no_pods_take_nobody() -> None:
    assert choose_pods(names(3), []) == {}
    assert choose_pods(names(3), seats(5, 7, capacity=5)) == {}


def test_those_who_come_first_get_the_last_seats() -> None:
    assert list(choose_pods(names(5), seats(0, 0, capacity=1))) == names(2)


@given(st.integers(0, 400), st.lists(st.integers(0, 40), min_size=1, max_size=10), st.integers(1, 60))
def test_everybody_is_placed_while_there_is_room_and_no_pod_is_overfilled(count: int, held: list[int], capacity: int) -> None:
    room = sum(max(0, capacity - load) for load in held)

    chosen = choose_pods(names(count), seats(*held, capacity=capacity))

    assert len(chosen) == min(count, room)
    loads = Counter(chosen.values())
    assert all(loads[PodUid(f"pod-{i}")] <= max(0, capacity - load) for i, load in enumerate(held))


@given(st.integers(200, 1000), st.integers(2, 12))
def test_equal_pods_are_filled_within_ten_percent_above_even(count: int, pods: int) -> None:
    loads = Counter(choose_pods(names(count), seats(*[0] * pods)).values())

    assert max(loads.values()) <= 1.1 * count / pods + 1


@given(st.permutations(range(6)))
def test_the_order_of_the_pods_does_not_matter(order: list[int]) -> None:
    given_seats = seats(0, 3, 1, 0, 9, 2)

    assert choose_pods(names(50), [given_seats[i] for i in order]) == choose_pods(names(50), given_seats)
