"""What a pod says of a new actor is written together with its placement: once, and only where it is true of that very placement."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime

import msgspec
import pytest
from msgspec.structs import replace

from aether_api.control import AssignmentItem, FirstCondition, FirstReport, FirstReports, FirstStatus, encode
from aether_api.identity import Epoch, PodUid, parse_actor_id
from aether_api.subjects import report_subject
from aether_api.v1alpha1 import Actor, ActorPhase
from aether_kube.client import KubeClient
from aether_kube.connection import anonymous_connection
from aether_kube.documents import JsonObject, integer_at, object_at, objects_at, text_at, value_at
from aether_kube.kinds import ACTORS, PODS
from aether_nats.embedded import EmbeddedServer
from aether_nats.settings import NatsSettings
from aether_operator.cluster.first_reports import FirstReportListener
from aether_operator.cluster.records import parse_actor
from aether_operator.cluster.statuses import MANAGER, build_first_document, build_status_document
from aether_operator.planning.snapshot import Placed
from aether_operator.planning.statuses import build_placed_status
from aether_runtime.adapters.first_reports import REPORTS_MAX, ReportingPod
from aether_runtime.adapters.kubernetes import KubernetesSink, build_desired, build_shown
from aether_runtime.ports import ActorReport, DesiredActor
from tests.fake_apiserver.server import FakeApiServer, Fault
from tests.histories.cluster import connected
from tests.integration.bare_plane import add_actor, bare_plane
from tests.integration.operator_stage import NAMESPACE, Stage, staged


def report_of(item: AssignmentItem) -> FirstReport:
    """Return what a pod says of an actor that it has just adopted, with two events."""
    conditions = tuple(FirstCondition(type, "True", type, "serving", item.generation, "2026-01-02T03:04:05Z") for type in ("Ready", "Replayed"))
    return FirstReport(item.name, item.uid, FirstStatus(item.generation, "Ready", 2, 1, "account@x", item.epoch, conditions))


def conditions_of(document: JsonObject) -> dict[str, tuple[str, str]]:
    return {text_at(item, "type"): (text_at(item, "status"), text_at(item, "reason")) for item in objects_at(document, "status", "conditions")}


def status_writes(stage: Stage, name: str = "alice") -> list[str]:
    return [write for write in stage.writes() if write.endswith(f"/{name}/status")]


async def test_what_a_pod_says_at_once_is_written_with_the_placement(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        pod.says = report_of
        await stage.add_actor("alice")
        await stage.add_actor("bob")

        await stage.until(lambda: stage.pod_of("alice") == stage.pod_of("bob") == "a")

        status = object_at(stage.actor("alice"), "status")
        assert (text_at(status, "phase"), value_at(status, "version"), value_at(status, "snapshotVersion"), text_at(status, "modelVersion")) == ("Ready", 2, 1, "account@x")
        assert integer_at(status, "reportedEpoch") == integer_at(status, "placement", "epoch") == pod.held["alice"]
        assert conditions_of(stage.actor("alice")) == {"Scheduled": ("True", "Scheduled"), "Ready": ("True", "Ready"), "Replayed": ("True", "Replayed")}
        assert (len(status_writes(stage, "alice")), len(status_writes(stage, "bob"))) == (1, 1)


async def test_a_pod_that_says_nothing_is_waited_for_a_moment(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        await stage.add_pod("a")
        await stage.add_actor("alice")
        await stage.until(lambda: stage.pod_of("alice") == "a")
        assert text_at(stage.actor("alice"), "status", "phase") == "Scheduled"
        assert conditions_of(stage.actor("alice")) == {"Scheduled": ("True", "Scheduled"), "Ready": ("Unknown", "Scheduled")}


@pytest.mark.parametrize("what", ["epoch", "resource", "unknown actor", "another pod"])
async def test_what_is_said_of_another_placement_is_not_written(nats_server: EmbeddedServer, what: str) -> None:
    async with staged(nats_server) as stage:
        pod, other = await stage.add_pod("a"), PodUid("uid-of-b")

        def say(item: AssignmentItem) -> FirstReport | None:
            report = report_of(item)
            match what:
                case "epoch":
                    return replace(report, status=replace(report.status, reported_epoch=item.epoch - 1))
                case "resource":
                    return replace(report, uid="another")
                case "unknown actor":
                    return replace(report, name="bob")
                case _:
                    pod.connection.publish(report_subject(NAMESPACE, other), encode(FirstReports(other, (report,))))
                    pod.connection.publish(report_subject(NAMESPACE, other), encode(FirstReports(pod.uid, (report,))))
                    pod.connection.publish(report_subject(NAMESPACE, pod.uid), b"garbage")
                    return None

        pod.says = say
        await stage.add_actor("alice")
        await stage.until(lambda: stage.pod_of("alice") == "a")
        assert text_at(stage.actor("alice"), "status", "phase") == "Scheduled"


async def test_a_report_that_is_refused_is_left_to_its_pod(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        pod.says = report_of
        stage.api.faults.append(Fault(lambda request: request.content_type.endswith("/merge-patch+json") and request.path.endswith("/alice/status"), 422))
        await stage.add_actor("alice")
        await stage.until(lambda: stage.pod_of("alice") == "a")
        assert text_at(stage.actor("alice"), "status", "phase") == "Scheduled"
        assert len(status_writes(stage)) == 2


async def test_conditions_of_others_are_not_replaced(nats_server: EmbeddedServer) -> None:
    """A merge patch would; an apply leaves them alone."""
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        pod.says = report_of
        theirs: JsonObject = {"type": "TheirOwn", "status": "True", "reason": "Theirs", "message": ""}
        await stage.api.put(
            ACTORS.path(NAMESPACE, "alice"), {"metadata": {"namespace": NAMESPACE, "name": "alice"}, "spec": {"model": "account"}, "status": {"conditions": [theirs]}}
        )
        await stage.until(lambda: stage.pod_of("alice") == "a")
        kinds = {request.content_type.rpartition("/")[2] for request in stage.api.requests if request.path.endswith("/alice/status")}
        assert kinds == {"apply-patch+yaml"}


async def test_a_move_tells_that_it_goes_on_whatever_the_new_pod_says(nats_server: EmbeddedServer) -> None:
    """Only of a new actor nothing was said before, so only its first status can be written whole."""

    def drain(document: JsonObject) -> None:
        object_at(document, "metadata")["annotations"] = {"aether.flowmade.one/cordon": "drain"}

    async with staged(nats_server) as stage:
        first = await stage.add_pod("a")
        first.says = report_of
        await stage.add_actor("alice")
        await stage.until(lambda: stage.pod_of("alice") == "a")
        second = await stage.add_pod("b")
        second.says = report_of
        await stage.change(PODS.path(NAMESPACE, "a"), drain)
        await stage.until(lambda: stage.pod_of("alice") == "b")
        assert text_at(stage.actor("alice"), "status", "phase") == "Moving"


PATH = ACTORS.path("default", "alice")


async def test_what_a_pods_sink_says_reaches_the_operator_as_the_pod_would_write_it(nats_server: EmbeddedServer) -> None:
    heard: dict[str, tuple[PodUid, FirstReport]] = {}
    async with connected(NatsSettings((nats_server.url,))) as ours, connected(NatsSettings((nats_server.url,))) as theirs, FakeApiServer() as api:
        listener = FirstReportListener(ours, (NAMESPACE,), lambda key, uid, report: heard.update({key.name: (uid, report)}))
        async with KubeClient(anonymous_connection(api.url)) as client, asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(listener.run())
            await asyncio.sleep(0)
            await ours.flush()
            sink = KubernetesSink(client, ReportingPod(theirs, NAMESPACE, PodUid("uid-of-a")).tell)
            reports = [build_report(f"actor-{number}", version=number) for number in range(2 * REPORTS_MAX + 1)]
            for report in reports:
                sink.say(report)
            sink.say(dataclasses.replace(reports[0], version=None))
            async with asyncio.timeout(5):
                while len(heard) < len(reports):
                    await asyncio.sleep(0.01)
            listening.cancel()

            uid, first = heard["actor-7"]
            await api.put(ACTORS.path(NAMESPACE, "actor-7"), {"metadata": {"namespace": NAMESPACE, "name": "actor-7", "uid": "u-actor-7"}})
            await sink.write(reports[7])
    written = object_at(api.documents.objects[ACTORS.path(NAMESPACE, "actor-7")], "status")
    assert (uid, first.uid, msgspec.json.decode(msgspec.json.encode(first.status))) == ("uid-of-a", "u-actor-7", written)
    assert {report.status.version for _, report in heard.values()} == set(range(len(reports)))


def build_report(name: str, version: int) -> ActorReport:
    desired = DesiredActor(parse_actor_id(NAMESPACE, "account", name), name, f"u-{name}", Epoch(5), 1)
    return ActorReport(desired, ActorPhase.READY, version, 0, "account@x", "Ready", "serving")


A, B = Placed("pod-a", PodUid("uid-a"), Epoch(5)), Placed("pod-b", PodUid("uid-b"), Epoch(6))
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


async def test_on_a_real_api_server_the_pods_part_outlives_the_operators_next_write_and_moves_with_the_actor() -> None:
    """The operator's first write must not make it the owner of what it says for the pod: its next apply, without that, would remove it."""
    async with bare_plane() as client:
        view = parse_actor(await add_actor(client))
        said = report_of(AssignmentItem("adopt", "alice", view.uid, "account", "alice", A.epoch, view.generation))
        await client.patch_merge(f"{PATH}/status", build_first_document(view, build_placed_status(view, A, "Scheduled"), said, now=NOW), field_manager=MANAGER)

        shown = Actor.model_validate(await client.get(PATH))
        report = ActorReport(build_desired(shown), ActorPhase.READY, 2, 1, "account@x", "Ready", "serving")
        assert shown.status.placement is not None
        assert (shown.status.placement.pod, report.agrees_with(build_shown(shown))) == ("pod-a", True)

        view = parse_actor(await client.get(PATH))
        await client.apply(f"{PATH}/status", build_status_document(view, build_placed_status(view, B, "Moving"), now=NOW), field_manager=MANAGER)
        shown = Actor.model_validate(await client.get(PATH))
        assert (shown.status.phase, shown.status.version, shown.status.reported_epoch) == (ActorPhase.MOVING, 2, A.epoch)
        assert conditions_of(await client.get(PATH))["Replayed"] == ("True", "Replayed")

        sink = KubernetesSink(client)
        for phase, version in ((ActorPhase.QUARANTINED, 2), (ActorPhase.READY, 3)):
            told = ActorReport(build_desired(shown), phase, version, 1, "account@y", "Ready", "")
            await sink.write(told)
            assert told.agrees_with(build_shown(Actor.model_validate(await client.get(PATH))))
