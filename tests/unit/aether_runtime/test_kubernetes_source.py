"""What a pod makes of resources, and the status that it writes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, tzinfo
from typing import Any, cast

import orjson
import pytest

from aether_api.errors import KubeForbidden, KubeInvalid, RetryableError
from aether_api.identity import Epoch, PodUid, parse_actor_id
from aether_api.v1alpha1 import Actor, ActorModel, ActorPhase
from aether_kube.client import KubeClient
from aether_kube.conditions import condition_document
from aether_kube.connection import anonymous_connection
from aether_kube.documents import JsonObject, JsonValue, objects_at, text_at
from aether_kube.kinds import ACTORS
from aether_kube.store import Change, ObjectKey
from aether_runtime.adapters import kubernetes
from aether_runtime.adapters.kubernetes import MESSAGE_MAX, KubernetesSink, KubernetesSource, build_conditions, build_desired, build_shown, build_status_document, tell_model
from aether_runtime.ports import ActorReport, DesiredActor, DesiredListener, SnapshotProblem
from tests.fake_apiserver import FakeApiServer, Fault
from tests.histories.bank import ALICE, read_account


def build_actor(**status: Any) -> Actor:
    document = {"metadata": {"name": "alice", "uid": "u-1", "generation": 4, "resourceVersion": "12"}, "spec": {"model": "account", "snapshot": {"every": 7}}, "status": status}
    return Actor.model_validate(document)


def build_report(phase: ActorPhase = ActorPhase.READY, **changes: Any) -> ActorReport:
    values = {"version": 3, "snapshot_version": 2, "model_version": "account@x", "reason": "Ready", "message": "", **changes}
    return ActorReport(DesiredActor(ALICE, "alice", "u-1", Epoch(6), 4, 7), phase, **values)


def test_what_is_desired_comes_from_spec_and_placement() -> None:
    actor = build_actor(placement={"pod": "p", "podUID": "uid", "epoch": 6})
    assert build_desired(actor) == DesiredActor(ALICE, "alice", "u-1", Epoch(6), 4, 7)


def test_the_status_holds_every_field_of_the_pod_and_the_uid_of_the_resource() -> None:
    document = build_status_document(build_report(), build_conditions(build_report()))
    assert document["metadata"] == {"name": "alice", "namespace": "default", "uid": "u-1"}
    status = cast("dict[str, Any]", document["status"])
    assert {name: value for name, value in status.items() if name != "conditions"} == {
        "observedGeneration": 4,
        "phase": "Ready",
        "version": 3,
        "snapshotVersion": 2,
        "modelVersion": "account@x",
        "reportedEpoch": 6,
    }


def test_a_version_that_nobody_knows_is_left_out() -> None:
    document = build_status_document(build_report(ActorPhase.REPLAYING, version=None), ())
    assert "version" not in cast("dict[str, Any]", document["status"])


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (build_report(), {"Ready": "True", "Replayed": "True"}),
        (build_report(ActorPhase.REPLAYING, reason="Replaying"), {"Ready": "False", "Replayed": "False"}),
        (build_report(ActorPhase.PASSIVE), {"Ready": "False", "Replayed": "True"}),
        (build_report(snapshot_problem=SnapshotProblem("SnapshotTooLarge", "9 MB")), {"Ready": "True", "Replayed": "True", "SnapshotTooLarge": "True"}),
        (build_report(snapshot_problem=SnapshotProblem("SnapshotImpossible", "no JSON")), {"Ready": "True", "Replayed": "True", "SnapshotImpossible": "True"}),
        (build_report(ActorPhase.QUARANTINED, reason="Quarantined"), {"Ready": "False", "Replayed": "False", "Quarantined": "True"}),
        (build_report(ActorPhase.STOPPING, reason="Fenced", fenced_by=Epoch(9)), {"Ready": "False", "Replayed": "False", "Fenced": "True"}),
        (build_report(ActorPhase.SCHEDULED, reason="ModelNotFound"), {"Ready": "False", "Replayed": "False"}),
    ],
)
def test_abnormal_conditions_are_there_only_while_they_are_true(report: ActorReport, expected: dict[str, str]) -> None:
    assert {condition.type: condition.status for condition in build_conditions(report)} == expected


@pytest.mark.parametrize("text", ["x" * 40_000, "half a pair: \ud800"], ids=["long", "surrogate"])
def test_whatever_a_models_author_raised_becomes_a_condition(text: str) -> None:
    for condition in build_conditions(build_report(ActorPhase.QUARANTINED, reason="Quarantined", message=text, snapshot_problem=SnapshotProblem("SnapshotImpossible", text))):
        assert 0 < len(condition.message.encode()) <= 2 * MESSAGE_MAX


def test_a_fenced_pod_reports_the_epoch_that_it_met() -> None:
    document = build_status_document(build_report(fenced_by=Epoch(9)), ())
    assert cast("dict[str, Any]", document["status"])["reportedEpoch"] == 9


@pytest.mark.parametrize("report", [build_report(), build_report(ActorPhase.REPLAYING, version=None), build_report(ActorPhase.STOPPING, fenced_by=Epoch(9))])
def test_a_status_agrees_with_the_report_that_it_holds(report: ActorReport) -> None:
    shown = build_shown(build_actor(**cast("dict[str, Any]", build_status_document(report, build_conditions(report))["status"])))
    assert (shown.revision, report.agrees_with(shown)) == (12, True)


@pytest.mark.parametrize("other", [{"phase": "Moving"}, {"phase": None}, {"version": 2}, {"version": None}, {"snapshotVersion": 1}, {"reportedEpoch": 5}], ids="".join)
def test_the_word_of_the_operator_of_a_former_owner_and_an_older_one_of_our_own_are_recognised(other: dict[str, Any]) -> None:
    status = cast("dict[str, Any]", build_status_document(build_report(), build_conditions(build_report()))["status"])
    assert not build_report().agrees_with(build_shown(build_actor(**{**status, **other})))


def test_conditions_that_somebody_changed_are_recognised_and_those_of_others_are_none_of_ours() -> None:
    report = build_report()
    ready, *others = [condition_document(condition) for condition in build_conditions(report)]

    def agrees(*conditions: JsonObject) -> bool:
        status = cast("dict[str, Any]", build_status_document(report, build_conditions(report))["status"])
        return report.agrees_with(build_shown(build_actor(**{**status, "conditions": [*conditions]})))

    assert agrees(ready, *others)
    assert agrees(ready, *others, {"type": "Scheduled", "status": "True", "reason": "Scheduled", "message": "", "observedGeneration": 1, "lastTransitionTime": ""})
    assert not agrees(*others)
    assert not agrees({**ready, "status": "False"}, *others)
    assert not agrees({**ready, "reason": "PodLost"}, *others)
    assert not agrees(ready, *others, {**ready, "type": "Quarantined"})


class Client:
    """Answers as the API server does, as far as the adapter asks."""

    def __init__(self, *, error: Exception | None = None, found: list[dict[str, Any]] | None = None) -> None:
        self.error = error
        self.found = found or []
        self.queries: list[dict[str, str]] = []
        self.applied: list[Any] = []
        self.during_apply: Callable[[], None] = lambda: None

    async def apply(self, path: str, document: object, *, field_manager: str) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        self.applied.append(document)
        self.during_apply()
        return {"metadata": {"resourceVersion": "12"}}

    async def get(self, path: str) -> dict[str, Any]:
        from aether_api.errors import KubeNotFound

        raise KubeNotFound(path)

    async def list_all(self, path: str, *, query: dict[str, str]) -> list[dict[str, Any]]:
        self.queries.append(query)
        return self.found


async def test_a_status_that_the_policy_forbids_is_tried_again() -> None:
    """The pod may hear of its placement before the resource names it; the policy then refuses its status for a moment."""
    sink = KubernetesSink(cast("KubeClient", Client(error=KubeForbidden("the placement names another pod"))))
    with pytest.raises(RetryableError):
        await sink.write(build_report())


async def test_transition_times_stay_while_the_actor_is_held_and_nothing_is_kept_of_it_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        second = 0

        @classmethod
        def now(cls, zone: tzinfo) -> datetime:
            return datetime(2026, 1, 1, 0, 0, cls.second, tzinfo=zone)

    monkeypatch.setattr(kubernetes, "datetime", Clock)
    client = Client()
    sink = KubernetesSink(cast("KubeClient", client))

    async def write(second: int, report: ActorReport) -> dict[str, str]:
        Clock.second = second
        await sink.write(report)
        return {condition["type"]: condition["lastTransitionTime"][17:19] for condition in client.applied[-1]["status"]["conditions"]}

    assert await write(1, build_report(ActorPhase.REPLAYING, reason="Replaying")) == {"Ready": "01", "Replayed": "01"}
    assert await write(2, build_report(message="replayed")) == {"Ready": "02", "Replayed": "02"}
    assert await write(3, build_report(ActorPhase.PASSIVE)) == {"Ready": "03", "Replayed": "02"}
    anew = build_report(ActorPhase.PASSIVE)
    assert await write(4, replace(anew, desired=replace(anew.desired, uid="u-2"))) == {"Ready": "04", "Replayed": "04"}

    client.during_apply = lambda: sink.forget(ALICE)
    await write(5, build_report())
    client.during_apply = lambda: None
    assert await write(6, build_report()) == {"Ready": "06", "Replayed": "06"}, "a write that ended after the actor had gone was kept"
    sink.forget(ALICE)
    assert await write(7, build_report()) == {"Ready": "07", "Replayed": "07"}


async def test_a_status_that_is_not_valid_is_given_up() -> None:
    sink = KubernetesSink(cast("KubeClient", Client(error=KubeInvalid("no"))))
    with pytest.raises(KubeInvalid):
        await sink.write(build_report())


ALICE_PATH = ACTORS.path("default", "alice")


@asynccontextmanager
async def reporting_beside(*foreign: str) -> AsyncGenerator[tuple[FakeApiServer, KubernetesSink]]:
    """Yield a sink, and a server whose answer to an apply still holds the conditions that other managers have put there."""
    async with FakeApiServer() as server, KubeClient(anonymous_connection(server.url)) as client:
        ours = [condition_document(condition) for condition in build_conditions(build_report())]
        conditions: list[JsonValue] = [*ours, *({**ours[0], "type": type} for type in foreign)]
        applied = await server.put(ALICE_PATH, {"metadata": {"name": "alice", "uid": "u-1"}, "status": {"conditions": conditions}})
        server.faults.append(Fault(lambda request: request.content_type.startswith("application/apply"), 200, body=orjson.dumps(applied)))
        yield server, KubernetesSink(client)


def shown_types(server: FakeApiServer) -> list[str]:
    return [text_at(condition, "type") for condition in objects_at(server.documents.objects[ALICE_PATH], "status", "conditions")]


async def test_an_abnormal_condition_that_somebody_else_added_is_removed_and_others_stay() -> None:
    async with reporting_beside("Quarantined", "Scheduled", "Fenced", "TheirOwn") as (server, sink):
        revision = await sink.write(build_report())

        assert shown_types(server) == ["Ready", "Replayed", "Scheduled", "TheirOwn"]
        assert revision == int(text_at(server.documents.objects[ALICE_PATH], "metadata", "resourceVersion"))


async def test_a_status_without_conditions_of_ours_from_others_is_one_write() -> None:
    async with reporting_beside("Scheduled") as (server, sink):
        await sink.write(build_report())

        assert len(server.requests) == 1


async def test_a_false_condition_is_left_to_the_next_report_when_somebody_writes_meanwhile() -> None:
    async with reporting_beside("Quarantined") as (server, sink):
        before = int(text_at(server.documents.objects[ALICE_PATH], "metadata", "resourceVersion"))
        server.faults.append(Fault(lambda request: request.content_type.startswith("application/merge"), 409))

        assert await sink.write(build_report()) == before


async def test_an_id_that_means_something_to_field_selectors_is_escaped() -> None:
    client = Client()
    source = KubernetesSource(cast("KubeClient", client), "default", PodUid("uid"))
    assert await source.find(parse_actor_id("default", "account", "a=b")) is None
    assert client.queries == [{"fieldSelector": "spec.model=account,spec.id=a\\=b"}]


async def test_of_several_resources_with_one_identity_the_oldest_counts() -> None:
    def document(name: str, created: str, uid: str) -> dict[str, Any]:
        placement = {"pod": "p", "podUID": uid, "epoch": 3}
        return {"metadata": {"name": name, "creationTimestamp": created}, "spec": {"model": "account", "id": "x"}, "status": {"placement": placement}}

    broken = {"metadata": {"name": "broken"}, "spec": {"model": "account", "id": "x", "unknown": 1}}
    client = Client(found=[broken, document("b", "2026-02-01T00:00:00Z", "newer"), document("a", "2026-01-01T00:00:00Z", "older")])
    home = await KubernetesSource(cast("KubeClient", client), "default", PodUid("uid")).find(parse_actor_id("default", "account", "x"))
    assert home is not None
    assert home.pod_uid == "older"


@asynccontextmanager
async def looking() -> AsyncGenerator[tuple[FakeApiServer, KubernetesSource]]:
    async with FakeApiServer() as server, KubeClient(anonymous_connection(server.url)) as client:
        yield server, KubernetesSource(client, "default", PodUid("pod-b"))


async def apply(server: FakeApiServer, name: str, created: str, *, pod: str = "", reason: str = "", **more: Any) -> None:
    """Put an Actor with the identity of alice; `more` goes into its metadata."""
    conditions = [{"type": "Scheduled", "status": "False", "reason": reason, "message": "", "observedGeneration": 1, "lastTransitionTime": ""}] if reason else []
    status = {"conditions": conditions, **({"placement": {"pod": pod, "podUID": pod, "epoch": 7}} if pod else {})}
    spec = {"model": "account", "suspend": not pod, **({"id": "alice"} if name != "alice" else {})}
    metadata = {"name": name, "namespace": "default", "uid": f"uid-{name}", "creationTimestamp": f"2026-{created}T00:00:00Z", **more}
    await server.put(ACTORS.path("default", name), cast("JsonObject", {"metadata": metadata, "spec": spec, "status": status}))


@pytest.mark.parametrize("reason", ["", "DuplicateIdentity"], ids=["not judged yet", "refused"])
async def test_a_duplicate_whose_name_is_the_id_does_not_hide_the_older_actor(reason: str) -> None:
    async with looking() as (server, source):
        await apply(server, "acct-0001", "01-01", pod="pod-a")
        await apply(server, "alice", "02-01", reason=reason)
        home = await source.find(ALICE)
        assert home is not None
        assert (home.pod_uid, home.desired.name, home.suspended) == ("pod-a", "acct-0001", False)


async def test_an_actor_that_is_being_deleted_has_no_identity_where_another_one_lives() -> None:
    async with looking() as (server, source):
        await apply(server, "alice", "01-01", pod="pod-a", deletionTimestamp="2026-03-01T00:00:00Z")
        await apply(server, "acct-0000", "01-02", deletionTimestamp="2026-03-01T00:00:00Z")
        home = await source.find(ALICE)
        assert home is not None, "else its actor could start without a resource while it is purged"
        assert home.desired.name == "alice"
        await apply(server, "acct-0001", "02-01", pod="pod-b")
        home = await source.find(ALICE)
        assert home is not None
        assert home.desired.name == "acct-0001"


@pytest.mark.parametrize("known", [{"pod": "pod-a"}, {"reason": "Suspended"}], ids=["placed", "suspended"])
async def test_an_actor_that_the_operator_has_judged_costs_one_read(known: dict[str, str]) -> None:
    async with looking() as (server, source):
        await apply(server, "alice", "01-01", **known)
        home = await source.find(ALICE)
        assert home is not None
        assert len(server.requests) == 1


def test_a_model_is_told_when_its_spec_changes_and_not_when_the_operator_counts_its_actors() -> None:
    told: list[ActorModel] = []

    class Listener:
        def on_model(self, model: ActorModel) -> None:
            told.append(model)

    listener = cast("DesiredListener", Listener())
    first = read_account()
    counted = first.model_copy(update={"metadata": first.metadata.model_copy(update={"resource_version": "9"})})
    edited = first.model_copy(update={"spec": first.spec.model_copy(update={"on_demand": not first.spec.on_demand})})
    key = ObjectKey("default", "account")
    tell_model(listener, Change("added", key, None, first))
    tell_model(listener, Change("modified", key, first, counted))
    tell_model(listener, Change("modified", key, counted, edited))
    assert told == [first, edited]
