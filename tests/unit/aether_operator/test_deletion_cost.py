"""What pods say of the cost of their deletion: enough for a scale-down to take the emptiest, and no write more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_api.identity import PodUid
from aether_operator.planning.deletion_cost import find_cost_changes
from aether_operator.planning.pace import Limits
from aether_operator.planning.snapshot import PodView, Snapshot
from tests.unit.aether_operator.snapshots import actor, executed, planned, pod, snapshot

OFF = Limits(rebalance_per_s=0)


def cluster(*pods: tuple[int, int], **changes: object) -> Snapshot:
    """Make a cluster of pods, each given by its actors and its present cost."""
    views = [pod(f"pod-{i}", deletion_cost=cost) for i, (_, cost) in enumerate(pods)]
    actors = [actor(f"on-{i}-{n}", on=f"pod-{i}") for i, (count, _) in enumerate(pods) for n in range(count)]
    return replace(snapshot(actors, views, limits=OFF), **changes)  # type: ignore[arg-type]  # the tests name fields of Snapshot only


def costs_of(before: Snapshot) -> dict[str, int]:
    return {change.pod.uid: change.cost for change in planned(before).costs}


def test_a_pod_with_clearly_fewer_actors_is_to_cost_less() -> None:
    assert costs_of(cluster((10, 0), (3, 0), (11, 0))) == {"pod-0": 10, "pod-1": 3, "pod-2": 11}


@pytest.mark.parametrize("pods", [[(10, 0), (9, 0), (11, 0)], [(10, 7), (3, 2), (11, 99)], [(10, 0)], []])
def test_nothing_is_written_where_loads_are_alike_or_the_order_is_right_already(pods: list[tuple[int, int]]) -> None:
    assert costs_of(cluster(*pods)) == {}


def test_costs_that_fell_behind_are_written_anew_but_not_those_that_are_near() -> None:
    assert costs_of(cluster((20, 19), (10, 40), (30, 30))) == {"pod-1": 10}


def test_a_cordoned_pod_is_the_cheapest() -> None:
    before = cluster((0, 0), (5, 5))
    pods = {**before.pods, PodUid("pod-1"): replace(before.pods[PodUid("pod-1")], cordon="true")}

    assert costs_of(replace(before, pods=pods)) == {"pod-1": -1}


def test_pods_of_different_revisions_are_not_compared() -> None:
    before = cluster((10, 0), (3, 0))
    pods = {**before.pods, PodUid("pod-1"): replace(before.pods[PodUid("pod-1")], revision="new")}

    assert costs_of(replace(before, pods=pods)) == {}


def test_costs_can_be_turned_off() -> None:
    assert costs_of(cluster((10, 0), (3, 0), writes_costs=False)) == {}


def test_costs_tell_of_what_pods_hold_when_the_plan_is_carried_out() -> None:
    before = snapshot([actor(f"on-a-{i}", on="a") for i in range(9)], [pod("a"), pod("b")], limits=OFF)

    first = planned(before)

    assert {change.pod.uid: change.cost for change in first.costs} == {"a": 9}
    moving = replace(before, pods={**before.pods, PodUid("a"): pod("a", "leaving"), PodUid("c"): pod("c")})
    assert {change.pod.uid: change.cost for change in planned(moving).costs} == {}
    assert planned(executed(before, first)).costs == ()


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(-5, 200), st.booleans()), max_size=8))
def test_once_written_costs_are_in_order_and_stay(pods: list[tuple[int, int, bool]]) -> None:
    views = {PodUid(f"pod-{i}"): pod(f"pod-{i}", deletion_cost=cost, cordon="true" if cordoned else "") for i, (_, cost, cordoned) in enumerate(pods)}
    loads = {PodUid(f"pod-{i}"): load for i, (load, _, _) in enumerate(pods)}

    changes = find_cost_changes(snapshot([], list(views.values())), loads)
    written = {**views, **{change.pod.uid: replace(change.pod, deletion_cost=change.cost) for change in changes}}

    assert find_cost_changes(snapshot([], list(written.values())), loads) == ()
    assert all(cost_is_right(one, other, loads) for one in written.values() for other in written.values())


def cost_is_right(one: PodView, other: PodView, loads: dict[PodUid, int]) -> bool:
    if one.cordon or other.cordon:
        return bool(other.cordon) or one.deletion_cost < other.deletion_cost
    return loads[one.uid] >= 0.8 * loads[other.uid] or one.deletion_cost < other.deletion_cost
