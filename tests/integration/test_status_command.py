"""What pods tell of themselves and of an actor when somebody asks, and that asking wakes nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from aether_api.control import Heartbeat
from aether_api.errors import NoResponders
from aether_api.identity import Epoch, PodUid, parse_actor_id
from aether_api.subjects import actor_status_subject, pods_status_subject
from aether_api.v1alpha1 import ActorModel
from aether_cli.status import run as run_status
from aether_nats.client import CommandClient
from aether_nats.embedded import EmbeddedServer
from aether_nats.pod_status import ask_pods
from aether_runtime.core.group import Now
from aether_runtime.ports import DesiredActor, Home
from aether_runtime.replays import ReplayWatch
from tests.histories.bank import ALICE, read_account
from tests.histories.cluster import NAMESPACE, Placements, connected, running_pod, until_live

BOB = parse_actor_id("default", "account", "bob")
A, B = PodUid("pod-a"), PodUid("pod-b")


async def status(server: EmbeddedServer, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[dict[str, Any]], str]:
    def run(given: Sequence[str]) -> int:
        return run_status(given)

    assert await asyncio.to_thread(run, [*arguments, "--nats", server.url, "--namespace", NAMESPACE]) == 0
    printed = capsys.readouterr()
    return [orjson.loads(line) for line in printed.out.splitlines()], printed.err


async def test_the_log_and_the_pod_that_holds_an_actor_tell_how_it_is(nats_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    placements = Placements()
    placements.place(ALICE, B, 7)
    async with running_pod(nats_server.url, A, placements) as a, running_pod(nats_server.url, B, placements) as b, connected(nats_server.url) as connection:
        await until_live([a, b])
        await CommandClient(connection).send(ALICE, "Open", {"owner": "alice"})
        log, pod = (await status(nats_server, capsys, "account/alice"))[0]
        assert (log["in"], log["version"], log["epoch"], log["writer"]) == ("log", 1, 7, "pod-b/boot-pod-b")
        assert {name: pod[name] for name in ("in", "actor", "name", "epoch", "phase", "version", "message", "waiting")} == {
            "in": "pod pod-b", "actor": "account/alice", "name": "alice", "epoch": 7, "phase": "Ready", "version": 1, "message": "replayed 0 events", "waiting": 0,
        }  # fmt: skip


async def test_asking_for_an_actor_that_nobody_holds_wakes_it_nowhere(nats_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    async with running_pod(nats_server.url, A) as a, connected(nats_server.url) as connection:
        await CommandClient(connection).send(ALICE, "Open", {"owner": "alice"})
        await a.runtime.stop_vm(ALICE)
        lines, errors = await status(nats_server, capsys, "account/alice")
        assert [(line["in"], line["version"]) for line in lines] == [("log", 1)]
        assert "no pod of namespace default holds account/alice now" in errors
        assert dict(a.runtime.get_active_vms()) == {}


async def test_every_pod_tells_how_it_is_and_which_actors_cannot_work(nats_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    document = read_account().model_dump(mode="json", by_alias=True, exclude_defaults=True)
    document["metadata"]["name"] = "broken"
    document["spec"]["commands"]["Open"]["guards"] = [{"rule": "state.balnce > 0", "reason": "No", "message": "no"}]
    placements = Placements(models=[read_account(), ActorModel.model_validate(document)])
    lost = parse_actor_id("default", "broken", "x")
    placements.place(ALICE, A, 1)
    placements.place(lost, A, 1)
    async with running_pod(nats_server.url, A, placements) as a, running_pod(nats_server.url, B, placements) as b, connected(nats_server.url) as connection:
        await until_live([a, b])
        await CommandClient(connection).send(ALICE, "Open", {"owner": "alice"})
        first, hindered, second = (await status(nats_server, capsys))[0]
        assert (first["podName"], first["livePods"], first["held"], first["phases"], first["eventsToGo"]) == ("pod-a", 2, 2, {"Ready": 1}, 0)
        assert (second["podName"], second["held"], second["phases"]) == ("pod-b", 0, {})
        assert (hindered["actor"], hindered["phase"], hindered["reason"], hindered["version"]) == ("broken/x", "Scheduled", "ModelNotAccepted", None)
        assert "spec.commands.Open.guards[0].rule" in hindered["message"]


async def test_a_pod_with_many_actors_of_a_model_with_many_problems_answers_all_the_same() -> None:
    document = read_account().model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for command in document["spec"]["commands"].values():
        command["guards"] = [{"rule": "state.balnce > 0", "reason": "No", "message": "no"}] * 32
    placements = Placements(models=[ActorModel.model_validate(document)])
    for number in range(200):
        placements.place(parse_actor_id("default", "account", f"a{number}"), A, 1)
    async with EmbeddedServer.start(extra_config="max_payload: 1MB") as server, running_pod(server.url, A, placements) as a, connected(server.url) as connection:
        assert len(a.runtime.explain_model("account")) > 5_300
        (answer,) = await ask_pods(connection, pods_status_subject(NAMESPACE))
        assert len(answer.actors) == 200
        assert "spec.commands.Close.guards[0].rule" in answer.actors[0].message


async def test_an_actor_that_sleeps_is_told_by_the_pod_where_it_sleeps(nats_server: EmbeddedServer) -> None:
    placements = Placements()
    desired = DesiredActor(ALICE, "alice", "uid-alice", Epoch(1), 1, 50, idle_after_s=0.2)
    placements.homes[ALICE] = Home(A, desired)
    async with running_pod(nats_server.url, A, placements) as a, connected(nats_server.url) as connection:
        await CommandClient(connection).send(ALICE, "Open", {"owner": "alice"})
        async with asyncio.timeout(20):
            while ALICE in a.runtime.get_active_vms():
                await asyncio.sleep(0.02)
        (answer,) = await ask_pods(connection, actor_status_subject(ALICE))
        assert [(view.phase, view.version, view.epoch) for view in answer.actors] == [("Passive", 1, 1)]
        assert "the next one wakes it" in answer.actors[0].message
        assert (await ask_pods(connection, pods_status_subject(NAMESPACE)))[0].actors == ()
        assert dict(a.runtime.get_active_vms()) == {}


async def test_of_an_actor_that_replays_it_is_told_how_far_it_is(nats_server: EmbeddedServer) -> None:
    async with running_pod(nats_server.url, A) as a:
        a.runtime.load_model(read_account())
        vm = a.runtime.create_vm(DesiredActor(ALICE, "alice", "uid-alice", Epoch(1)))
        assert [(view.phase, view.message) for view in a.runtime.status.build(ALICE).actors] == [("Replaying", "waits for a permit to replay")]
        elapsed_s = 0.0
        vm.replaying = ReplayWatch(lambda: Now(0.0, elapsed_s), lambda: None)
        vm.replaying.begin(0, 1_000_000)
        elapsed_s = 1.23
        vm.replaying.move(120_000)
        for asked in (ALICE, None):
            (view,) = a.runtime.status.build(asked).actors
            assert (view.version, view.message) == (1_000_000, "replayed 120,000 of 1,000,000 events (12 %), about 9 s to go")


async def test_without_a_pod_the_question_says_so_at_once(nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url) as connection:
        with pytest.raises(NoResponders):
            await ask_pods(connection, pods_status_subject(NAMESPACE))


async def test_a_pod_that_died_a_moment_ago_is_waited_for_and_no_longer(nats_server: EmbeddedServer) -> None:
    async with running_pod(nats_server.url, A) as a, connected(nats_server.url) as connection:
        a.runtime.presence.pods.take(Heartbeat("dead", "boot", "dead", "ready", 0))
        assert [answer.pod_name for answer in await ask_pods(connection, pods_status_subject(NAMESPACE), wait_s=0.3)] == ["pod-a"]
