"""What the stages of a turn promise: together for all actors, one failing actor harms no other, and nothing is done twice."""

from __future__ import annotations

import asyncio

import pytest

from aether_api.envelope import Commit
from aether_api.errors import Reason
from aether_api.identity import parse_actor_id
from aether_api.messages import Reply
from aether_runtime.adapters.memory import MemoryCommitLog
from aether_runtime.core.group import Group, Waiting
from aether_runtime.vm import VirtualMachine
from tests.histories.bank import ALICE, build_command
from tests.histories.faults import Fate, FaultyCommitLog
from tests.histories.world import Pod, run_commands, send_alone, settle

BOB = parse_actor_id("default", "account", "bob")


async def test_what_arrives_together_for_an_actor_becomes_one_commit() -> None:
    events = FaultyCommitLog(MemoryCommitLog())
    pod = Pod("a", events)
    vm = await pod.start()
    replies = await run_commands(pod, vm, build_command("Open", {"owner": "a"}, id="open"), *(build_command("Deposit", {"amount": 1}, id=f"d{number}") for number in range(3)))
    assert [reply.version for reply in replies] == [1, 2, 3, 4]
    assert [(commit.first_version, commit.last_version) for commit in events.appends] == [(1, 4)]


async def test_all_actors_have_decided_before_the_first_append_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[tuple[str, str]] = []
    decide, store = VirtualMachine.decide, VirtualMachine.store

    def note_decide(self: VirtualMachine) -> Group | None:
        stages.append(("decide", self.get_actor_id().id))
        return decide(self)

    def note_store(self: VirtualMachine, group: Group) -> None:
        stages.append(("store", self.get_actor_id().id))
        store(self, group)

    monkeypatch.setattr(VirtualMachine, "decide", note_decide)
    monkeypatch.setattr(VirtualMachine, "store", note_store)
    pod = Pod("a", FaultyCommitLog(MemoryCommitLog()))
    alice, bob = await pod.start(), await pod.start(actor=BOB, name="bob")
    calls = [pod.send(vm, build_command("Open", {"owner": "x"}, id="open", actor=vm.get_actor_id())) for vm in (alice, bob)]
    await settle(pod, until=lambda: all(call.answers for call in calls))
    assert stages == [("decide", "alice"), ("decide", "bob"), ("store", "alice"), ("store", "bob")]


async def test_an_actor_that_fails_to_take_its_ack_leaves_the_others_their_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    events = FaultyCommitLog(MemoryCommitLog(), lambda commit: Fate.HELD)
    pod = Pod("a", events)
    alice, bob = await pod.start(), await pod.start(actor=BOB, name="bob")
    calls = {vm.get_actor_id(): pod.send(vm, build_command("Open", {"owner": "x"}, id="open", actor=vm.get_actor_id())) for vm in (alice, bob)}
    await settle(pod)
    accept = VirtualMachine.accept

    def fail_for_alice(self: VirtualMachine, commit: Commit, group: Group, sequence: int) -> bool:
        if self is alice:
            self._history = None  # type: ignore[assignment]  # whatever must not happen
        return accept(self, commit, group, sequence)

    monkeypatch.setattr(VirtualMachine, "accept", fail_for_alice)
    events.release()
    await settle(pod, until=lambda: bool(calls[BOB].answers))
    assert calls[BOB].reply.outcome == "accepted"
    assert calls[ALICE].reply.reason == Reason.UNKNOWN, "nobody may be told what the actor could not take"
    assert [type(error) for error in pod.failures] == [AttributeError]


async def test_a_command_that_arrives_and_is_stopped_before_the_turn_is_sent_away() -> None:
    events = FaultyCommitLog(MemoryCommitLog())
    pod = Pod("a", events)
    vm = await pod.start()
    call = pod.send(vm, build_command("Open", {"owner": "a"}, id="open"))
    async with asyncio.timeout(5):
        await vm.stop()
    await settle(pod)
    assert (call.reply.outcome, call.reply.retry_after_ms > 0, events.appends) == ("error", True, [])


async def test_a_turn_that_comes_while_an_append_is_under_way_decides_nothing() -> None:
    events = FaultyCommitLog(MemoryCommitLog(), lambda commit: Fate.HELD)
    pod = Pod("a", events)
    vm = await pod.start()
    first = await send_alone(pod, vm, build_command("Open", {"owner": "a"}, id="open"))
    assert vm.decide() is None
    later = pod.send(vm, build_command("Deposit", {"amount": 1}, id="d"))
    await settle(pod)
    assert (len(events.appends), first.answers, later.answers) == (1, [], [])


@pytest.mark.parametrize("stage", ["decide", "accept"])
async def test_an_actor_that_fails_and_cannot_say_so_leaves_the_others_their_answers(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    def fail_to_answer(reply: Reply) -> None:
        raise TypeError("this answer cannot be encoded")

    events = FaultyCommitLog(MemoryCommitLog(), lambda commit: Fate.HELD)
    pod = Pod("a", events)
    alice, bob = await pod.start(), await pod.start(actor=BOB, name="bob")
    alice.process_command(Waiting(build_command("Open", {"owner": "x"}, id="open"), 10.0, fail_to_answer))
    call = pod.send(bob, build_command("Open", {"owner": "x"}, id="open", actor=BOB))
    if stage == "decide":
        alice._history = None  # type: ignore[assignment]  # whatever must not happen
    await settle(pod)
    if stage == "accept":
        alice.process_command(Waiting(build_command("Deposit", {"amount": 1}, id="d"), 10.0, fail_to_answer))
        alice._history = None  # type: ignore[assignment]  # as above
    events.release()
    await settle(pod, until=lambda: bool(call.answers))
    assert (call.reply.outcome, bob.is_ready) == ("accepted", True)
    assert [type(error) for error in pod.failures] == [AttributeError]
