"""Drains of an inbox in memory: what becomes of commands that fail, of their tries, and of what cannot be buried."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import pytest

from aether_api import headers
from aether_api.durable import InboxPosition
from aether_api.errors import Disconnected, InternalError, JetStreamError, Reason
from aether_api.identity import ActorId
from aether_api.messages import build_error, format_time
from aether_model.model import CommandInput, Decision, Rejected, State
from aether_nats.inbox import READ_AHEAD, Tries
from aether_nats.jetstream_wire import StoredMessage
from aether_runtime.adapters.memory import MemoryCommitLog
from aether_runtime.core.group import Waiting
from aether_runtime.core.inbox import TRIES_MAX
from aether_runtime.inbox import DurableInbox
from aether_runtime.vm import VirtualMachine
from tests.histories.alarm import CLOCK, Alarm
from tests.histories.bank import START_S, build_command
from tests.histories.faults import Fate, FaultyCommitLog
from tests.histories.inbox import Host, MemoryInbox, Schedules, hurry_drains
from tests.histories.invariants import events_of, read_history
from tests.histories.world import Pod, run_commands

if TYPE_CHECKING:
    from aether_runtime.runtime import Runtime

pytestmark = pytest.mark.asyncio


OTHER = ActorId(CLOCK.namespace, CLOCK.model, "other")


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing wait for a clock."""
    hurry_drains(monkeypatch)


class Rig:
    """One pod with the clock, on a log and an inbox in memory."""

    def __init__(self, store: MemoryInbox | None = None, *fates: Fate) -> None:
        waiting = list(fates)
        self.events = FaultyCommitLog(MemoryCommitLog(), lambda commit: waiting.pop(0) if waiting else Fate.STORED)
        self.store = store or MemoryInbox()
        self.host = Host(Pod("a", self.events, reminders=Schedules()))
        self.inbox = DurableInbox(cast("Any", None), self.store, None, cast("Runtime", self.host), now_s=lambda: START_S)

    async def start(self, model: Alarm | None = None) -> VirtualMachine:
        """Make the VM; nothing is drained yet."""
        vm = self.host.vms[CLOCK] = await self.host.pod.start(1, actor=CLOCK, model=model or Alarm())
        self.inbox.on_ready(vm)
        return vm

    async def start_and_ring_thrice(self) -> VirtualMachine:
        """Make the VM, and run three commands."""
        vm = await self.start()
        self.send("Ring", "Ring", "Ring")
        await self.drain()
        return vm

    def send(self, *names: str) -> None:
        """Store durable commands, whose labels are their names."""
        for name in names:
            self.store.send(build_command(name, {"label": name}, id=f"{name}-{self.store.sequence}", actor=CLOCK))

    def send_tick(self, name: str, reminder: str, token: str, *, due: str = "", missed: str = "late") -> None:
        """Store a tick of a reminder, a recurring one unless it has a time at which it is due."""
        lines = {headers.COMMAND_NAME: name, headers.REMINDER: f"{reminder}:{token}", headers.MISSED: missed, **({headers.DUE: due} if due else {})}
        self.store.put(CLOCK, headers.encode_headers(lines), b'{"label":"%s"}' % reminder.encode())

    async def drain(self) -> None:
        """Run all that waits."""
        self.inbox.drain(CLOCK)
        await self.until(lambda: not self.host.tasks)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0)

    async def rang(self) -> list[str]:
        return [event.fields()["label"] for event in events_of(await read_history(self.events.inner, CLOCK))]

    @property
    def waiting(self) -> list[StoredMessage]:
        return self.store.messages.get(CLOCK, [])


class FullInbox(MemoryInbox):
    """One that takes dead letters only from the second try on."""

    refusals = 0

    async def bury(self, actor: ActorId, message: StoredMessage, reason: str, explanation: str) -> None:
        if self.refusals == 0:
            self.refusals += 1
            raise JetStreamError(400, 10054, "message size exceeds maximum allowed")
        await super().bury(actor, message, reason, explanation)


