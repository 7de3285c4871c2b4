"""Durable commands and reminders on real servers: in order, once, wherever the actor lives, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aether_api import headers
from aether_api.identity import ActorId, Epoch, PodUid
from aether_api.messages import format_time, parse_time
from aether_api.subjects import event_stream, inbox_stream, inbox_subject
from aether_model.schedule import AT_MAX
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.inbox import Inbox
from aether_nats.jetstream import JetStream
from aether_nats.jetstream_wire import OWN_METADATA
from aether_nats.schedules import Reminder, Schedules
from aether_runtime.core.group import Waiting
from aether_runtime.core.inbox import AHEAD_BYTES_MOST, TRIES_MAX
from aether_runtime.inbox import LOOKUPS_AT_ONCE, WAKES_MAX
from aether_runtime.ports import Home, InboxStore
from aether_runtime.vm import VirtualMachine
from tests.histories.alarm import CLOCK, Alarm
from tests.histories.bank import ALICE, FOLDER
from tests.histories.cluster import PARTITIONS, WAIT_S, Placements, RunningPod, RuntimeProcess, connected, open_journal, running_pod, until_live
from tests.histories.invariants import check_log, events_of, read_history
from tests.histories.places import until_equal

pytestmark = pytest.mark.asyncio

NEVER_S = 3600.0


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(2 * WAIT_S):
        while not await condition():
            await asyncio.sleep(0.02)


@dataclass
class Rig:
    """A server, a client, and a look at what is stored."""

    server: EmbeddedServer
    connection: NatsConnection
    client: CommandClient
    inbox: Inbox
    schedules: Schedules

    async def send(self, *labels: str, command: str = "Ring", actor: ActorId = CLOCK) -> None:
        for label in labels:
            await self.client.send_durable(actor, command, {"label": label}, command_id=f"id-{label[:20]}", timeout_s=WAIT_S)

    async def restart_server(self) -> None:
        await self.server.kill()
        await self.server.run()
        await self.connection.wait_connected()

    async def events(self, actor: ActorId = CLOCK) -> list[dict[str, Any]]:
        commits = await read_history(await open_journal(self.connection), actor)
        check_log(commits)
        return [event.fields() for event in events_of(commits)]

    async def rang(self) -> list[str]:
        return [fields["label"] for fields in await self.events()]

    async def until_rang(self, *labels: str) -> None:
        async def has_rung() -> bool:
            return len(await self.rang()) >= len(labels)

        await until(has_rung)
        assert await self.rang() == list(labels)

    async def until_settled(self) -> None:
        async def is_empty() -> bool:
            return await self.inbox.read_backlog() == {}

        await until(is_empty)


@pytest.fixture
async def rig(nats_server: EmbeddedServer) -> AsyncIterator[Rig]:
    async with connected(nats_server.url) as connection:
        await open_journal(connection)
        js = JetStream(connection)
        yield Rig(nats_server, connection, CommandClient(connection), Inbox(js, "default"), Schedules(js))


def alarm_pod(rig: Rig, name: str = "pod-a", placements: Placements | None = None, **options: Any) -> AbstractAsyncContextManager[RunningPod]:
    return running_pod(rig.server.url, name, placements, models=(Alarm(),), **{"sweep_s": NEVER_S, **options})


class BlockedInbox:
    """An inbox whose settled messages are not removed: the process dies right after the append."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        self.calls += 1
        return getattr(self._inbox, name)

    async def settle(self, actor: ActorId, through: int) -> None:
        await asyncio.Event().wait()


async def test_commands_wait_until_something_runs_and_then_run_in_order(rig: Rig) -> None:
    labels = [f"l{number}" for number in range(250)]
    await rig.send(*labels)
    async with alarm_pod(rig, sweep_s=0.1):
        await rig.until_rang(*labels)
        await rig.until_settled()


