"""Durable commands and reminders within a VM: positions and reminders in commits, schedules before and after them."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

import msgspec
import pytest

from aether_api.durable import NEVER_S, InboxPosition, Tick
from aether_api.envelope import Commit, StoredCommit
from aether_api.errors import CommandFailed, Disconnected, InternalError, Reason, RetryableError, StreamUnavailable
from aether_api.identity import ActorId, Epoch
from aether_api.messages import Command, Reply, format_time
from aether_nats.schedules import Reminder
from aether_runtime.adapters.memory import MemoryCommitLog
from aether_runtime.core.group import COMMANDS_MAX, InboxEntry, Now, Waiting, decide_group
from aether_runtime.core.history import History
from aether_runtime.core.reminders import CHANGES_BYTES_MAX, REMINDER_GONE, parse_changes
from aether_runtime.core.window import AGE_MAX_S
from aether_runtime.reminders import GIVE_UP_S, RETRY_S, choose_patience_s
from aether_runtime.vm import VirtualMachine
from tests.histories.alarm import CLOCK, Alarm
from tests.histories.bank import START_S, build_command, compile_account
from tests.histories.faults import Fate, FaultyCommitLog
from tests.histories.inbox import Schedules
from tests.histories.invariants import read_history
from tests.histories.world import Call, Pod, run_commands, send_alone, settle

pytestmark = pytest.mark.asyncio


def command(name: str, id: str = "", /, *, age_s: float = 0.0, **fields: object) -> Command:
    return build_command(name, fields, id=id or name, actor=CLOCK, time_s=START_S - age_s)


def send_durable(pod: Pod, vm: VirtualMachine, wish: Command, sequence: int, tick: Tick | None = None) -> Call:
    call = Call(wish)
    vm.process_command(Waiting(wish, float("inf"), call.answers.append, InboxEntry(InboxPosition(7, sequence), tick)))
    return call


async def run_durable(pod: Pod, vm: VirtualMachine, wish: Command, sequence: int, tick: Tick | None = None) -> Reply:
    call = send_durable(pod, vm, wish, sequence, tick)
    await settle(pod, until=lambda: bool(call.answers))
    await settle(pod)
    return call.reply


def build_tick(vm: VirtualMachine, name: str = "morning") -> Tick:
    return Tick(name, vm.reminders[name], "late", "2026-07-01T12:01:00Z", recurring=False)


class Rig:
    """One pod on a log in memory."""

    def __init__(self, *fates: Fate, schedules: Schedules | None = None) -> None:
        waiting = list(fates)
        self.events = FaultyCommitLog(MemoryCommitLog(), lambda commit: waiting.pop(0) if waiting else Fate.STORED)
        self.schedules = schedules or Schedules()
        self.pod = Pod("a", self.events, reminders=self.schedules)

    async def start(self, *, epoch: int = 1) -> VirtualMachine:
        return await self.pod.start(epoch, actor=CLOCK, model=Alarm())

    async def commits(self) -> list[StoredCommit]:
        return await read_history(self.events.inner, CLOCK)


async def test_a_durable_command_moves_the_inbox_with_its_commit_and_never_runs_again() -> None:
    rig = Rig()
    vm = await rig.start()
    assert (await run_durable(rig.pod, vm, command("Ring", "c-1"), 40)).outcome == "accepted"
    again = await run_durable(rig.pod, vm, command("Ring", "c-2"), 40)
    assert (again.outcome, again.version, vm.get_version()) == ("noop", 1, 1)
    assert [commit.inbox for commit in await rig.commits()] == ["7:40"]
    assert vm.inbox == InboxPosition(7, 40)


async def test_the_next_owner_knows_what_was_settled() -> None:
    rig = Rig()
    await run_durable(rig.pod, await rig.start(), command("Ring", "c-1"), 40)
    other = await rig.start(epoch=2)
    assert (await run_durable(rig.pod, other, command("Ring", "c-1"), 40)).outcome == "noop"
    assert (await run_durable(rig.pod, other, command("Ring", "c-2"), 41)).version == 2


async def test_a_durable_command_whose_id_shares_its_hash_with_another_holds_up_no_inbox(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("group", "history"):
        monkeypatch.setattr(f"aether_runtime.core.{module}.hash_command_id", lambda command_id: 7)
    rig = Rig()
    vm = await rig.start()
    replies = [await run_durable(rig.pod, vm, command("Ring", f"c-{sequence}"), sequence) for sequence in (40, 41, 42)]
    assert [(reply.outcome, reply.version) for reply in replies] == [("accepted", 1), ("accepted", 2), ("accepted", 3)]
    assert [commit.inbox for commit in await rig.commits()] == ["7:40", "7:41", "7:42"]


async def test_a_durable_command_is_never_too_old() -> None:
    rig = Rig()
    reply = await run_durable(rig.pod, await rig.start(), command("Ring", age_s=AGE_MAX_S * 1000), 40)
    assert reply.outcome == "accepted"


async def test_a_rejection_settles_with_the_next_commit_and_a_failure_does_not() -> None:
    rig = Rig(Fate.HELD)
    vm = await rig.start()
    await send_alone(rig.pod, vm, command("Ring", "first"))
    refused, failed = send_durable(rig.pod, vm, command("Refuse"), 40), send_durable(rig.pod, vm, command("Fail"), 41)
    other = rig.pod.send(vm, command("Ring", "second"))
    rig.events.release()
    await settle(rig.pod, until=lambda: bool(other.answers))
    assert (refused.reply.outcome, failed.reply.reason) == ("rejected", Reason.COMMAND_FAILED)
    assert [commit.inbox for commit in await rig.commits()] == ["", "7:40"]


async def test_a_refused_append_does_not_move_the_inbox() -> None:
    rig = Rig(Fate.HELD)
    vm = await rig.start()
    call = send_durable(rig.pod, vm, command("Ring", "c-1"), 40)
    rival = await rig.start(epoch=2)
    await run_durable(rig.pod, rival, command("Ring", "c-1"), 40)
    rig.events.release()
    await settle(rig.pod, until=lambda: bool(call.answers))
    assert len(await rig.commits()) == 1


async def test_a_reminder_is_scheduled_before_the_commit_that_names_it() -> None:
    rig = Rig(Fate.HELD)
    vm = await rig.start()
    call = rig.pod.send(vm, command("Set", after_s=60))
    await settle(rig.pod)
    ((key, reminder),) = rig.schedules.made.items()
    assert (await rig.commits(), call.answers) == ([], [])
    rig.events.release()
    await settle(rig.pod, until=lambda: bool(call.answers))
    (commit,) = await rig.commits()
    assert commit.reminders == f"morning:{commit.id}"
    assert (key, reminder.payload, dict(vm.reminders)) == (("morning", commit.id), b'{"label":"morning"}', {"morning": commit.id})


async def test_a_reminder_counts_from_now_although_an_earlier_writer_had_a_clock_that_was_ahead() -> None:
    rig = Rig()
    rig.pod.clock.elapsed_s = 600.0
    await run_commands(rig.pod, await rig.start(), command("Ring", age_s=-600.0))
    rig.pod.clock.elapsed_s = 0.0
    (reply,) = await run_commands(rig.pod, await rig.start(epoch=2), command("Set", after_s=60))
    ((_, reminder),) = rig.schedules.made.items()
    assert (reply.events[0].time, reminder.due) == (format_time(START_S + 600), format_time(START_S + 60))


async def test_a_replaced_and_a_cancelled_reminder_lose_their_schedules_after_the_commit() -> None:
    rig = Rig()
    vm = await rig.start()
    await run_commands(rig.pod, vm, command("Set", "a", after_s=60))
    await run_commands(rig.pod, vm, command("Set", "b", after_s=90))
    await settle(rig.pod)
    assert rig.schedules.names == ["morning"]
    await run_commands(rig.pod, vm, command("Cancel", "c"))
    await settle(rig.pod)
    assert (rig.schedules.names, dict(vm.reminders)) == ([], {})
    assert [commit.reminders for commit in await rig.commits()][-1] == "morning:"


async def test_replacing_a_reminder_that_is_refused_keeps_the_one_in_force() -> None:
    rig = Rig()
    await run_commands(rig.pod, await rig.start(), command("Set", "a", after_s=60))
    first = dict(rig.schedules.made)
    stale = await rig.start()
    await run_commands(rig.pod, await rig.start(epoch=2), command("Ring", "r"))
    call = rig.pod.send(stale, command("Set", "b", after_s=90))
    await settle(rig.pod, until=lambda: bool(call.answers))
    await settle(rig.pod)
    assert call.reply.outcome == "error"
    assert rig.schedules.made == first


async def test_a_lost_ack_keeps_the_reminder_and_ends_the_one_before() -> None:
    rig = Rig(Fate.STORED, Fate.STORED_ACK_LOST)
    vm = await rig.start()
    await run_commands(rig.pod, vm, command("Set", "a", after_s=60), command("Ring", "r"))
    (reply,) = await run_commands(rig.pod, vm, command("Set", "b", after_s=90))
    await settle(rig.pod)
    token = (await rig.commits())[-1].id
    assert (reply.outcome, list(rig.schedules.made)) == ("accepted", [("morning", token)])


async def test_an_owner_whose_actor_was_purged_leaves_no_schedule_behind() -> None:
    """A recurring one would tick for ever for an actor that is no more."""
    rig = Rig()
    vm = await rig.start()
    await run_commands(rig.pod, vm, command("Ring", "r"))
    await rig.events.inner.purge(CLOCK, epoch=Epoch(2), writer="operator")
    (reply,) = await run_commands(rig.pod, vm, command("Set", cron="* * * * * *"))
    await settle(rig.pod)
    assert (reply.reason, rig.schedules.times_made, rig.schedules.names) == (Reason.UNKNOWN, 1, [])


async def test_a_stop_while_nobody_knows_whether_a_commit_is_stored_keeps_its_schedule() -> None:
    """A replicated stream refuses a second try while the first is being written: it may land when the VM has stopped looking."""
    rig = Rig(Fate.REFUSED)
    vm = await rig.start()
    call = rig.pod.send(vm, command("Set", after_s=60))
    await settle(rig.pod)
    (stored,) = rig.events.appends
    vm.cut_short()
    async with asyncio.timeout(5):
        while not call.answers:
            await asyncio.sleep(0.01)
    await rig.events.inner.append(stored)

    heir = await rig.start(epoch=2)

    assert (call.reply.outcome, call.reply.reason) == ("error", Reason.UNKNOWN)
    assert dict(heir.reminders) == {"morning": stored.id}
    assert list(rig.schedules.made) == [("morning", stored.id)]


async def test_schedules_wait_for_the_server() -> None:
    rig = Rig(schedules=Schedules(Disconnected("away"), RetryableError("busy")))
    (reply,) = await run_commands_slowly(rig.pod, await rig.start(), command("Set", after_s=60))
    assert (reply.outcome, rig.schedules.names) == ("accepted", ["morning"])


class NoSchedules(Schedules):
    """Schedules of a stream that is gone, or (`hangs`) has no leader."""

    def __init__(self, *, hangs: bool) -> None:
        super().__init__()
        self.hangs = hangs
        self.tokens: set[str] = set()

    async def set(self, actor: ActorId, reminder: Reminder, token: str) -> None:
        self.tokens.add(token)
        if self.hangs:
            await asyncio.Event().wait()
        raise StreamUnavailable("there is no stream")


@pytest.mark.parametrize("hangs", [False, True])
async def test_commands_whose_schedules_cannot_be_made_are_told_to_come_back_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    monkeypatch.setattr("aether_runtime.reminders.GIVE_UP_S", 0.01)
    monkeypatch.setattr("aether_runtime.reminders.RETRY_S", 0.002)
    schedules = NoSchedules(hangs=hangs)
    rig = Rig(schedules=schedules)
    vm = await rig.start()
    patient = send_durable(rig.pod, vm, command("Set", "d", name="evening", after_s=60), 40)
    calls = [rig.pod.send(vm, item) for item in (command("Set", "a", after_s=60), command("Ring", "b"), command("Set", "c", after_s=90))]
    await settle(rig.pod, until=lambda: vm._busy)
    later = rig.pod.send(vm, command("Set", "e", name="later", after_s=60))
    replies = await hear_slowly(patient, *calls, later)
    why = "no answer" if hangs else "there is no stream"
    assert [(reply.reason, why in reply.message, reply.retry_after_ms > 0) for reply in replies] == [(Reason.BUSY, True, True)] * 2 + [("", False, False)] + [
        (Reason.BUSY, True, True)
    ] * 2
    assert [commit.reminders for commit in await rig.commits()] == [""]
    assert len(schedules.tokens) == 2, "those of a group fail together"


async def test_those_who_waited_with_schedules_that_cannot_be_made_are_stored_before_newcomers_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.reminders.GIVE_UP_S", 0.01)
    monkeypatch.setattr("aether_runtime.reminders.RETRY_S", 0.002)
    rig = Rig(schedules=NoSchedules(hangs=False))
    vm = await rig.start()
    order: list[str] = []

    def answer(call: Call, reply: Reply) -> None:
        order.append(reply.command_id)
        call.answers.append(reply)

    calls = [rig.pod.send(vm, command("Set", after_s=60)), Call(command("Ring")), Call(command("Set", "newcomer", after_s=60))]
    for call in calls[1:]:
        vm.process_command(Waiting(call.command, 10.0, partial(answer, call)))
        await settle(rig.pod, until=lambda: vm._busy)
    await hear_slowly(*calls)
    assert order == ["Ring", "newcomer"]


async def test_a_schedule_is_given_up_while_those_who_wait_with_it_are_still_in_time() -> None:
    def patience(*deadlines: float) -> float:
        items = [Waiting(command("Ring", f"{number}"), deadline, lambda reply: None) for number, deadline in enumerate(deadlines)]
        return choose_patience_s(decide_group(History.empty(Alarm()), items, Now(START_S, 100.0), bytes_max=1 << 20), 100.0)

    assert (patience(NEVER_S), patience(NEVER_S, 101.0, 110.0), patience(100.1)) == (GIVE_UP_S, 0.5, RETRY_S)


async def run_commands_slowly(pod: Pod, vm: VirtualMachine, *commands: Command) -> list[Reply]:
    """Wait for real, since a try that failed is repeated after a fifth of a second."""
    return await hear_slowly(*[pod.send(vm, item) for item in commands])


async def hear_slowly(*calls: Call) -> list[Reply]:
    async with asyncio.timeout(20):
        while not all(call.answers for call in calls):
            await asyncio.sleep(0.02)
    return [call.reply for call in calls]


async def test_a_log_that_fails_once_the_schedules_are_made_leaves_no_caller_without_an_answer() -> None:
    def choose(commit: Commit) -> Fate:
        raise InternalError("the journal is broken")

    rig = Rig()
    vm = await rig.start()
    rig.events.choose = choose
    call = rig.pod.send(vm, command("Set", after_s=60))
    await settle(rig.pod, until=lambda: bool(rig.pod.failures))
    assert (call.reply.reason, call.reply.retry_after_ms > 0) == (Reason.BUSY, True)


async def test_a_schedule_that_nobody_can_read_fails_its_command_and_no_other() -> None:
    rig = Rig(Fate.HELD, schedules=Schedules(CommandFailed("no such cron")))
    vm = await rig.start()
    await send_alone(rig.pod, vm, command("Ring", "first"))
    calls = [rig.pod.send(vm, item) for item in (command("Ring", "r"), command("Set", "s", cron="@daily"), command("Set", "t", name="evening", after_s=60))]
    rig.events.release()
    await settle(rig.pod, until=lambda: all(call.answers for call in calls))
    await settle(rig.pod)
    assert [(call.reply.outcome, call.reply.reason) for call in calls] == [("accepted", ""), ("error", Reason.COMMAND_FAILED), ("accepted", "")]
    assert rig.schedules.names == ["evening"]


async def test_a_wish_that_makes_no_sense_fails_its_command() -> None:
    rig = Rig()
    (reply,) = await run_commands(rig.pod, await rig.start(), command("Set", after_s=-5))
    assert (reply.reason, await rig.commits()) == (Reason.COMMAND_FAILED, [])


async def test_without_a_store_of_reminders_a_command_that_sets_one_fails() -> None:
    rig = Rig()
    pod = Pod("b", rig.events)
    (reply,) = await run_commands(pod, await pod.start(actor=CLOCK, model=Alarm()), command("Set", after_s=60))
    assert (reply.reason, "keeps no reminders" in reply.message) == (Reason.COMMAND_FAILED, True)


async def test_a_one_shot_ends_with_the_commit_of_its_command() -> None:
    rig = Rig()
    vm = await rig.start()
    await run_commands(rig.pod, vm, command("Set", after_s=60))
    tick = Tick("morning", vm.reminders["morning"], "late", "2026-07-01T12:01:00Z", recurring=False)
    assert (await run_durable(rig.pod, vm, command("Ring", "tick"), 50, tick)).outcome == "accepted"
    assert dict(vm.reminders) == {}
    again = await run_durable(rig.pod, vm, command("Ring", "tick again"), 51, tick)
    assert (again.outcome, again.reason, vm.get_version()) == ("noop", REMINDER_GONE, 2)


@pytest.mark.parametrize("name", ["Refuse", "Ignore"])
async def test_a_one_shot_whose_command_stores_nothing_ends_with_the_next_commit(name: str) -> None:
    rig = Rig()
    vm = await rig.start()
    await run_commands(rig.pod, vm, command("Set", after_s=60))
    tick = build_tick(vm)
    assert (await run_durable(rig.pod, vm, command(name, "tick"), 50, tick)).outcome in ("rejected", "noop")
    assert (dict(vm.reminders), dict((await rig.start(epoch=2)).reminders)) == ({}, {"morning": tick.token}), "the log knows nothing of it yet"
    again = await run_durable(rig.pod, vm, command("Ring", "tick again"), 51, tick)
    assert (again.reason, vm.get_version()) == (REMINDER_GONE, 1)
    await run_commands(rig.pod, vm, command("Ring"))
    assert [commit.reminders for commit in await rig.commits()] == [f"morning:{tick.token}", "morning:"]
    await run_commands(rig.pod, vm, command("Ring", "later"))
    assert [commit.reminders for commit in await rig.commits()][2:] == [""]
    assert dict(vm.reminders) == dict((await rig.start(epoch=2)).reminders) == {}


@pytest.mark.parametrize("fate", [Fate.HELD, Fate.STORED_ACK_LOST])
async def test_the_end_of_a_one_shot_that_stores_nothing_may_be_in_the_commit_of_its_own_group(fate: Fate) -> None:
    rig = Rig(Fate.STORED, Fate.HELD, fate)
    vm = await rig.start()
    await run_commands(rig.pod, vm, command("Set", after_s=60))
    tick = build_tick(vm)
    await send_alone(rig.pod, vm, command("Ring", "before"))
    refused, other = send_durable(rig.pod, vm, command("Refuse"), 50, tick), rig.pod.send(vm, command("Ring"))
    rig.events.release()
    await settle(rig.pod, until=lambda: len(rig.events.appends) == 3)
    rig.events.release()
    await settle(rig.pod, until=lambda: bool(other.answers))
    assert (refused.reply.outcome, [commit.reminders for commit in await rig.commits()][1:]) == ("rejected", ["", "morning:"])
    assert dict(vm.reminders) == dict((await rig.start(epoch=2)).reminders) == {}


async def test_a_reminder_that_is_set_again_after_its_one_shot_was_refused_stays_in_force() -> None:
    rig = Rig()
    vm = await rig.start()
    await run_commands(rig.pod, vm, command("Set", after_s=60))
    await run_durable(rig.pod, vm, command("Refuse", "tick"), 50, build_tick(vm))
    await run_commands(rig.pod, vm, command("Set", "again", after_s=60), command("Ring"))
    assert list(vm.reminders) == ["morning"]
    assert dict(vm.reminders) == dict((await rig.start(epoch=2)).reminders)
    assert (await run_durable(rig.pod, vm, command("Ring", "tick again"), 51, build_tick(vm))).outcome == "accepted"


async def test_a_tick_whose_command_fails_keeps_its_reminder() -> None:
    rig = Rig()
    vm = await rig.start()
    await run_commands(rig.pod, vm, command("Set", after_s=60))
    assert (await run_durable(rig.pod, vm, command("Fail", "tick"), 50, build_tick(vm))).outcome == "error"
    assert list(vm.reminders) == ["morning"], "its command is tried again"


async def test_one_shots_that_fired_by_the_hundred_end_with_several_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.reminders.CHANGES_BYTES_MAX", 2 * len("r0:,"))
    rig = Rig()
    vm = await rig.start()
    names = [f"r{number}" for number in range(5)]
    await run_commands(rig.pod, vm, *(command("Set", name, name=name, after_s=60) for name in names))
    for sequence, name in enumerate(names, 50):
        vm.skip_tick(build_tick(vm, name)) if name == "r0" else await run_durable(rig.pod, vm, command("Refuse", f"tick of {name}"), sequence, build_tick(vm, name))
    for left in (3, 1, 0):
        await run_commands(rig.pod, vm, command("Ring", f"{left} left"))
        assert (dict(vm.reminders), len((await rig.start(epoch=2)).reminders)) == ({}, left)


LONG: Final = "r" * 50
"""Begins names that fill a header soon."""


async def test_commands_whose_reminders_do_not_fit_into_one_header_wait_for_the_next_commit() -> None:
    rig = Rig()
    replies = await run_commands(rig.pod, await rig.start(), *(command("SetMany", f"c-{number}", name=f"{LONG}_{number}", count=5, after_s=60) for number in range(COMMANDS_MAX)))
    commits = await rig.commits()
    assert {reply.outcome for reply in replies} == {"accepted"}
    assert sum(len(parse_changes(commit.reminders)) for commit in commits) == 5 * COMMANDS_MAX
    assert max(len(commit.reminders) for commit in commits) <= CHANGES_BYTES_MAX


@pytest.mark.parametrize(("name", "count"), [("SetMany", 800), ("CancelMany", 1100)])
async def test_a_command_with_more_reminders_than_a_header_holds_is_refused_before_anything_is_scheduled(name: str, count: int) -> None:
    rig = Rig()
    vm = await rig.start()
    for first in range(0, count, 100):
        await run_commands(rig.pod, vm, *(command("Set", f"s-{number}", name=f"{LONG}_{number}", after_s=60) for number in range(first, first + 100)))
    made = rig.schedules.times_made
    reply, other = await run_commands(rig.pod, vm, command(name, name=LONG, count=count, after_s=60), command("Ring"))
    assert (reply.outcome, reply.reason, f"its {count} reminders need " in reply.message) == ("error", Reason.COMMIT_TOO_LARGE, True)
    assert (other.outcome, rig.schedules.times_made, len(vm.reminders)) == ("accepted", made, count)


async def test_one_shots_that_ring_together_end_in_as_many_commits_as_their_names_need(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    vm = await rig.start()
    names = [f"r{number}" for number in range(5)]
    await run_commands(rig.pod, vm, *(command("Set", name, name=name, after_s=60) for name in names))
    for module in ("reminders", "core.group"):
        monkeypatch.setattr(f"aether_runtime.{module}.CHANGES_BYTES_MAX", 3 * len("r0:,") - 1)
    calls = [send_durable(rig.pod, vm, command("Ring", f"tick of {name}"), sequence, build_tick(vm, name)) for sequence, name in enumerate(names, 50)]
    await settle(rig.pod, until=lambda: all(call.answers for call in calls))
    assert [commit.reminders for commit in await rig.commits()][1:] == ["r0:,r1:,r2:", "r3:,r4:"]
    assert dict(vm.reminders) == {}


async def test_a_recurring_reminder_stays_in_force() -> None:
    rig = Rig()
    vm = await rig.start()
    await run_commands(rig.pod, vm, command("Set", cron="@daily"))
    tick = Tick("morning", vm.reminders["morning"], "late", "2026-07-01T12:01:00Z", recurring=True)
    for sequence in (50, 51):
        assert (await run_durable(rig.pod, vm, command("Ring", f"tick-{sequence}"), sequence, tick)).outcome == "accepted"
    assert list(vm.reminders) == ["morning"]


async def test_a_tick_that_sets_its_reminder_again_keeps_the_new_one() -> None:
    rig = Rig()
    vm = await rig.start()
    await run_commands(rig.pod, vm, command("Set", "a", after_s=60))
    tick = Tick("morning", vm.reminders["morning"], "late", "2026-07-01T12:01:00Z", recurring=False)
    await run_durable(rig.pod, vm, command("Set", "b", after_s=60), 50, tick)
    token = (await rig.commits())[-1].id
    assert (dict(vm.reminders), ("morning", token) in rig.schedules.made) == ({"morning": token}, True)


async def test_a_tick_that_comes_before_the_commit_of_its_reminder_waits_for_it() -> None:
    rig = Rig(Fate.HELD)
    vm = await rig.start()
    rig.pod.send(vm, command("Set", after_s=0))
    await settle(rig.pod)
    ((_, token),) = rig.schedules.made
    early = send_durable(rig.pod, vm, command("Ring", "tick"), 50, Tick("morning", token, "late", "2026-07-01T12:00:00Z", recurring=False))
    rig.events.release()
    await settle(rig.pod, until=lambda: bool(early.answers))
    assert early.reply.outcome == "accepted"


async def test_a_one_shot_that_came_due_before_its_commit_is_scheduled_again() -> None:
    rig = Rig(Fate.HELD)
    vm = await rig.start()
    call = rig.pod.send(vm, command("Set", after_s=5))
    await settle(rig.pod)
    rig.pod.clock.elapsed_s = 6.0
    rig.events.release()
    await settle(rig.pod, until=lambda: bool(call.answers))
    await settle(rig.pod)
    assert rig.schedules.times_made == 2


async def test_a_one_shot_that_has_to_be_scheduled_again_waits_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.reminders.RETRY_S", 0.0)
    rig = Rig(Fate.HELD)
    vm = await rig.start()
    call = rig.pod.send(vm, command("Set", after_s=5))
    await settle(rig.pod)
    rig.pod.clock.elapsed_s = 6.0
    rig.schedules.failures = [Disconnected("away"), RetryableError("busy")]
    rig.events.release()
    await settle(rig.pod, until=lambda: bool(call.answers))
    await settle(rig.pod, until=lambda: rig.schedules.times_made == 2)
    assert rig.schedules.failures == []


async def test_reminders_and_the_inbox_survive_in_a_snapshot() -> None:
    rig = Rig()
    vm = await rig.start()
    await run_commands(rig.pod, vm, command("Set", after_s=60))
    await run_durable(rig.pod, vm, command("Ring", "c-1"), 40)
    reminders = dict(vm.reminders)
    await vm.stop()
    other = await rig.start(epoch=2)
    assert other.snapshot.version == 2
    assert (dict(other.reminders), other.inbox) == (reminders, InboxPosition(7, 40))
    assert msgspec.json.decode(Alarm().encode_state(other.get_state())) == {"rang": ["Set", "Ring"]}


async def test_a_command_that_the_model_does_not_know_is_not_settled_by_what_is_stored_with_it() -> None:
    """It is still to become a dead letter: a process that ended in between would have lost it without a trace."""
    waiting = [
        Waiting(build_command("Nonsense", {}, id="no"), float("inf"), list[Reply]().append, InboxEntry(InboxPosition(7, 1))),
        Waiting(build_command("Open", {"owner": "alice"}, id="a"), float("inf"), list[Reply]().append),
    ]
    group = decide_group(History.empty(compile_account()), waiting, Now(START_S, 0.0), bytes_max=1 << 20)
    assert [reply.outcome for _, reply in group.answers] == ["rejected", "accepted"]
    assert group.inbox is None
