"""Live actors on a log in memory: what a pod is to them, without a process and without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace

from aether_api.identity import ActorId, Epoch
from aether_api.messages import Command, Reply
from aether_model.model import Model
from aether_runtime.adapters.memory import MemorySnapshotStore
from aether_runtime.backlog import Backlog
from aether_runtime.core.group import Now, Waiting
from aether_runtime.ports import ActorReport, CommitLog, DesiredActor, ReminderStore
from aether_runtime.snapshotter import Snapshotter
from aether_runtime.tally import Tally
from aether_runtime.turn import Turn
from aether_runtime.vm import VirtualMachine
from aether_runtime.vm_world import VmListener, VmServices
from tests.histories.bank import ALICE, START_S, compile_account


@dataclass(slots=True)
class Clock:
    """A clock that only a test moves."""

    elapsed_s: float = 0.0

    def now(self) -> Now:
        """Return both times."""
        return Now(START_S + self.elapsed_s, self.elapsed_s)


@dataclass(slots=True)
class Call:
    """A command under way, and every answer that it got."""

    command: Command
    answers: list[Reply] = field(default_factory=list[Reply])

    @property
    def reply(self) -> Reply:
        """The one answer."""
        assert len(self.answers) == 1, f"{self.command.id} was answered {len(self.answers)} times"
        return self.answers[0]


class Pod(VmListener):
    """Holds VMs of one process and keeps what they tell."""

    def __init__(
        self,
        name: str,
        events: CommitLog,
        snapshots: MemorySnapshotStore | None = None,
        *,
        clock: Clock | None = None,
        bytes_max: int = 1 << 20,
        reminders: ReminderStore | None = None,
        write: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.clock = clock or Clock()
        self.snapshots = snapshots or MemorySnapshotStore()
        self.snapshotter = Snapshotter(self.snapshots, lambda: self.clock.elapsed_s)
        self.may_keep = True
        self.reports: list[ActorReport] = []
        self.ended: list[VirtualMachine] = []
        self.failures: list[Exception] = []
        self.ready: list[VirtualMachine] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.tally = Tally()
        self.vms: list[VirtualMachine] = []
        self._ids = 0
        self._services = VmServices(
            events=events,
            snapshotter=self.snapshotter,
            writer=f"{name}/boot",
            now=self.clock.now,
            new_id=self._new_id,
            spawn=self._spawn,
            may_keep=lambda actor: self.may_keep,
            bytes_max=bytes_max,
            reminders=reminders,
            tally=self.tally,
            turn=Turn(write),
            backlog=Backlog(lambda: self.backlog_bytes, lambda: self.clock.elapsed_s),
        )

    @property
    def writer(self) -> str:
        """What its commits name as their writer: `<podUID>/<bootId>`."""
        return self._services.writer

    @writer.setter
    def writer(self, writer: str) -> None:
        self._services = replace(self._services, writer=writer)

    @property
    def backlog_bytes(self) -> int:
        """Bytes of all commands that wait here or are being stored."""
        return sum(vm.backlog_bytes for vm in self.vms)

    def build(self, epoch: int = 1, *, actor: ActorId = ALICE, model: Model | None = None, name: str = "alice", snapshot_every: int = 0) -> VirtualMachine:
        """Return a VM that has not started."""
        vm = VirtualMachine(DesiredActor(actor, name, f"uid-{name}", Epoch(epoch), 1, snapshot_every), model or compile_account(), self._services, self)
        self.vms.append(vm)
        return vm

    async def start(self, epoch: int = 1, *, actor: ActorId = ALICE, model: Model | None = None, name: str = "alice", snapshot_every: int = 0) -> VirtualMachine:
        """Return a VM that has started."""
        vm = self.build(epoch, actor=actor, model=model, name=name, snapshot_every=snapshot_every)
        await vm.start()
        return vm

    def send(self, vm: VirtualMachine, command: Command) -> Call:
        """Hand a command to a VM."""
        call = Call(command)
        vm.process_command(Waiting(command, self.clock.elapsed_s + command.timeout_s, call.answers.append))
        return call

    def on_report(self, report: ActorReport) -> None:
        """Keep it."""
        self.reports.append(report)

    def on_progress(self, vm: VirtualMachine) -> None:
        """Keep what it would report."""
        self.reports.append(vm.build_report())

    def on_ready(self, vm: VirtualMachine) -> None:
        """Keep it."""
        self.ready.append(vm)

    def on_ended(self, vm: VirtualMachine) -> None:
        """Keep it."""
        self.ended.append(vm)

    def on_stale(self, vm: VirtualMachine) -> None:
        """Like `on_ended`: the VM is over."""
        self.on_ended(vm)

    def on_failed(self, vm: VirtualMachine, error: Exception) -> None:
        """Keep it."""
        self.failures.append(error)

    def _new_id(self) -> str:
        self._ids += 1
        return f"{self.name}-{self._ids}"

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> bool:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return True


IDLE_TURNS = 4
"""Turns of the loop without a task after which nothing is under way: a command takes one to be decided, one for its ack, and one to be accepted."""


async def settle(*pods: Pod, until: Callable[[], object] | None = None, turns_max: int = 2000) -> None:
    """Let the loop turn until nothing is under way, or until a condition holds, as `if` would take it."""
    idle = 0
    for _ in range(turns_max):
        if until is not None and until():
            return
        await asyncio.sleep(0)
        idle = 0 if any(pod.tasks for pod in pods) else idle + 1
        if until is None and idle > IDLE_TURNS:
            return
    assert until is None, "the condition never held"


async def send_alone(pod: Pod, vm: VirtualMachine, command: Command) -> Call:
    """Send a command and let it be decided before anything else arrives."""
    call = pod.send(vm, command)
    await asyncio.sleep(0)
    return call


async def run_commands(pod: Pod, vm: VirtualMachine, *commands: Command) -> list[Reply]:
    """Send commands at once and return their answers."""
    calls = [pod.send(vm, command) for command in commands]
    await settle(pod, until=lambda: all(call.answers for call in calls))
    return [call.reply for call in calls]
