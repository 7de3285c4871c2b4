"""What one live activation of an actor holds, shows and tells; `vm` says what it does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from aether_api.durable import InboxPosition
from aether_api.envelope import decode_fields
from aether_api.identity import NO_EPOCH, ActorId, Epoch
from aether_api.messages import Reply
from aether_api.v1alpha1 import ActorPhase
from aether_model.model import Model
from aether_nats.heads import Head
from aether_runtime.answers import build_moving, send_all
from aether_runtime.backlog import COMMAND_BYTES
from aether_runtime.core.group import COMMANDS_MAX, Group, Waiting
from aether_runtime.core.history import History
from aether_runtime.core.passivation import UNUSED
from aether_runtime.ports import ActorReport, DesiredActor
from aether_runtime.replays import ReplayWatch
from aether_runtime.snapshotter import SnapshotMark
from aether_runtime.vm_world import VmListener, VmServices, build_label

_NEVER_S: Final = float("-inf")
"""One object for all VMs, of which a pod may hold 100,000."""


WAITS_FOR_PERMIT: Final = "waits for a permit to replay"
"""What is said of an actor before its replay begins."""


def measure(waiting: Sequence[Waiting]) -> int:
    """Return how many bytes commands take while they wait for their answers."""
    return sum([len(item.command.payload) + COMMAND_BYTES for item in waiting])


class Activation:
    """The fields of a VM, how they are seen from outside, and how it answers and reports.

    Attributes:
        emptied_s: monotonic time at which its inbox was last asked and held nothing.
        failed: it ended by an error, which a command may have brought about.
        replaying: how far its replay is; None before it has a permit and after it succeeded.
        has_place: whether it is one of the actors that the pod may keep awake.
    """

    __slots__ = (
        "_append", "_busy", "_conflicts", "_ended", "_history", "_idle", "_in_hand", "_listener", "_mailbox", "_next_size", "_services", "_snapshotting", "_stopping", "_tally", "desired", "draining", "emptied_s", "failed", "has_place", "message", "phase", "reason", "replaying", "snapshot", "took_over", "touched_s", "uses",
    )  # fmt: skip

    def __init__(self, desired: DesiredActor, model: Model, services: VmServices, listener: VmListener) -> None:
        self.desired = desired
        self.draining = self.failed = self.has_place = False
        self.emptied_s = _NEVER_S
        self.phase = ActorPhase.REPLAYING
        self.reason = "Replaying"
        self.replaying: ReplayWatch | None = None
        self.message = WAITS_FOR_PERMIT
        self.snapshot = SnapshotMark()
        self.took_over = False
        self.uses = UNUSED
        self.touched_s = 0.0
        self._history = History.empty(model)
        self._services = services
        self._listener = listener
        self._tally = services.tally.of(desired.actor.model)
        self._mailbox: list[Waiting] = []
        self._next_size = COMMANDS_MAX
        self._in_hand = 0
        self._busy = True
        self._stopping = False
        self._snapshotting = False
        self._conflicts = 0
        self._append: asyncio.Future[int] | None = None
        self._idle: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] | None = None

    # What the seed names.

    def get_id(self) -> str:
        """Return the id of this activation: actor and epoch."""
        return f"{self.desired.actor}@{self.desired.epoch}"

    def get_actor_id(self) -> ActorId:
        """Return the actor's full name."""
        return self.desired.actor

    def get_state(self) -> dict[str, Any]:
        """Return a copy of the committed state."""
        return decode_fields(msgspec.Raw(self.model.encode_state(self._history.state)))

    def get_version(self) -> int:
        """Return the number of committed events."""
        return self._history.position.version

    # How it is seen.

    @property
    def sequence(self) -> int:
        """The sequence of the last commit that is known."""
        return self._history.position.sequence

    @property
    def head(self) -> Head:
        """What the log must end with, as far as is known."""
        position = self._history.position
        return Head(position.sequence, position.commit_id)

    @property
    def model(self) -> Model:
        """The model that decides."""
        return self._history.model

    @property
    def inbox(self) -> InboxPosition:
        """How far the durable commands are settled."""
        return self._history.inbox

    @property
    def reminders(self) -> Mapping[str, str]:
        """The reminders in force, with their tokens."""
        history = self._history
        return history.reminders if not history.fired else {name: token for name, token in history.reminders.items() if history.is_in_force(name, token)}

    @property
    def is_ready(self) -> bool:
        """Whether commands are taken and decided."""
        return self.phase is ActorPhase.READY and not self._stopping

    @property
    def is_quarantined(self) -> bool:
        """Whether its log holds what its model cannot apply; it answers nothing else until somebody changes one of them."""
        return self.phase is ActorPhase.QUARANTINED

    @property
    def shown_version(self) -> int | None:
        """The version that is told: during a replay, and where that ended in quarantine, the log's last; None while nobody knows."""
        if self.replaying is not None:
            return self.replaying.target
        return None if self.phase is ActorPhase.REPLAYING else self.get_version()

    @property
    def mailbox_depth(self) -> int:
        """How many commands wait to be decided."""
        return len(self._mailbox)

    @property
    def backlog_bytes(self) -> int:
        """Bytes of the commands that wait to be decided or are being stored."""
        return self._in_hand + (measure(self._mailbox) if self._mailbox else 0)

    @property
    def can_sleep(self) -> bool:
        """Whether it takes commands and has none, and nothing else to do."""
        return self.phase is ActorPhase.READY and not (self._busy or self._mailbox or self._stopping or self._snapshotting or self.draining)

    def build_report(self, *, fenced_by: Epoch = NO_EPOCH) -> ActorReport:
        """Return how the actor is now."""
        return ActorReport(
            self.desired, self.phase, self.shown_version, self.snapshot.version, build_label(self.model), self.reason, self.message, fenced_by, self.snapshot.problem
        )

    # What it tells.

    def _show_replay(self) -> None:
        if self.replaying is not None:
            self.message = self.replaying.describe()
            self._report()

    def _report(self, *, fenced_by: Epoch = NO_EPOCH) -> None:
        self._listener.on_report(self.build_report(fenced_by=fenced_by))

    def _send(self, answers: Sequence[tuple[Waiting, Reply]], accepted: int = 0) -> None:
        if answers:
            self._tally.note_answers(answers, accepted, self._services.now().monotonic_s)
            send_all(answers)

    def _send_committed(self, group: Group) -> None:
        self._tally.note_commit(len(group.encoded))
        self._send(group.answers, len(group.accepted))

    def _refuse_waiting(self) -> None:
        waiting, self._mailbox = self._mailbox, []
        self._send([(item, build_moving(item.command.id)) for item in waiting])

    def _become_idle(self) -> None:
        """Tell a stop that waits that nothing is under way any more."""
        self._next_size = COMMANDS_MAX
        self._in_hand = 0
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
