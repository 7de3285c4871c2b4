"""How many actors move at once: one by one from pods that live, at a rate from several lost pods, slowly for the sake of balance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aether_api.errors import InternalError
from aether_api.identity import PodUid
from aether_kube.store import ObjectKey
from aether_operator.planning.checker import check_plan
from aether_operator.planning.pace import Bucket, Limits, Pace
from aether_operator.planning.planner import make_plan
from aether_operator.planning.rules import Preference, Rules, Spread
from aether_operator.planning.snapshot import ActorView, PodView, PoolView, Snapshot
from tests.unit.aether_operator.snapshots import POOL, actor, condition_of, executed, loads_of, planned, pod, settled, snapshot

SLOW = Limits(rebalance_per_s=2, mass_moves_per_s=5, hand_overs_at_once=3)
FAST_POOL = ObjectKey("shop", "fast")
SSD = Rules(required=(("disk", "ssd"),))


def held_by(uid: str, count: int) -> list[ActorView]:
    return [actor(f"{uid}-{i}", on=uid) for i in range(count)]


def without(cluster: Snapshot, *uids: str) -> Snapshot:
    return replace(cluster, pods={uid: item for uid, item in cluster.pods.items() if uid not in uids})


def with_pods(cluster: Snapshot, *pods: PodView) -> Snapshot:
    return replace(cluster, pods={**cluster.pods, **{item.uid: item for item in pods}})


def assert_even(loads: Mapping[str, int]) -> None:
    even = sum(loads.values()) / len(loads)
    assert all(abs(load - even) <= max(1, 0.1 * even) for load in loads.values()), loads


def test_a_leaving_pod_hands_over_a_few_at_once_and_the_next_when_those_are_done() -> None:
    before = snapshot(held_by("a", 8), [pod("a", "leaving"), pod("b")], limits=SLOW)

    first = planned(before)
    busy = planned(replace(executed(before, first), under_way={PodUid("a"): 3}))
    second = planned(replace(executed(before, first), under_way={PodUid("a"): 1}))

    assert [len(plan.changes) for plan in (first, busy, second)] == [3, 0, 2]


def test_a_pod_with_very_many_actors_hands_over_a_share_of_them_at_once() -> None:
    plan = planned(snapshot(held_by("a", 640), [pod("a", "leaving"), pod("b")], capacity=1000, limits=SLOW))

    assert len(plan.changes) == 10


def test_a_cordoned_pod_keeps_what_it_has_and_gets_nobody() -> None:
    plan = planned(snapshot([actor("alice", on="a"), actor("bob"), actor("carol")], [pod("a", cordon="true"), pod("b")]))

    assert [(change.actor.key.name, change.new.pod_uid) for change in plan.changes] == [("bob", "b"), ("carol", "b")]


def test_a_drained_pod_hands_over_what_it_has_and_keeps_it_while_nobody_has_room() -> None:
    drained = snapshot([actor("alice", on="a"), actor("bob", on="b")], [pod("a", cordon="drain"), pod("b")])

    assert [(change.actor.key.name, change.cause, change.new.pod_uid) for change in planned(drained).changes] == [("alice", "Moving", "b")]
    assert planned(replace(drained, pools={POOL: PoolView(1)})).changes == ()


def test_a_pool_whose_pods_are_all_cordoned_says_how_to_undo_it() -> None:
    plan = planned(snapshot([actor("alice")], [pod("a", cordon="true"), pod("b", cordon="drain")]))

    assert condition_of(plan, "alice")[1] == "PodsCordoned"
    assert condition_of(plan, "alice")[2].endswith("kubectl annotate pods -l aether.flowmade.one/pool=default aether.flowmade.one/cordon-")


def test_in_a_rollout_an_actor_moves_once() -> None:
    pods = [pod(uid, revision="old") for uid in ("a", "b", "c")]
    cluster = snapshot([actor(f"actor-{i}") for i in range(30)], pods, pools={POOL: PoolView(100, "new")})
    cluster, _ = settled(cluster)
    moved: Counter[str] = Counter()
    for leaving, coming in (("a", "x"), ("b", "y"), ("c", "z")):
        going = replace(cluster.pods[PodUid(leaving)], verdict="leaving")
        cluster = with_pods(cluster, going, pod(coming, revision="new"))
        cluster, changes = settled(cluster)
        moved.update(change.actor.key.name for change in changes)
        cluster = without(cluster, leaving)

    assert set(moved.values()) == {1}
    assert sum(moved.values()) == 30
    assert_even(loads_of(cluster))


def test_pods_that_a_rollout_replaces_take_actors_only_where_no_other_has_room() -> None:
    pods = [pod("old", revision="1"), pod("new", revision="2")]

    plan = planned(snapshot([actor(f"actor-{i}") for i in range(5)], pods, pools={POOL: PoolView(3, "2")}))

    assert Counter(change.new.pod_uid for change in plan.changes) == {"new": 3, "old": 2}


def test_the_actors_of_one_lost_pod_move_at_once_however_many() -> None:
    plan = planned(snapshot(held_by("gone", 50), [pod("b")], limits=SLOW))

    assert len(plan.changes) == 50


def test_the_actors_of_several_lost_pods_follow_at_a_rate_and_the_important_first() -> None:
    lost = [*held_by("gone", 20), *held_by("lost", 20), actor("vip", on="lost", priority=1)]
    before = snapshot(lost, [pod("b")], limits=SLOW)

    first = planned(before)
    too_soon = planned(replace(executed(before, first), now_s=0.1))
    later = planned(executed(before, first))

    assert len(first.changes) == 10  # two seconds' worth
    assert "vip" in {change.actor.key.name for change in first.changes}
    assert too_soon.changes == ()
    assert too_soon.again_after_s is not None
    assert len(later.changes) == 5


def test_a_pool_with_one_lost_pod_does_not_wait_for_another_pool() -> None:
    others = [actor(f"fast-{i}", on=f"fast-pod-{i}", pool="fast") for i in range(20)]
    pools = {POOL: PoolView(100), ObjectKey("shop", "fast"): PoolView(100)}

    plan = planned(snapshot([*others, *held_by("gone", 30)], [pod("b"), pod("f", pool="fast")], pools=pools, limits=SLOW))

    assert Counter(change.actor.pool for change in plan.changes) == {"default": 30, "fast": 10}


def test_a_pod_that_joins_is_filled_at_a_rate() -> None:
    before = snapshot([*held_by("a", 10), *held_by("b", 10)], [pod("a"), pod("b"), pod("c")], limits=SLOW)

    plan = planned(before)
    after, changes = settled(before)

    assert len(plan.changes) == 2
    assert plan.again_after_s == 1
    assert {change.cause for change in changes} == {"Rebalanced"}
    assert_even(loads_of(after))
    assert len(changes) <= 7
    assert max(Counter(change.actor.key for change in changes).values()) == 1


def test_rebalancing_can_be_turned_off() -> None:
    before = snapshot([*held_by("a", 10), *held_by("b", 10)], [pod("a"), pod("b"), pod("c")], limits=Limits(rebalance_per_s=0))

    assert planned(before).changes == ()


@pytest.mark.parametrize(
    "unrest",
    [
        {"settled": False},
        {"pods": [pod("d", "leaving")]},
        {"pods": [pod("d", "suspect")]},
        {"pods": [pod("d", revision="old")]},
    ],
)
def test_nobody_is_rebalanced_while_something_else_goes_on(unrest: Mapping[str, object]) -> None:
    more = unrest.get("pods", [])
    assert isinstance(more, list)
    before = snapshot([*held_by("a", 20), actor("d", on="d")], [pod("a", revision="new"), pod("b", revision="new"), *more], pools={POOL: PoolView(100, "new")})

    plan = planned(replace(before, settled=unrest.get("settled", True)))  # type: ignore[arg-type]  # the parameter is a bool

    assert [change.cause for change in plan.changes if change.cause == "Rebalanced"] == []


def test_rebalancing_goes_on_below_what_would_begin_it() -> None:
    actors = [*held_by("a", 107), *held_by("b", 100), *held_by("c", 93)]
    calm = snapshot(actors, [pod("a"), pod("b"), pod("c")], capacity=1000)

    assert planned(calm).is_empty
    assert planned(replace(calm, paces={POOL: Pace(is_evening=True)})).changes != ()


def test_rebalancing_takes_nobody_to_where_it_would_be_worse_off() -> None:
    here = {"disk": "ssd", "zone": "1"}
    bound = [Rules(required=(("disk", "ssd"),)), Rules(preferred=(Preference(1, (("disk", "ssd"),)),)), Rules(spread=Spread("g", "zone"))]
    apart = [actor("first", on="a", rules=bound[2]), actor("second", on="b", rules=bound[2])]
    fixed = [actor(f"fixed-{i}", on="a", rules=bound[i % 2]) for i in range(20)]

    plan = planned(snapshot([*fixed, *apart], [pod("a", labels=here), pod("b", labels={"zone": "2"})]))

    assert plan.changes == ()


def test_an_actor_that_waits_for_another_pool_is_not_rebalanced_within_the_old_one() -> None:
    waiting = [replace(item, pool="full") for item in held_by("a", 20)]

    assert planned(snapshot(waiting, [pod("a"), pod("b")])).changes == ()


def test_a_pool_whose_actors_go_to_another_one_is_rebalanced_afterwards() -> None:
    held = [replace(item, pool="fast") if i < 4 else item for i, item in enumerate(held_by("a", 14))]
    pools = {POOL: PoolView(100), FAST_POOL: PoolView(100)}
    before = snapshot([*held, *held_by("b", 1)], [pod("a"), pod("b"), pod("f", pool="fast")], pools=pools)

    plan = planned(before)
    after, _ = settled(before)

    assert {change.cause for change in plan.changes} == {"PoolChanged"}
    assert_even({uid: load for uid, load in loads_of(after).items() if uid != "f"})


def test_an_actor_that_can_go_nowhere_does_not_keep_its_pool_from_being_rebalanced() -> None:
    stuck = replace(held_by("a", 21)[-1], rules=SSD)

    plan = planned(snapshot([*held_by("a", 20), stuck], [pod("a"), pod("b")]))

    assert {change.cause for change in plan.changes} == {"Rebalanced"}


def test_the_checker_refuses_what_moves_too_fast() -> None:
    lost = snapshot([*held_by("gone", 20), *held_by("lost", 20)], [pod("b")], limits=Limits())
    full = snapshot([*held_by("a", 20)], [pod("a"), pod("b")], limits=Limits())
    leaving = snapshot(held_by("a", 20), [pod("a", "leaving"), pod("b")], limits=Limits())

    with pytest.raises(InternalError, match="40 actors of 2 lost pods"):
        check_plan(replace(lost, limits=SLOW), make_plan(lost))
    with pytest.raises(InternalError, match="would be rebalanced at once, more than 2"):
        check_plan(replace(full, limits=SLOW), make_plan(full))
    with pytest.raises(InternalError, match="would hand over 16 actors at once beside those under way, more than 3"):
        check_plan(replace(leaving, limits=SLOW), make_plan(leaving))


def test_the_checker_refuses_to_rebalance_the_wrong_way() -> None:
    right = snapshot([*held_by("a", 20), *held_by("b", 10)], [pod("a"), pod("b")])
    plan = make_plan(right)
    wrong = replace(right, actors={**right.actors, **{item.key: item for item in held_by("b", 40)}})

    with pytest.raises(InternalError, match="would not make its loads more even"):
        check_plan(wrong, plan)


def test_a_bucket_that_is_full_again_is_forgotten() -> None:
    paces = {POOL: Pace(moves=Bucket(0, at_s=10), losses=Bucket(0, at_s=10))}

    assert planned(snapshot([], [], paces=paces, now_s=10.5)).paces == paces
    assert planned(snapshot([], [], paces=paces, now_s=20)).paces == {}


@pytest.mark.slow
@settings(max_examples=50)
@given(st.integers(0, 200), st.integers(2, 12))
def test_equal_actors_are_even_at_first_after_a_loss_and_after_scaling_up(actor_count: int, pod_count: int) -> None:
    """For equal actors without rules, on pods that all take actors and have room: within a tenth, or one actor, of even."""
    cluster = snapshot([actor(f"actor-{i}") for i in range(actor_count)], [pod(f"pod-{i}") for i in range(pod_count)], capacity=1000, limits=Limits(rebalance_per_s=50))
    cluster, placed = settled(cluster)
    assert len(placed) == actor_count
    assert_even(loads_of(cluster))

    held = loads_of(cluster)["pod-0"]
    cluster, moved = settled(without(cluster, "pod-0"))
    assert len(moved) == held
    assert_even(loads_of(cluster))

    loads = loads_of(cluster)
    cluster, moved = settled(with_pods(cluster, pod("new-1"), pod("new-2")))
    even = actor_count / (pod_count + 1)
    assert_even(loads_of(cluster))
    assert len(moved) <= sum(max(0, load - int(even)) for load in loads.values())
    assert all(count == 1 for count in Counter(change.actor.key for change in moved).values())


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=2, max_size=6))
@example([(0, False), (0, True), (19, True)])  # some go to a third pod when only it may take those that are bound
def test_rebalancing_ends_and_never_takes_a_move_back(pods: list[tuple[int, bool]]) -> None:
    """Some of the actors are bound to where they are, so that evenness may be out of reach; it ends all the same."""
    picky = Rules(required=(("disk", "ssd"),))
    views = [pod(f"pod-{i}", labels={"disk": "ssd"} if ssd else {}) for i, (_, ssd) in enumerate(pods)]
    actors = [actor(f"on-{i}-{n}", on=f"pod-{i}", rules=picky if ssd and n % 2 else Rules()) for i, (count, ssd) in enumerate(pods) for n in range(count)]

    after, changes = settled(snapshot(actors, views))

    visited: dict[ObjectKey, list[PodUid]] = {item.key: [item.home.pod_uid] for item in actors if item.home is not None}
    for change in changes:
        visited[change.actor.key].append(change.new.pod_uid)
    assert all(len(set(uids)) == len(uids) for uids in visited.values())
    assert planned(replace(after, now_s=after.now_s + 100)).is_empty


@st.composite
def uneven_clusters(draw: st.DrawFn) -> Snapshot:
    """Draw pools with room and pods that live, some of whose actors shall go elsewhere since their pool or what they require was changed."""
    pods: list[PodView] = []
    actors: list[ActorView] = []
    for uid in "abcdef"[: draw(st.integers(2, 6))]:
        view = pod(uid, pool=draw(st.sampled_from(["default", "default", "fast"])), labels=draw(st.sampled_from([{}, {"disk": "ssd"}])))
        other_pool = "default" if view.pool == "fast" else "fast"
        held, moved, bound = draw(st.integers(0, 40)), draw(st.integers(0, 20)), draw(st.integers(0, 20))
        pods.append(view)
        actors += [replace(item, pool=other_pool if i < moved else view.pool, rules=SSD if i % 20 < bound else Rules()) for i, item in enumerate(held_by(uid, held))]
    pools = {key: PoolView(draw(st.sampled_from([30, 100, 1000]))) for key in (POOL, FAST_POOL)}
    return snapshot(actors, pods, pools=pools, limits=draw(st.sampled_from([SLOW, Limits()])))


@given(uneven_clusters())
def test_actors_that_go_elsewhere_and_even_loads_never_get_in_each_others_way(before: Snapshot) -> None:
    """Each plan on the way passes the checker, and the way ends."""
    after, _ = settled(before)

    assert planned(replace(after, now_s=after.now_s + 100)).is_empty