async def test_a_hint_wakes_an_actor_that_nobody_holds_wherever_it_belongs(rig: Rig) -> None:
    async with alarm_pod(rig, "pod-a") as one, alarm_pod(rig, "pod-b") as other:
        await until_live([one, other])
        actors = [ActorId(CLOCK.namespace, CLOCK.model, f"c{number}") for number in range(12)]
        for actor in actors:
            await rig.client.send_durable(actor, "Ring", {"label": "x"})
        for actor in actors:

            async def has_rung(actor: ActorId = actor) -> bool:
                return len(await rig.events(actor)) == 1

            await until(has_rung)
        assert one.runtime.get_active_vms().keys() | other.runtime.get_active_vms().keys() >= set(actors)
        assert not one.runtime.get_active_vms().keys() & other.runtime.get_active_vms().keys()


@pytest.mark.parametrize("told_by", ["hint", "sweep"])
async def test_what_waits_for_a_live_actor_runs_while_nobody_can_be_looked_up(rig: Rig, told_by: str) -> None:
    """Durable commands and ticks of actors that live go on while the API server is away."""
    actors = [ActorId(CLOCK.namespace, CLOCK.model, f"c{number}") for number in range(12)]
    placements = Placements()
    for number, actor in enumerate(actors):
        placements.place(actor, PodUid(f"pod-{'ab'[number % 2]}"), 1)
    if told_by == "sweep":
        await stop_hints(rig)
    async with alarm_pod(rig, "pod-a", placements, sweep_s=0.2) as one, alarm_pod(rig, "pod-b", placements, sweep_s=0.2) as other:
        await until_live([one, other])

        async def are_ready() -> bool:
            vms = {**one.runtime.get_active_vms(), **other.runtime.get_active_vms()}
            return vms.keys() == set(actors) and all(vm.is_ready for vm in vms.values())

        await until(are_ready)
        placements.hangs, placements.looks = True, 0
        for actor in actors:
            await rig.client.send_durable(actor, "Ring", {"label": "x"})
        await rig.until_settled()
    assert [len(await rig.events(actor)) for actor in actors] == [1] * len(actors)
    assert placements.looks == 0


async def stop_hints(rig: Rig) -> None:
    js = JetStream(rig.connection)
    info = await js.stream_info(inbox_stream("default"))
    assert info is not None
    metadata = {key: value for key, value in info.config.metadata.items() if not key.startswith("_nats.")}
    await js.update_stream(msgspec.structs.replace(info.config, republish=None, metadata=metadata))


async def test_hints_without_end_are_followed_for_so_many_actors_at_once(rig: Rig) -> None:
    placements = Placements(hangs=True)
    async with alarm_pod(rig, placements=placements):
        for number in range(WAKES_MAX + 200):
            await rig.client.send_durable(ActorId(CLOCK.namespace, CLOCK.model, f"c{number}"), "Ring", {"label": "x"})

        async def has_looked() -> bool:
            return placements.looks >= WAKES_MAX

        await until(has_looked)
        await asyncio.sleep(0.2)
        assert placements.looks <= WAKES_MAX + LOOKUPS_AT_ONCE


async def test_a_sweep_finds_what_no_hint_told(rig: Rig) -> None:
    async with alarm_pod(rig, sweep_s=0.1):
        await stop_hints(rig)
        await rig.send("a", "b")
        await rig.until_rang("a", "b")


async def test_the_backlog_is_visible_where_nothing_can_run(rig: Rig) -> None:
    await rig.client.send_durable(ActorId(CLOCK.namespace, CLOCK.model, "nobody"), "Ring")
    async with running_pod(rig.server.url, "pod-a", sweep_s=0.05) as pod:
        inbox = pod.inbox

        async def is_seen() -> bool:
            return (inbox.backlog, inbox.backlog_actors) == (1, 1)

        await until(is_seen)


