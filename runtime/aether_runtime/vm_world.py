"""What surrounds a VM: the services that it may use, the listener that it tells how it is, and how its commits name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aether_api.envelope import Commit, join_events
from aether_api.identity import ActorId
from aether_model.model import Model
from aether_runtime.backlog import Backlog
from aether_runtime.core.group import Group, Now
from aether_runtime.core.history import History
from aether_runtime.core.reminders import format_changes
from aether_runtime.ports import ActorReport, CommitLog, DesiredActor, ReminderStore, Spawn
from aether_runtime.reminders import choose_changes
from aether_runtime.replays import Replays
from aether_runtime.snapshotter import Snapshotter
from aether_runtime.tally import Tally
from aether_runtime.turn import Turn

if TYPE_CHECKING:
    from aether_runtime.vm import VirtualMachine


@dataclass(frozen=True, slots=True)
class VmServices:
    """What a VM may use; nothing else reaches it.

    Attributes:
        writer: `<podUID>/<bootId>` of this process.
        now: wall and monotonic clock.
        new_id: makes commit ids.
        spawn: runs a task that the process owns.
        may_keep: whether this process should keep an actor of equal epoch after meeting another writer.
        bytes_max: payload bytes of one commit.
        reminders: None where no command can set one.
        tally: what is counted of all VMs.
        turn: in which VMs decide what waits for them.
        replays: those under way in this process.
        backlog: bounds what waits in all mailboxes together.
    """

    events: CommitLog
    snapshotter: Snapshotter
    writer: str
    now: Callable[[], Now]
    new_id: Callable[[], str]
    spawn: Spawn
    may_keep: Callable[[ActorId], bool]
    bytes_max: int
    reminders: ReminderStore | None = None
    tally: Tally = field(default_factory=Tally)
    turn: Turn = field(default_factory=Turn)
    replays: Replays = field(default_factory=Replays)
    backlog: Backlog = field(default_factory=Backlog)


class VmListener:
    """What a VM tells its runtime; the methods must not block."""

    def on_report(self, report: ActorReport) -> None:
        """Phase, reason or placement changed."""

    def on_progress(self, vm: VirtualMachine) -> None:
        """The version changed; called after every commit, so it must cost next to nothing. `build_report` says the rest."""

    def on_ready(self, vm: VirtualMachine) -> None:
        """The VM has replayed and takes commands."""

    def on_ended(self, vm: VirtualMachine) -> None:
        """The VM gave up by itself: fenced. It takes no more commands."""

    def on_quarantined(self, vm: VirtualMachine) -> None:
        """The VM says no more than that its model cannot apply its log."""

    def on_stale(self, vm: VirtualMachine) -> None:
        """The VM's past is not the log's any more; it is to be thrown away and started anew from the log."""

    def on_failed(self, vm: VirtualMachine, error: Exception) -> None:
        """The VM met something that must not happen; it is to be thrown away and started anew from the log."""


def build_label(model: Model) -> str:
    """Return the model as commits and statuses name it."""
    return f"{model.name}@{model.content_hash}"


def build_commit(group: Group, history: History, desired: DesiredActor, services: VmServices) -> Commit:
    """Return the commit of a group that was decided on the history as it is; the schedules of its reminders come later."""
    position, id = history.position, services.new_id()
    has_changes = group.reminders or group.fired or history.fired
    return Commit(
        id=id,
        actor=desired.actor,
        expected_sequence=position.sequence,
        first_version=position.version + 1,
        last_version=group.version,
        index=position.index,
        epoch=desired.epoch,
        pod=services.writer,
        model=build_label(history.model),
        payload=join_events(group.encoded),
        incarnation=position.incarnation,
        inbox="" if group.inbox is None else str(group.inbox),
        reminders=format_changes(choose_changes(group, history, id)) if has_changes else "",
    )
