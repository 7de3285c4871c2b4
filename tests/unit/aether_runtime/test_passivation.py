"""Which actors leave memory."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_api.identity import ActorId, parse_actor_id
from aether_runtime.core.passivation import GRACE_S, SHED_GRACE_S, UNUSED, AwakeQueues, MemoryUse, MemoryValve, is_idle, is_rested


@dataclass
class Fake:
    uses: int = UNUSED
    touched_s: float = 0.0
    can_sleep: bool = True


def name(number: int) -> ActorId:
    return parse_actor_id("default", "account", f"a{number}")


class Pod:
    """Keeps at most `limit` actors awake, by the queues alone."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.awake: dict[ActorId, Fake] = {}
        self.queues = AwakeQueues(limit)
        self.activations = 0
        self.now_s = 0.0

    def use(self, actor: ActorId) -> None:
        self.now_s += 0.01
        if actor not in self.awake:
            self.activations += 1
            self.awake[actor] = Fake(touched_s=self.now_s)
            self.queues.admit(actor)
        self.awake[actor].uses += 1
        self.awake[actor].touched_s = self.now_s
        for victim in self.queues.choose(len(self.awake) - self.limit, self.awake.get, self.now_s):
            del self.awake[victim]


def test_one_that_works_or_has_just_come_is_left_alone() -> None:
    assert not is_rested(Fake(uses=9, can_sleep=False), 1000)
    assert not is_rested(Fake(touched_s=1000), 1000 + GRACE_S - 1)
    assert is_rested(Fake(touched_s=1000), 1000 + GRACE_S)
    assert is_rested(Fake(uses=0, touched_s=1000), 1000)
    assert not is_rested(Fake(uses=0, touched_s=1000), 1000, quiet_s=SHED_GRACE_S)


def test_idle_is_who_had_no_command_for_long_enough() -> None:
    assert [is_idle(Fake(touched_s=100), 60, now_s) for now_s in (100, 159, 160)] == [False, False, True]
    assert not is_idle(Fake(touched_s=100), 0, 10**9), "0 is never"
    assert not is_idle(Fake(touched_s=100, can_sleep=False), 60, 1000)


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=200), st.integers(1, 10))
def test_the_limit_holds_whenever_enough_may_sleep_and_nobody_busy_is_chosen(uses: list[tuple[int, bool]], limit: int) -> None:
    queues, awake = AwakeQueues(limit), dict[ActorId, Fake]()
    for step, (number, busy) in enumerate(uses):
        actor = name(number)
        if actor not in awake:
            awake[actor] = Fake()
            queues.admit(actor)
        awake[actor].uses += 1
        awake[actor].touched_s, awake[actor].can_sleep = step, not busy
        for victim in queues.choose(len(awake) - limit, awake.get, step):
            assert awake.pop(victim).can_sleep
        assert len(awake) <= limit or not any(fake.can_sleep for fake in awake.values())


def test_a_flood_of_actors_used_once_does_not_drive_out_those_in_steady_use() -> None:
    pod, steady = Pod(100), [name(number) for number in range(60)]
    for _ in range(3):
        for actor in steady:
            pod.use(actor)
    pod.activations = 0
    for number in range(5000):
        pod.use(name(1000 + number))
        pod.use(steady[number % 60])
    assert pod.activations - 5000 <= 60, "each of the steady ones may have been lost once at most"


def test_what_is_used_more_often_is_awake_more_often_than_by_recency_alone() -> None:
    def misses_of_lru(sequence: list[int], limit: int) -> int:
        misses, kept = 0, dict[int, None]()
        for number in sequence:
            misses += number not in kept
            kept.pop(number, None)
            kept[number] = None
            if len(kept) > limit:
                del kept[next(iter(kept))]
        return misses

    dice = random.Random(7)
    sequence = [min(int(dice.paretovariate(0.6)), 5000) for _ in range(30_000)]
    pod = Pod(200)
    for number in sequence:
        pod.use(name(number))
    assert pod.activations < misses_of_lru(sequence, 200)


def test_those_that_went_otherwise_do_not_pile_up() -> None:
    queues = AwakeQueues(10)
    awake: dict[ActorId, Fake] = {}
    for number in range(10_000):
        awake[name(number % 50)] = Fake()
        queues.admit(name(number % 50))
        awake.pop(name(number % 50))
        queues.note_gone(awake.get)
    assert len(queues) < 300


def test_an_actor_that_is_asked_for_again_is_still_a_candidate() -> None:
    queues, awake = AwakeQueues(10), {name(1): Fake(uses=0)}
    queues.admit(name(1))
    assert queues.choose(1, awake.get, 100) == [name(1)]
    assert queues.choose(1, awake.get, 100) == []
    queues.admit(name(1))
    awake[name(1)].uses = 0
    assert queues.choose(1, awake.get, 100) == [name(1)]


@pytest.mark.parametrize(("shares", "sheds"), [((79, 80, 76, 74, 76), (False, True, True, False, False))])
def test_memory_is_shed_from_eighty_percent_until_seventy_five(shares: tuple[int, ...], sheds: tuple[bool, ...]) -> None:
    valve = MemoryValve()
    assert tuple(valve.count_to_shed(MemoryUse(share, 100), 1000) > 0 for share in shares) == sheds


def test_the_more_memory_is_missing_the_more_actors_go_but_never_all_at_once() -> None:
    assert MemoryValve().count_to_shed(MemoryUse(80, 100), 1000) == 63
    assert MemoryValve().count_to_shed(MemoryUse(95, 100), 1000) == 211
    assert MemoryValve().count_to_shed(MemoryUse(300, 100), 1000) == 251
