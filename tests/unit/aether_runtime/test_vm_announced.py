"""What a VM makes of commits that the server announces: it applies the one that follows, and asks the log about everything else."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from aether_api.envelope import StoredCommit
from aether_api.identity import Epoch
from aether_api.v1alpha1 import ActorPhase
from aether_runtime.adapters.memory import MemoryCommitLog
from aether_runtime.vm import VirtualMachine
from tests.histories.bank import ALICE, build_command
from tests.histories.commits import build_next
from tests.histories.faults import Fate, FaultyCommitLog
from tests.histories.world import Pod, run_commands, send_alone, settle

OPEN = build_command("Open", {"owner": "alice"}, id="open")


class Rig:
    """An opened account, and others who append to its log."""

    def __init__(self) -> None:
        self.events = FaultyCommitLog(MemoryCommitLog())
        self.pod = Pod("a", self.events)

    async def open(self) -> VirtualMachine:
        vm = await self.pod.start()
        await run_commands(self.pod, vm, OPEN)
        return vm

    async def store(self, *, events: int = 1, epoch: int = 1, writer: str = "other/boot", type: str = "Deposited") -> StoredCommit:
        """Append a commit as somebody else, each deposit as large as its version, and return what the server would announce."""
        head = await self.events.inner.read_head(ALICE)
        commit = replace(build_next(ALICE, head, events=events, type=type), epoch=Epoch(epoch), pod=writer)
        await self.events.inner.append(commit)
        stored = await self.events.inner.read_head(ALICE)
        assert stored is not None
        return stored


async def test_the_next_commit_is_applied_without_a_read() -> None:
    rig = Rig()
    vm = await rig.open()
    rig.events.away = True
    assert vm.process_event(await rig.store(events=2))
    assert vm.process_event(await rig.store())
    assert (vm.get_version(), vm.get_state()["balance"], vm.is_ready) == (4, 2 + 3 + 4, True)
    rig.events.away = False
    (reply,) = await run_commands(rig.pod, vm, build_command("Deposit", {"amount": 1}, id="d"))
    assert (reply.outcome, reply.version, rig.pod.failures) == ("accepted", 5, [])


async def test_the_first_commit_of_an_actor_is_applied_too() -> None:
    rig = Rig()
    vm = await rig.pod.start()
    rig.events.away = True
    assert vm.process_event(await rig.store())
    assert (vm.get_version(), vm.get_state()["balance"]) == (1, 1)


async def test_what_is_known_already_changes_nothing() -> None:
    rig = Rig()
    vm = await rig.open()
    commit = await rig.store()
    assert vm.process_event(commit)
    assert vm.process_event(commit)
    assert (vm.get_version(), vm.get_state()["balance"]) == (2, 2)


async def test_after_a_gap_the_log_is_read() -> None:
    rig = Rig()
    vm = await rig.open()
    await rig.store()
    assert not vm.process_event(await rig.store())
    assert vm.get_version() == 1, "nothing was applied out of order"
    await settle(rig.pod)
    assert (vm.get_version(), vm.get_state()["balance"]) == (3, 5)


async def test_nothing_is_applied_while_an_append_is_under_way() -> None:
    rig = Rig()
    vm = await rig.open()
    rig.events.choose = lambda commit: Fate.HELD
    call = await send_alone(rig.pod, vm, build_command("Deposit", {"amount": 100}, id="d"))
    assert rig.events.holds
    foreign = await rig.store()
    assert not vm.process_event(foreign)
    assert vm.get_version() == 1
    rig.events.choose = lambda commit: Fate.STORED
    rig.events.release()
    await settle(rig.pod, until=lambda: bool(call.answers))
    assert (call.reply.outcome, call.reply.version, vm.get_state()["balance"]) == ("accepted", 3, 102)


@pytest.mark.parametrize(
    "change",
    [{"incarnation": 1}, {"tombstone": True}, {"index_text": ""}, {"n": 7}, {"first_version": 3}],
    ids=lambda change: next(iter(change)),
)
async def test_a_commit_of_another_past_is_never_applied(change: dict[str, object]) -> None:
    """The log does not hold it, so what is read there is what counts."""
    rig = Rig()
    vm = await rig.open()
    stored = await rig.store()
    assert not vm.process_event(replace(stored, **change))
    await settle(rig.pod)
    assert (vm.get_version(), vm.get_state()["balance"], vm.is_ready) == (2, 2, True)


async def test_a_commit_that_cannot_be_applied_quarantines_only_if_the_log_holds_it() -> None:
    rig = Rig()
    vm = await rig.open()
    head = await rig.events.inner.read_head(ALICE)
    assert head is not None
    forged = StoredCommit("x", head.sequence + 1, 1, head.next_index().text, 2, 2, Epoch(1), "other/boot", "account@x", 0, tombstone=False, payload=b"garbage")
    assert not vm.process_event(forged)
    await settle(rig.pod)
    assert vm.is_ready
    assert not vm.process_event(await rig.store(type="NoSuchEvent"))
    await settle(rig.pod)
    assert vm.phase is ActorPhase.QUARANTINED


async def test_an_announced_commit_of_a_higher_epoch_ends_the_vm() -> None:
    rig = Rig()
    vm = await rig.open()
    assert vm.process_event(await rig.store(epoch=7))
    assert (rig.pod.ended, vm.is_ready) == ([vm], False)


@pytest.mark.parametrize(("writer", "stays"), [("other/boot", False), ("/importer", True)])
async def test_a_program_that_is_no_pod_never_takes_an_actor_over(writer: str, stays: bool) -> None:
    rig = Rig()
    rig.pod.may_keep = False
    vm = await rig.open()
    assert vm.process_event(await rig.store(writer=writer))
    assert vm.is_ready is stays
