"""What the runtime needs from the world, as protocols; each has a real adapter and one in memory that passes the same tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from aether_api.durable import InboxPosition
from aether_api.envelope import Commit, StoredCommit
from aether_api.identity import NO_EPOCH, ActorId, Epoch, PodUid
from aether_api.v1alpha1 import ActorModel, ActorPhase
from aether_api.v1alpha1.actor import RECOVERY_TARGET_DEFAULT_S
from aether_api.v1alpha1.meta import ConditionStatus
from aether_nats.deliveries import Unreadable
from aether_nats.heads import Head
from aether_nats.inbox import Tries
from aether_nats.jetstream_wire import StoredMessage
from aether_nats.schedules import Reminder
from aether_runtime.core.snapshots import Snapshot, SnapshotBody


class CommitLog(Protocol):
    """The log of commits; `aether_nats.journal.Journal` states the rules of each method."""

    def append(self, commit: Commit) -> asyncio.Future[int]:
        """Store a commit; the future gives its sequence or fails with `VersionConflictError`, `CommitTooLarge`, a permanent error,
        or, when nobody can find out any more whether it is stored, with `Disconnected`."""
        ...

    async def read_head(self, actor: ActorId) -> StoredCommit | None:
        """Read the actor's last commit, current even right after an ack."""
        ...

    async def read_at(self, actor: ActorId, sequence: int) -> StoredCommit | None:
        """Read the actor's commit at a sequence."""
        ...

    def read_commits(self, actor: ActorId, head: StoredCommit, *, from_n: int = 0) -> AsyncGenerator[Sequence[StoredCommit]]:
        """Yield the commits from ordinal `from_n` up to `head`, in order, in batches."""
        ...

    def scan(self, actor: ActorId, *, after_sequence: int = 0) -> AsyncIterator[Sequence[StoredCommit | Unreadable]]:
        """Yield everything that stands in the actor's log after a sequence, also what is no commit: for a log that is broken."""
        ...

    async def purge(self, actor: ActorId, *, epoch: Epoch, writer: str) -> None:
        """End the actor's history with a tombstone and delete what lies before it, snapshots too."""
        ...


class Heads(Protocol):
    """Compares many actors with the log at once; `aether_nats.heads` states the rules."""

    async def find_moved(self, known: Iterable[tuple[ActorId, Head]], *, some: bool = False) -> list[ActorId]:
        """Return the actors whose last commit is another than is known; `some` where others are watched, too.

        Raises:
            RetryableError: the log cannot be read now.
            SettingsInvalid: the log is laid out anew, and whoever reads and writes it has to begin anew, too.
        """
        ...

    def forget(self) -> None:
        """Leave nobody out next time, since the log may be another one."""
        ...


class SnapshotStore(Protocol):
    """Snapshots by actor and fold; losing all of them loses nothing but time.

    Attributes:
        dropped: how many were found to be broken or of another past than the log's, and ignored.
    """

    dropped: int

    def read_kept(self, actor: ActorId, fold: str) -> AsyncIterator[SnapshotBody]:
        """Yield the snapshots that are kept, newest first, each read when it is asked for; broken ones are left out."""
        ...

    async def read_latest(self, actor: ActorId, fold: str) -> SnapshotBody | None:
        """Read the newest snapshot that is not broken; None when there is none, which costs a full replay and nothing else."""
        ...

    async def write(self, actor: ActorId, snapshot: Snapshot) -> None:
        """Store a snapshot; older ones beyond a small number go."""
        ...

    async def drop_outdated(self, actor: ActorId, fold: str, last_time: str) -> None:
        """Drop the actor's snapshots of other folds that `choose_outdated` names, beside one of `fold` that was made at `last_time`."""
        ...


