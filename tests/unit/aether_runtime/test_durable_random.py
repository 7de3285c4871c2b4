"""Durable commands under random faults: owners that die, zombies that go on, lost acks, calls that fail before or after their effect.

A failing seed is printed with the assertion; run it again with `Life(seed).run()`.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from aether_api.envelope import Commit
from aether_api.messages import Command
from aether_runtime.adapters.memory import MemoryCommitLog, MemorySnapshotStore
from aether_runtime.core.inbox import TRIES_MAX
from aether_runtime.inbox import DurableInbox
from tests.histories.alarm import CLOCK, Alarm
from tests.histories.bank import START_S, build_command
from tests.histories.faults import Fate, FaultyCommitLog
from tests.histories.inbox import Call, Host, MemoryInbox, hurry_drains
from tests.histories.invariants import check_log, events_of, read_history
from tests.histories.world import Pod, settle

if TYPE_CHECKING:
    from aether_runtime.runtime import Runtime

SEEDS: Final = range(150)
STEPS: Final = 30
FATES: Final = (Fate.STORED,) * 4 + (Fate.STORED_ACK_LOST,) * 2 + (Fate.HELD,) * 2
CALLS: Final = (Call.FINE,) * 6 + (Call.LOST, Call.UNHEARD)


class Life:
    """One random life of the clock: its owners die, or live on as zombies whose drains go on."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.peace = False
        self.events = FaultyCommitLog(MemoryCommitLog(), self._choose_fate)
        self.snapshots = MemorySnapshotStore()
        self.inbox = MemoryInbox(self._choose_call)
        self.hosts: list[tuple[Host, DurableInbox]] = []
        self.sent: list[Command] = []
        self.others = 0

    async def run(self) -> None:
        """Live, come to rest, and check."""
        await self._start()
        for _ in range(STEPS):
            await self._take_step()
        await self._come_to_rest()
        await self._check()

    def _choose_fate(self, commit: Commit) -> Fate:
        return Fate.STORED if self.peace else self.random.choice(FATES)

    def _choose_call(self) -> Call:
        return Call.FINE if self.peace else self.random.choice(CALLS)

    async def _take_step(self) -> None:
        step = self.random.random()
        host, inbox = self.hosts[-1]
        if step < 0.5:
            self._send()
            if self.random.random() < 0.7:
                inbox.drain(CLOCK)
        elif step < 0.65:
            self.others += 1
            host.pod.send(host.vms[CLOCK], build_command("Ring", {"label": f"other-{self.others}"}, id=f"other-{self.others}", actor=CLOCK))
        elif step < 0.8:
            self.events.release()
        elif step < 0.9:
            await self._start()
        await settle(turns_max=self.random.randrange(12))

    def _send(self) -> None:
        number = len(self.sent)
        name = self.random.choice(("Ring", "Ring", "Ring", "Refuse", "Ignore", "Fail"))
        self.sent.append(build_command(name, {"label": f"d-{number}"}, id=f"d-{number}", actor=CLOCK))
        self.inbox.send(self.sent[-1])

    async def _start(self) -> None:
        """Move the actor: the old owner dies at once, or lives on and knows nothing."""
        if self.hosts and self.random.random() < 0.5:
            for task in self.hosts[-1][0].tasks:
                task.cancel()  # what it has sent to the log may still arrive
            self.hosts[-1][0].vms.clear()
        pod = Pod(f"pod-{len(self.hosts)}", self.events, self.snapshots)
        host = Host(pod)
        inbox = DurableInbox(cast("Any", None), self.inbox, None, cast("Runtime", host), now_s=lambda: START_S)
        self.hosts.append((host, inbox))
        host.vms[CLOCK] = await pod.start(len(self.hosts), actor=CLOCK, model=Alarm(), snapshot_every=self.random.choice((0, 3)))
        inbox.on_ready(host.vms[CLOCK])
        inbox.drain(CLOCK)

    async def _come_to_rest(self) -> None:
        self.peace = True
        self.events.release()
        await self._start()
        async with asyncio.timeout(20):
            while any(self.inbox.messages.values()):
                self.events.release()
                self.hosts[-1][1].drain(CLOCK)
                await asyncio.sleep(0)
        await settle(*(host.pod for host, _ in self.hosts))

    async def _check(self) -> None:
        commits = await read_history(self.events.inner, CLOCK)
        check_log(commits)
        rang = [event.command_id for event in events_of(commits) if event.command_id.startswith("d-")]
        assert rang == [command.id for command in self.sent if command.name == "Ring"]
        buried = {letter.sequence for letter, _ in self.inbox.dead}
        assert buried == {place for place, command in enumerate(self.sent, 1) if command.name == "Fail"}
        assert all(tries.count <= TRIES_MAX for tries in self.inbox.tried)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing wait for a clock."""
    hurry_drains(monkeypatch)


@pytest.mark.slow
async def test_durable_commands_run_once_and_in_order_whatever_happens() -> None:
    for seed in SEEDS:
        try:
            await Life(seed).run()
        except BaseException as exc:
            exc.add_note(f"the seed is {seed}")
            raise


async def test_lives_are_eventful() -> None:
    """The run above proves something only if owners change and commands run under several of them."""
    lives = [Life(seed) for seed in range(10)]
    for life in lives:
        await life.run()
    assert sum(len(life.hosts) for life in lives) > 25
    assert sum(len(life.sent) for life in lives) > 80
    assert sum(len(host.pod.ended) for life in lives for host, _ in life.hosts) > 2
