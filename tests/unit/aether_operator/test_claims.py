"""What pods say that they hold: the highest of held, status and log says where an actor is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aether_api.identity import BootId, Epoch, PodUid, parse_actor_id
from aether_kube.store import ObjectKey
from aether_operator.planning.checker import check_plan
from aether_operator.planning.claims import Claim, place_as_claimed, raise_floors
from aether_operator.planning.planner import make_plan
from aether_operator.planning.snapshot import ActorView, KnownCondition, ModelView, Placed, PodView, PoolView, Snapshot, Verdict

KEY = ObjectKey("shop", "alice")
SCHEDULED = KnownCondition("Scheduled", "True", "Scheduled", "placed on pod a", 1, "")
ALICE = ActorView(KEY, "uid", 1, "2026-01-01T00:00:00Z", identity=parse_actor_id("shop", "account", "alice"), model="account")
ON_A = replace(ALICE, placement=Placed("a", PodUid("1"), Epoch(5)), conditions=(SCHEDULED,))
PODS = {PodUid(uid): PodView(PodUid(uid), "shop", name, "default", BootId(f"boot-{name}")) for uid, name in (("1", "a"), ("2", "b"))}
B_SINCE_7 = Claim("uid", PodUid("2"), BootId("boot-b"), Epoch(7))


def test_an_actor_is_where_a_pod_holds_it_since_a_higher_epoch() -> None:
    assert place_as_claimed(ON_A, B_SINCE_7, PODS).home == Placed("b", PodUid("2"), Epoch(7))
    assert place_as_claimed(ALICE, B_SINCE_7, PODS).home == Placed("b", PodUid("2"), Epoch(7))


@pytest.mark.parametrize(
    "claim",
    [
        None,
        replace(B_SINCE_7, epoch=Epoch(5)),
        replace(B_SINCE_7, epoch=Epoch(4)),
        replace(B_SINCE_7, uid="of a resource of the same name before"),
        replace(B_SINCE_7, boot_id=BootId("of the process before")),
        replace(B_SINCE_7, pod_uid=PodUid("gone")),
    ],
)
def test_a_claim_that_is_old_or_of_another_life_moves_nobody(claim: Claim | None) -> None:
    assert place_as_claimed(ON_A, claim, PODS) is ON_A


def test_a_dead_pods_claim_places_nobody_but_its_epoch_is_known() -> None:
    verdict: Verdict = "dead"
    dead = {**PODS, PodUid("2"): replace(PODS[PodUid("2")], verdict=verdict)}

    assert place_as_claimed(ON_A, B_SINCE_7, dead) is ON_A
    assert raise_floors({KEY: Epoch(3)}, {KEY: B_SINCE_7}) == {KEY: 7}
    assert raise_floors({KEY: Epoch(9)}, {KEY: B_SINCE_7}) == {KEY: 9}


def test_a_plan_repairs_the_status_of_a_claimed_actor_and_moves_it_nowhere() -> None:
    actor = place_as_claimed(ON_A, B_SINCE_7, PODS)
    pools, models = {ObjectKey("shop", "default"): PoolView(10)}, {ObjectKey("shop", "account"): ModelView(True)}
    snapshot = Snapshot(3, {KEY: actor}, PODS, pools, models, epoch_floors=raise_floors({}, {KEY: B_SINCE_7}))

    plan = make_plan(snapshot)
    check_plan(snapshot, plan)

    assert [(change.cause, change.new) for change in plan.changes] == [("StatusRepaired", Placed("b", PodUid("2"), Epoch(8)))]