class InboxStore(Protocol):
    """Durable commands that wait; `aether_nats.inbox.Inbox` states the rules. All calls may be repeated, and fail with `RetryableError`."""

    async def read_end(self) -> InboxPosition:
        """Return which stream it is, since sequences mean something only within one, and the last sequence in it."""
        ...

    async def begin_anew(self, end: InboxPosition, now_s: float) -> InboxPosition:
        """Make the stream that ended there another one, unless it is one already, and return its end."""
        ...

    async def read_backlog(self) -> dict[ActorId, int]:
        """Return how many messages wait for which actor."""
        ...

    async def find_last(self, actors: Sequence[ActorId]) -> dict[ActorId, int]:
        """Return the last sequence of those inboxes that hold something."""
        ...

    async def read_next(self, actor: ActorId, after: int, *, max_bytes: int) -> list[StoredMessage]:
        """Return the next messages of an inbox, in order: at least one that waits, and none after so many bytes."""
        ...

    async def settle(self, actor: ActorId, through: int) -> None:
        """Remove the messages of an inbox up to a sequence."""
        ...

    async def read_tries(self, actor: ActorId) -> Tries | None:
        """Return how often the first waiting command was begun."""
        ...

    async def write_tries(self, actor: ActorId, tries: Tries) -> None:
        """Note that a command is begun."""
        ...

    async def bury(self, actor: ActorId, message: StoredMessage, reason: str, explanation: str) -> None:
        """Keep a message as a dead letter."""
        ...


class ReminderStore(Protocol):
    """Keeps schedules and turns each, when it is due, into a durable command; `aether_nats.schedules` states the rules."""

    async def set(self, actor: ActorId, reminder: Reminder, token: str) -> None:
        """Make a schedule; safe to repeat.

        Raises:
            CommandFailed: the schedule cannot be read.
        """
        ...

    async def cancel(self, actor: ActorId, name: str, token: str) -> None:
        """End a schedule; harmless if there is none."""
        ...


@dataclass(frozen=True, slots=True)
class DesiredActor:
    """An actor that this process shall hold.

    Attributes:
        name: of the resource, and `uid` its UID; both empty for an actor without one.
        epoch: of the placement.
        snapshot_every: events between snapshots, 0 for none.
        recovery_target_s: seconds that the replay of what came after a snapshot may take, 0 for any.
        idle_after_s: seconds without a command after which it sleeps, 0 for never; without a resource the process decides.
    """

    actor: ActorId
    name: str = ""
    uid: str = ""
    epoch: Epoch = NO_EPOCH
    generation: int = 0
    snapshot_every: int = 500
    recovery_target_s: float = RECOVERY_TARGET_DEFAULT_S
    idle_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Home:
    """Where an actor's resource says that it lives; `pod_uid` is empty while it is unplaced, `desired` says the rest."""

    pod_uid: PodUid
    desired: DesiredActor
    suspended: bool = False


class Directory(Protocol):
    """Answers where an actor lives, for calls that reach a pod without it."""

    async def find(self, actor: ActorId) -> Home | None:
        """Return the home of an actor's resource; None when it has no resource."""
        ...


class DesiredListener(Protocol):
    """What a source of desired actors tells the runtime."""

    def on_model(self, model: ActorModel) -> None:
        """A model is there or has changed."""
        ...

    def on_model_gone(self, name: str) -> None:
        """A model was deleted."""
        ...

    def on_synced(self) -> None:
        """Every model that there was has been told; what is not known now does not exist."""
        ...

    def on_adopt(self, desired: DesiredActor) -> None:
        """This process shall hold the actor, as its resource shows; idempotent."""
        ...

    def on_release(self, actor: ActorId, epoch: Epoch) -> None:
        """This process shall no longer hold the actor at this or a lower epoch; idempotent."""
        ...

    def on_status_shown(self, actor: ActorId, shown: ShownStatus) -> None:
        """The resource of an actor that this process holds tells this of it, whoever wrote it."""
        ...


class AssignmentListener(Protocol):
    """What the operator tells the runtime ahead of the resources."""

    def on_assign(self, desired: DesiredActor) -> None:
        """This process shall hold the actor, though its resource may not say so yet; idempotent."""
        ...

    def on_release(self, actor: ActorId, epoch: Epoch) -> None:
        """This process shall no longer hold the actor at this or a lower epoch; idempotent."""
        ...


class ActorSource(Directory, Protocol):
    """Where models and desired actors come from: Kubernetes, or a folder of manifests."""

    async def run(self, listener: DesiredListener) -> None:
        """Tell the listener of everything there is and of every change, until cancelled."""
        ...


