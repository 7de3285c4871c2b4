"""What the operator writes: whole, stable, and never over what the owner said."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from aether_api.identity import ActorId, Epoch, ModelName, Namespace, PodUid
from aether_api.v1alpha1 import ActorPoolSpec
from aether_kube.apply import differs
from aether_kube.documents import JsonObject, object_at, objects_at, text_at, value_at
from aether_kube.store import ObjectKey
from aether_operator.cluster.assignments import build_item
from aether_operator.cluster.records import ModelRecord, PoolRecord
from aether_operator.cluster.statuses import build_kube_event, build_status_document
from aether_operator.handlers.models import build_model_status
from aether_operator.handlers.pools import PoolState, build_pool_status, needs_apply
from aether_operator.handlers.probes import find_sickness
from aether_operator.planning.snapshot import ActorView, KnownCondition, Placed
from aether_operator.planning.statuses import build_placed_status, build_unplaced_status, suspended

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
LATER = datetime(2026, 1, 31, 13, tzinfo=UTC)
IDENTITY = ActorId(Namespace("shop"), ModelName("account"), "alice")
ALICE = ActorView(
    key=ObjectKey("shop", "alice"),
    uid="1",
    generation=2,
    created="2026",
    resource_version=10,
    identity=IDENTITY,
    model="account",
    snapshot_every=500,
    recovery_target_s=0.25,
    idle_after_s=60,
)
PLACED = build_placed_status(ALICE, Placed("pod-a", PodUid("a"), Epoch(7)), "Scheduled")


def types(document: JsonObject) -> list[str]:
    return [text_at(item, "type") for item in objects_at(document, "status", "conditions")]


def test_a_placement_is_written_with_phase_and_unknown_readiness() -> None:
    document = build_status_document(ALICE, PLACED, now=NOW)

    assert object_at(document, "metadata") == {"namespace": "shop", "name": "alice", "uid": "1", "resourceVersion": "10"}
    assert object_at(document, "status", "placement") == {"pod": "pod-a", "podUID": "a", "epoch": 7}
    assert text_at(document, "status", "phase") == "Scheduled"
    assert types(document) == ["Ready", "Scheduled"]


def test_phase_and_readiness_are_left_to_an_owner_that_has_spoken() -> None:
    document = build_status_document(replace(ALICE, reported_epoch=7), PLACED, now=NOW)

    assert value_at(document, "status", "phase") is None
    assert types(document) == ["Scheduled"]


def test_a_report_for_an_earlier_epoch_does_not_count() -> None:
    assert types(build_status_document(replace(ALICE, reported_epoch=6), PLACED, now=NOW)) == ["Ready", "Scheduled"]


def test_transition_times_stay_while_a_condition_stays() -> None:
    known = KnownCondition("Scheduled", "True", "Scheduled", "", 1, "2026-01-01T00:00:00Z")

    document = build_status_document(replace(ALICE, conditions=(known,)), PLACED, now=NOW)

    times = {text_at(item, "type"): text_at(item, "lastTransitionTime") for item in objects_at(document, "status", "conditions")}
    assert times == {"Ready": "2026-01-31T12:00:00Z", "Scheduled": "2026-01-01T00:00:00Z"}


def test_kube_events_warn_only_where_somebody_may_want_to_act() -> None:
    moved = replace(ALICE, placement=Placed("pod-z", PodUid("z"), Epoch(3)))
    lost = build_placed_status(moved, Placed("pod-a", PodUid("a"), Epoch(8)), "PodLost")

    assert (build_kube_event(ALICE, PLACED).reason, build_kube_event(ALICE, PLACED).type) == ("Scheduled", "Normal")
    assert (build_kube_event(moved, lost).reason, build_kube_event(moved, lost).type) == ("PodLost", "Warning")
    assert build_kube_event(ALICE, build_unplaced_status(ALICE, None, suspended())).type == "Normal"


def test_an_assignment_carries_what_the_pod_needs() -> None:
    item = build_item("adopt", replace(ALICE, identity=ActorId(Namespace("shop"), ModelName("account"), "one")), Epoch(7))

    assert (item.action, item.name, item.uid, item.model, item.id, item.epoch, item.generation, item.snapshot_every) == ("adopt", "alice", "1", "account", "one", 7, 2, 500)
    assert (item.recovery_target_s, item.idle_after_s) == (0.25, 60)


def model(*problems: str, status: JsonObject | None = None) -> ModelRecord:
    return ModelRecord(ObjectKey("shop", "account"), "1", 4, problems, "" if problems else "abc", 2, 3, status or {})


def test_a_model_status_names_every_problem_up_to_a_screen_of_them() -> None:
    status = build_model_status(model(*(f"spec.x{i}: wrong" for i in range(25))), now=NOW)

    condition = objects_at(status, "conditions")[0]
    assert (condition["type"], condition["status"], condition["reason"], condition["observedGeneration"]) == ("Accepted", "False", "Invalid", 4)
    lines = text_at(condition, "message").splitlines()
    assert (len(lines), lines[0], lines[-1]) == (21, "spec.x0: wrong", "and 5 more")


def test_an_accepted_model_is_written_once() -> None:
    status = build_model_status(model(), now=NOW)

    assert (status["contentHash"], status["commands"], status["events"]) == ("abc", 2, 3)
    assert not differs(build_model_status(model(status=status), now=LATER), status, owned_conditions=("Accepted",))


def test_a_model_in_python_is_accepted_with_a_word_on_who_imports_it() -> None:
    condition = objects_at(build_model_status(replace(model(), handler="bank:Account"), now=NOW), "conditions")[0]

    assert (condition["status"], condition["reason"]) == ("True", "Accepted")
    assert text_at(condition, "message").startswith("the model is in Python: runtime pods import bank:Account")


def pool(replicas: int = 2, *problems: str) -> PoolRecord:
    return PoolRecord(ObjectKey("shop", "default"), "1", 4, False, None if problems else ActorPoolSpec(replicas=replicas), problems, {})


def test_a_pool_is_ready_when_all_its_pods_are() -> None:
    def reason(record: PoolRecord, state: PoolState) -> tuple[str, str]:
        condition = objects_at(build_pool_status(record, state, now=NOW), "conditions")[0]
        return text_at(condition, "status"), text_at(condition, "reason")

    assert reason(pool(), PoolState(2, 2, 5)) == ("True", "PodsReady")
    assert reason(pool(), PoolState(2, 1, 5)) == ("False", "PodsNotReady")
    assert reason(pool(), PoolState(2, 1, 5, refusal="exceeded quota")) == ("False", "PodsRefused")
    assert reason(pool(), PoolState(2, 2, 5, unheard=True)) == ("False", "NotHeard")
    assert reason(pool(0), PoolState()) == ("False", "ScaledToZero")
    assert reason(pool(), PoolState(2, 2, 5, "no streams")) == ("False", "Hindered")
    assert reason(pool(2, "spec.x: wrong"), PoolState()) == ("False", "InvalidSpec")


def test_a_pool_status_serves_the_scale_subresource() -> None:
    status = build_pool_status(pool(), PoolState(2, 1, 5), now=NOW)

    assert (status["replicas"], status["readyReplicas"], status["actors"]) == (2, 1, 5)
    assert status["selector"] == "app.kubernetes.io/name=aether-runtime,aether.flowmade.one/pool=default"


def test_a_shared_object_is_applied_until_every_pool_owns_it() -> None:
    def account(*owners: str) -> JsonObject:
        return {"metadata": {"name": "aether-runtime", "labels": {"a": "b"}, "ownerReferences": [{"uid": uid} for uid in owners]}}

    assert needs_apply(account("1"), {})
    assert needs_apply(account("1"), account("2"))
    assert not needs_apply(account("1"), account("2", "1"))
    assert needs_apply({**account("1"), "roleRef": {"name": "x"}}, account("1"))


def test_a_loop_that_no_longer_turns_is_sick_and_one_that_waits_for_its_first_lists_is_not() -> None:
    assert find_sickness(now_s=1000, last_plan_s=990, last_vote_s=999, informers={}) == []
    assert find_sickness(now_s=1000, last_plan_s=None, last_vote_s=None, informers={}) == []
    assert find_sickness(now_s=1000, last_plan_s=800, last_vote_s=999, informers={}) == ["no plan was made for 200 s"]


def test_a_standby_that_looks_at_the_lease_is_well_and_one_that_does_not_is_sick() -> None:
    assert find_sickness(now_s=1000, last_plan_s=None, last_vote_s=995, informers={}) == []
    assert find_sickness(now_s=1000, last_plan_s=None, last_vote_s=900, informers={}) == ["nobody looked at the lease for 100 s"]
