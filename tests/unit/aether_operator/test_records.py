"""Documents of the API server: everything may be missing, and what cannot be used says why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aether_api.identity import Epoch, PodUid
from aether_kube.documents import JsonObject, JsonValue
from aether_kube.store import ObjectKey
from aether_operator.cluster.observe import find_newest
from aether_operator.cluster.records import parse_actor, parse_deployment, parse_model, parse_pod, parse_pool, parse_replica_set
from aether_operator.planning.relevance import matters
from aether_operator.planning.rules import NO_RULES, Preference, Rules, Spread
from aether_operator.planning.snapshot import Placed


def actor(spec: JsonObject, status: JsonObject | None = None, name: str = "alice") -> JsonObject:
    return {"metadata": {"namespace": "shop", "name": name, "uid": "1", "generation": 3, "resourceVersion": "9"}, "spec": spec, "status": status or {}}


def test_an_actor_is_read_with_its_defaults() -> None:
    view = parse_actor(actor({"model": "account"}))

    assert view.key == ObjectKey("shop", "alice")
    assert str(view.identity) == "shop/account/alice"
    assert (view.pool, view.suspend, view.purges, view.snapshot_every, view.placement) == ("default", False, False, 500, None)
    assert (view.recovery_target_s, view.idle_after_s) == (1, 0)


def test_an_actor_is_read_with_its_status() -> None:
    conditions: list[JsonObject] = [{"type": "Scheduled", "status": "True", "reason": "Scheduled"}, {"type": "Replayed", "status": "True"}]
    status: JsonObject = {"placement": {"pod": "p", "podUID": "u", "epoch": 7}, "phase": "Ready", "reportedEpoch": 7, "conditions": [*conditions]}

    view = parse_actor(actor({"model": "account", "deletionPolicy": "Purge", "snapshot": {"every": 0, "recoveryTarget": "250ms"}, "passivation": {"idleAfter": "1m"}}, status))

    assert view.home == Placed("p", PodUid("u"), Epoch(7))
    assert [condition.type for condition in view.conditions] == ["Scheduled"]
    assert (view.purges, view.snapshot_every, view.reported_epoch) == (True, 0, 7)
    assert (view.recovery_target_s, view.idle_after_s) == (0.25, 60)


@pytest.mark.parametrize(
    ("spec", "name", "problem"),
    [
        ({"model": "account", "id": "a.b"}, "alice", "spec.id 'a.b' must be"),
        ({"model": "A"}, "alice", "spec.model 'A' must be"),
        ({"model": "account"}, "a.b", "metadata.name is its id: id 'a.b'"),
    ],
)
def test_a_spec_that_cannot_be_used_is_kept_with_its_problem(spec: JsonObject, name: str, problem: str) -> None:
    view = parse_actor(actor(spec, name=name))

    assert view.identity is None
    assert view.problem.startswith(problem)


def test_the_placement_of_an_actor_is_read_and_equal_rules_are_one_object() -> None:
    placement: JsonObject = {
        "affinity": {"required": {"matchLabels": {"zone": "a", "disk": "ssd"}}, "preferred": [{"weight": 5, "matchLabels": {"gpu": "yes"}}]},
        "spread": {"topologyKey": "zone"},
        "priority": -3,
    }

    view, other = parse_actor(actor({"model": "account", "placement": placement})), parse_actor(actor({"model": "account", "placement": placement}, name="bob"))

    assert view.rules == Rules((("disk", "ssd"), ("zone", "a")), (Preference(5, (("gpu", "yes"),)),), Spread("account", "zone"))
    assert view.priority == -3
    assert other.rules is view.rules
    assert parse_actor(actor({"model": "account"})).rules is NO_RULES


def test_what_a_pod_reports_of_a_placed_actor_does_not_matter_to_plans() -> None:
    scheduled: JsonObject = {"type": "Scheduled", "status": "True"}
    before = parse_actor(actor({"model": "account"}, {"placement": {"pod": "p", "podUID": "u", "epoch": 7}, "conditions": [scheduled]}))
    reported = parse_actor(
        actor(
            {"model": "account"},
            {
                "placement": {"pod": "p", "podUID": "u", "epoch": 7},
                "phase": "Ready",
                "version": 9,
                "reportedEpoch": 7,
                "conditions": [scheduled, {"type": "Ready", "status": "True"}],
            },
        )
    )

    assert not matters(before, reported)
    assert matters(before, replace(reported, reported_epoch=8))
    assert matters(before, replace(reported, suspend=True))
    assert matters(before, replace(reported, conditions=()))


def test_a_pod_tells_whether_its_process_runs() -> None:
    running: JsonObject = {"name": "runtime", "restartCount": 0, "state": {"running": {}}}
    crashed: JsonObject = {"name": "runtime", "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    starting: JsonObject = {"name": "runtime", "restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}}

    def down(container: JsonObject) -> bool:
        return parse_pod({"metadata": {"name": "p", "uid": "u"}, "status": {"containerStatuses": [container]}}).facts.process_down

    assert [down(running), down(crashed), down(starting)] == [False, True, False]


@pytest.mark.parametrize(("value", "cordon"), [("true", "true"), ("drain", "drain"), ("Drain", "drain"), ("yes", "true"), ("false", ""), ("", "")])
def test_a_pod_says_by_annotation_whether_it_takes_actors(value: str, cordon: str) -> None:
    assert parse_pod({"metadata": {"name": "p", "uid": "u", "annotations": {"aether.flowmade.one/cordon": value}}}).cordon == cordon


def test_a_replica_set_says_how_new_its_pods_are() -> None:
    labels: JsonObject = {"aether.flowmade.one/pool": "default", "pod-template-hash": "abc"}
    metadata: JsonObject = {"namespace": "shop", "name": "aether-default-abc", "labels": labels, "annotations": {"deployment.kubernetes.io/revision": "12"}}

    record = parse_replica_set({"metadata": metadata})
    older = replace(record, revision="old", number=9)

    assert (record.pool, record.revision, record.number) == ("default", "abc", 12)
    assert find_newest([record, older]) == {ObjectKey("shop", "default"): "abc"}


@pytest.mark.parametrize(("status", "refusal"), [("True", "exceeded quota: pods"), ("False", "")])
def test_a_deployment_says_why_kubernetes_makes_no_more_pods(status: str, refusal: str) -> None:
    conditions: list[JsonValue] = [{"type": "Progressing", "status": "True", "message": "x"}, {"type": "ReplicaFailure", "status": status, "message": "exceeded quota: pods"}]

    assert parse_deployment({"metadata": {"name": "d"}, "status": {"conditions": conditions}}).refusal == refusal


def test_a_pod_that_is_being_deleted_says_how_long_it_has() -> None:
    metadata: JsonObject = {"name": "p", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0}

    assert parse_pod({"metadata": metadata}).facts.grace_s == 0
    assert parse_pod({"metadata": {"name": "p", "uid": "u"}}).facts.grace_s is None


def test_a_model_is_compiled_as_it_is_read() -> None:
    metadata: JsonObject = {"namespace": "shop", "name": "account", "uid": "1", "generation": 1}
    sound: JsonObject = {"commands": {"Open": {"emits": [{"event": "Opened"}]}}, "events": {"Opened": {}}}

    accepted = parse_model({"metadata": metadata, "spec": sound})
    unknown = parse_model({"metadata": metadata, "spec": {"comands": {}}})
    unsound = parse_model({"metadata": metadata, "spec": {"commands": {"Open": {"emits": [{"event": "Nope"}]}}}})

    assert (accepted.problems, accepted.command_count, accepted.event_count) == ((), 1, 1)
    assert accepted.content_hash
    assert unknown.problems == ("spec.comands: Extra inputs are not permitted",)
    assert "spec.commands.Open.emits[0].event" in unsound.problems[0]


def test_a_model_in_python_is_accepted_unseen_unless_it_is_in_yaml_too() -> None:
    metadata: JsonObject = {"namespace": "shop", "name": "account", "uid": "1", "generation": 1}

    accepted = parse_model({"metadata": metadata, "spec": {"python": {"handler": "no_such_package.here:Account"}}})
    both = parse_model({"metadata": metadata, "spec": {"python": {"handler": "bank:Account"}, "events": {"Opened": {}}}})
    misspelt = parse_model({"metadata": metadata, "spec": {"python": {"handler": "bank.Account"}}})

    assert (accepted.problems, accepted.handler, accepted.content_hash) == ((), "no_such_package.here:Account", "")
    assert both.problems == ("spec.events: a model is written in YAML or in Python: with spec.python, leave this out",)
    assert misspelt.problems[0].startswith("spec.python.handler: ")


def test_a_pool_that_cannot_be_used_says_which_field() -> None:
    pool = parse_pool({"metadata": {"namespace": "shop", "name": "default"}, "spec": {"replica": 3}})

    assert pool.spec is None
    assert pool.problems == ("spec.replica: Extra inputs are not permitted",)