async def test_what_was_stored_but_not_removed_runs_only_once(rig: Rig) -> None:
    await rig.send("a", "b", "c")
    async with alarm_pod(rig, wrap_inbox=BlockedInbox, sweep_s=0.1):
        await rig.until_rang("a", "b", "c")
    assert await rig.inbox.read_backlog() == {CLOCK: 3}
    async with alarm_pod(rig, "pod-b", sweep_s=0.1):
        await rig.send("d")
        await rig.until_rang("a", "b", "c", "d")
        await rig.until_settled()


async def test_a_move_in_the_middle_of_a_drain_keeps_order_and_runs_nothing_twice(rig: Rig) -> None:
    placements = Placements()
    placements.place(CLOCK, PodUid("pod-a"), 1)
    labels = [f"l{number}" for number in range(300)]
    async with alarm_pod(rig, "pod-a", placements), alarm_pod(rig, "pod-b", placements):
        await rig.send(*labels[:150])
        for epoch, pod in enumerate(("pod-b", "pod-a", "pod-b"), 2):
            placements.place(CLOCK, PodUid(pod), epoch, tell_old=epoch != 3)
            await rig.send(*labels[100 + 50 * (epoch - 1) : 100 + 50 * epoch])
        await rig.until_rang(*labels)
        await rig.until_settled()


async def test_runtimes_that_are_killed_again_and_again_run_every_command_once_and_in_order(rig: Rig, tmp_path: Path) -> None:
    await rig.client.send_durable(ALICE, "Open", {"owner": "alice"}, command_id="open")
    amounts = list(range(1, 401))

    async def send() -> None:
        for amount in amounts:
            await rig.client.send_durable(ALICE, "Deposit", {"amount": amount}, command_id=f"d-{amount}", timeout_s=2 * WAIT_S)

    async def count() -> int:
        return len(await rig.events(ALICE))

    async with RuntimeProcess(FOLDER, rig.server.url) as runtime, asyncio.TaskGroup() as tasks:
        tasks.create_task(send(), name="sender")
        for share in (1, 2, 3):

            async def has_run(share: int = share) -> bool:
                return await count() >= share * 100

            await until(has_run)
            await runtime.end(signal.SIGKILL)
            await runtime.run()

        async def has_run_all() -> bool:
            return await count() > len(amounts)

        await until(has_run_all)
        await rig.until_settled()
    assert [fields["amount"] for fields in (await rig.events(ALICE))[1:]] == amounts


async def test_nats_that_is_killed_loses_and_repeats_nothing(rig: Rig) -> None:
    labels = [f"l{number}" for number in range(200)]
    async with alarm_pod(rig, sweep_s=0.5):
        await rig.send(*labels[:100])
        await rig.restart_server()
        await rig.send(*labels[100:])
        await rig.until_rang(*labels)


async def test_a_command_that_fails_is_tried_a_few_times_then_buried_and_those_behind_it_run(rig: Rig) -> None:
    async with alarm_pod(rig) as pod:
        await rig.send("no", command="Refuse")
        await rig.send("bad", command="Fail")
        await rig.send("after")
        await rig.until_rang("after")
        await rig.until_settled()
        (letter,) = await rig.inbox.read_dead(CLOCK)
        assert (letter.command, letter.command_id, letter.reason) == ("Fail", "id-bad", "CommandFailed")
        assert "the spring broke" in letter.message
        assert pod.inbox.buried == 1


async def test_a_command_whose_events_are_longer_than_their_stream_takes_is_buried_and_those_behind_it_run(rig: Rig) -> None:
    js = JetStream(rig.connection)
    for partition in range(PARTITIONS):
        info = await js.stream_info(event_stream("default", partition))
        assert info is not None
        metadata = {key: value for key, value in info.config.metadata.items() if not key.startswith(OWN_METADATA)}
        await js.update_stream(msgspec.structs.replace(info.config, max_msg_size=2000, metadata=metadata))
    async with alarm_pod(rig):
        await rig.send("x" * 100, "y" * 3000, "after")
        await rig.until_rang("x" * 100, "after")
        assert [letter.reason for letter in await rig.inbox.read_dead(CLOCK)] == ["CommitTooLarge"]


