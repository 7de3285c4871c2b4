"""The planner: sticky, deterministic, and at rest once its plan was carried out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from aether_api.errors import InternalError
from aether_api.identity import Epoch, PodUid
from aether_kube.store import ObjectKey
from aether_operator.planning.checker import check_plan
from aether_operator.planning.pace import Limits
from aether_operator.planning.plan import Plan
from aether_operator.planning.planner import make_plan
from aether_operator.planning.rules import Preference, Rules, Spread
from aether_operator.planning.snapshot import ModelView, Placed, PoolView, Snapshot, Verdict
from tests.unit.aether_operator.snapshots import MODEL, NOW_MS, POOL, actor, condition_of, executed, planned, pod, snapshot

SSD = Rules(required=(("disk", "ssd"),))
RULES = [
    Rules(),
    Rules(),
    SSD,
    Rules(required=(("disk", "none"),)),
    Rules(preferred=(Preference(3, (("disk", "ssd"),)),)),
    Rules(spread=Spread("g")),
    Rules(spread=Spread("g", "disk")),
]


def test_a_new_actor_is_placed_with_the_clock_as_epoch() -> None:
    plan = planned(snapshot([actor("alice")], [pod("a")]))

    change = plan.changes[0]
    assert change.new == Placed("pod-a", PodUid("a"), Epoch(NOW_MS))
    assert change.status.phase == "Scheduled"
    assert condition_of(plan, "alice") == ("True", "Scheduled", "placed on pod pod-a")
    assert condition_of(plan, "alice", "Ready")[:2] == ("Unknown", "Scheduled")


def test_an_epoch_rises_above_what_was_there_even_if_the_clock_runs_behind() -> None:
    plan = planned(snapshot([actor("alice", on="a", epoch=NOW_MS * 5)], [pod("a", "dead"), pod("b")]))

    assert plan.changes[0].new == Placed("pod-b", PodUid("b"), Epoch(NOW_MS * 5 + 1))


def test_an_actor_of_a_lost_pod_moves_and_its_status_says_why() -> None:
    plan = planned(snapshot([actor("alice", on="gone"), actor("bob", on="b")], [pod("b")]))

    assert [change.actor.key.name for change in plan.changes] == ["alice"]
    assert plan.changes[0].cause == "PodLost"
    assert plan.changes[0].status.phase == "Moving"
    assert condition_of(plan, "alice", "Ready") == ("Unknown", "PodLost", "pod pod-gone is gone; pod pod-b takes over")


@pytest.mark.parametrize("verdict", ["dead", None])
def test_nobody_is_moved_while_our_own_links_are_not_settled(verdict: Verdict | None) -> None:
    pods = [pod("a", verdict)] if verdict else []

    assert planned(snapshot([actor("alice", on="a")], [*pods, pod("b")], settled=False)).is_empty


@pytest.mark.parametrize("verdict", ["suspect", "starting"])
def test_a_pod_under_suspicion_keeps_its_actors_and_gets_no_new_ones(verdict: Verdict) -> None:
    plan = planned(snapshot([actor("alice", on="a"), actor("bob")], [pod("a", verdict), pod("b")]))

    assert [(change.actor.key.name, change.new.pod_uid) for change in plan.changes] == [("bob", "b")]


def test_a_leaving_pod_hands_over_to_one_with_room_and_else_keeps() -> None:
    actors = [actor("alice", on="a"), actor("bob", on="a"), actor("carol", on="b")]

    plan = planned(snapshot(actors, [pod("a", "leaving"), pod("b")], capacity=2))

    assert [(change.cause, change.new.pod_uid) for change in plan.changes] == [("Moving", "b")]
    assert planned(snapshot(actors[:2], [pod("a", "leaving")])).is_empty


def test_without_any_ready_pod_an_actor_waits_and_says_so() -> None:
    plan = planned(snapshot([actor("alice")], [pod("a", ready=False)]))

    assert plan.statuses[0].status.phase == "Pending"
    assert plan.statuses[0].status.placement is None
    status, reason, message = condition_of(plan, "alice")
    assert (status, reason) == ("False", "NoReadyPods")
    assert "kubectl get pods" in message


def test_a_full_pool_leaves_the_youngest_waiting() -> None:
    old, young = actor("zoe"), actor("adam", created="2026-02-01T00:00:00Z")

    plan = planned(snapshot([old, young], [pod("a")], capacity=1))

    assert [change.actor.key.name for change in plan.changes] == ["zoe"]
    assert condition_of(plan, "adam")[1] == "NoCapacity"


@pytest.mark.parametrize(
    ("missing", "reason"),
    [({"models": {}}, "ModelNotFound"), ({"models": {MODEL: ModelView(accepted=False)}}, "ModelNotAccepted"), ({"pools": {}}, "PoolNotFound")],
)
def test_what_an_actor_lacks_is_named(missing: dict[str, object], reason: str) -> None:
    before = replace(snapshot([actor("alice")], [pod("a")]), **missing)  # type: ignore[arg-type]  # the parameters name fields of Snapshot only

    assert condition_of(planned(before), "alice")[1] == reason


def test_a_model_that_breaks_stops_nothing_that_runs() -> None:
    assert planned(snapshot([actor("alice", on="a")], [pod("a")], models={MODEL: ModelView(accepted=False)})).is_empty


def test_an_actor_whose_spec_cannot_be_used_does_not_run() -> None:
    broken = actor("alice", on="a", problem="spec.id 'a.b' holds a dot", identity=None)

    plan = planned(snapshot([broken], [pod("a")]))

    assert not plan.changes[0].new.is_somewhere
    assert condition_of(plan, "alice") == ("False", "InvalidSpec", "spec.id 'a.b' holds a dot; correct it or delete this Actor")


def test_of_two_actors_with_one_identity_the_oldest_runs() -> None:
    first, second = actor("zoe", id="one"), actor("adam", id="one", created="2026-02-01T00:00:00Z")

    plan = planned(snapshot([first, second], [pod("a")]))

    assert [change.actor.key.name for change in plan.changes] == ["zoe"]
    assert condition_of(plan, "adam")[1] == "DuplicateIdentity"
    assert "Actor zoe" in condition_of(plan, "adam")[2]


def test_a_suspended_actor_leaves_its_pod_and_comes_back_at_a_higher_epoch() -> None:
    before = snapshot([actor("alice", on="a", suspend=True)], [pod("a")])

    plan = planned(before)
    after = executed(before, plan)
    awake = replace(after.actors[ObjectKey("shop", "alice")], suspend=False)
    again = planned(replace(after, actors={awake.key: awake}))

    assert plan.changes[0].status.phase == "Suspended"
    assert condition_of(plan, "alice", "Suspended")[0] == "True"
    assert again.changes[0].new.epoch > plan.changes[0].new.epoch
    assert [item.type for item in again.changes[0].status.conditions] == ["Scheduled", "Ready"]


def test_another_pool_takes_the_actor_over_when_it_has_room() -> None:
    moved = actor("alice", on="a", pool="fast")
    fast = pod("f", pool="fast")
    pools = {POOL: PoolView(1), ObjectKey("shop", "fast"): PoolView(1)}

    plan = planned(snapshot([moved, actor("bob")], [pod("a"), fast], pools=pools))
    blocked = planned(snapshot([moved, actor("bob")], [pod("a")], pools=pools))

    assert [(change.actor.key.name, change.cause, change.new.pod_uid) for change in plan.changes] == [("alice", "PoolChanged", "f")]
    assert blocked.changes == ()


def test_an_epoch_that_the_log_outran_is_raised_on_the_same_pod() -> None:
    fenced = actor("alice", on="a", epoch=7, reported_epoch=9)
    outrun = actor("bob", on="a", epoch=7)
    floors = {outrun.key: Epoch(NOW_MS + 50)}

    plan = planned(snapshot([fenced, outrun], [pod("a"), pod("b")], epoch_floors=floors))

    assert [(change.cause, change.new.pod_uid, change.new.epoch) for change in plan.changes] == [("EpochRaised", "a", NOW_MS), ("EpochRaised", "a", NOW_MS + 51)]


def test_a_damaged_status_is_mended_by_a_new_epoch_on_the_same_pod() -> None:
    plan = planned(snapshot([actor("alice", on="a", conditions=())], [pod("a")]))

    assert [(change.cause, change.new.pod_uid) for change in plan.changes] == [("StatusRepaired", "a")]


def test_a_process_that_is_new_is_told_what_it_holds() -> None:
    before = snapshot([actor("alice", on="a"), actor("bob", on="b")], [pod("a", introduced=False), pod("b")])

    plan = planned(before)

    assert [(item.pod.uid, [held.key.name for held in item.actors]) for item in plan.introductions] == [("a", ["alice"])]
    assert plan.changes == ()


def test_an_actor_that_is_gone_is_released_by_the_pod_that_still_lives() -> None:
    gone = (actor("alice", on="a"), actor("bob", on="lost"))

    assert planned(snapshot([], [pod("a")], vanished=gone)).releases == gone[:1]


def test_the_finalizer_is_only_on_actors_that_purge() -> None:
    actors = [actor("a", on="a", purges=True), actor("b", on="a", held_by_us=True), actor("c", on="a", purges=True, held_by_us=True), actor("d", on="a")]

    plan = planned(snapshot(actors, [pod("a")]))

    assert [(change.actor.key.name, change.wanted) for change in plan.finalizers] == [("a", True), ("b", False)]


def test_an_actor_that_purges_gets_a_pod_once_the_finalizer_is_on_it() -> None:
    before = snapshot([actor("alice", purges=True)], [pod("a")])

    first = planned(before)
    second = planned(executed(before, first))

    assert (first.changes, first.statuses) == ((), ())
    assert [(change.actor.key.name, change.wanted) for change in first.finalizers] == [("alice", True)]
    assert [change.new.pod_uid for change in second.changes] == ["a"]


def test_an_actor_whose_finalizer_cannot_be_put_on_says_why_it_does_not_start() -> None:
    waiting = actor("alice", purges=True)

    plan = planned(snapshot([waiting], [pod("a")], purge_problems={waiting.key: "403: no right"}))

    assert plan.changes == ()
    assert condition_of(plan, "alice")[:2] == ("False", "FinalizerNotSet")
    assert "tried again: 403: no right; to start it without, set spec.deletionPolicy to Retain" in condition_of(plan, "alice")[2]


def test_an_actor_that_has_a_pod_never_waits_for_the_finalizer() -> None:
    actors = [actor("alice", on="a", purges=True), actor("bob", on="b", purges=True)]

    plan = planned(snapshot(actors, [pod("a", "dead"), pod("b")]))

    assert [(change.actor.key.name, change.cause, change.new.pod_uid) for change in plan.changes] == [("alice", "PodLost", "b")]


def test_the_checker_refuses_a_pod_for_an_actor_that_purges_and_is_not_held() -> None:
    bare = actor("alice", purges=True)
    [change] = make_plan(snapshot([replace(bare, held_by_us=True)], [pod("a")])).changes

    with pytest.raises(InternalError, match="before anything holds its resource"):
        check_plan(snapshot([bare], [pod("a")]), Plan(changes=(structs.replace(change, actor=bare),)))


def test_a_purge_comes_after_the_pod_gave_the_actor_back_and_at_its_epoch() -> None:
    before = snapshot([actor("alice", on="a", purges=True, held_by_us=True, deleting=True)], [pod("a")])

    first = planned(before)
    second = planned(executed(before, first))

    assert first.purges == ()
    assert condition_of(first, "alice") == ("False", "Deleting", "its events are being purged, as spec.deletionPolicy says")
    assert [(purge.epoch, purge.identity) for purge in second.purges] == [(first.changes[0].new.epoch, before.actors[ObjectKey("shop", "alice")].identity)]


def test_a_purge_that_fails_says_what_it_waits_for() -> None:
    waiting = actor("alice", purges=True, held_by_us=True, deleting=True)

    plan = planned(snapshot([waiting], [], purge_problems={waiting.key: "NATS is away"}))

    assert condition_of(plan, "alice")[2].endswith("not yet done, it is tried again: NATS is away; to keep them and let the resource go, set spec.deletionPolicy to Retain")


def test_events_that_another_actor_goes_on_with_are_not_purged() -> None:
    going = actor("alice", id="one", purges=True, held_by_us=True, deleting=True)

    plan = planned(snapshot([going, actor("bob", id="one")], [pod("a")]))

    assert plan.purges == ()
    assert [(change.actor.key.name, change.wanted) for change in plan.finalizers] == [("alice", False)]
    assert [change.actor.key.name for change in plan.changes] == ["bob"]


def test_the_checker_refuses_a_move_without_a_cause() -> None:
    lost = snapshot([actor("alice", on="a")], [pod("a", "dead"), pod("b")])
    well = replace(lost, pods={PodUid("a"): pod("a"), PodUid("b"): pod("b")})

    with pytest.raises(InternalError, match="moved without a cause"):
        check_plan(well, make_plan(lost))


def test_the_checker_refuses_a_plan_that_leaves_somebody_out() -> None:
    with pytest.raises(InternalError, match="could be placed and is not"):
        check_plan(snapshot([actor("alice")], [pod("a")]), Plan())


def test_an_actor_goes_only_to_a_pod_that_carries_its_required_labels() -> None:
    pods = [pod("a"), pod("b", labels={"disk": "ssd"}), pod("c", labels={"disk": "hdd"})]

    plan = planned(snapshot([actor(name, rules=SSD) for name in ("alice", "bob")], pods))

    assert [change.new.pod_uid for change in plan.changes] == ["b", "b"]


def test_a_label_that_no_pod_carries_is_named() -> None:
    plan = planned(snapshot([actor("alice", rules=Rules(required=(("disk", "ssd"), ("zone", "a"))))], [pod("a", labels={"zone": "a"})]))

    status, reason, message = condition_of(plan, "alice")
    assert (status, reason) == ("False", "NoMatchingPods")
    assert message.startswith("no ready pod of pool default is labelled disk=ssd, as spec.placement.affinity.required asks; set it in the pool's")


def test_labels_that_only_different_pods_carry_are_all_named() -> None:
    pods = [pod("a", labels={"zone": "a"}), pod("b", labels={"disk": "ssd"})]

    plan = planned(snapshot([actor("alice", rules=Rules(required=(("disk", "ssd"), ("zone", "a"))))], pods))

    assert "is labelled disk=ssd, zone=a," in condition_of(plan, "alice")[2]


def test_a_full_pool_says_how_full_it_is() -> None:
    plan = planned(snapshot([actor("alice", rules=SSD), actor("bob", rules=SSD)], [pod("a", labels={"disk": "ssd"}), pod("b")], capacity=1))

    assert condition_of(plan, "bob")[1:] == ("NoCapacity", "all 1 ready pods that fit of pool default hold the 1 actors that they may; scale the pool up or raise its actorsPerPod")


def test_an_actor_whose_pod_lacks_a_required_label_moves_once_another_has_room() -> None:
    there = [actor("alice", on="a", rules=SSD), actor("bob", on="b")]

    full = planned(snapshot(there, [pod("a"), pod("b", labels={"disk": "ssd"})], capacity=1))
    plan = planned(snapshot(there, [pod("a"), pod("b", labels={"disk": "ssd"})], capacity=2))

    assert full.changes == ()
    assert [(change.actor.key.name, change.cause, change.new.pod_uid) for change in plan.changes] == [("alice", "PlacementChanged", "b")]


def test_preferences_weigh_more_than_an_even_load_while_there_is_room() -> None:
    near = Rules(preferred=(Preference(10, (("zone", "a"),)), Preference(1, (("disk", "ssd"),))))
    pods = [pod("a", labels={"zone": "a"}), pod("b", labels={"disk": "ssd"}), pod("c")]

    plan = planned(snapshot([actor(f"actor-{i}", rules=near) for i in range(5)], pods, capacity=2))

    assert [change.new.pod_uid for change in plan.changes] == ["a", "a", "b", "b", "c"]


def test_actors_of_a_spread_group_are_kept_apart_by_zone() -> None:
    apart = Rules(spread=Spread("orders", "zone"))
    pods = [pod("a", labels={"zone": "1"}), pod("b", labels={"zone": "1"}), pod("c", labels={"zone": "2"})]
    others = [actor(f"other-{i}", on="c") for i in range(9)]

    plan = planned(snapshot([*others, actor("first", on="a", rules=apart), actor("second", rules=apart), actor("third", rules=apart)], pods, limits=Limits(rebalance_per_s=0)))

    assert [change.new.pod_uid for change in plan.changes] == ["c", "b"]


def test_who_has_a_higher_priority_gets_room_first_and_displaces_nobody() -> None:
    waiting = [actor("low"), actor("high", priority=5, created="2026-02-01T00:00:00Z")]

    plan = planned(snapshot(waiting, [pod("a")], capacity=1))
    held = planned(snapshot([actor("low", on="a"), waiting[1]], [pod("a")], capacity=1))

    assert [change.actor.key.name for change in plan.changes] == ["high"]
    assert held.changes == ()
    assert condition_of(held, "high")[1] == "NoCapacity"


def test_who_can_go_to_fewer_pods_chooses_first() -> None:
    plan = planned(snapshot([actor("anywhere"), actor("picky", rules=SSD, created="2026-02-01T00:00:00Z")], [pod("a", labels={"disk": "ssd"}), pod("b")], capacity=1))

    assert [(change.actor.key.name, change.new.pod_uid) for change in plan.changes] == [("anywhere", "b"), ("picky", "a")]


def test_the_checker_refuses_a_pod_that_lacks_a_required_label() -> None:
    before = snapshot([actor("alice", rules=SSD)], [pod("a", labels={"disk": "ssd"})])
    unlabelled = replace(before, pods={PodUid("a"): pod("a")})

    with pytest.raises(InternalError, match="lacks a label that it requires"):
        check_plan(unlabelled, make_plan(before))


CAPACITIES = st.sampled_from([1, 2, 3, 5, 50])
VERDICTS: list[Verdict] = ["alive", "alive", "alive", "suspect", "dead", "leaving", "starting"]


@st.composite
def clusters(draw: st.DrawFn) -> Snapshot:
    """Draw clusters in any state, most of them strange."""
    names = draw(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=6))
    pods = [
        pod(
            name,
            draw(st.sampled_from(VERDICTS)),
            ready=draw(st.booleans()),
            introduced=draw(st.booleans()),
            pool=draw(st.sampled_from(["default", "fast"])),
            labels=draw(st.sampled_from([{}, {"disk": "ssd"}, {"disk": "hdd"}])),
        )
        for name in names
    ]
    actors = [
        actor(
            f"actor-{i}",
            on=draw(st.sampled_from(["", "", *names, "gone"])),
            epoch=draw(st.integers(1, 2 * NOW_MS)),
            id=draw(st.sampled_from(["", "", "", "same"])),
            pool=draw(st.sampled_from(["default", "default", "fast", "none"])),
            suspend=draw(st.booleans()) and draw(st.booleans()),
            deleting=draw(st.booleans()) and draw(st.booleans()),
            purges=draw(st.booleans()),
            held_by_us=draw(st.booleans()),
            reported_epoch=draw(st.integers(0, 2 * NOW_MS)),
            rules=draw(st.sampled_from(RULES)),
            priority=draw(st.integers(-1, 1)),
        )
        for i in range(draw(st.integers(0, 12)))
    ]
    pools = {POOL: PoolView(draw(CAPACITIES)), ObjectKey("shop", "fast"): PoolView(draw(CAPACITIES))}
    problems = {item.key: "no right" for item in actors if draw(st.booleans())}
    return snapshot(actors, pods, pools=pools, settled=draw(st.booleans()), purge_problems=problems)


@given(clusters())
def test_every_plan_passes_the_checker(before: Snapshot) -> None:
    planned(before)


@given(clusters())
def test_plans_come_to_rest(before: Snapshot) -> None:
    for _ in range(4):
        plan = planned(before)
        before = executed(before, plan)

    assert planned(before).is_empty


@given(clusters(), st.randoms(use_true_random=False))
def test_a_plan_does_not_depend_on_the_order_of_what_is_known(before: Snapshot, random: object) -> None:
    shuffled = list(before.actors.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis types its Random as object
    pods = dict(reversed(list(before.pods.items())))

    assert make_plan(replace(before, actors=MappingProxyType(dict(shuffled)), pods=pods)) == make_plan(before)


@given(st.integers(1, 300), st.integers(2, 12))
def test_a_lost_pod_moves_its_own_actors_and_no_others(actor_count: int, pod_count: int) -> None:
    before = snapshot([actor(f"actor-{i}") for i in range(actor_count)], [pod(f"pod-{i}") for i in range(pod_count)], capacity=1000)
    placed = executed(before, planned(before))
    loads = Counter(item.placement.pod_uid for item in placed.actors.values() if item.placement is not None)
    lost = min(loads)

    plan = planned(replace(placed, pods={uid: item for uid, item in placed.pods.items() if uid != lost}))

    assert len(plan.changes) == loads[lost]
    assert max(loads.values()) <= 1.05 * actor_count / pod_count + 1
