"""Pods that flap are left alone for a while, and what counts as a flap."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aether_api.control import Heartbeat
from aether_api.identity import PodUid
from aether_operator.cluster.heartbeats import Heartbeats
from aether_operator.planning.damping import FIRST_S, FORGET_S, LONGEST_S, STEADY, Flaps, is_damped, note_flap
from aether_operator.planning.liveness import Windows
from tests.unit.aether_operator.snapshots import actor, planned, pod, snapshot


def flapped(times: int, *, every_s: float = 1.0) -> Flaps:
    flaps = STEADY
    for number in range(times):
        flaps = note_flap(flaps, 1000 + number * every_s)
    return flaps


def test_one_flap_is_an_accident() -> None:
    assert not is_damped(flapped(1), 1000)


@pytest.mark.parametrize(("times", "alone_s"), [(2, FIRST_S), (3, 2 * FIRST_S), (4, 4 * FIRST_S), (1000, LONGEST_S)])
def test_each_further_flap_doubles_the_time_up_to_a_limit(times: int, alone_s: float) -> None:
    flaps = flapped(times)

    assert is_damped(flaps, flaps.last_s + alone_s - 0.1)
    assert not is_damped(flaps, flaps.last_s + alone_s)


def test_flaps_of_long_ago_are_forgotten() -> None:
    assert note_flap(flapped(5), 1000 + 5 + FORGET_S) == Flaps(1, 1000 + 5 + FORGET_S)


def test_a_damped_pod_gets_actors_only_where_no_other_has_room_and_keeps_its_own() -> None:
    actors = [actor("alice", on="a"), *(actor(f"actor-{i}") for i in range(4))]

    plan = planned(snapshot(actors, [pod("a", damped=True), pod("b")], capacity=3))

    assert [change.new.pod_uid for change in plan.changes] == ["b", "b", "b", "a"]


class Pod:
    """A pod's process as heartbeats show it, on a clock of the test."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.heartbeats = Heartbeats(Windows(1.0, 5.0), lambda: None, self.clock())

    def clock(self) -> Callable[[], float]:
        return lambda: self.now_s

    def beat(self, boot_id: str = "one", *, uid: str = "a") -> None:
        self.now_s += 0.3
        self.heartbeats.take(Heartbeat(uid, boot_id, f"pod-{uid}", "ready", 0))

    @property
    def flaps(self) -> int:
        return self.heartbeats.see(PodUid("a")).flaps.count


def test_a_first_process_and_its_heartbeats_are_no_flaps() -> None:
    pod_ = Pod()
    for _ in range(5):
        pod_.beat()

    assert pod_.flaps == 0


def test_another_boot_id_is_a_flap() -> None:
    pod_ = Pod()
    for boot_id in ("one", "one", "two", "three"):
        pod_.beat(boot_id)

    assert pod_.flaps == 2


def test_a_pod_that_is_heard_after_it_was_given_up_flapped_and_one_that_was_only_late_did_not() -> None:
    pod_ = Pod()
    pod_.beat()
    pod_.now_s += 60
    pod_.beat()
    late = pod_.flaps
    for _ in range(5):
        pod_.beat(uid="b")
    pod_.heartbeats.note_failed_ping(PodUid("a"), pod_.now_s - 0.1)
    pod_.beat()

    assert (late, pod_.flaps) == (0, 1)


def test_an_outage_in_which_no_pod_is_heard_is_nobodys_flap() -> None:
    pod_ = Pod()
    pod_.beat()
    pod_.now_s += 5
    pod_.heartbeats.note_failed_ping(PodUid("a"), pod_.now_s - 0.1)
    pod_.beat()

    assert pod_.flaps == 0
