"""Actors that sleep and wake on a real nats-server: nothing is lost, nobody notices but by the clock."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from dataclasses import replace

import pytest

from aether_api.identity import ActorId, PodUid, parse_actor_id
from aether_api.messages import Reply, decode_reply
from aether_api.subjects import command_subject
from aether_api.v1alpha1 import ActorPhase
from aether_nats.client import CommandClient
from aether_nats.embedded import EmbeddedServer
from aether_runtime.command_feeds import CommandFeed
from aether_runtime.core.group import Waiting
from aether_runtime.core.passivation import MemoryUse
from aether_runtime.core.snapshot_policy import WORTH_COMMITS
from aether_runtime.passivation import IDLE_CHECK_MAX_S, SleepConfig
from aether_runtime.presence import choose_pod
from aether_runtime.runtime import Runtime
from aether_runtime.runtime_message import RuntimeMessage
from aether_runtime.vm import VirtualMachine
from tests.histories.bank import ALICE, build_command, compile_unspeakable_account
from tests.histories.cluster import WAIT_S, Load, Placements, RunningPod, connected, open_journal, running_pod, until, until_live
from tests.histories.invariants import check_answers, check_log, events_of, read_history

ACTORS = [parse_actor_id("default", "account", f"a{number}") for number in range(30)]


def phase_of(pod: RunningPod) -> ActorPhase | None:
    return pod.sink.reports[ALICE].phase if ALICE in pod.sink.reports else None


def placed_with_idle_time(idle_after_s: float) -> Placements:
    placements = Placements()
    placements.place(ALICE, PodUid("pod-a"), 5)
    home = placements.homes[ALICE]
    placements.homes[ALICE] = replace(home, desired=replace(home.desired, idle_after_s=idle_after_s))
    return placements


async def check_stored(pod: RunningPod, load: Load, *, events: int) -> None:
    journal = await open_journal(pod.connection)
    for actor in load.actors:
        commits = await read_history(journal, actor)
        check_log(commits)
        check_answers(commits, load.replies_of(actor))
        assert len(events_of(commits)) == events


async def test_an_idle_actor_sleeps_with_its_version_and_the_next_command_wakes_it(nats_server: EmbeddedServer) -> None:
    async with running_pod(nats_server.url, "pod-a", placed_with_idle_time(0.2)) as pod, connected(nats_server.url) as connection:
        client = CommandClient(connection)
        assert (await client.send(ALICE, "Open", {"owner": "alice"})).version == 1
        await until(lambda: phase_of(pod) is ActorPhase.PASSIVE)
        assert (pod.runtime.get_active_vms(), pod.sink.reports[ALICE].version, pod.runtime.passivation.asleep) == ({}, 1, 1)
        assert (await client.send(ALICE, "Deposit", {"amount": 5})).version == 2
        await until(lambda: phase_of(pod) is ActorPhase.READY)
        await until(lambda: phase_of(pod) is ActorPhase.PASSIVE)
        raw = decode_reply((await connection.request(command_subject("call", ALICE, "Deposit"), b'{"amount": 1}')).payload)
        assert (raw.outcome, raw.version) == ("accepted", 3)
        assert pod.runtime.passivation.counts["idle"] == 2


async def test_an_actor_that_is_let_go_while_it_falls_asleep_leaves_no_subscription_behind(nats_server: EmbeddedServer) -> None:
    """Found by the simulation: the subscription stayed, and answered every command of the actor with "moving" for good."""
    async with running_pod(nats_server.url, "pod-a", placed_with_idle_time(0.0)) as pod:
        await until(lambda: phase_of(pod) is ActorPhase.READY and len(pod.runtime.feeds) == 1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pod.runtime.stop_vm(ALICE))
            tasks.create_task(pod.runtime.passivation._put_to_sleep([ALICE], "idle"))
        assert (dict(pod.runtime.get_active_vms()), len(pod.runtime.feeds)) == ({}, 0)


async def test_an_actor_that_two_reasons_put_to_sleep_at_once_leaves_no_subscription_behind(nats_server: EmbeddedServer) -> None:
    """Whoever found the other one's snapshot under way took up the commands again, and the dead VM answered all of them with "moving" for good."""
    async with running_pod(nats_server.url, "pod-a", placed_with_idle_time(0.0)) as pod, connected(nats_server.url) as connection:
        client = CommandClient(connection)
        await client.send(ALICE, "Open", {"owner": "alice"})
        for _ in range(WORTH_COMMITS):
            await client.send(ALICE, "Deposit", {"amount": 1})
        async with asyncio.TaskGroup() as tasks:
            tries = [tasks.create_task(pod.runtime.passivation._put_to_sleep([ALICE], why)) for why in ("idle", "memory")]
        assert (sum(task.result() for task in tries), dict(pod.runtime.get_active_vms()), len(pod.runtime.feeds)) == (1, {}, 0)
        assert (await client.send(ALICE, "Deposit", {"amount": 1})).version == WORTH_COMMITS + 2