async def test_a_message_that_is_no_command_is_buried(rig: Rig) -> None:
    async with alarm_pod(rig):
        await JetStream(rig.connection).publish("aether.default.inbox.alarm.clock", b"what?")
        await rig.send("after")
        await rig.until_rang("after")
        assert [letter.reason for letter in await rig.inbox.read_dead(CLOCK)] == ["InvalidCommand"]


async def test_a_dead_letter_that_is_retried_runs(rig: Rig) -> None:
    async with alarm_pod(rig):
        await JetStream(rig.connection).publish("aether.default.inbox.alarm.clock", b"what?")

        async def is_buried() -> bool:
            return len(await rig.inbox.read_dead(CLOCK)) == 1

        await until(is_buried)
        (letter,) = await rig.inbox.read_dead(CLOCK)
        await rig.inbox.retry_dead(CLOCK, letter.sequence)

        async def is_buried_again() -> bool:
            found = await rig.inbox.read_dead(CLOCK)
            return len(found) == 1 and found[0].sequence != letter.sequence

        await until(is_buried_again)


@pytest.mark.parametrize("before", [(), ("Refuse",), ("Refuse", "NoSuchCommand", "Refuse"), ("Tick", "Refuse")], ids=" ".join)
async def test_a_command_that_ends_its_process_is_buried_after_a_few_lives(before: tuple[str, ...], rig: Rig, tmp_path: Path) -> None:
    """Whatever stands before it, which is neither run again nor blamed."""
    (tmp_path / "model.yaml").write_text(
        "apiVersion: aether.flowmade.one/v1alpha1\nkind: ActorModel\nmetadata: {name: bomb}\nspec:\n  python: {handler: 'tests.histories.bomb:Bomb'}\n"
    )
    bomb = ActorId(CLOCK.namespace, type(CLOCK.model)("bomb"), "one")
    for command in (*before, "Explode", "Tick"):
        await rig.client.send_durable(bomb, command, {})
    lives, expected = 0, 1 + before.count("Tick")
    lives_max = TRIES_MAX + bool(before)  # behind another one it is not counted in its first life
    async with RuntimeProcess(tmp_path, rig.server.url) as runtime:
        while len(await rig.events(bomb)) < expected:
            if runtime.process.returncode is not None:
                lives += 1
                await runtime.run()
            await asyncio.sleep(0.05)
            assert lives <= lives_max
    assert lives == lives_max
    buried = [(letter.command, letter.reason) for letter in await rig.inbox.read_dead(bomb)]
    assert buried == [("NoSuchCommand", "UnknownCommand")] * before.count("NoSuchCommand") + [("Explode", "Unsettled")]


async def test_a_drained_inbox_is_left_alone(rig: Rig) -> None:
    stores: list[BlockedInbox] = []

    class Counting(BlockedInbox):
        async def settle(self, actor: ActorId, through: int) -> None:
            await self._inbox.settle(actor, through)

    def wrap(inbox: Inbox) -> InboxStore:
        stores.append(Counting(inbox))
        return stores[0]

    async with alarm_pod(rig, wrap_inbox=wrap):
        await rig.send("a")
        await rig.until_settled()
        await rig.client.send(CLOCK, "Ring", {"label": "b"}, timeout_s=WAIT_S)
        calls = stores[0].calls
        for label in "cdefg":
            await rig.client.send(CLOCK, "Ring", {"label": label}, timeout_s=WAIT_S)
        assert stores[0].calls == calls


async def test_a_suspended_actor_keeps_what_waits_and_counts_no_tries(rig: Rig) -> None:
    placements = Placements()
    placements.place(CLOCK, PodUid("pod-a"), 1)
    desired = placements.homes[CLOCK].desired
    placements.homes[CLOCK] = Home(PodUid(""), desired, suspended=True)
    await rig.send("a")
    async with alarm_pod(rig, "pod-a", placements, sweep_s=0.05) as pod:

        async def was_swept() -> bool:
            return bool(pod.inbox.backlog)

        await until(was_swept)
        assert (await rig.inbox.read_tries(CLOCK), await rig.rang()) == (None, [])
        placements.place(CLOCK, PodUid("pod-a"), 2)
        await rig.until_rang("a")


