"""Two owners of one actor under random faults, several hundred short lives: the promises hold in every one of them.

A failing seed is printed with the assertion; run it again with `run_life(seed)`.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

import pytest

from aether_api.envelope import Commit
from aether_api.messages import Command, Reply
from aether_runtime.adapters.memory import MemoryCommitLog, MemorySnapshotStore
from aether_runtime.vm import VirtualMachine
from tests.histories.bank import ALICE, build_command
from tests.histories.faults import Fate, FaultyCommitLog
from tests.histories.invariants import check_answers, check_log, events_of, read_history
from tests.histories.world import Call, Pod, settle

SEEDS: Final = range(300)
STEPS: Final = 25
FATES: Final = (Fate.STORED,) * 4 + (Fate.STORED_ACK_LOST,) * 3 + (Fate.HELD,) * 3


class Life:
    """One random life of alice, with a log of her own."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.events = FaultyCommitLog(MemoryCommitLog(), self._choose)
        snapshots = MemorySnapshotStore()
        self.pods = [Pod(name, self.events, snapshots) for name in ("a", "b")]
        self.vms: list[VirtualMachine | None] = [None, None]
        self.epochs = [1, 2]
        self.calls: list[Call] = []
        self.commands: list[Command] = [build_command("Open", {"owner": "alice"}, id="open")]

    async def run(self) -> None:
        """Live, come to rest, and check."""
        for _ in range(STEPS):
            await self._take_step()
        await self._come_to_rest()
        await self._check()

    def _choose(self, commit: Commit) -> Fate:
        return self.random.choice(FATES)

    async def _take_step(self) -> None:
        where = self.random.randrange(2)
        vm = self.vms[where]
        step = self.random.random()
        if vm is None or vm in self.pods[where].ended or step < 0.05:
            await self._start(where, vm)
        elif step < 0.75:
            self.calls.append(self.pods[where].send(vm, self._choose_command()))
        elif step < 0.9:
            self.events.release()
        await settle(turns_max=self.random.randrange(4))

    async def _start(self, where: int, vm: VirtualMachine | None) -> None:
        """Move the actor: the old owner is stopped in order, or lives on as a zombie that knows nothing."""
        if vm is not None and self.random.random() < 0.5:
            self.events.release()
            await vm.stop()
        self.epochs[where] = max(self.epochs) + self.random.randrange(2)
        self.pods[where].may_keep = self.random.random() < 0.7
        self.vms[where] = await self.pods[where].start(self.epochs[where], snapshot_every=self.random.choice((0, 3)))

    def _choose_command(self) -> Command:
        if len(self.commands) > 1 and self.random.random() < 0.3:
            return self.random.choice(self.commands)
        number, amount = len(self.commands), self.random.randint(1, 9)
        name = self.random.choice(("Deposit", "Deposit", "Withdraw"))
        expected = self.random.randrange(20) if self.random.random() < 0.2 else None
        self.commands.append(build_command(name, {"amount": amount}, id=f"c-{number}", expected_version=expected))
        return self.commands[0] if number == 1 else self.commands[-1]

    async def _come_to_rest(self) -> None:
        self.events.choose = lambda commit: Fate.STORED
        for _ in range(50):
            self.events.release()
            await settle(*self.pods)
        for vm in self.vms:
            if vm is not None:
                await vm.stop()
        await settle(*self.pods)

    async def _check(self) -> None:
        commits = await read_history(self.events.inner, ALICE)
        check_log(commits)
        replies = [call.reply for call in self.calls]
        check_answers(commits, replies)
        check_repeats(self.calls)
        assert [failure for pod in self.pods for failure in pod.failures] == []
        heir = await self.pods[0].start(max(self.epochs) + 1)
        assert heir.get_version() == len(events_of(commits))
        assert heir.get_state()["balance"] == sum(event.fields().get("amount", 0) * (-1 if event.type == "Withdrawn" else 1) for event in events_of(commits))


def check_repeats(calls: list[Call]) -> None:
    """All acknowledgements of one command are the same one."""
    accepted: dict[str, Reply] = {}
    for call in calls:
        if call.reply.outcome == "accepted":
            first = accepted.setdefault(call.command.id, call.reply)
            assert (first.version, first.events) == (call.reply.version, call.reply.events)


async def run_life(seed: int) -> None:
    await Life(seed).run()


@pytest.mark.slow
async def test_two_owners_under_faults_keep_every_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.vm_reading.RETRY_S", 0.0)
    monkeypatch.setattr("aether_runtime.vm.STOP_TIMEOUT_S", 0.02)
    for seed in SEEDS:
        try:
            async with asyncio.timeout(20):
                await run_life(seed)
        except BaseException as exc:
            exc.add_note(f"the seed is {seed}")
            raise


async def test_lives_are_eventful(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run above proves something only if conflicts, fences and repeats do happen in it."""
    monkeypatch.setattr("aether_runtime.vm_reading.RETRY_S", 0.0)
    monkeypatch.setattr("aether_runtime.vm.STOP_TIMEOUT_S", 0.02)
    lives = [Life(seed) for seed in range(20)]
    for life in lives:
        await life.run()
    assert sum(len(pod.ended) for life in lives for pod in life.pods) > 5
    assert sum(call.reply.outcome == "rejected" for life in lives for call in life.calls) > 5
    assert sum(call.reply.outcome == "accepted" for life in lives for call in life.calls) > 50
