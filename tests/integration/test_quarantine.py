"""What a person meets whose actor is quarantined: what is said, what waits, and every way back."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aether_api.errors import EventInvalid, JetStreamError, Reason
from aether_api.identity import Epoch, PodUid, parse_actor_id
from aether_api.subjects import snapshot_stream, snapshot_wildcard
from aether_api.v1alpha1 import ActorPhase
from aether_cli.history import run as print_history
from aether_model.model import State
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.inbox import Inbox
from aether_nats.jetstream import JetStream
from aether_nats.journal import purge_actor
from aether_nats.streams import read_layout
from aether_runtime.answers import WRITE_ANEW
from aether_runtime.passivation import SleepConfig
from aether_runtime.ports import ActorReport
from tests.histories.alarm import CLOCK, Alarm
from tests.histories.cluster import NAMESPACE, WAIT_S, Load, Placements, RunningPod, connected, open_journal, running_pod, until
from tests.histories.invariants import check_log, events_of, read_history

POD = PodUid("pod-a")
PROJECT = Path(__file__).parents[2]


class BrokenAlarm(Alarm):
    """A version that does not know what was stored, by mistake; it folds alike as far as anybody can tell."""

    content_hash = "alarm-2"

    def apply(self, state: State, event_type: str, data: bytes, *, time: str, version: int, schema_version: int = 1) -> State:
        """Refuse every event."""
        raise EventInvalid(f"model alarm has no event {event_type!r}")


class OtherAlarm(BrokenAlarm):
    """The same, with a state of another shape."""

    fold = "f-other"


def report_of(pod: RunningPod) -> ActorReport | None:
    return pod.sink.reports.get(CLOCK)


async def until_phase(pod: RunningPod, phase: ActorPhase) -> ActorReport:
    await until(lambda: (report := report_of(pod)) is not None and report.phase is phase)
    report = report_of(pod)
    assert report is not None
    return report


async def rang(connection: NatsConnection) -> list[str]:
    commits = await read_history(await open_journal(connection), CLOCK)
    check_log(commits)
    return [str(event.fields()["label"]) for event in events_of(commits)]


async def store_event(server: EmbeddedServer, connection: NatsConnection) -> None:
    """Store one event and no snapshot, which would spare the next owner to read it."""
    async with running_pod(server.url, "pod-before", Placements(models=[]), models=(Alarm(),)):
        assert (await CommandClient(connection).send(CLOCK, "Ring", {"label": "first"}, timeout_s=WAIT_S)).outcome == "accepted"
    await JetStream(connection).purge(snapshot_stream(NAMESPACE), snapshot_wildcard(CLOCK))


def placed() -> Placements:
    placements = Placements(models=[])
    placements.place(CLOCK, POD, 5)
    return placements


@pytest.mark.parametrize("broken", [BrokenAlarm(), OtherAlarm()], ids=["same fold", "another fold"])
async def test_a_corrected_model_brings_the_actor_back_by_itself_and_what_waited_for_it_runs(nats_server: EmbeddedServer, broken: BrokenAlarm) -> None:
    async with connected(nats_server.url) as connection:
        await store_event(nats_server, connection)
        client, inbox = CommandClient(connection), Inbox(JetStream(connection), NAMESPACE)
        async with running_pod(nats_server.url, POD, placed(), models=(broken,), sweep_s=0.05) as pod:
            report = await until_phase(pod, ActorPhase.QUARANTINED)
            assert (report.reason, report.version) == ("Quarantined", 1)
            assert report.message.startswith("sequence 1, versions 1 to 1: model alarm has no event 'Rang'")
            assert all(way in report.message for way in ("Correct the ActorModel alarm", "spec.suspend", "deletionPolicy Purge"))
            reply = await client.send(CLOCK, "Ring", {"label": "now"}, timeout_s=WAIT_S)
            assert (reply.reason, reply.message) == (Reason.QUARANTINED, report.message)
            await client.send_durable(CLOCK, "Ring", {"label": "later"}, timeout_s=WAIT_S)
            await until(lambda: pod.inbox.backlog == 1)
            pod.runtime.load_model(type(broken)())
            await connection.flush()
            assert await rang(connection) == ["first"]
            assert (await inbox.read_backlog(), await inbox.read_dead(CLOCK)) == ({CLOCK: 1}, [])
            pod.runtime.load_model(Alarm())
            await until_phase(pod, ActorPhase.READY)
            await until(lambda: pod.inbox.settled == 1)
            assert await rang(connection) == ["first", "later"]
            assert pod.runtime.metrics.tally.of("alarm").quarantined == 1, "the same model again is no reason to replay again"


async def empty_log(connection: NatsConnection) -> None:
    """Repair a log as somebody would who restores a stream: what stood there is gone."""
    layout = await read_layout(connection, NAMESPACE)
    assert layout is not None
    await JetStream(connection).purge(layout.event_stream(CLOCK), layout.event_subject(CLOCK))


@pytest.mark.parametrize("way", ["suspended and resumed", "edited"])
async def test_after_a_repair_of_the_log_an_edit_of_the_resource_tries_again(nats_server: EmbeddedServer, way: str) -> None:
    placements = placed()
    async with connected(nats_server.url) as connection:
        await store_event(nats_server, connection)
        async with running_pod(nats_server.url, POD, placements, models=(BrokenAlarm(),)) as pod:
            await until_phase(pod, ActorPhase.QUARANTINED)
            await empty_log(connection)
            desired = placements.homes[CLOCK].desired
            if way == "edited":
                pod.runtime.on_adopt(replace(desired, generation=desired.generation + 1))
            else:
                pod.runtime.on_release(CLOCK, desired.epoch)
                pod.runtime.on_adopt(replace(desired, epoch=Epoch(desired.epoch + 2)))
            assert (await until_phase(pod, ActorPhase.READY)).version == 0


def read_page() -> dict[str, Any]:
    """Return what the program of docs/lifecycle.md defines."""
    (program,) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "lifecycle.md").read_text(), re.DOTALL)
    defined: dict[str, Any] = {}
    exec(program, defined)
    return defined


async def test_a_log_that_no_model_can_apply_is_written_anew_as_the_page_says(nats_server: EmbeddedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    placements, file = placed(), tmp_path / "clock.jsonl"
    async with connected(nats_server.url) as connection:
        await store_event(nats_server, connection)
        layout = await read_layout(connection, NAMESPACE)
        assert layout is not None
        broken = (await JetStream(connection).publish(layout.event_subject(CLOCK), b"no commit")).sequence
        with pytest.raises(JetStreamError):
            await JetStream(connection).delete_message(layout.event_stream(CLOCK), broken)
        async with running_pod(nats_server.url, POD, placements, models=(Alarm(),)) as pod:
            message = (await until_phase(pod, ActorPhase.QUARANTINED)).message
            assert WRITE_ANEW in message
            assert await asyncio.to_thread(print_history, [f"{CLOCK.model}/{CLOCK.id}", "--nats", nats_server.url, "--namespace", NAMESPACE]) == 1
            printed = capsys.readouterr()
            assert f"sequence {broken} cannot be read" in printed.err
            file.write_text(printed.out)
            desired = placements.homes[CLOCK].desired
            pod.runtime.on_release(CLOCK, desired.epoch)
            await purge_actor(connection, layout.partitions, CLOCK, epoch=Epoch(desired.epoch + 1), writer="operator")
            assert await read_page()["save_again"](connection, CLOCK, file) == 1
            pod.runtime.on_adopt(replace(desired, epoch=Epoch(desired.epoch + 2)))
            assert (await until_phase(pod, ActorPhase.READY)).version == 1
            assert (await CommandClient(connection).send(CLOCK, "Ring", {"label": "second"}, timeout_s=WAIT_S)).version == 2
        assert await rang(connection) == ["first", "second"]


async def test_an_actor_without_a_resource_tries_again_at_its_first_command_after_the_idle_time(nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url) as connection:
        await store_event(nats_server, connection)
        client = CommandClient(connection)
        async with running_pod(nats_server.url, POD, Placements(models=[]), models=(BrokenAlarm(),), sleep=SleepConfig(on_demand_idle_s=0.3)) as pod:
            reply = await client.send(CLOCK, "Ring", {"label": "now"}, timeout_s=WAIT_S)
            assert (reply.reason, "its first command some time later" in reply.message) == (Reason.QUARANTINED, True)
            await empty_log(connection)
            await until(lambda: CLOCK not in pod.runtime.get_active_vms())
            pod.runtime.load_model(Alarm())
            assert (await client.send(CLOCK, "Ring", {"label": "anew"}, timeout_s=WAIT_S)).outcome == "accepted"


async def test_quarantined_actors_take_nobodys_place(nats_server: EmbeddedServer) -> None:
    """Before, a bad model with as many actors as a pod keeps awake put all others to sleep behind every command."""
    broken = [parse_actor_id(NAMESPACE, "alarm", f"c{number}") for number in range(8)]
    async with connected(nats_server.url) as connection:
        client = CommandClient(connection)
        async with running_pod(nats_server.url, "pod-before", models=(Alarm(),)):
            for actor in broken:
                assert (await client.send(actor, "Ring", {"label": "first"})).outcome == "accepted"
        for actor in broken:
            await JetStream(connection).purge(snapshot_stream(NAMESPACE), snapshot_wildcard(actor))
        async with running_pod(nats_server.url, "pod-a", models=(BrokenAlarm(),), sleep=SleepConfig(awake_max=len(broken))) as pod:
            for actor in broken:
                assert (await client.send(actor, "Ring", {"label": "second"})).reason == Reason.QUARANTINED
            load = Load(client, [parse_actor_id(NAMESPACE, "account", f"a{number}") for number in range(3)])
            await load.open()
            await load.deposit(range(30))
            assert {reply.outcome for _, reply in load.replies} == {"accepted"}
            assert (pod.runtime.passivation.over_limit, pod.runtime.passivation.counts["limit"]) == (0, 0)
            assert (await client.send(broken[0], "Ring", {"label": "third"})).reason == Reason.QUARANTINED