async def test_an_actor_of_which_no_snapshot_can_be_taken_sleeps_like_any_other(nats_server: EmbeddedServer) -> None:
    """Before, the error ended passivation, and with it the whole pod."""
    model = replace(compile_unspeakable_account(), name="mute", on_demand=True)
    actor = parse_actor_id("default", "mute", "m")
    async with running_pod(nats_server.url, "pod-a", models=(model,), sleep=SleepConfig(on_demand_idle_s=0.2)) as pod, connected(nats_server.url) as connection:
        client = CommandClient(connection)
        await client.send(actor, "Open", {"owner": "m"})
        for _ in range(WORTH_COMMITS):
            assert (await client.send(actor, "Deposit", {"amount": 1})).outcome == "accepted"
        await until(lambda: pod.runtime.passivation.counts["idle"] == 1)
        assert (await client.send(actor, "Deposit", {"amount": 1})).version == WORTH_COMMITS + 2


async def test_one_actor_that_cannot_be_put_to_sleep_keeps_no_other_awake_and_is_served(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def prepare_sleep(self: VirtualMachine) -> None:
        if self.get_actor_id() == ACTORS[0]:
            raise ZeroDivisionError("no such sleep")

    monkeypatch.setattr(VirtualMachine, "prepare_sleep", prepare_sleep)
    async with running_pod(nats_server.url, "pod-a", sleep=SleepConfig(on_demand_idle_s=0.2)) as pod, connected(nats_server.url) as connection:
        load = Load(CommandClient(connection), ACTORS[:3])
        await load.open()
        await until(lambda: list(pod.runtime.get_active_vms()) == ACTORS[:1])
        await load.deposit(range(3))
        assert {reply.outcome for _, reply in load.replies} == {"accepted"}


async def test_one_actor_that_cannot_be_stopped_holds_up_no_hand_over(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_vm = Runtime.stop_vm

    async def stop_some(self: Runtime, actor: ActorId) -> None:
        if actor == theirs[0]:
            raise ZeroDivisionError("no such stop")
        await stop_vm(self, actor)

    theirs = [actor for actor in ACTORS if choose_pod(actor, [PodUid("pod-a"), PodUid("pod-b")]) == "pod-b"]
    monkeypatch.setattr(Runtime, "stop_vm", stop_some)
    monkeypatch.setattr(VirtualMachine, "can_sleep", False)
    async with running_pod(nats_server.url, "pod-a") as a, connected(nats_server.url) as connection:
        await Load(CommandClient(connection), ACTORS).open()
        async with running_pod(nats_server.url, "pod-b") as b:
            await until_live([a, b])
            await until(lambda: set(theirs) & set(a.runtime.get_active_vms()) == {theirs[0]})
        monkeypatch.undo()


async def test_what_the_resource_says_again_does_not_wake_an_actor_but_a_new_placement_does(nats_server: EmbeddedServer) -> None:
    placements = placed_with_idle_time(0.2)
    async with running_pod(nats_server.url, "pod-a", placements) as pod:
        await until(lambda: phase_of(pod) is ActorPhase.PASSIVE)
        desired = placements.homes[ALICE].desired
        pod.runtime.on_adopt(desired)
        pod.runtime.on_adopt(replace(desired, generation=9))
        await until(lambda: pod.sink.reports[ALICE].desired.generation == 9)
        assert (phase_of(pod), pod.runtime.get_active_vms()) == (ActorPhase.PASSIVE, {})
        pod.runtime.on_adopt(replace(desired, generation=9, epoch=type(desired.epoch)(6), idle_after_s=0.0))
        await until(lambda: phase_of(pod) is ActorPhase.READY)


async def test_an_actor_that_sleeps_is_released_like_any_other(nats_server: EmbeddedServer) -> None:
    placements = placed_with_idle_time(0.2)
    async with running_pod(nats_server.url, "pod-a", placements) as a, running_pod(nats_server.url, "pod-b", placements) as b, connected(nats_server.url) as connection:
        client = CommandClient(connection)
        assert (await client.send(ALICE, "Open", {"owner": "alice"})).version == 1
        await until(lambda: a.runtime.passivation.asleep == 1)
        placements.place(ALICE, PodUid("pod-b"), 6)
        await until(lambda: a.runtime.passivation.asleep == 0)
        assert (await client.send(ALICE, "Deposit", {"amount": 5})).version == 2
        assert (list(a.runtime.get_active_vms()), list(b.runtime.get_active_vms())) == ([], [ALICE])


async def test_an_idle_actor_without_a_resource_is_forgotten_until_its_next_command(nats_server: EmbeddedServer) -> None:
    sleep = SleepConfig(on_demand_idle_s=0.2)
    async with running_pod(nats_server.url, "pod-a", sleep=sleep) as pod, connected(nats_server.url) as connection:
        client = CommandClient(connection)
        assert (await client.send(ALICE, "Open", {"owner": "alice"})).version == 1
        await until(lambda: not pod.runtime.get_active_vms())
        assert (dict(pod.runtime.registry.desired), pod.runtime.passivation.asleep) == ({}, 0)
        assert (await client.send(ALICE, "Deposit", {"amount": 5})).version == 2


async def test_no_command_is_lost_that_arrives_while_its_actor_falls_asleep(nats_server: EmbeddedServer) -> None:
    """Pauses about as long as the idle time, so that many commands meet a VM that is about to go."""
    dice = random.Random(3)
    async with running_pod(nats_server.url, "pod-a", sleep=SleepConfig(on_demand_idle_s=0.1)) as pod, connected(nats_server.url) as connection:
        load = Load(CommandClient(connection), ACTORS[:10])
        await load.open()
        for start in range(0, 300, 10):
            await load.deposit(range(start, start + 10))
            await asyncio.sleep(dice.uniform(0.09, 0.2))  # the traffic of the test, not a wait for anything
        assert {reply.outcome for _, reply in load.replies} == {"accepted"}
        assert pod.runtime.passivation.counts["idle"] > 10
        await check_stored(pod, load, events=31)


async def test_an_actor_that_is_at_work_when_it_was_about_to_sleep_stays_awake(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_pod(nats_server.url, "pod-a") as pod:
        vm, drain, answers = pod.runtime.create_vm(ALICE), pod.runtime.feeds.drain, list[Reply]()
        command = build_command("Open", {"owner": "alice"}, id="o", time_s=time.time())

        async def drain_and_come_last(feed: CommandFeed | None) -> None:
            await drain(feed)
            vm.process_command(Waiting(command, asyncio.get_running_loop().time() + WAIT_S, answers.append))

        await until(lambda: vm.can_sleep)
        monkeypatch.setattr(pod.runtime.feeds, "drain", drain_and_come_last)
        assert not await pod.runtime.passivation._put_one_to_sleep(ALICE, "idle")
        monkeypatch.undo()
        await until(lambda: [reply.outcome for reply in answers] == ["accepted"])


async def test_actors_that_were_let_go_leave_their_places_to_others(nats_server: EmbeddedServer) -> None:
    async with running_pod(nats_server.url, "pod-a", sleep=SleepConfig(awake_max=1)) as pod:
        awake = pod.runtime.get_active_vms()
        for actor in ACTORS[:3]:
            pod.runtime.create_vm(actor)
            await until(lambda: [vm.is_ready for vm in awake.values()] == [True])
            await pod.runtime.stop_vm(actor)
        assert pod.runtime.passivation.over_limit == 0


async def test_three_times_as_many_actors_as_may_be_awake_are_all_served(nats_server: EmbeddedServer) -> None:
    limit = 10
    async with running_pod(nats_server.url, "pod-a", sleep=SleepConfig(awake_max=limit)) as pod, connected(nats_server.url) as connection:
        load = Load(CommandClient(connection), ACTORS)
        await load.open()
        await load.deposit(range(600))
        assert {reply.outcome for _, reply in load.replies} == {"accepted"}
        assert pod.runtime.passivation.counts["limit"] > 20
        await check_stored(pod, load, events=21)
        await until(lambda: len(pod.runtime.get_active_vms()) <= limit)


async def test_a_burst_above_the_limit_waits_for_nobody_while_nobody_is_at_work(nats_server: EmbeddedServer) -> None:
    sleep, many = SleepConfig(awake_max=20), [parse_actor_id("default", "account", f"m{number}") for number in range(200)]
    async with running_pod(nats_server.url, "pod-a", sleep=sleep, recovery_permits=10) as pod, connected(nats_server.url) as connection:
        client = CommandClient(connection)
        async with asyncio.TaskGroup() as tasks:
            opened = [tasks.create_task(client.send(actor, "Open", {"owner": actor.id})) for actor in many]
        assert {task.result().outcome for task in opened} == {"accepted"}
        assert pod.runtime.passivation.over_limit == 0
        await until(lambda: len(pod.runtime.get_active_vms()) <= sleep.awake_max)


def count_kept(pod: RunningPod) -> int:
    """Return how many VMs of a pod are in memory."""
    gc.collect()
    return sum(isinstance(found, VirtualMachine) and found._listener is pod.runtime for found in gc.get_objects())


async def test_nothing_keeps_a_vm_that_took_over_and_fell_asleep(nats_server: EmbeddedServer) -> None:
    """Before, what followed its log did, for half a minute and more: the limit freed no memory after a restart."""
    async with connected(nats_server.url) as connection:
        load = Load(CommandClient(connection), ACTORS)
        async with running_pod(nats_server.url, "pod-before"):
            await load.open()
        async with running_pod(nats_server.url, "pod-a", sleep=SleepConfig(awake_max=5)) as pod:
            await load.deposit(range(len(ACTORS)), clients=2)
            await until(lambda: len(pod.runtime.get_active_vms()) <= 5)
            assert len(pod.runtime.followers) <= 5
            await until(lambda: count_kept(pod) == len(pod.runtime.get_active_vms()))


async def test_a_shorter_idle_time_is_heeded_soon(nats_server: EmbeddedServer) -> None:
    placements = placed_with_idle_time(600.0)
    async with running_pod(nats_server.url, "pod-a", placements) as pod:
        await until(lambda: phase_of(pod) is ActorPhase.READY)
        home = placements.homes[ALICE]
        placements.listeners[PodUid("pod-a")].on_adopt(replace(home.desired, idle_after_s=0.5))
        async with asyncio.timeout(IDLE_CHECK_MAX_S / 3):
            while phase_of(pod) is not ActorPhase.PASSIVE:
                await asyncio.sleep(0.05)


async def test_memory_pressure_puts_the_least_used_to_sleep(nats_server: EmbeddedServer) -> None:
    async with running_pod(nats_server.url, "pod-a") as pod, connected(nats_server.url) as connection:
        load = Load(CommandClient(connection), ACTORS)
        await load.open()
        for vm in pod.runtime.get_active_vms().values():
            vm.touched_s -= 60
        assert await pod.runtime.passivation.shed(MemoryUse(70, 100)) == 0
        assert await pod.runtime.passivation.shed(MemoryUse(300, 100)) == 8
        assert (len(pod.runtime.get_active_vms()), pod.runtime.passivation.counts["memory"]) == (22, 8)
        await load.deposit(range(60))
        assert {reply.outcome for _, reply in load.replies} == {"accepted"}
        await check_stored(pod, load, events=3)


async def test_a_pod_that_has_just_come_asks_whoever_has_the_actor_before_it_starts_its_own(nats_server: EmbeddedServer) -> None:
    uids = [PodUid("pod-a"), PodUid("pod-b")]
    actor = next(actor for actor in ACTORS if choose_pod(actor, uids) == "pod-b")
    async with running_pod(nats_server.url, "pod-a") as a, connected(nats_server.url) as connection:
        assert (await CommandClient(connection).send(actor, "Open", {"owner": "x"})).version == 1
        async with running_pod(nats_server.url, "pod-b") as b:
            await until_live([a, b])
            command = build_command("Deposit", {"amount": 1}, id="d", time_s=time.time(), actor=actor)
            reply = await b.runtime.send_message(RuntimeMessage(command))
            assert (reply.outcome, reply.version) == ("accepted", 2)
            assert (list(a.runtime.get_active_vms()), list(b.runtime.get_active_vms())) == ([actor], [])
            await until(lambda: not a.runtime.get_active_vms())
            command = build_command("Deposit", {"amount": 1}, id="e", time_s=time.time(), actor=actor)
            assert (await b.runtime.send_message(RuntimeMessage(command))).version == 3
            assert list(b.runtime.get_active_vms()) == [actor]


async def test_actors_without_a_resource_follow_when_a_pod_comes(nats_server: EmbeddedServer) -> None:
    async with running_pod(nats_server.url, "pod-a") as a, connected(nats_server.url) as connection:
        load = Load(CommandClient(connection), ACTORS)
        await load.open()
        async with running_pod(nats_server.url, "pod-b") as b:
            await until_live([a, b])
            uids = [PodUid("pod-a"), PodUid("pod-b")]
            theirs = {actor for actor in ACTORS if choose_pod(actor, uids) == "pod-b"}
            await until(lambda: not theirs & set(a.runtime.get_active_vms()))
            assert set(a.runtime.get_active_vms()) == set(ACTORS) - theirs
            await load.deposit(range(60))
            assert set(b.runtime.get_active_vms()) == theirs
        await load.deposit(range(60, 120))
        assert {reply.outcome for _, reply in load.replies} == {"accepted"}
        await check_stored(a, load, events=5)