async def test_a_durable_command_and_a_tick_wake_an_actor_that_sleeps(rig: Rig) -> None:
    placements = Placements()
    placements.place(CLOCK, PodUid("pod-a"), 1)
    placements.homes[CLOCK] = Home(PodUid("pod-a"), dataclasses.replace(placements.homes[CLOCK].desired, idle_after_s=0.2))
    async with alarm_pod(rig, "pod-a", placements) as pod:

        async def sleeps() -> bool:
            return pod.runtime.registry.get(CLOCK) is None and pod.runtime.passivation.asleep == 1

        await send(rig, "Set", after_s=2.5)
        await until(sleeps)
        await rig.send("a")
        await rig.until_rang("Set", "a")
        await until(sleeps)
        await rig.until_rang("Set", "a", "morning")


async def test_commands_reach_an_inbox_that_was_made_anew_under_a_living_runtime(rig: Rig) -> None:
    async with alarm_pod(rig):
        await rig.send("a", "b", "c")
        await rig.until_rang("a", "b", "c")
        await rig.until_settled()
        await JetStream(rig.connection).delete_stream(inbox_stream("default"))
        await open_journal(rig.connection)
        await rig.send("d", "e")
        await rig.until_rang("a", "b", "c", "d", "e")
        await rig.until_settled()


