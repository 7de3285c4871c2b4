"""The planner: sticky, deterministic, and at rest once its plan was carried out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_api.errors import InternalError
from aether_api.identity import ActorId, BootId, Epoch, ModelName, Namespace, PodUid
from aether_kube.store import ObjectKey
from aether_operator.planning.checker import check_plan
from aether_operator.planning.plan import Plan
from aether_operator.planning.planner import make_plan
from aether_operator.planning.snapshot import ActorView, KnownCondition, ModelView, Placed, PodView, PoolView, Snapshot, Verdict
from aether_operator.planning.statuses import DesiredStatus, with_status

NOW_MS = 1_000_000
MODEL = ObjectKey("shop", "account")
POOL = ObjectKey("shop", "default")


def actor(name: str, *, on: str = "", epoch: int = 5, created: str = "2026-01-01T00:00:00Z", id: str = "", **changes: object) -> ActorView:
    """Make an Actor; `on` names the pod that holds it."""
    placement = Placed(f"pod-{on}", PodUid(on), Epoch(epoch)) if on else None
    conditions = (KnownCondition("Scheduled", "True", "Scheduled", "", 1, ""),) if on else ()
    identity = ActorId(Namespace("shop"), ModelName("account"), id or name)
    made = ActorView(key=ObjectKey("shop", name), uid=f"uid-{name}", generation=1, created=created, identity=identity, model="account", placement=placement, conditions=conditions)
    return replace(made, **changes)  # type: ignore[arg-type]  # the tests name fields of ActorView only


def pod(uid: str, verdict: Verdict = "alive", **changes: object) -> PodView:
    made = PodView(uid=PodUid(uid), namespace="shop", name=f"pod-{uid}", pool="default", boot_id=BootId("boot"), verdict=verdict)
    return replace(made, **changes)  # type: ignore[arg-type]  # the tests name fields of PodView only


def snapshot(actors: list[ActorView], pods: list[PodView], *, capacity: int = 100, **changes: object) -> Snapshot:
    made = Snapshot(
        now_ms=NOW_MS,
        actors={item.key: item for item in actors},
        pods={item.uid: item for item in pods},
        pools={POOL: PoolView(capacity)},
        models={MODEL: ModelView(accepted=True)},
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # the tests name fields of Snapshot only


def planned(before: Snapshot) -> Plan:
    plan = make_plan(before)
    check_plan(before, plan)
    return plan


def statuses_of(plan: Plan) -> list[tuple[ActorView, DesiredStatus]]:
    return [(change.actor, change.status) for change in plan.changes] + [(change.actor, change.status) for change in plan.statuses]


def executed(before: Snapshot, plan: Plan) -> Snapshot:
    """Return the snapshot as it is when everything in the plan was done."""
    after = dict(before.actors)
    for actor_, status in statuses_of(plan):
        after[actor_.key] = with_status(actor_, status)
    for finalizer in plan.finalizers:
        after[finalizer.actor.key] = replace(after[finalizer.actor.key], held_by_us=finalizer.wanted)
    for purge in plan.purges:
        del after[purge.actor.key]
    pods = {uid: replace(item, introduced=item.introduced or item.hears) for uid, item in before.pods.items()}
    return replace(before, now_ms=before.now_ms + 1000, actors=after, pods=pods, vanished=())


def condition_of(plan: Plan, name: str, type_: str = "Scheduled") -> tuple[str, str, str]:
    status = next(status for item, status in statuses_of(plan) if item.key.name == name)
    return next((item.status, item.reason, item.message) for item in status.conditions if item.type == type_)


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

    assert condition_of(plan, "alice")[2].endswith("not yet done, it is tried again: NATS is away")


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


VERDICTS: list[Verdict] = ["alive", "alive", "alive", "suspect", "dead", "leaving", "starting"]


@st.composite
def clusters(draw: st.DrawFn) -> Snapshot:
    """Draw clusters in any state, most of them strange."""
    names = draw(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=6))
    pods = [
        pod(name, draw(st.sampled_from(VERDICTS)), ready=draw(st.booleans()), introduced=draw(st.booleans()), pool=draw(st.sampled_from(["default", "fast"]))) for name in names
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
        )
        for i in range(draw(st.integers(0, 12)))
    ]
    pools = {POOL: PoolView(draw(st.integers(1, 5))), ObjectKey("shop", "fast"): PoolView(draw(st.integers(1, 5)))}
    return snapshot(actors, pods, pools=pools, settled=draw(st.booleans()))


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