async def test_a_burial_that_the_server_refuses_is_told_and_tried_again_later_without_running_the_command_again(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(FullInbox())
    await rig.start()
    rig.send("Fail", "Ring")
    with caplog.at_level(logging.ERROR):
        await rig.drain()
    assert (await rig.rang(), [reason for _, reason in rig.store.dead], rig.waiting) == (["Ring"], ["CommandFailed"], [])
    refused, buried = caplog.records
    assert ("holds up" in refused.message, vars(refused)["actor_id"], "given up" in buried.message) == (True, str(CLOCK), True)
    assert len(rig.store.tried) == 5


async def test_a_burial_that_the_server_refuses_is_left_to_the_next_owner() -> None:
    class Closed(MemoryInbox):
        async def bury(self, actor: ActorId, message: StoredMessage, reason: str, explanation: str) -> None:
            await vm.stop()
            raise JetStreamError(400, 10054, "message size exceeds maximum allowed")

    rig = Rig(Closed())
    vm = await rig.start()
    rig.send("Fail")
    await rig.drain()
    assert (len(rig.waiting), rig.inbox.buried) == (1, 0)


def stop_vm(rig: Rig, vm: VirtualMachine) -> None:
    vm.cut_short()


def stop_runtime(rig: Rig, vm: VirtualMachine) -> None:
    for task in rig.host.tasks:
        task.cancel()


@pytest.mark.parametrize("stop", [stop_vm, stop_runtime])
async def test_an_owner_that_ends_while_the_log_takes_nothing_counts_no_try(stop: Callable[[Rig, VirtualMachine], None]) -> None:
    rig = Rig(None, *[Fate.HELD] * 10)
    rig.send("Ring")
    for _ in range(7):
        vm = await rig.start()
        rig.inbox.drain(CLOCK)
        await rig.until(lambda: bool(rig.store.tried) and rig.store.tried[-1].count == 1)
        stop(rig, vm)
        await rig.until(lambda: not rig.host.tasks)
        assert rig.store.tries[CLOCK].count == 0
    assert (rig.store.dead, len(rig.waiting)) == ([], 1)


async def test_a_command_that_is_told_to_come_again_for_long_is_told_once_in_a_while(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    run, answers = VirtualMachine.process_command, [build_error(Reason.BUSY, "no room")] * 5

    def refuse(vm: VirtualMachine, waiting: Waiting) -> None:
        if answers:
            waiting.answer(answers.pop())
        else:
            run(vm, waiting)

    monkeypatch.setattr(VirtualMachine, "process_command", refuse)
    monkeypatch.setattr("aether_runtime.inbox.STUCK_S", 0.0)
    rig = Rig()
    await rig.start()
    rig.send("Ring")
    await rig.drain()
    assert (await rig.rang(), rig.waiting) == (["Ring"], [])
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [(record.message, vars(record)["reason"]) for record in told] == [("a durable command has not been run for long, and what waits behind it neither", "Busy: no room")]


class Broken(Alarm):
    """Makes its VM fail with every command."""

    def decide(self, state: State, command: CommandInput) -> Decision:
        raise InternalError("it must not happen")


async def test_a_command_that_makes_its_vm_fail_is_given_up() -> None:
    rig = Rig()
    rig.send("Ring", "Ring")
    for _ in range(TRIES_MAX):
        await rig.start(Broken())
        await rig.drain()
    await rig.start()
    await rig.drain()
    assert ([reason for _, reason in rig.store.dead], await rig.rang(), rig.waiting) == (["Unsettled"], ["Ring"], [])


async def test_a_command_that_makes_its_vm_fail_is_given_up_although_others_were_settled_before_it() -> None:
    rig = Rig()
    await rig.start_and_ring_thrice()
    rig.send("Ring")
    for _ in range(TRIES_MAX + 1):
        await rig.start(Broken())
        await rig.drain()
    assert ([reason for _, reason in rig.store.dead], rig.waiting) == (["Unsettled"], [])


async def test_a_command_that_always_fails_keeps_those_behind_it_waiting_no_longer_than_it_takes_to_try_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[int] = []

    def repeat_after_s(count: int) -> float:
        pauses.append(count)
        return 0.0

    monkeypatch.setattr("aether_runtime.inbox.repeat_after_s", repeat_after_s)
    rig = Rig()
    await rig.start()
    rig.send("Fail", "Ring")
    await rig.drain()
    assert (await rig.rang(), len(rig.store.dead), pauses) == (["Ring"], 1, [2, 3, 4, 5])


async def test_a_tick_that_always_fails_is_tried_once_for_as_long_as_a_later_one_waits() -> None:
    rig = Rig()
    vm = await rig.start()
    await run_commands(rig.host.pod, vm, build_command("Set", {"name": "bell", "command": "Fail", "cron": "* * * * * *"}, id="set", actor=CLOCK))
    for _ in range(3):
        rig.send_tick("Fail", "bell", vm.reminders["bell"])
    rig.send("Ring")
    await rig.drain()
    assert (await rig.rang(), [reason for _, reason in rig.store.dead]) == (["Set", "Ring"], ["CommandFailed"] * 3)
    assert [tries.count for tries in rig.store.tried] == [1, 2, 3, 4, 5], "the first is noted, and the last one is tried again"


@pytest.mark.parametrize(("command", "missed"), [("Ring", "collapse"), ("Fail", "late")])
async def test_a_later_tick_stands_for_those_before_it_however_much_else_waits_between(command: str, missed: str) -> None:
    rig = Rig()
    vm = await rig.start()
    await run_commands(rig.host.pod, vm, build_command("Set", {"name": "bell", "command": command, "cron": "* * * * * *"}, id="set", actor=CLOCK))
    for _ in range(3):
        rig.send_tick(command, "bell", vm.reminders["bell"], missed=missed)
        rig.send(*["Ignore"] * (READ_AHEAD + 5))
    await rig.drain()
    ran = [label for label in await rig.rang() if label == "bell"]
    assert (len(ran), rig.inbox.dropped) == ((1, 2) if missed == "collapse" else (0, 0))
    assert [reason for _, reason in rig.store.dead] == ([] if missed == "collapse" else ["CommandFailed"] * 3)
    assert [tries.count for tries in rig.store.tried] == ([1] if missed == "collapse" else [1, 2, 3, 4, 5]), "only the last one is run, or tried again"


async def test_ticks_that_are_not_run_are_removed_many_at_a_time() -> None:
    class Counting(MemoryInbox):
        removals = 0

        async def settle(self, actor: ActorId, through: int) -> None:
            self.removals += 1
            await super().settle(actor, through)

    rig = Rig(store := Counting())
    vm = await rig.start()
    await run_commands(rig.host.pod, vm, build_command("Set", {"name": "bell", "cron": "* * * * * *"}, id="set", actor=CLOCK))
    for _ in range(2 * READ_AHEAD):
        rig.send_tick("Ring", "bell", vm.reminders["bell"], missed="collapse")
    await rig.drain()
    assert (await rig.rang(), rig.inbox.dropped, rig.waiting, store.removals <= 4) == (["Set", "bell"], 2 * READ_AHEAD - 1, [], True)


async def test_a_one_shot_whose_tick_is_given_up_ends_with_the_next_commit() -> None:
    rig = Rig()
    vm = await rig.start()
    await run_commands(rig.host.pod, vm, build_command("Set", {"name": "bell", "command": "Fail", "after_s": 60}, id="set", actor=CLOCK))
    rig.send_tick("Fail", "bell", vm.reminders["bell"], due=format_time(START_S))
    await rig.drain()
    assert (len(rig.store.dead), dict(vm.reminders)) == (1, {})
    await run_commands(rig.host.pod, vm, build_command("Ring", {}, id="ring", actor=CLOCK))
    assert dict((await rig.host.pod.start(2, actor=CLOCK, model=Alarm())).reminders) == {}


class Narrow(Alarm):
    """Knows no command `Steal`, and cannot read one that `Stammer`s."""

    def decide(self, state: State, command: CommandInput) -> Decision:
        match command.name:
            case "Steal":
                return Rejected("UnknownCommand", "known are Ring")
            case "Stammer":
                return Rejected("InvalidCommand", "label: not a text")
            case _:
                return super().decide(state, command)


async def test_what_the_model_does_not_know_or_cannot_read_is_given_up_at_once_and_what_it_refuses_is_settled() -> None:
    rig = Rig()
    await rig.start(Narrow())
    rig.send("Steal", "Refuse", "Stammer", "Ring")
    await rig.drain()
    assert (await rig.rang(), [reason for _, reason in rig.store.dead]) == (["Ring"], ["UnknownCommand", "InvalidCommand"])
    assert (rig.inbox.count_done()["settled"], rig.inbox.buried, len(rig.store.tried), rig.waiting) == (2, 2, 1, [])


async def test_a_tick_whose_command_the_model_does_not_know_is_given_up_and_a_one_shot_is_over() -> None:
    rig = Rig()
    vm = await rig.start(Narrow())
    await run_commands(rig.host.pod, vm, build_command("Set", {"name": "bell", "command": "Steal", "after_s": 60}, id="set", actor=CLOCK))
    rig.send_tick("Steal", "bell", vm.reminders["bell"], due=format_time(START_S))
    await rig.drain()
    assert ([reason for _, reason in rig.store.dead], dict(vm.reminders)) == (["UnknownCommand"], {})


class RemadeInbox(MemoryInbox):
    """One whose stream is deleted and made anew while the first settled messages cannot be removed."""

    def remake(self) -> None:
        """Begin anew, with a command in the place of the first that was settled."""
        self.incarnation, self.sequence, self.messages = self.incarnation + 1, 0, {}
        self.send(build_command("Ring", {"label": "new"}, id="new", actor=CLOCK))

    async def settle(self, actor: ActorId, through: int) -> None:
        if self.incarnation == 7:
            self.remake()
            raise Disconnected("the link dropped before")
        await super().settle(actor, through)


async def test_a_drain_that_outlives_its_stream_removes_nothing_of_the_next_one() -> None:
    rig = Rig(RemadeInbox())
    vm = await rig.start()
    rig.send("Ring")
    await rig.drain()
    await rig.drain()
    assert (await rig.rang(), rig.waiting, vm.inbox) == (["Ring", "new"], [], InboxPosition(8, 1))


async def test_a_command_is_known_by_its_place_in_the_stream_that_it_was_read_from() -> None:
    """The drain of another actor may have learnt of the next stream meanwhile."""
    rig = Rig()
    vm = await rig.start()
    rig.send("Ring")
    read = rig.store.read_next

    async def read_and_learn(actor: ActorId, after: int, *, max_bytes: int) -> list[StoredMessage]:
        found = await read(actor, after, max_bytes=max_bytes)
        rig.inbox._end = InboxPosition(8, 0)
        return found

    rig.store.read_next = read_and_learn  # type: ignore[method-assign]
    await rig.drain()
    assert vm.inbox == InboxPosition(7, 1)


async def test_what_a_stream_holds_that_has_gone_back_runs_and_is_not_removed_unread(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    vm = await rig.start_and_ring_thrice()
    rig.store.go_back(1)
    rig.store.send(build_command("Ring", {"label": "new"}, id="new", actor=CLOCK))
    with caplog.at_level(logging.ERROR):
        await rig.drain()
    assert (await rig.rang(), rig.waiting, vm.inbox) == (["Ring", "Ring", "Ring", "new"], [], InboxPosition(8, 2))
    assert ["gone back" in record.message for record in caplog.records] == [True]


async def test_what_waits_in_a_stream_that_has_gone_back_and_grown_again_runs_once_a_sweep_has_noticed() -> None:
    rig = Rig()
    vm = await rig.start_and_ring_thrice()
    rig.store.go_back(0)
    rig.store.send(build_command("Ring", {"label": "new"}, id="new", actor=CLOCK))
    await rig.inbox._sweep()
    for number in range(5):
        rig.store.send(build_command("Ring", {}, id=f"other-{number}", actor=OTHER))
    rig.store.send(build_command("Ring", {"label": "newer"}, id="newer", actor=CLOCK))
    await rig.drain()
    assert (await rig.rang(), rig.waiting, vm.inbox) == (["Ring"] * 3 + ["new", "newer"], [], InboxPosition(8, 7))


async def test_a_stream_that_only_seems_to_have_gone_back_stays_what_it_is() -> None:
    class Behind(MemoryInbox):
        """A leader that was just elected knows of nothing at first."""

        answers = 0

        async def read_end(self) -> InboxPosition:
            self.answers += 1
            return InboxPosition(7, 0 if self.answers < 3 else self.sequence)

    rig = Rig()
    await rig.start()
    rig.send("Ring")
    await rig.drain()
    rig.store = Behind(sequence=1)
    rig.inbox = DurableInbox(cast("Any", None), rig.store, None, cast("Runtime", rig.host), now_s=lambda: START_S)
    await rig.drain()
    assert (rig.store.answers >= 3, rig.store.incarnation) == (True, 7)


async def test_what_the_owner_before_settled_and_did_not_remove_is_removed_and_nothing_that_was_not_seen() -> None:
    rig = Rig()
    vm = await rig.start()
    rig.send("Ring", "Ring")
    left = list(rig.waiting)
    await rig.drain()
    rig.store.messages[CLOCK] = left
    await rig.drain()
    assert rig.waiting == left, "the inbox was looked at already, and nothing of it was run since"
    rig.inbox.on_ready(vm)
    await rig.drain()
    assert (await rig.rang(), rig.waiting) == (["Ring", "Ring"], [])


def make_anew(store: MemoryInbox) -> None:
    """Delete the stream and make it again."""
    store.incarnation, store.sequence, store.messages = store.incarnation + 1, 0, {}


def go_back(store: MemoryInbox) -> None:
    """Restore the stream from a backup."""
    store.go_back(1)


@pytest.mark.parametrize("change", [make_anew, go_back])
async def test_what_comes_into_another_stream_runs_when_its_actor_wakes_before_anybody_has_noticed(change: Callable[[MemoryInbox], None]) -> None:
    rig = Rig()
    vm = await rig.start_and_ring_thrice()
    change(rig.store)
    rig.store.send(build_command("Ring", {"label": "new"}, id="new", actor=CLOCK))
    rig.inbox.on_ready(vm)
    await rig.drain()
    assert "new" in await rig.rang()


@pytest.mark.parametrize("change", [make_anew, go_back])
async def test_a_drain_removes_nothing_by_what_it_read_of_a_former_stream(change: Callable[[MemoryInbox], None]) -> None:
    class Changing(MemoryInbox):
        """Another stream, which the pod's sweep notices, while a drain runs what it has read."""

        has_changed = False

        async def read_next(self, actor: ActorId, after: int, *, max_bytes: int) -> list[StoredMessage]:
            found = await super().read_next(actor, after, max_bytes=max_bytes)
            if not self.has_changed:
                self.has_changed = True
                rig.inbox._note_reached(InboxPosition(self.incarnation, 3))
                change(self)
                self.send(build_command("Ring", {"label": "new"}, id="new", actor=CLOCK))
                await rig.inbox._sweep()
            return found

    rig = Rig(Changing())
    await rig.start()
    rig.send("Ring", "Ring", "Ring")
    await rig.drain()
    await rig.drain()
    assert "new" in await rig.rang()


async def test_a_drain_looks_again_before_it_removes_what_it_read_over_a_former_link() -> None:
    class Relinked(MemoryInbox):
        """One whose connection is lost and back while a command runs; the stream was made anew meanwhile."""

        async def read_tries(self, actor: ActorId) -> Tries | None:
            make_anew(self)
            self.send(build_command("Ring", {"label": "new"}, id="new", actor=CLOCK))
            rig.inbox._note_reconnect()
            return await super().read_tries(actor)

    rig = Rig(Relinked())
    await rig.start()
    rig.send("Ring")
    await rig.drain()
    await rig.drain()
    assert await rig.rang() == ["Ring", "new"]