async def test_a_lost_inbox_holds_up_nobody_and_is_made_anew_by_the_sweep(rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("aether_runtime.adapters.jetstream_inbox.MISSED_S", 3.0)
    async with alarm_pod(rig, sweep_s=1.0):
        await send(rig, "Set", name="lost", after_s=3600)
        await JetStream(rig.connection).delete_stream(inbox_stream("default"))
        async with asyncio.TaskGroup() as tasks:
            told = tasks.create_task(rig.client.send(CLOCK, "Set", {"name": "early", "after_s": 60}, timeout_s=1.0), name="early")
            await send(rig, "Ring", label="meanwhile")
        assert (told.result().reason, "its reminders cannot be kept now" in told.result().message) == ("Busy", True)
        await send(rig, "Set", name="soon", after_s=1.0)
        await rig.until_rang("Set", "meanwhile", "Set", "soon")
    assert [record.levelname for record in caplog.records if "is made anew" in record.message] == ["ERROR"]


async def test_commands_without_ids_reach_an_inbox_that_was_made_anew(rig: Rig) -> None:
    async def publish(label: str) -> None:
        await JetStream(rig.connection).publish(inbox_subject(CLOCK), b'{"label":"%s"}' % label.encode(), headers.encode_headers({headers.COMMAND_NAME: "Ring"}))

    async with alarm_pod(rig):
        for label in "abc":
            await publish(label)
        await rig.until_rang("a", "b", "c")
        await rig.until_settled()
        await JetStream(rig.connection).delete_stream(inbox_stream("default"))
        await open_journal(rig.connection)
        for label in "def":
            await publish(label)
        await rig.until_rang(*"abcdef")


async def test_commands_run_that_come_after_the_inboxes_went_back(tmp_path: Path) -> None:
    """Restored from a backup, or what came last was lost with a server; the stream says that it is the same."""
    async with EmbeddedServer.start(tmp_path / "nats") as server, connected(server.url) as connection:
        await open_journal(connection)
        js = JetStream(connection)
        moved = Rig(server, connection, CommandClient(connection), Inbox(js, "default"), Schedules(js))
        async with alarm_pod(moved):
            await moved.send("a", "b")
            await moved.until_rang("a", "b")
            await moved.until_settled()
        (stored,) = (tmp_path / "nats").glob(f"**/{inbox_stream('default')}")
        await server.stop()
        shutil.copytree(stored, tmp_path / "backup")
        await server.run()
        await connection.wait_connected()
        async with alarm_pod(moved):
            await moved.send("c", "d", "e")
            await moved.until_rang(*"abcde")
            await moved.until_settled()
        await server.stop()
        shutil.rmtree(stored)
        shutil.copytree(tmp_path / "backup", stored)
        await server.run()
        await connection.wait_connected()
        async with alarm_pod(moved):
            await moved.send("f", "g")
            await moved.until_rang(*"abcdefg")
            await moved.until_settled()
            await moved.send("h")
            await moved.until_rang(*"abcdefgh")


async def test_what_waited_for_one_life_of_an_actor_never_runs_in_the_next(rig: Rig) -> None:
    async with alarm_pod(rig):
        await send(rig, "Ring", label="first")
    await rig.send("a", "b")
    await (await open_journal(rig.connection)).purge(CLOCK, epoch=Epoch(0), writer="test")
    await rig.send("c")
    async with alarm_pod(rig, "pod-b", sweep_s=0.1):
        await rig.until_settled()
    assert await rig.rang() == ["c"]


async def test_an_id_takes_effect_once_whichever_way_it_comes(rig: Rig) -> None:
    async with alarm_pod(rig) as pod:
        reply = await rig.client.send(CLOCK, "Ring", {"label": "a"}, command_id="id-a", timeout_s=WAIT_S)
        await rig.send("a", "b")
        await rig.until_rang("a", "b")
        await rig.until_settled()
        again = await rig.client.send(CLOCK, "Ring", {"label": "b"}, command_id="id-b", timeout_s=WAIT_S)
        assert (reply.version, again.version, again.outcome) == (1, 2, "accepted")
        assert pod.inbox.settled == 2


async def test_two_actors_may_be_sent_the_same_id(rig: Rig) -> None:
    """As the steps of a transfer are; the server knows ids of a whole stream, which holds the inboxes of all actors."""
    other = ActorId(CLOCK.namespace, CLOCK.model, "other")
    first = [await rig.client.send_durable(actor, "Ring", {"label": "a"}, command_id="transfer-17", timeout_s=WAIT_S) for actor in (CLOCK, other)]
    again = await rig.client.send_durable(CLOCK, "Ring", {"label": "a"}, command_id="transfer-17", timeout_s=WAIT_S)
    assert [receipt.repeated for receipt in (*first, again)] == [False, False, True]
    async with alarm_pod(rig, sweep_s=0.1):
        await rig.until_settled()
    assert [len(await rig.events(actor)) for actor in (CLOCK, other)] == [1, 1]


async def test_a_wrong_expectation_is_an_outcome_and_no_poison(rig: Rig) -> None:
    async with alarm_pod(rig):
        await rig.client.send_durable(CLOCK, "Ring", {"label": "no"}, expected_version=7)
        await rig.send("a")
        await rig.until_rang("a")
        assert await rig.inbox.read_dead(CLOCK) == []


async def test_a_skipping_tick_that_is_too_late_does_not_run(rig: Rig) -> None:
    async with alarm_pod(rig) as pod:
        for name, due_s in (("late", time.time() - 90), ("punctual", time.time() - 1)):
            await send(rig, "Set", name=name, cron="@yearly", missed="skip")
            ((reminder, token),) = [found for found in await rig.schedules.read_all(CLOCK) if found[0].name == name]
            lines = {headers.COMMAND_NAME: reminder.command, headers.REMINDER: f"{name}:{token}", headers.MISSED: "skip", headers.DUE: format_time(due_s)}
            await JetStream(rig.connection).publish(inbox_subject(CLOCK), b'{"label":"%s"}' % name.encode(), headers.encode_headers(lines))
        await rig.until_rang("Set", "Set", "punctual")
        assert (pod.inbox.dropped, dict(pod.runtime.get_active_vms()[CLOCK].reminders)) == (1, {}), "one-shots, so both are over"


async def test_a_pod_whose_clock_is_ahead_says_why_it_skips_ticks(rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async with alarm_pod(rig) as pod:
        inbox = pod.inbox
        monkeypatch.setattr(inbox, "_now_s", lambda: time.time() + 65)
        await send(rig, "Set", cron="* * * * * *", missed="skip")

        async def are_dropped() -> bool:
            return inbox.dropped >= 3

        await until(are_dropped)
    assert [record.levelname for record in caplog.records if "the clock of this pod is ahead" in record.message] == ["WARNING"]


async def send(pod_or_rig: Rig, command: str, **fields: Any) -> None:
    reply = await pod_or_rig.client.send(CLOCK, command, fields, timeout_s=WAIT_S)
    assert reply.outcome == "accepted", reply


async def test_a_reminder_rings_once_and_is_gone(rig: Rig) -> None:
    async with alarm_pod(rig) as pod:
        await send(rig, "Set", after_s=0.0)
        await rig.until_rang("Set", "morning")
        await rig.until_settled()
        vm = pod.runtime.registry.get(CLOCK)
        assert vm is not None
        assert (dict(vm.reminders), await rig.schedules.read_all(CLOCK)) == ({}, [])


async def test_a_reminder_outlives_runtime_and_server_and_wakes_its_actor(rig: Rig) -> None:
    async with alarm_pod(rig):
        await send(rig, "Set", after_s=2.0)
    await rig.restart_server()
    async with alarm_pod(rig, "pod-b") as pod:
        assert pod.runtime.get_active_vms() == {}
        await rig.until_rang("Set", "morning")


async def test_a_cancelled_reminder_never_rings_and_a_replaced_one_rings_once(rig: Rig) -> None:
    async with alarm_pod(rig):
        await send(rig, "Set", name="one", after_s=1.0)
        await send(rig, "Set", name="two", after_s=1.0)
        await send(rig, "Cancel", name="one")
        await send(rig, "Set", name="two", after_s=1.5, label="again")
        await send(rig, "Set", name="three", after_s=2.5)
        await rig.until_rang("Set", "Set", "Cancel", "again", "Set", "two", "three")


async def test_a_recurring_reminder_rings_until_it_is_cancelled(rig: Rig) -> None:
    async with alarm_pod(rig):
        await send(rig, "Set", cron="* * * * * *")

        async def has_rung_twice() -> bool:
            return (await rig.rang()).count("morning") >= 2

        await until(has_rung_twice)
        await send(rig, "Cancel")
        await rig.until_settled()
        await until_equal(lambda: rig.schedules.read_all(CLOCK), [])  # its end comes after the answer


async def test_a_tick_runs_once_although_a_server_that_is_killed_after_it_makes_it_again(rig: Rig) -> None:
    async def until_it_came(count: int) -> None:
        async def has_come() -> bool:
            return (await rig.rang()).count("morning") >= count

        await until(has_come)

    async with alarm_pod(rig):
        await send(rig, "Set", cron="*/4 * * * * *")
        await rig.server.stop()  # writes down when its schedules are due next
        await rig.server.run()
        await until_it_came(1)
        await rig.restart_server()
        await until_it_came(2)
    rang = [event for event in events_of(await read_history(await open_journal(rig.connection), CLOCK)) if event.fields()["label"] == "morning"]
    assert len({int(parse_time(event.time).timestamp()) // 4 for event in rang}) == len(rang)


@pytest.mark.parametrize(("missed", "least", "most", "ahead"), [("late", 3, 100, 1), ("collapse", 1, 1, AHEAD_BYTES_MOST), ("collapse", 1, 1, 1000), ("collapse", 1, 1, 1)])
async def test_missed_ticks_run_each_or_once_for_all(rig: Rig, monkeypatch: pytest.MonkeyPatch, missed: str, least: int, most: int, ahead: int) -> None:
    """However few of them are read at once, as where many actors catch up."""
    monkeypatch.setattr("aether_runtime.inbox.share_ahead", lambda _: ahead)
    async with alarm_pod(rig):
        await send(rig, "Set", cron="* * * * * *", missed=missed)
    ((reminder, token),) = await rig.schedules.read_all(CLOCK)
    before = len(await rig.rang())

    async def have_come() -> bool:
        return (await rig.inbox.read_backlog()).get(CLOCK, 0) >= 3

    await until(have_come)
    await rig.schedules.cancel(CLOCK, reminder.name, token)
    async with alarm_pod(rig, "pod-b", sweep_s=0.1):
        await rig.until_settled()
    assert least <= len(await rig.rang()) - before <= most


async def test_a_schedule_that_nobody_stands_for_is_ended_by_its_first_tick(rig: Rig) -> None:
    async with alarm_pod(rig) as pod:
        await rig.schedules.set(CLOCK, Reminder("ghost", "Ring", b'{"label":"ghost"}', "* * * * * *"), "unknown")

        async def is_gone() -> bool:
            return await rig.schedules.read_all(CLOCK) == []

        await until(is_gone)
        await rig.until_settled()
        inbox = pod.inbox
        assert (await rig.events(), inbox.orphans >= 1) == ([], True)


async def test_the_last_moment_that_can_be_kept_is_kept_and_does_not_ring(rig: Rig) -> None:
    async with alarm_pod(rig):
        await send(rig, "Set", name="last", at=f"{AT_MAX:%Y-%m-%dT%H:%M:%SZ}")
        await send(rig, "Set", name="soon", after_s=2.0)
        await rig.until_rang("Set", "Set", "soon")
        assert [reminder.name for reminder, _ in await rig.schedules.read_all(CLOCK)] == ["last"]


async def test_a_schedule_that_the_server_cannot_read_fails_its_command(rig: Rig) -> None:
    async with alarm_pod(rig):
        reply = await rig.client.send(CLOCK, "Set", {"cron": "0 9 * * *"}, timeout_s=WAIT_S)
        assert (reply.outcome, reply.reason, "5 fields instead of six" in reply.message) == ("error", "CommandFailed", True)


async def test_reminders_by_the_thousand_are_set_by_many_commands_and_by_none_alone(rig: Rig) -> None:
    async with alarm_pod(rig):
        async with asyncio.TaskGroup() as tasks:
            sent = [
                tasks.create_task(
                    rig.client.send(CLOCK, "SetMany", {"name": f"payment_overdue_invoice_{number:06}_stage", "count": 5, "after_s": 3000}, timeout_s=2 * WAIT_S), name=f"{number}"
                )
                for number in range(600)
            ]
        assert {task.result().outcome for task in sent} == {"accepted"}
        await rig.client.send_durable(CLOCK, "SetMany", {"name": "far_too_many", "count": 1500, "after_s": 3000}, timeout_s=WAIT_S)
        await rig.send("behind")
        await rig.until_rang(*["SetMany"] * 600, "behind")
        assert [letter.reason for letter in await rig.inbox.read_dead(CLOCK)] == ["CommitTooLarge"]


async def test_a_vm_that_ends_without_an_answer_does_not_hang_the_inbox(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with alarm_pod(rig) as pod:
        await rig.send("l0")
        await rig.until_rang("l0")
        take = VirtualMachine.process_command

        def lose(self: VirtualMachine, waiting: Waiting) -> None:
            monkeypatch.setattr(VirtualMachine, "process_command", take)
            self.fail(ZeroDivisionError("the answer went down with it"))

        monkeypatch.setattr(VirtualMachine, "process_command", lose)
        await rig.send("l1", "l2")
        await rig.until_rang("l0", "l1", "l2")
        await rig.until_settled()
        assert pod.runtime.get_active_vms()[CLOCK].is_ready