ToldCondition = tuple[str, ConditionStatus, str]
"""Type, status and reason of a condition: what programs rely on."""

POD_CONDITIONS: Final = frozenset({"Ready", "Replayed", "Quarantined", "Fenced", "SnapshotTooLarge", "SnapshotImpossible"})
"""Types of the conditions that pods write; abnormal ones are there only while they are true."""


@dataclass(frozen=True, slots=True)
class ShownStatus:
    """What an actor's resource tells of it.

    Attributes:
        revision: the resourceVersion that tells it; a higher one is later.
        phase, version, snapshot_version, reported_epoch, model_version, generation: fields of the status, None where it has none; `generation` is `observedGeneration`.
        conditions: those that pods write, each as type, status and reason.
    """

    revision: int
    phase: ActorPhase | None = None
    version: int | None = None
    snapshot_version: int | None = None
    reported_epoch: int | None = None
    model_version: str | None = None
    generation: int | None = None
    conditions: frozenset[ToldCondition] = frozenset()


@dataclass(frozen=True, slots=True)
class SnapshotProblem:
    """Why an actor has no newer snapshot.

    Attributes:
        condition: type and reason of the condition that tells of it.
    """

    condition: Literal["SnapshotTooLarge", "SnapshotImpossible"]
    message: str


@dataclass(frozen=True, slots=True)
class ActorReport:
    """What the runtime says of one actor; the sink writes it where people look.

    Attributes:
        version: events stored; None while nobody knows.
        snapshot_problem: why no snapshot can be taken; None while all is well.
    """

    desired: DesiredActor
    phase: ActorPhase
    version: int | None
    snapshot_version: int
    model_version: str
    reason: str = ""
    message: str = ""
    fenced_by: Epoch = NO_EPOCH
    snapshot_problem: SnapshotProblem | None = None

    @property
    def told_epoch(self) -> Epoch:
        """The newest epoch that the pod knows of."""
        return max(self.desired.epoch, self.fenced_by)

    @property
    def conditions(self) -> list[ToldCondition]:
        """What the report says in conditions."""
        ready, reason = self.phase is ActorPhase.READY, self.reason or "Unknown"
        replayed = ready or self.phase is ActorPhase.PASSIVE
        told: list[ToldCondition] = [("Ready", "True" if ready else "False", reason), ("Replayed", "True", "Replayed") if replayed else ("Replayed", "False", reason)]
        if self.phase is ActorPhase.QUARANTINED:
            told.append(("Quarantined", "True", reason))
        if self.snapshot_problem:
            told.append((self.snapshot_problem.condition, "True", self.snapshot_problem.condition))
        if self.fenced_by:
            told.append(("Fenced", "True", reason))
        return told

    @property
    def is_well(self) -> bool:
        """Whether the actor runs, its version is known, and there is nothing else to say."""
        return self.phase is ActorPhase.READY and self.version is not None and not self.fenced_by and self.snapshot_problem is None

    def agrees_with(self, shown: ShownStatus) -> bool:
        """Whether a status tells the same; a version that nobody knows contradicts none."""
        told = (self.phase, self.snapshot_version, self.told_epoch, self.model_version, self.desired.generation, frozenset(self.conditions))
        seen = (shown.phase, shown.snapshot_version, shown.reported_epoch, shown.model_version, shown.generation, shown.conditions)
        return told == seen and self.version in (None, shown.version)


class ReportSink(Protocol):
    """Takes reports; slow, so the reporter spends its calls on a budget."""

    async def write(self, report: ActorReport) -> int:
        """Write one report and return the revision of the write, 0 where there is no such thing.

        Raises:
            RetryableError: it should be tried again.
            PermanentError: it will never be taken.
        """
        ...

    def say(self, report: ActorReport) -> None:
        """Let those know of a first report who may write it sooner than this process; it may get lost."""
        ...

    def forget(self, actor: ActorId) -> None:
        """Drop what is kept of an actor that this process no longer holds; what a write under way brings is not kept, either."""
        ...


Spawn = Callable[[Coroutine[None, None, None], str], bool]
"""Start a named background task that the process owns, and tell whether it lives; the task's failure is reported, never lost."""
