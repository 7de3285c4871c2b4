"""What waits in all mailboxes of a process together has a bound, whatever becomes of the commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
import pytest

from aether_api.durable import InboxPosition
from aether_api.errors import Reason
from aether_api.identity import parse_actor_id
from aether_runtime.adapters.memory import MemoryCommitLog
from aether_runtime.backlog import BACKLOG_BYTES_MAX, COMMAND_BYTES, LOOK_AGAIN_S, SLACK_BYTES, Backlog
from aether_runtime.core.group import InboxEntry, Waiting
from aether_runtime.vm import MAILBOX_BYTES_MAX, VirtualMachine
from tests.histories.alarm import CLOCK, Alarm
from tests.histories.bank import build_command
from tests.histories.faults import Fate, FaultyCommitLog
from tests.histories.world import Call, Pod, settle

LARGE: Final = BACKLOG_BYTES_MAX // 32
OPEN: Final = build_command("Open", {"owner": "alice"}, id="open")


@dataclass
class Process:
    """What waits in a process, and how often somebody looked."""

    waiting: int = 0
    now_s: float = 0.0
    looks: int = 0

    def measure(self) -> int:
        self.looks += 1
        return self.waiting

    def admit_all(self, backlog: Backlog, count: int, size: int) -> int:
        """Send so many commands of a size, and return how many may wait."""
        admitted = [backlog.admit(size) for _ in range(count)].count(True)
        self.waiting += admitted * (size + COMMAND_BYTES)
        return admitted


def test_as_much_is_admitted_as_there_is_room_for() -> None:
    process = Process()
    backlog = Backlog(process.measure, lambda: process.now_s)
    for _ in range(100):
        process.admit_all(backlog, 8, LARGE)
        assert process.waiting <= BACKLOG_BYTES_MAX + 8 * (LARGE + COMMAND_BYTES)
    assert process.waiting > BACKLOG_BYTES_MAX - SLACK_BYTES - LARGE


def test_a_full_process_is_looked_at_seldom_and_admits_again_once_there_is_room() -> None:
    process = Process(waiting=BACKLOG_BYTES_MAX)
    backlog = Backlog(process.measure, lambda: process.now_s)
    assert process.admit_all(backlog, 1000, 100) == 0
    assert process.looks == 1
    process.waiting = 0
    process.now_s += LOOK_AGAIN_S
    assert process.admit_all(backlog, 1000, 100) == 1000


def test_what_is_admitted_and_gone_again_is_forgotten_however_it_went() -> None:
    process = Process()
    backlog = Backlog(process.measure, lambda: process.now_s)
    assert all(backlog.admit(LARGE) for _ in range(10_000)), "nothing of it waits"
    assert process.looks < 10_000 * (LARGE + COMMAND_BYTES) / (BACKLOG_BYTES_MAX - LARGE - COMMAND_BYTES) + 2


def send_large(pod: Pod, vm: VirtualMachine, count: int) -> list[Call]:
    return [pod.send(vm, msgspec.structs.replace(build_command("Deposit", {"amount": 1}, id=f"d{number}"), payload=b'{"amount":1}' + b" " * LARGE)) for number in range(count)]


async def test_a_flood_for_many_actors_is_held_back_before_it_fills_the_pod_and_goes_on_when_it_has_drained() -> None:
    events = MemoryCommitLog()
    pod = Pod("a", events)
    vms = [pod.build(actor=parse_actor_id("default", "account", f"a{number}"), name=f"a{number}") for number in range(16)]
    for vm in vms:
        pod.send(vm, OPEN)
    calls = [call for vm in vms for call in send_large(pod, vm, MAILBOX_BYTES_MAX // (2 * LARGE))]
    refused = [call for call in calls if call.answers]

    assert BACKLOG_BYTES_MAX - SLACK_BYTES - 2 * LARGE < pod.backlog_bytes <= BACKLOG_BYTES_MAX
    assert {(call.reply.reason, call.reply.retry_after_ms > 0) for call in refused} == {(Reason.BUSY, True)}
    assert "64 MB of commands wait in this process" in refused[0].reply.message
    assert pod.tally.of("account").busy == len(refused)

    for vm in vms:
        await vm.start()
    await settle(pod, until=lambda: all(call.answers for call in calls))
    assert {call.reply.outcome for call in calls if call not in refused} == {"accepted"}
    pod.clock.elapsed_s += LOOK_AGAIN_S
    again = [pod.send(vms[0], call.command) for call in refused[:1]]
    await settle(pod, until=lambda: all(call.answers for call in again))
    assert again[0].reply.outcome == "accepted"


async def test_a_full_process_still_takes_what_comes_from_an_inbox_which_has_a_bound_of_its_own() -> None:
    pod = Pod("a", MemoryCommitLog())
    vms = [pod.build(actor=parse_actor_id("default", "account", f"a{number}"), name=f"a{number}") for number in range(8)]
    while not any(call.answers for vm in vms for call in send_large(pod, vm, 1)):
        pass
    wish = Call(OPEN)
    vms[0].process_command(Waiting(OPEN, float("inf"), wish.answers.append, InboxEntry(InboxPosition(0, 1))))
    assert wish.answers == []
    assert pod.send(vms[1], OPEN).reply.reason == Reason.BUSY


async def test_what_is_being_stored_counts_until_it_is() -> None:
    events = FaultyCommitLog(MemoryCommitLog(), lambda _: Fate.HELD)
    pod = Pod("a", events)
    vm = await pod.start()
    call = pod.send(vm, OPEN)
    await settle(pod, until=lambda: vm.mailbox_depth == 0)
    assert pod.backlog_bytes > COMMAND_BYTES
    events.release()
    await settle(pod, until=lambda: call.answers)
    assert pod.backlog_bytes == 0


@pytest.mark.parametrize("name", ["Ignore", "Ring"])
async def test_the_payloads_of_what_is_being_answered_count_whatever_comes_of_them(name: str) -> None:
    events = FaultyCommitLog(MemoryCommitLog(), lambda _: Fate.HELD)
    pod = Pod("a", events)
    vm = await pod.start(actor=CLOCK, model=Alarm())
    pod.send(vm, msgspec.structs.replace(build_command(name, {"label": "a"}, id="a", actor=CLOCK), payload=b'{"label":"a"}' + b" " * LARGE))
    await settle(pod, until=lambda: vm.mailbox_depth == 0)
    assert pod.backlog_bytes > LARGE


async def test_what_somebody_holds_beside_counts_as_long_as_he_does() -> None:
    backlog = Backlog()
    with backlog.holding(BACKLOG_BYTES_MAX):
        assert not backlog.admit(1)
    backlog = Backlog()
    with backlog.holding(BACKLOG_BYTES_MAX - 2 * SLACK_BYTES):
        assert backlog.admit(1)
    assert backlog.admit(1)
