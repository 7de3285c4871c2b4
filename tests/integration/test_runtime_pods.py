"""Several pods on a real nats-server: where commands go, and what becomes of an actor that two pods hold."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from typing import Final

import msgspec
import pytest

from aether_api.errors import Reason
from aether_api.identity import ActorId, Epoch, PodUid, parse_actor_id
from aether_api.messages import Command, Reply, decode_reply
from aether_api.subjects import command_subject
from aether_api.v1alpha1 import ActorModel, ActorPhase
from aether_nats.client import CommandClient
from aether_nats.embedded import EmbeddedServer
from aether_runtime.core.group import Waiting
from aether_runtime.lookups import DIRECTORY_AGAIN_S
from aether_runtime.ports import DesiredActor, Home
from aether_runtime.presence import choose_pod
from aether_runtime.runtime_message import RuntimeMessage
from aether_runtime.vm import VirtualMachine
from tests.histories.bank import ALICE, build_command, load_python_account, read_account
from tests.histories.cluster import WAIT_S, Load, Placements, RunningPod, connected, open_journal, running_pod, until, until_live
from tests.histories.invariants import check_answers, check_log, events_of, read_history

BOB = parse_actor_id("default", "account", "bob")


def fresh(name: str, fields: dict[str, object], id: str, *, actor: ActorId = ALICE) -> Command:
    return build_command(name, fields, id=id, time_s=time.time(), actor=actor)


async def test_an_actor_on_demand_starts_at_its_first_command(nats_server: EmbeddedServer) -> None:
    async with running_pod(nats_server.url, "pod-a") as pod, connected(nats_server.url) as connection:
        client = CommandClient(connection)
        assert (await client.send(ALICE, "Open", {"owner": "alice"})).version == 1
        reply = await client.send(ALICE, "Deposit", {"amount": 5})
        assert (reply.outcome, reply.version, reply.events[0].fields()) == ("accepted", 2, {"amount": 5})
        assert (await client.send(ALICE, "Withdraw", {"amount": 9})).reason == "InsufficientFunds"
        assert list(pod.runtime.get_active_vms()) == [ALICE]


async def test_a_model_in_python_that_is_handed_in_runs_like_any_other(nats_server: EmbeddedServer) -> None:
    async with running_pod(nats_server.url, "pod-a", Placements(models=[])) as pod, connected(nats_server.url) as connection:
        pod.runtime.load_model(load_python_account())
        client = CommandClient(connection)
        assert (await client.send(ALICE, "Open", {"owner": "alice"})).version == 1
        reply = await client.send(ALICE, "Deposit", {"amount": 5})
        assert (reply.outcome, reply.version, reply.events[0].fields()) == ("accepted", 2, {"amount": 5})
        assert (await client.send(ALICE, "Deposit", {"amount": 0})).reason == Reason.INVALID_COMMAND
        assert pod.runtime.get_active_vms()[ALICE].get_state() == {"owner": "alice", "balance": 5, "open": True}
        await pod.runtime.stop_vm(ALICE)
        assert (await client.send(ALICE, "Withdraw", {"amount": 4})).version == 3
        assert pod.runtime.get_active_vms()[ALICE].snapshot.version == 2


async def test_a_model_in_python_that_cannot_be_imported_is_refused_with_the_reason(nats_server: EmbeddedServer) -> None:
    document = {"metadata": {"name": "account"}, "spec": {"python": {"handler": "no_such_module:Account"}}}
    async with running_pod(nats_server.url, "pod-a", Placements(models=[ActorModel.model_validate(document)])), connected(nats_server.url) as connection:
        reply = await CommandClient(connection).send(ALICE, "Open", {"owner": "alice"})
        assert (reply.reason, "no_such_module:Account cannot be imported here: ModuleNotFoundError" in reply.message) == (Reason.UNKNOWN_MODEL, True)


async def test_what_can_never_be_answered_is_refused_at_once(nats_server: EmbeddedServer) -> None:
    document = read_account().model_dump(mode="json", by_alias=True, exclude_defaults=True)
    document["metadata"]["name"] = "vault"
    document["spec"]["onDemand"] = False
    placements = Placements(models=[read_account(), ActorModel.model_validate(document)])
    async with running_pod(nats_server.url, "pod-a", placements), connected(nats_server.url) as connection:
        client = CommandClient(connection)
        assert (await client.send(parse_actor_id("default", "nothing", "x"), "Open")).reason == Reason.UNKNOWN_MODEL
        assert (await client.send(parse_actor_id("default", "vault", "x"), "Open")).reason == Reason.UNKNOWN_ACTOR
        assert (await client.send(ALICE, "Steal")).reason == Reason.UNKNOWN_COMMAND


async def test_any_client_can_send_a_command_and_a_malformed_one_is_told_what_is_wrong(nats_server: EmbeddedServer) -> None:
    async with running_pod(nats_server.url, "pod-a"), connected(nats_server.url) as connection:
        for channel in ("call", "cmd"):
            subject = command_subject(channel, ALICE, "Open")
            reply = decode_reply((await connection.request(subject, b"", b"Aether-Timeout-Ms: soon\r\n")).payload)
            assert (reply.outcome, reply.reason, "Aether-Timeout-Ms" in reply.message) == ("rejected", Reason.INVALID_COMMAND, True)
            accepted = decode_reply((await connection.request(command_subject("call", ALICE, "Open"), b'{"owner":"a"}')).payload)
            assert accepted.outcome in ("accepted", "rejected")
        hostile = decode_reply((await connection.request(command_subject("cmd", ALICE, "Open"), b"{}", b"Aether-Time: 9999-99-99T99:99:99.999999Z\r\n")).payload)
        assert hostile.reason == Reason.INVALID_COMMAND


async def test_pods_pass_commands_on_to_the_one_that_all_of_them_name(nats_server: EmbeddedServer) -> None:
    actors = [parse_actor_id("default", "account", f"a{number}") for number in range(30)]
    async with running_pod(nats_server.url, "pod-a") as a, running_pod(nats_server.url, "pod-b") as b, connected(nats_server.url) as connection:
        await until_live([a, b])
        load = Load(CommandClient(connection), actors)
        await load.open()
        await load.deposit(range(300))
        uids = [PodUid("pod-a"), PodUid("pod-b")]
        assert set(a.runtime.get_active_vms()) == {actor for actor in actors if choose_pod(actor, uids) == "pod-a"}
        assert set(b.runtime.get_active_vms()) == {actor for actor in actors if choose_pod(actor, uids) == "pod-b"}
        journal = await open_journal(connection)
        for actor in actors:
            commits = await read_history(journal, actor)
            check_log(commits)
            check_answers(commits, load.replies_of(actor))
            assert len(events_of(commits)) == 11


async def test_a_placed_actor_is_reached_through_any_pod(nats_server: EmbeddedServer) -> None:
    placements = Placements()
    placements.place(ALICE, PodUid("pod-b"), 5)
    async with running_pod(nats_server.url, "pod-a", placements) as a, running_pod(nats_server.url, "pod-b", placements) as b:
        reply = await a.runtime.send_message(RuntimeMessage(fresh("Open", {"owner": "alice"}, "o")))
        assert (reply.outcome, reply.version) == ("accepted", 1)
        assert (list(a.runtime.get_active_vms()), list(b.runtime.get_active_vms())) == ([], [ALICE])
        await until(lambda: phase_of(b) is ActorPhase.READY)


async def test_a_suspended_and_an_unplaced_actor_say_so(nats_server: EmbeddedServer) -> None:
    placements = Placements()
    placements.homes[ALICE] = Home(PodUid(""), DesiredActor(ALICE, "alice"), suspended=True)
    placements.homes[BOB] = Home(PodUid(""), DesiredActor(BOB, "bob"))
    async with running_pod(nats_server.url, "pod-a", placements), connected(nats_server.url) as connection:
        client = CommandClient(connection)
        assert (await client.send(ALICE, "Open", {"owner": "a"})).reason == Reason.SUSPENDED
        assert (await client.send(BOB, "Open", {"owner": "b"}, timeout_s=1.5)).reason == Reason.BUSY


async def test_a_call_for_an_actor_of_a_lost_pod_rarely_reads_its_resource_and_finds_the_new_vm_before_that_tells(nats_server: EmbeddedServer) -> None:
    placements = Placements()
    placements.homes[ALICE] = Home(PodUid("gone"), DesiredActor(ALICE, "alice", "uid-alice", Epoch(1)))
    async with (
        running_pod(nats_server.url, "pod-a", placements) as a,
        running_pod(nats_server.url, "pod-b", placements) as b,
        connected(nats_server.url) as connection,
        asyncio.TaskGroup() as tasks,
    ):
        began_s = time.monotonic()
        call = tasks.create_task(CommandClient(connection).send(ALICE, "Open", {"owner": "alice"}))
        await until(lambda: a.runtime.router.searching + b.runtime.router.searching == 1)
        await until(lambda: time.monotonic() > began_s + 0.5)  # in which one that looks each time would have looked ten times

        placements.listeners[PodUid("pod-b")].on_adopt(DesiredActor(ALICE, "alice", "uid-alice", Epoch(2), 1, 50))
        reply = await call

        assert (reply.outcome, list(b.runtime.get_active_vms())) == ("accepted", [ALICE])
        assert placements.homes[ALICE].pod_uid == "gone"
        assert placements.looks <= 2 * (1 + (time.monotonic() - began_s) / DIRECTORY_AGAIN_S)


async def test_a_call_finds_a_live_vm_while_the_directory_does_not_answer(nats_server: EmbeddedServer) -> None:
    placements = Placements(hangs=True)
    async with (
        running_pod(nats_server.url, "pod-a", placements) as a,
        running_pod(nats_server.url, "pod-b", placements) as b,
        connected(nats_server.url) as connection,
        asyncio.TaskGroup() as tasks,
    ):
        call = tasks.create_task(CommandClient(connection).send(ALICE, "Open", {"owner": "alice"}))
        await until(lambda: a.runtime.router.searching + b.runtime.router.searching == 1)

        placements.listeners[PodUid("pod-b")].on_adopt(DesiredActor(ALICE, "alice", "uid-alice", Epoch(2), 1, 50))

        assert (await call).outcome == "accepted"
        assert placements.looks


async def test_calls_that_gave_up_on_a_directory_that_hangs_made_one_read_and_leave_nothing_behind(nats_server: EmbeddedServer) -> None:
    def count_reads() -> int:
        return sum(task.get_name().startswith("look for") for task in asyncio.all_tasks())

    placements = Placements(hangs=True)
    async with running_pod(nats_server.url, "pod-a", placements) as pod:
        answers: list[Reply] = []
        for number in range(100):
            pod.runtime.router.serve(msgspec.structs.replace(fresh("Open", {"owner": "alice"}, f"o{number}"), timeout_s=0.5), answers.append)
        await until(lambda: placements.looks)
        assert count_reads() == 1
        await until(lambda: len(answers) == 100 and not count_reads())
        assert ({answer.reason for answer in answers}, placements.looks) == ({Reason.BUSY}, 1)
        assert all("resource could not be looked up: no answer yet" in answer.message for answer in answers)

        placements.hangs = False
        assert (await pod.runtime.send_message(RuntimeMessage(fresh("Open", {"owner": "alice"}, "again")))).outcome == "accepted"


DEPOSITS: Final = 5000
"""Commands of a load that is not over before its actor has moved six times, however fast the machine is."""


async def test_an_actor_moves_under_load_and_no_caller_gets_an_error(nats_server: EmbeddedServer) -> None:
    placements = Placements()
    placements.place(ALICE, PodUid("pod-a"), 1)
    async with running_pod(nats_server.url, "pod-a", placements), running_pod(nats_server.url, "pod-b", placements), connected(nats_server.url) as connection:
        load = Load(CommandClient(connection), [ALICE])
        await load.open()

        async def move() -> None:
            for epoch in range(2, 8):
                await until(partial(load.has_sent, load.sent + 40))
                placements.place(ALICE, PodUid("pod-b" if epoch % 2 == 0 else "pod-a"), epoch)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.deposit(range(DEPOSITS)))
            tasks.create_task(move())
        assert {reply.outcome for _, reply in load.replies} == {"accepted"}
        commits = await read_history(await open_journal(connection), ALICE)
        check_log(commits)
        check_answers(commits, load.replies_of(ALICE))
        assert (len(events_of(commits)), max(commit.epoch for commit in commits)) == (1 + DEPOSITS, 7)


async def test_a_zombie_is_fenced_when_a_newer_owner_writes(nats_server: EmbeddedServer) -> None:
    placements = Placements()
    placements.place(ALICE, PodUid("pod-a"), 1)
    async with running_pod(nats_server.url, "pod-a", placements) as a, running_pod(nats_server.url, "pod-b", placements) as b:
        await a.runtime.send_message(RuntimeMessage(fresh("Open", {"owner": "alice"}, "o")))
        zombie = a.runtime.get_active_vms()[ALICE]
        placements.place(ALICE, PodUid("pod-b"), 2, tell_old=False)
        await until(lambda: ALICE in b.runtime.get_active_vms() and b.runtime.get_active_vms()[ALICE].is_ready)
        heir = b.runtime.get_active_vms()[ALICE]
        await send_to(b, fresh("Deposit", {"amount": 1}, "d1"))
        reply = await send_to(a, fresh("Deposit", {"amount": 1}, "d2"))
        assert (reply.outcome, reply.reason, reply.retry_after_ms > 0) == ("error", Reason.BUSY, True)
        await until(lambda: ALICE not in a.runtime.get_active_vms())
        await until(lambda: a.sink.reports[ALICE].fenced_by == 2)
        assert zombie.phase is ActorPhase.STOPPING
        retried = await a.runtime.send_message(RuntimeMessage(fresh("Deposit", {"amount": 1}, "d2")))
        assert (retried.outcome, retried.version, heir.get_version()) == ("accepted", 3, 3)


def phase_of(pod: RunningPod) -> ActorPhase | None:
    return pod.sink.reports[ALICE].phase if ALICE in pod.sink.reports else None


async def send_to(pod: RunningPod, command: Command) -> Reply:
    """Hand a command to the VM that a pod believes to own."""
    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    pod.runtime.get_active_vms()[command.actor].process_command(Waiting(command, asyncio.get_running_loop().time() + 10, answer.set_result))
    return await answer


async def test_what_was_looked_up_before_a_release_does_not_bring_the_actor_back(nats_server: EmbeddedServer) -> None:
    """Found by the simulation: the VM that came back was told of by nobody any more, and lived on beside its successor."""
    placements = Placements()
    async with running_pod(nats_server.url, "pod-a", placements) as pod:
        placements.place(ALICE, PodUid("pod-a"), 5)
        vms, desired = pod.runtime.get_active_vms(), placements.homes[ALICE].desired
        await until(lambda: ALICE in vms and vms[ALICE].is_ready)
        pod.runtime.on_release(ALICE, desired.epoch)
        await until(lambda: ALICE not in vms)
        assert (pod.runtime.activate(desired), dict(vms)) == (None, {})
        pod.runtime.on_adopt(desired)
        await until(lambda: ALICE in vms and vms[ALICE].is_ready)
        assert pod.runtime.activate(desired) is vms[ALICE]


async def test_what_is_told_late_of_an_older_placement_changes_nothing(nats_server: EmbeddedServer) -> None:
    placements = Placements()
    async with running_pod(nats_server.url, "pod-a", placements) as pod:
        placements.place(ALICE, PodUid("pod-a"), 5)
        desired = placements.homes[ALICE].desired
        await until(lambda: pod.runtime.registry.desired.get(ALICE) == desired)
        pod.runtime.on_adopt(replace(desired, epoch=Epoch(4)))
        assert pod.runtime.registry.desired.get(ALICE) == desired
        pod.runtime.on_release(ALICE, Epoch(4))
        assert pod.runtime.registry.desired.get(ALICE) == desired


async def test_the_placed_owner_stays_when_an_activation_without_a_resource_took_over_its_epoch(nats_server: EmbeddedServer) -> None:
    """Found by the simulation: a pod that did not know the new resource wrote at its epoch, and the placed owner gave up for good."""
    placements = Placements()
    async with running_pod(nats_server.url, "pod-a", placements) as placed, running_pod(nats_server.url, "pod-b", placements) as other:
        await until_live((placed, other))
        names = (parse_actor_id("default", "account", f"a{number}") for number in range(100))
        actor = next(actor for actor in names if choose_pod(actor, other.runtime.presence.pods.live()) == "pod-b")
        placements.place(actor, PodUid("pod-a"), 5)
        await until(lambda: actor in placed.runtime.get_active_vms() and placed.runtime.get_active_vms()[actor].is_ready)
        assert (await placed.runtime.send_message(RuntimeMessage(fresh("Open", {"owner": "a"}, "c-1", actor=actor)))).version == 1
        impostor = other.runtime.activate(DesiredActor(actor))
        assert impostor is not None
        await until(lambda: impostor.is_ready)
        impostor.process_command(Waiting(fresh("Deposit", {"amount": 1}, "c-2", actor=actor), asyncio.get_running_loop().time() + 10, lambda reply: None))
        await until(lambda: impostor.get_version() == 2)
        assert (await placed.runtime.send_message(RuntimeMessage(fresh("Deposit", {"amount": 1}, "c-3", actor=actor)))).version == 3
        impostor.process_command(Waiting(fresh("Deposit", {"amount": 1}, "c-4", actor=actor), asyncio.get_running_loop().time() + 10, lambda reply: None))
        await until(lambda: actor not in other.runtime.get_active_vms())
        assert list(placed.runtime.get_active_vms()) == [actor]


async def test_an_actor_on_demand_that_lost_against_another_pod_can_come_back(nats_server: EmbeddedServer) -> None:
    uids = [PodUid("pod-a"), PodUid("pod-b")]
    actor = next(actor for number in range(99) if choose_pod(actor := parse_actor_id("default", "account", f"x{number}"), uids) == "pod-b")
    async with running_pod(nats_server.url, "pod-a") as a, connected(nats_server.url) as connection:
        client = CommandClient(connection)
        await client.send(actor, "Open", {"owner": "x"})
        async with running_pod(nats_server.url, "pod-b") as b:
            await until_live([a, b])
            b.runtime.create_vm(DesiredActor(actor))
            await until(lambda: b.runtime.get_active_vms()[actor].is_ready)
            assert (await b.runtime.send_message(RuntimeMessage(fresh("Deposit", {"amount": 1}, "d1", actor=actor)))).version == 2
            await a.runtime.send_message(RuntimeMessage(fresh("Deposit", {"amount": 1}, "d2", actor=actor)))
            await until(lambda: actor not in a.runtime.get_active_vms())
            assert actor not in a.runtime._fenced, "no placement of it can come again"
        reply = await client.send(actor, "Deposit", {"amount": 1}, command_id="d3", timeout_s=WAIT_S)
        assert reply.outcome == "accepted"
        check_log(await read_history(await open_journal(connection), actor))


async def test_an_actor_that_is_given_back_while_its_vm_stops_keeps_what_is_known_of_its_new_placement(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    placements, stops, may_stop = Placements(), asyncio.Event(), asyncio.Event()
    stop = VirtualMachine.stop

    async def stop_later(self: VirtualMachine, *, snapshot: bool = True) -> None:
        stops.set()
        await may_stop.wait()
        await stop(self, snapshot=snapshot)

    async with running_pod(nats_server.url, "pod-a", placements) as pod:
        placements.place(ALICE, PodUid("pod-a"), 5)
        vms = pod.runtime.get_active_vms()
        await until(lambda: phase_of(pod) is ActorPhase.READY)
        monkeypatch.setattr(VirtualMachine, "stop", stop_later)
        former = vms[ALICE]
        pod.runtime.on_release(ALICE, former.desired.epoch)
        await stops.wait()

        placements.place(ALICE, PodUid("pod-a"), 6, tell_old=False)
        may_stop.set()
        while vms.get(ALICE) in (None, former):
            await asyncio.sleep(0)
        pod.runtime.on_assign(placements.homes[ALICE].desired)  # a new leader introduces himself

        await until(lambda: ALICE in pod.sink.reports and pod.sink.reports[ALICE].desired.epoch == 6 and phase_of(pod) is ActorPhase.READY)


async def test_an_actor_whose_resource_is_gone_goes_on_on_demand(nats_server: EmbeddedServer) -> None:
    """Its events stay (Retain), with the epochs of its placements."""
    placements = Placements()
    placements.place(ALICE, PodUid("pod-a"), 1_782_907_200_000)
    async with running_pod(nats_server.url, "pod-a", placements) as a, connected(nats_server.url) as connection:
        client = CommandClient(connection)
        await client.send(ALICE, "Open", {"owner": "alice"})
        home = placements.homes.pop(ALICE)
        a.runtime.on_release(ALICE, home.desired.epoch)
        await until(lambda: ALICE not in a.runtime.get_active_vms())
        reply = await client.send(ALICE, "Deposit", {"amount": 1})
        assert (reply.outcome, reply.version) == ("accepted", 2)


async def test_a_pod_that_is_leaving_sends_callers_elsewhere(nats_server: EmbeddedServer) -> None:
    async with running_pod(nats_server.url, "pod-b") as b, connected(nats_server.url) as connection:
        load = Load(CommandClient(connection), [ALICE, BOB])
        async with running_pod(nats_server.url, "pod-a") as a:
            await until_live([a, b])
            await load.open()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(load.deposit(range(400)))
                await until(lambda: load.sent > 100)
                a.runtime.request_stop()
        assert {reply.outcome for _, reply in load.replies} == {"accepted"}
        journal = await open_journal(connection)
        for actor in load.actors:
            commits = await read_history(journal, actor)
            check_log(commits)
            check_answers(commits, load.replies_of(actor))
            assert len(events_of(commits)) == 201


async def test_a_stopped_runtime_answers_that_it_stops(nats_server: EmbeddedServer) -> None:
    async with running_pod(nats_server.url, "pod-a") as a:
        pass
    async with asyncio.timeout(5):
        reply = await a.runtime.send_message(RuntimeMessage(fresh("Open", {"owner": "alice"}, "o")))
    assert (reply.reason, reply.retry_after_ms > 0) == (Reason.BUSY, True)


async def test_a_missing_model_is_told_in_the_status_and_heals_when_it_comes(nats_server: EmbeddedServer) -> None:
    placements = Placements(models=[])
    placements.place(ALICE, PodUid("pod-a"), 1)
    async with running_pod(nats_server.url, "pod-a", placements) as a, connected(nats_server.url) as connection:
        await until(lambda: ALICE in a.sink.reports)
        report = a.sink.reports[ALICE]
        assert (report.phase, report.reason) == (ActorPhase.SCHEDULED, "ModelNotFound")
        reply = await CommandClient(connection).send(ALICE, "Open", {"owner": "alice"}, timeout_s=2)
        assert (reply.outcome, reply.reason) == ("error", Reason.UNKNOWN_MODEL)
        a.runtime.on_model(read_account())
        await until(lambda: a.sink.reports[ALICE].phase is ActorPhase.READY)


async def test_a_model_that_does_not_compile_is_told_with_its_problems(nats_server: EmbeddedServer) -> None:
    document = read_account().model_dump(mode="json", by_alias=True, exclude_defaults=True)
    document["spec"]["commands"]["Deposit"]["guards"][0]["rule"] = "state.opne"
    placements = Placements(models=[ActorModel.model_validate(document)])
    placements.place(ALICE, PodUid("pod-a"), 1)
    async with running_pod(nats_server.url, "pod-a", placements) as a:
        await until(lambda: ALICE in a.sink.reports)
        assert a.sink.reports[ALICE].reason == "ModelNotAccepted"
        assert "spec.commands.Deposit.guards[0].rule" in a.sink.reports[ALICE].message
        assert a.runtime.get_active_vms() == {}


@pytest.mark.parametrize("fold_changes", [False, True])
async def test_a_new_model_is_taken_over_while_the_actor_lives(nats_server: EmbeddedServer, fold_changes: bool) -> None:
    document = read_account().model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if fold_changes:
        document["spec"]["events"]["Deposited"]["set"]["balance"] = "state.balance + event.amount * 100"
    document["spec"]["commands"]["Deposit"]["guards"].append({"rule": "command.amount < 1000", "reason": "TooMuch", "message": "at most 999"})
    async with running_pod(nats_server.url, "pod-a") as a, connected(nats_server.url) as connection:
        client = CommandClient(connection)
        await client.send(ALICE, "Open", {"owner": "alice"})
        await client.send(ALICE, "Deposit", {"amount": 5000})
        a.runtime.on_model(ActorModel.model_validate(document))
        await until(lambda: [vm.model is a.runtime.find_model("account") and vm.is_ready for vm in a.runtime.get_active_vms().values()] == [True])
        reply = await client.send(ALICE, "Deposit", {"amount": 5000})
        assert (reply.outcome, reply.reason) == ("rejected", "TooMuch")
        dry = await client.send(ALICE, "Open", {"owner": "alice"}, dry_run=True)
        assert dry.state is not None
        assert (dry.version, dry.state["balance"]) == (2, 500_000 if fold_changes else 5000)
