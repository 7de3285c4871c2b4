"""The operator as a whole, on a real nats-server and a scripted API server, with pods that answer as a runtime does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest
from aiohttp import web

from aether_api.commit_index import CommitIndex
from aether_api.envelope import Commit
from aether_api.identity import Epoch, parse_actor_id
from aether_kube.documents import JsonObject, integer_at, object_at, objects_at, text_at, value_at
from aether_kube.kinds import ACTOR_POOLS, ACTORS, DEPLOYMENTS, PODS
from aether_nats.embedded import EmbeddedServer
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_nats.streams import ensure_streams
from aether_operator.cluster import assignments
from aether_operator.handlers import control_plane
from aether_operator.planning.snapshot import FINALIZER
from tests.fake_apiserver.server import Fault
from tests.integration.operator_stage import NAMESPACE, PATIENT, SETTINGS, staged


async def test_an_actor_is_told_to_its_pod_and_written_to_its_status(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        await stage.add_actor("alice")

        await stage.until(lambda: stage.pod_of("alice") == "a")

        status = stage.actor("alice")["status"]
        assert pod.held == {"alice": integer_at(status, "placement", "epoch")}
        assert (text_at(status, "placement", "podUID"), text_at(status, "phase")) == (pod.uid, "Scheduled")
        assert stage.reason_of("alice") == "Scheduled"


async def test_a_drained_pod_hands_its_actors_over_one_by_one(nats_server: EmbeddedServer) -> None:
    def drain(document: JsonObject) -> None:
        object_at(document, "metadata")["annotations"] = {"aether.flowmade.one/cordon": "drain"}

    async with staged(nats_server) as stage:
        first = await stage.add_pod("a")
        names = ["alice", "bob", "carol"]
        for name in names:
            await stage.add_actor(name)
        await stage.until(lambda: all(stage.pod_of(name) == "a" for name in names))
        second = await stage.add_pod("b")

        await stage.change(PODS.path(NAMESPACE, "a"), drain)
        await stage.until(lambda: all(stage.pod_of(name) == "b" for name in names))

        assert (first.held, sorted(second.held)) == ({}, names)
        assert max(len(assignment.items) for assignment in second.heard) == 1


async def test_a_pod_that_has_left_is_not_complained_of(nats_server: EmbeddedServer, caplog: pytest.LogCaptureFixture) -> None:
    async with staged(nats_server) as stage:
        leaving = await stage.add_pod("a")
        names = ["alice", "bob", "carol"]
        for name in names:
            await stage.add_actor(name)
        await stage.until(lambda: all(stage.pod_of(name) == "a" for name in names))
        await stage.add_pod("b")
        caplog.set_level(logging.DEBUG, logger=assignments.__name__)

        leaving.leave()
        await stage.until(lambda: all(stage.pod_of(name) == "b" for name in names))

        unanswered = [record.levelname for record in caplog.records if "did not answer" in record.getMessage()]
        assert set(unanswered) == {"DEBUG"}


async def test_a_pod_that_is_believed_to_live_and_does_not_answer_is_complained_of(nats_server: EmbeddedServer, caplog: pytest.LogCaptureFixture) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        await stage.until(lambda: pod.questions > 0)

        pod.stop_taking()
        await stage.add_actor("alice")
        await stage.until(lambda: stage.pod_of("alice") == "a")

        assert [record.levelname for record in caplog.records if "did not answer" in record.getMessage()] == ["WARNING"]


async def test_a_report_that_came_before_the_status_is_not_written_over(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")

        def reported(request: web.Request) -> bool:
            """Report as soon as the operator wants to write, and let that write be refused as the API server would."""
            alice = stage.api.documents.objects[ACTORS.path(NAMESPACE, "alice")]
            if request.method != "PATCH" or not request.path.endswith("/alice/status"):
                return False
            alice["status"] = {"phase": "Ready", "reportedEpoch": pod.held["alice"], "conditions": [{"type": "Ready", "status": "True", "reason": "Ready"}]}
            return True

        stage.api.faults.append(Fault(reported, 409))
        await stage.add_actor("alice")

        await stage.until(lambda: stage.pod_of("alice") == "a")

        assert text_at(stage.actor("alice"), "status", "phase") == "Ready"


async def test_actors_of_a_pod_that_falls_silent_move_and_it_is_told_when_it_is_back(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        first, second = await stage.add_pod("a"), await stage.add_pod("b")
        for name in ("alice", "bob", "carol"):
            await stage.add_actor(name)
        await stage.until(lambda: len(first.held) + len(second.held) == 3 and bool(stage.pod_of("carol")))
        lost, left = (first, second) if first.held else (second, first)
        before = dict(lost.held)

        lost.mute = True
        await stage.until(lambda: len(left.held) == 3)
        lost.mute = False
        await stage.until(lambda: lost.held == {})

        assert all(left.held[name] > epoch for name, epoch in before.items())
        await stage.until(lambda: {stage.pod_of(name) for name in before} == {left.name})
        assert {stage.reason_of(name, "Ready") for name in before} == {"PodLost"}


async def test_an_outage_of_nats_moves_nobody(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server, settings=PATIENT) as stage:
        pod, other = await stage.add_pod("a"), await stage.add_pod("b")
        await stage.add_actor("alice")
        await stage.until(lambda: stage.pod_of("alice") != "")
        before = stage.actor("alice")["status"]

        await nats_server.stop()
        await stage.until(lambda: not stage.connection.is_connected)
        await asyncio.sleep(3 * SETTINGS.suspect_after_s)  # longer than any silence that counts while the link is up
        await nats_server.run()
        await stage.until(lambda: stage.connection.is_connected)
        await asyncio.sleep(1.5 * PATIENT.detection_window_s)  # the full window after which silence counts again

        assert stage.actor("alice")["status"] == before
        assert len(pod.held) + len(other.held) == 1


async def test_a_new_operator_tells_every_process_what_it_holds_and_moves_nobody(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        await stage.add_actor("alice")
        await stage.until(lambda: stage.pod_of("alice") == "a")
        epoch, term = pod.held["alice"], pod.heard[0].term
        await stage.stop_operator()
        pod.held.clear()

        await stage.start_operator()
        await stage.until(lambda: pod.held == {"alice": epoch})

        assert pod.heard[-1].term > term


async def test_a_restarted_process_is_told_what_the_one_before_held(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        await stage.add_actor("alice")
        await stage.until(lambda: stage.pod_of("alice") == "a")
        epoch = pod.held.pop("alice")

        pod.boot_id = "boot-2"

        await stage.until(lambda: pod.held == {"alice": epoch})


async def test_a_pod_that_knows_a_higher_epoch_raises_ours(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        pod.refuses_below = 9_000_000_000_000
        await stage.add_actor("alice")

        await stage.until(lambda: pod.held == {"alice": 9_000_000_000_001})
        await stage.until(lambda: integer_at(stage.actor("alice"), "status", "placement", "epoch") == 9_000_000_000_001)


async def test_a_deleted_actor_is_released(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        await stage.add_actor("alice")
        await stage.until(lambda: stage.pod_of("alice") == "a")

        await stage.api.remove(ACTORS.path(NAMESPACE, "alice"))

        await stage.until(lambda: pod.held == {})


@pytest.mark.parametrize("how", ["conflict", "not found"])
async def test_an_actor_that_is_gone_before_its_placement_was_written_is_released_when_the_deletion_shows(nats_server: EmbeddedServer, how: str) -> None:
    def is_write(request: web.Request) -> bool:
        return request.method == "PATCH" and request.path.endswith("/actors/alice/status")

    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        stage.api.holds = is_write
        await stage.add_actor("alice")
        await stage.until(lambda: "alice" in pod.held)
        last = stage.actor("alice")
        await stage.api.remove(ACTORS.path(NAMESPACE, "alice"), silently=True)
        stage.api.faults += [Fault(is_write, 404, times=1_000_000)] if how == "not found" else []

        await stage.api.let_go()
        await stage.until(lambda: sum(map(is_write, stage.api.requests)) >= 2)
        object_at(last, "metadata")["resourceVersion"] = str(stage.api.documents.resource_version + 1)
        await stage.api.send_event("DELETED", last)

        await stage.until(lambda: pod.held == {})


async def test_an_adoption_that_was_not_answered_is_repeated_only_for_actors_that_are_still_there(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignments, "ANSWER_TIMEOUT_S", 0.5)
    async with staged(nats_server) as stage:
        for name in ("alice", "bob"):
            await stage.add_actor(name)
        await stage.until(lambda: stage.reason_of("bob") == "NoReadyPods")
        pod = await stage.add_pod("a")
        pod.ignores = 1

        def adopted() -> list[list[str]]:
            return [[item.name for item in assignment.items] for assignment in pod.heard if assignment.items[0].action == "adopt"]

        await stage.until(lambda: adopted() == [["alice", "bob"]])
        await stage.api.remove(ACTORS.path(NAMESPACE, "alice"))
        await stage.until(lambda: len(adopted()) == 3)

        assert adopted()[1:] == [["bob"]] * 2, "the new pod's introduction, and the second try"
        assert list(pod.held) == ["bob"]


async def test_a_purge_releases_buries_the_events_and_lets_the_resource_go(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        alice = parse_actor_id(NAMESPACE, "account", "alice")
        journal = Journal(JetStream(stage.connection), (await ensure_streams(stage.connection, NAMESPACE)).partitions)
        await journal.append(Commit("c", alice, 0, 1, 1, CommitIndex(), Epoch(1), "pod/boot", "account@x", b"[]"))
        await stage.add_actor("alice", deletionPolicy="Purge")
        await stage.until(lambda: stage.pod_of("alice") == "a" and bool(value_at(stage.actor("alice"), "metadata", "finalizers")))

        await stage.change(ACTORS.path(NAMESPACE, "alice"), lambda actor: actor["metadata"].update({"deletionTimestamp": "2026-01-01T00:00:01Z"}))  # type: ignore[union-attr]  # metadata is an object

        await stage.until(lambda: value_at(stage.actor("alice"), "metadata", "finalizers") == [])
        head = await journal.read_head(alice)
        assert pod.held == {}
        assert head is not None
        assert (head.tombstone, head.incarnation) == (True, 1)
        assert head.epoch == integer_at(stage.actor("alice"), "status", "placement", "epoch")


async def test_a_purge_does_not_wait_for_a_pod_that_does_not_answer(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        await stage.add_actor("alice", deletionPolicy="Purge")
        await stage.until(lambda: stage.pod_of("alice") == "a" and bool(value_at(stage.actor("alice"), "metadata", "finalizers")))
        pod.mute = True

        await stage.change(ACTORS.path(NAMESPACE, "alice"), lambda actor: actor["metadata"].update({"deletionTimestamp": "2026-01-01T00:00:01Z"}))  # type: ignore[union-attr]  # metadata is an object

        await stage.until(lambda: value_at(stage.actor("alice"), "metadata", "finalizers") == [])
        assert pod.held, "it never heard of its release, and the tombstone fences it"


async def test_nothing_is_taken_for_purged_while_the_pool_may_keep_its_events_on_another_nats(nats_server: EmbeddedServer) -> None:
    def name_servers(url: str) -> Callable[[JsonObject], None]:
        return lambda pool: object_at(pool, "spec").update({"nats": {"url": url}})

    async with staged(nats_server) as stage:
        await stage.change(ACTOR_POOLS.path(NAMESPACE, "default"), name_servers("nats://elsewhere:4222"))
        await stage.add_actor("alice", deletionPolicy="Purge")
        await stage.until(lambda: bool(value_at(stage.actor("alice"), "metadata", "finalizers")))

        await stage.change(ACTORS.path(NAMESPACE, "alice"), lambda actor: actor["metadata"].update({"deletionTimestamp": "2026-01-01T00:00:01Z"}))  # type: ignore[union-attr]  # metadata is an object
        await stage.until(lambda: "pool default may keep the events on another NATS" in stage.message_of("alice"))
        assert value_at(stage.actor("alice"), "metadata", "finalizers") == [FINALIZER]

        await stage.change(ACTOR_POOLS.path(NAMESPACE, "default"), name_servers(""))
        await stage.until(lambda: value_at(stage.actor("alice"), "metadata", "finalizers") == [])


async def test_a_pool_says_that_its_ready_pods_are_not_heard_until_one_is(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason() -> str:
        return next((text_at(item, "reason") for item in objects_at(stage.api.documents.objects[ACTOR_POOLS.path(NAMESPACE, "default")], "status", "conditions")), "")

    monkeypatch.setattr(control_plane, "RESYNC_S", 0.2)
    async with staged(nats_server) as stage:
        metadata: JsonObject = {"namespace": NAMESPACE, "name": "a", "uid": "uid-of-a", "labels": {"aether.flowmade.one/pool": "default"}}
        await stage.api.put(PODS.path(NAMESPACE, "a"), {"metadata": metadata, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}})
        await stage.until(lambda: reason() == "NotHeard")

        await stage.add_pod("a")

        await stage.until(lambda: reason() == "PodsNotReady")


async def test_an_actor_that_purges_starts_once_its_finalizer_is_allowed_and_says_so_before(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        path = ACTORS.path(NAMESPACE, "alice")
        stage.api.faults.append(Fault(lambda request: request.method == "PATCH" and request.path == path, 403, times=1_000_000))
        pod = await stage.add_pod("a")
        await stage.add_actor("alice", deletionPolicy="Purge")
        await stage.until(lambda: stage.reason_of("alice") == "FinalizerNotSet")
        assert "403" in stage.message_of("alice")
        assert not pod.heard

        stage.api.faults.clear()
        await stage.add_actor("bob")

        await stage.until(lambda: stage.pod_of("alice") == "a")
        assert value_at(stage.actor("alice"), "metadata", "finalizers") == [FINALIZER]


async def test_an_actor_that_is_deleted_before_its_finalizer_is_on_was_never_given_to_a_pod(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        path = ACTORS.path(NAMESPACE, "alice")
        stage.api.faults.append(Fault(lambda request: request.method == "PATCH" and request.path == path, 503, times=1_000_000))
        pod = await stage.add_pod("a")
        await stage.add_actor("alice", deletionPolicy="Purge")
        await stage.add_actor("bob")
        await stage.until(lambda: stage.pod_of("bob") == "a")
        await stage.until(lambda: f"PATCH {path}" in stage.writes())

        await stage.api.remove(path)
        await stage.add_actor("carol")
        await stage.until(lambda: stage.pod_of("carol") == "a")

        assert {item.name for assignment in pod.heard for item in assignment.items} == {"bob", "carol"}


async def test_a_finalizer_of_the_manifest_purges_what_an_earlier_actor_left_though_the_operator_comes_after_the_deletion(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server, operator=False) as stage:
        alice = parse_actor_id(NAMESPACE, "account", "alice")
        journal = Journal(JetStream(stage.connection), (await ensure_streams(stage.connection, NAMESPACE)).partitions)
        await journal.append(Commit("c", alice, 0, 1, 1, CommitIndex(), Epoch(1), "pod/boot", "account@x", b"[]"))
        await stage.add_actor("alice", deletionPolicy="Purge")
        gone: JsonObject = {"deletionTimestamp": "2026-01-01T00:00:01Z", "finalizers": [FINALIZER]}
        await stage.change(ACTORS.path(NAMESPACE, "alice"), lambda actor: object_at(actor, "metadata").update(gone))
        pod = await stage.add_pod("a")

        await stage.start_operator()
        await stage.until(lambda: value_at(stage.actor("alice"), "metadata", "finalizers") == [])

        head = await journal.read_head(alice)
        assert head is not None
        assert head.tombstone
        assert not pod.heard


async def test_a_deletion_that_may_not_let_the_resource_go_says_so(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        path = ACTORS.path(NAMESPACE, "alice")
        await stage.add_pod("a")
        await stage.add_actor("alice", deletionPolicy="Purge")
        await stage.until(lambda: stage.pod_of("alice") == "a" and bool(value_at(stage.actor("alice"), "metadata", "finalizers")))
        stage.api.faults.append(Fault(lambda request: request.method == "PATCH" and request.path == path, 403, times=1_000_000))

        await stage.change(path, lambda actor: actor["metadata"].update({"deletionTimestamp": "2026-01-01T00:00:01Z"}))  # type: ignore[union-attr]  # metadata is an object

        await stage.until(lambda: "not yet done" in stage.message_of("alice") and "403" in stage.message_of("alice"))
        stage.api.faults.clear()
        await stage.add_actor("bob")
        await stage.until(lambda: value_at(stage.actor("alice"), "metadata", "finalizers") == [])


async def test_what_an_actor_waits_for_is_said_and_mended_when_it_comes(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        await stage.add_actor("alice")
        await stage.until(lambda: stage.reason_of("alice") == "NoReadyPods")

        await stage.add_pod("a")

        await stage.until(lambda: stage.pod_of("alice") == "a")


async def test_a_deployment_that_somebody_deletes_comes_back(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        path = DEPLOYMENTS.path(NAMESPACE, "aether-default")
        await stage.until(lambda: path in stage.api.documents.objects)

        await stage.api.remove(path)

        await stage.until(lambda: path in stage.api.documents.objects)


@pytest.mark.parametrize(("status", "way_out"), [(422, "correct spec.podTemplate, spec.resources or spec.image"), (403, "give it the right, or keep to the policy that is named")])
async def test_a_pool_whose_deployment_is_refused_says_why_and_what_to_do(nats_server: EmbeddedServer, status: int, way_out: str) -> None:
    async with staged(nats_server, operator=False) as stage:
        stage.api.faults.append(Fault(lambda request: request.method == "PATCH" and request.path.startswith(DEPLOYMENTS.path(NAMESPACE)), status, times=1_000_000))
        await stage.start_operator()

        def condition() -> JsonObject:
            return next(iter(objects_at(stage.api.documents.objects[ACTOR_POOLS.path(NAMESPACE, "default")], "status", "conditions")), {})

        await stage.until(lambda: condition().get("reason") == "Hindered")
        assert way_out in text_at(condition(), "message")
        assert f": {status}: " in text_at(condition(), "message")


async def test_a_settled_cluster_is_left_alone(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        await stage.add_pod("a")
        await stage.add_actor("alice")
        await stage.until(lambda: stage.pod_of("alice") == "a" and value_at(stage.api.documents.objects[ACTOR_POOLS.path(NAMESPACE, "default")], "status", "actors") == 1)
        before = stage.writes()

        await asyncio.sleep(2 * SETTINGS.detection_window_s)  # time in which an unstable operator would write

        assert stage.writes() == before


async def test_a_new_leader_leaves_actors_where_pods_hold_them_though_no_status_tells(nats_server: EmbeddedServer) -> None:
    names = ["alice", "bob", "carol", "dave", "eve"]
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        stage.api.faults.append(Fault(lambda request: request.method == "PATCH" and "/actors/" in request.path, 503, times=1_000_000))
        for name in names:
            await stage.add_actor(name)
        await stage.until(lambda: sorted(pod.held) == names)
        await stage.stop_operator()
        epochs = dict(pod.held)
        others = [await stage.add_pod(name) for name in "bcdef"]
        stage.api.faults.clear()

        await stage.start_operator()
        await stage.until(lambda: all(stage.pod_of(name) == "a" for name in names))

        assert [other.held for other in others] == [{}] * 5
        assert all(pod.held[name] > epochs[name] for name in names)
        assert {integer_at(stage.actor(name), "status", "placement", "epoch") for name in names} == set(pod.held.values())
        assert pod.questions >= 3, "five actors are three pages"


async def test_a_pod_that_obeys_a_higher_term_makes_the_operator_step_down_and_lead_with_a_higher_one(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        await stage.add_actor("alice")
        await stage.until(lambda: stage.pod_of("alice") == "a")
        pod.term = higher = pod.term + 1_000_000

        await stage.add_actor("bob")
        await stage.until(lambda: "bob" in pod.held)

        assert pod.term > higher
        assert stage.lease.term == pod.term


async def test_an_operator_that_has_ended_leaves_the_lease_to_the_next(nats_server: EmbeddedServer) -> None:
    async with staged(nats_server) as stage:
        pod = await stage.add_pod("a")
        await stage.add_actor("alice")
        await stage.until(lambda: stage.pod_of("alice") == "a")
        term = stage.lease.term

        await stage.stop_operator()

        assert (stage.lease.holder, stage.lease.term) == ("", term)
        assert pod.held
