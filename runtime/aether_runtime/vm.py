"""One live actor: it replays, takes commands, appends, answers, and stops.

The life of a VM: New, Replaying, Ready, then Stopped; Quarantined when the log holds what its model cannot apply, Fenced when
the log shows a newer owner. Between `Ready` and `Stopped` it is always in one of two states: idle, or busy with exactly one
step (an append, a confirmation, a catch-up). Commands that arrive meanwhile wait in the bounded mailbox and form the next
group. The fast path (decide, append, answer) runs in callbacks without a task; whatever must wait runs in a task that the
process owns.

Invariants: one append under way; state in `history` is committed state only; an answer leaves after the log confirmed what
it says; after an unknown outcome nothing else is done for the actor until it is known (Pekko's persistent actors stash in
the same way; the rules for lost acks and for answers that store nothing are ours, see ARCHITECTURE.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal

import msgspec

from aether_api import logs
from aether_api.durable import InboxPosition
from aether_api.envelope import Commit, StoredCommit, decode_fields, join_events
from aether_api.errors import AetherError, EventInvalid, InvalidEnvelope, Reason, RetryableError, VersionConflictError, reason_of
from aether_api.identity import NO_EPOCH, ActorId, Epoch
from aether_api.messages import Reply, build_error, build_reply_events
from aether_api.v1alpha1 import ActorPhase
from aether_model.model import Model
from aether_runtime.answers import CONFLICTS_MAX, MOVING_RETRY_MS, build_conflict, build_moving, build_unknown, describe_replay, send_all
from aether_runtime.core.group import COMMANDS_MAX, Group, Waiting, begin_group, decide_group
from aether_runtime.core.history import History, Position
from aether_runtime.core.passivation import UNUSED
from aether_runtime.core.reminders import format_changes
from aether_runtime.ports import ActorReport, DesiredActor
from aether_runtime.reminders import choose_changes, end_schedules, find_ended, find_made, is_overdue, make_schedules, remake_schedules
from aether_runtime.replay import catch_up, replay
from aether_runtime.snapshotter import SnapshotMark
from aether_runtime.tally import ModelTally
from aether_runtime.vm_world import VmListener, VmServices, build_label

logger = logging.getLogger(__name__)

MAILBOX_MAX: Final = 1024
"""Commands that may wait for one actor: four full groups, some 100 ms of work; more would only time out."""

RETRY_S: Final = 0.2
"""Seconds between tries to read the log while NATS is away."""

LOOKS_MAX: Final = 50
"""Times, `RETRY_S` apart, that an unmoved log is read after a refused append: ten seconds, longer than an election. A write that was in
flight then died with its leader, and deciding again is safe, since ids that took effect are in the window."""

STOP_TIMEOUT_S: Final = 10.0
"""Seconds that a stop waits for the step under way: an append is re-sent for a whole leader election."""


@dataclass(frozen=True, slots=True)
class Tail:
    """What the log held beyond the history, which has folded it.

    Attributes:
        end: where the log ends: where the history did (`same`), later (`moved`), in another past (`other`: a purge, a restore), or
            nobody knows, since the VM stops while the log cannot be read (`unread`).
        head: the log's last commit.
    """

    end: Literal["same", "moved", "other", "unread"]
    commits: list[StoredCommit]
    head: StoredCommit | None = None


class VirtualMachine:
    """One live activation of an actor."""

    __slots__ = (
        "_append", "_busy", "_conflicts", "_history", "_idle", "_listener", "_mailbox", "_services", "_snapshotting", "_stopping", "desired", "draining", "message", "phase", "reason", "snapshot", "took_over", "touched_s", "uses",
    )  # fmt: skip

    def __init__(self, desired: DesiredActor, model: Model, services: VmServices, listener: VmListener) -> None:
        self.desired = desired
        self.draining = False
        self.phase = ActorPhase.REPLAYING
        self.reason = "Replaying"
        self.message = ""
        self.snapshot = SnapshotMark()
        self.took_over = False
        self.uses = UNUSED
        self.touched_s = 0.0
        self._history = History.empty(model)
        self._services = services
        self._listener = listener
        self._mailbox: list[Waiting] = []
        self._busy = True
        self._stopping = False
        self._snapshotting = False
        self._conflicts = 0
        self._append: asyncio.Future[int] | None = None
        self._idle: asyncio.Future[None] | None = None

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

    @property
    def sequence(self) -> int:
        """The sequence of the last commit that is known."""
        return self._history.position.sequence

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
        return self._history.reminders

    @property
    def is_ready(self) -> bool:
        """Whether commands are taken and decided."""
        return self.phase is ActorPhase.READY and not self._stopping

    @property
    def mailbox_depth(self) -> int:
        """How many commands wait to be decided."""
        return len(self._mailbox)

    @property
    def can_sleep(self) -> bool:
        """Whether it takes commands and has none, and nothing else to do."""
        return self.phase is ActorPhase.READY and not (self._busy or self._mailbox or self._stopping or self._snapshotting or self.draining)

    def build_report(self, *, fenced_by: Epoch = NO_EPOCH) -> ActorReport:
        """Return how the actor is now."""
        return ActorReport(
            self.desired, self.phase, self.get_version(), self.snapshot.version, build_label(self.model), self.reason, self.message, fenced_by, self.snapshot.problem
        )

    async def start(self) -> None:
        """Replay and take commands; tries again for as long as the log cannot be read.

        Ends in Ready, Quarantined or (fenced) `on_ended`. Cancel it to give up.
        """
        self._report()
        while True:
            began_s = self._services.now().monotonic_s
            try:
                replayed = await replay(self.desired.actor, self.model, self._services.events, self._services.snapshotter.store)
                break
            except EventInvalid as exc:
                return self._quarantine(str(exc))
            except RetryableError as exc:
                logger.debug("replay has to wait", extra={logs.ACTOR_ID: str(self.desired.actor), logs.REASON: str(exc)})
                await asyncio.sleep(max(RETRY_S, exc.retry_after_s))
        replayed.history.model = self.model  # another model of equal fold may have come meanwhile
        self._history = replayed.history
        self.snapshot = SnapshotMark(replayed.snapshot_version, replayed.snapshot_n, replayed.snapshot_version)
        self.touched_s = self._services.now().monotonic_s
        self._services.snapshotter.rate.note(self.snapshot.tail(self._history), self.touched_s - began_s)
        self._tally.note_replay(replayed.events, self.touched_s - began_s)
        self.took_over = replayed.writer not in ("", self._services.writer)
        if replayed.epoch > self.desired.epoch:
            if self.desired.name:
                return self._end_fenced(replayed.epoch)
            self.desired = replace(self.desired, epoch=replayed.epoch)
        self.phase, self.reason, self.message = ActorPhase.READY, "Ready", describe_replay(replayed.events)
        self._listener.on_ready(self)
        self._report()
        self._consider_snapshot()
        self._release_step()

    def process_command(self, waiting: Waiting) -> None:
        """Take a command; its `answer` is called exactly once, now or later."""
        command_id = waiting.command.id
        if self._stopping:
            waiting.answer(build_moving(command_id))
        elif self.phase is ActorPhase.QUARANTINED:
            waiting.answer(build_error(Reason.QUARANTINED, self.message, command_id=command_id, version=self.get_version()))
        elif len(self._mailbox) >= MAILBOX_MAX:
            self._tally.busy += 1
            waiting.answer(build_error(Reason.BUSY, f"{MAILBOX_MAX} commands wait for this actor already", command_id=command_id, retry_after_ms=MOVING_RETRY_MS))
        else:
            self._mailbox.append(waiting)
            if not self._busy:
                self._step()

    def take_placement(self, desired: DesiredActor) -> None:
        """Go on under a newer placement of the same actor; what is under way keeps its epoch.

        Without a resource there is no placement that could outrank the log: its epoch stays.
        """
        self.desired = desired if desired.name else replace(desired, epoch=max(desired.epoch, self.desired.epoch))
        self.snapshot.due_at = 0 if not self.snapshot.problem else self.snapshot.due_at  # its rule may be another
        self._report()

    async def prepare_sleep(self) -> None:
        """Leave a snapshot behind if the next activation will gain by it; commands are served meanwhile."""
        if self.can_sleep and self._services.snapshotter.is_worth_before_sleep(self.snapshot, self._history):
            await self._write_snapshot()

    def fall_asleep(self, message: str) -> None:
        """End at once, with nothing to finish: the caller has seen `can_sleep` and not waited since."""
        self._stopping = True
        self.phase, self.reason, self.message = ActorPhase.PASSIVE, "Passive", message
        self._report()

    def take_model(self, model: Model) -> None:
        """Decide with another model of equal fold from the next group on."""
        self._history.model = model
        self._report()

    def look_again(self) -> None:
        """Read the log once more if nothing is under way: a former owner may have appended after our replay."""
        if self.is_ready and not self._busy:
            self._busy = True
            self._spawn(self._follow(), "follow")

    async def stop(self, *, snapshot: bool = True) -> None:
        """Finish the step under way, answer what waits with "moving", take a snapshot. Bounded; harmless to repeat."""
        self._stopping = True
        self._refuse_waiting()
        if self._busy and self.phase is ActorPhase.READY:
            self._idle = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self._idle
            except TimeoutError:
                if self._append is not None:
                    self._append.cancel()
        self._refuse_waiting()
        if snapshot and self.phase is ActorPhase.READY and self.get_version() > self.snapshot.version and not self.snapshot.problem:
            await self._write_snapshot()
        self.phase = ActorPhase.STOPPING

    # One step at a time.

    def _step(self) -> None:
        """Start what comes next; the root at which a failure of this VM is caught, so that it harms no other."""
        try:
            self._decide_next()
        except Exception as exc:
            self._fail(exc)

    def _decide_next(self) -> None:
        """Decide the next group and start what it needs; called only when idle."""
        while self._mailbox and not self._stopping:
            waiting, self._mailbox = self._mailbox[:COMMANDS_MAX], self._mailbox[COMMANDS_MAX:]
            now = self._services.now()
            self.uses += 1
            self.touched_s = now.monotonic_s
            try:
                group = decide_group(self._history, waiting, now, bytes_max=self._services.bytes_max)
            except Exception:
                self._mailbox[:0] = waiting
                raise
            self._mailbox[:0] = group.rest
            self._send(group.immediate)
            if group.repeats:
                self._spawn(self._answer_repeats(group.repeats), "repeats")
            if group.encoded:
                return self._start_append(group)
            if group.answers:
                self._busy = True
                return self._spawn(self._confirm(group), "confirm")
        self._become_idle()

    def _release_step(self) -> None:
        self._busy = False
        self._step()

    def _start_append(self, group: Group) -> None:
        self._busy = True
        try:
            commit = self._build_commit(group)
            if group.reminders:
                return self._spawn(self._append_scheduled(commit, group), "reminders")
            self._append_commit(commit, group)
        except Exception:
            self._mailbox[:0] = group.members
            raise

    def _append_commit(self, commit: Commit, group: Group) -> None:
        self._append = self._services.events.append(commit)
        self._append.add_done_callback(partial(self._on_append, commit, group))

    def _build_commit(self, group: Group) -> Commit:
        position, model = self._history.position, self._history.model
        return Commit(
            id=self._services.new_id(),
            actor=self.desired.actor,
            expected_sequence=position.sequence,
            first_version=position.version + 1,
            last_version=group.version,
            index=position.index,
            epoch=self.desired.epoch,
            pod=self._services.writer,
            model=build_label(model),
            payload=join_events(group.encoded),
            incarnation=position.incarnation,
            inbox="" if group.inbox is None else str(group.inbox),
        )

    def _on_append(self, commit: Commit, group: Group, outcome: asyncio.Future[int]) -> None:
        """Settle a group; like `_step` a root at which a failure of this VM is caught."""
        try:
            self._settle(commit, group, outcome)
        except Exception as exc:
            self._fail(exc)

    def _settle(self, commit: Commit, group: Group, outcome: asyncio.Future[int]) -> None:
        self._append = None
        if outcome.cancelled():
            self._send([(item, build_unknown(item)) for item in group.members])
            return self._release_step()
        error = outcome.exception()
        if error is None:
            return self._accept(commit, group, outcome.result())
        if isinstance(error, VersionConflictError):
            self._tally.conflicts += 1
            return self._spawn(self._recover(commit, group), "recover")
        self._end_schedules(find_made(group, commit.id))
        self._send([(item, build_error(reason_of(error), f"nothing was stored: {error}", command_id=item.command.id, version=self.get_version())) for item in group.members])
        self._release_step()

    def _accept(self, commit: Commit, group: Group, sequence: int) -> None:
        position = Position(commit.last_version, sequence, commit.index.appended(sequence), commit.incarnation, commit.id, group.time)
        self._history.accept(position, int(group.time_s), group.accepted, group.state)
        if commit.inbox or group.reminders:
            self._history.note_durable(commit.inbox, commit.reminders)
            self._after_scheduled(commit, group)
        self._conflicts = 0
        self._send_committed(group)
        self._after_progress()
        self._release_step()

    def _after_progress(self) -> None:
        self._listener.on_progress(self)
        if self._history.position.version >= self.snapshot.due_at:
            self._consider_snapshot()

    # Steps that wait.

    async def _recover(self, commit: Commit, group: Group) -> None:
        """After a refusal: find out whether the commit was stored by an earlier try, else decide again."""
        tail = await self._look(group, may_be_empty=False)
        if tail is None:
            return
        if any(found.id == commit.id for found in tail.commits):
            self._after_scheduled(commit, group)
            self._send_committed(group)
            self._conflicts = 0
        elif tail.end in ("other", "unread"):
            self._send([(item, build_unknown(item)) for item in group.members])
        else:
            self._end_schedules(find_made(group, commit.id))
            self._decide_again(group)
        self._after_progress()
        self._go_on_or_end(tail)

    async def _append_scheduled(self, commit: Commit, group: Group) -> None:
        """Make the schedules of a group, then append its commit: a reminder in force then always has a schedule."""
        group.ended = find_ended(group, self._history.reminders)
        commit = msgspec.structs.replace(commit, reminders=format_changes(choose_changes(group, self._history.reminders, commit.id)))
        try:
            failed = await make_schedules(self._services.reminders, self.desired.actor, group, commit.id, is_stopping=lambda: self._stopping)
        except BaseException:
            self._send([(item, build_moving(item.command.id)) for item in group.members])
            raise
        if not failed:
            return self._append_commit(commit, group)
        self._end_schedules(find_made(group, commit.id))
        self._send(failed)
        self._mailbox[:0] = [item for item in group.members if all(item is not other for other, _ in failed)]
        self._release_step()

    def _after_scheduled(self, commit: Commit, group: Group) -> None:
        """End the schedules that a commit replaced; make anew what came due before the commit was there."""
        self._end_schedules(group.ended)
        if group.reminders and is_overdue(group, self._services.now().unix_s):
            self._spawn(remake_schedules(self._services.reminders, self.desired.actor, group, commit.id), "reminders")

    def _end_schedules(self, schedules: list[tuple[str, str]]) -> None:
        if schedules:
            self._spawn(end_schedules(self._services.reminders, self.desired.actor, schedules), "reminders")

    async def _confirm(self, group: Group) -> None:
        """Send answers that store nothing once the log is known not to have moved."""
        tail = await self._look(group, may_be_empty=True)
        if tail is None:
            return
        if tail.end == "same":
            self._send(group.answers)
            self._conflicts = 0
        elif tail.end == "moved":
            self._decide_again(group)
        else:
            self._send([(item, build_moving(item.command.id)) for item in group.members])
        self._go_on_or_end(tail)

    async def _follow(self) -> None:
        tail = await self._look(begin_group(self._history, self._services.now()), may_be_empty=True)
        if tail is not None:
            self._after_progress()
            self._go_on_or_end(tail)

    async def _look(self, group: Group, *, may_be_empty: bool) -> Tail | None:
        """Read the tail on behalf of a group; where that fails for good, the group is answered and None returned."""
        try:
            return await self._read_tail(may_be_empty=may_be_empty)
        except EventInvalid as exc:
            self._send([(item, build_unknown(item)) for item in group.members])
            self._quarantine(str(exc))
            return None
        except BaseException:
            self._send([(item, build_unknown(item)) for item in group.members])
            raise

    async def _answer_repeats(self, repeats: list[tuple[Waiting, int]]) -> None:
        """Answer commands whose ids took effect before, from the commits that hold them."""
        for item, sequence in repeats:
            try:
                reply = await self._read_first_answer(item, sequence)
            except AetherError as exc:
                reply = build_error(Reason.BUSY, f"its first answer cannot be read now: {exc}", command_id=item.command.id, retry_after_ms=MOVING_RETRY_MS)
            item.answer(reply)

    async def _read_first_answer(self, item: Waiting, sequence: int) -> Reply:
        commit = await self._services.events.read_at(self.desired.actor, sequence)
        events = [event for event in commit.events() if event.command_id == item.command.id] if commit else []
        if not events:
            raise InvalidEnvelope(f"sequence {sequence} does not hold the command {item.command.id}")
        return Reply("accepted", events[-1].version, build_reply_events(events), command_id=item.command.id)

    async def _read_tail(self, *, may_be_empty: bool) -> Tail:
        """Read and fold what the log holds beyond the history; waits while the log cannot be read.

        Args:
            may_be_empty: False after a refused append: on replicas a write of this subject may still be in flight, so an
                unmoved head is read again, at most `LOOKS_MAX` times.
        """
        actor = self.desired.actor
        seen: list[StoredCommit] = []
        looks = 0
        while True:
            try:
                head = await self._services.events.read_head(actor)
                if not self._continues(head):
                    return Tail("other", seen, head)
                if head is not None and head.sequence != self._history.position.sequence:
                    await catch_up(self._history, actor, self._services.events, head, seen)
                looks += 1
                if seen or may_be_empty or self._stopping or looks >= LOOKS_MAX:
                    return Tail("moved" if seen else "same", seen, head)
            except InvalidEnvelope as exc:
                raise EventInvalid(str(exc)) from exc
            except RetryableError as exc:
                logger.debug("reading the log has to wait", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
                if self._stopping:
                    return Tail("unread", seen)
            await asyncio.sleep(RETRY_S)

    def _continues(self, head: StoredCommit | None) -> bool:
        """Whether the log that ends with `head` can be one that holds our past."""
        position = self._history.position
        if head is None:
            return not position.sequence
        return head.incarnation == position.incarnation and head.sequence >= position.sequence and not (head.tombstone and head.sequence != position.sequence)

    def _decide_again(self, group: Group) -> None:
        self._conflicts += 1
        if self._conflicts > CONFLICTS_MAX:
            self._conflicts = 0
            self._send([(item, build_conflict(item, self.get_version())) for item in group.members])
        elif self._stopping:
            self._send([(item, build_moving(item.command.id)) for item in group.members])
        else:
            self._mailbox[:0] = group.members

    def _go_on_or_end(self, tail: Tail) -> None:
        """Stop when the log shows another owner, of a higher epoch or an equal that should win; begin anew when it shows another past."""
        head, epoch = tail.head, self.desired.epoch
        if head is not None and head.epoch > epoch:
            return self._end_fenced(head.epoch)
        if tail.end == "other":
            return self._end_stale()
        own_pod = self._services.writer.partition("/")[0]
        foreign = any(commit.epoch == epoch and commit.pod.partition("/")[0] != own_pod for commit in tail.commits)
        if foreign and not self._services.may_keep(self.desired.actor):
            return self._end_fenced(epoch)
        self._release_step()

    def _consider_snapshot(self) -> None:
        if not self._snapshotting and self._services.snapshotter.is_due(self.snapshot, self._history, self.desired):
            self._snapshotting = True
            self._spawn(self._write_snapshot(), "snapshot")

    async def _write_snapshot(self) -> None:
        self._snapshotting = True
        try:
            await self._services.snapshotter.write(self.snapshot, self._history, self.desired)
            self._report()
        finally:
            self._snapshotting = False

    # Ends.

    def _quarantine(self, message: str) -> None:
        self._tally.quarantined += 1
        self.phase, self.reason = ActorPhase.QUARANTINED, Reason.QUARANTINED.value
        self.message = f"{message}. Nothing was skipped; restore the model that wrote these events, or delete the actor with deletionPolicy Purge"
        logger.error("an actor is quarantined", extra={logs.ACTOR_ID: str(self.desired.actor), logs.REASON: message})
        waiting, self._mailbox = self._mailbox, []
        for item in waiting:
            self.process_command(item)
        self._become_idle()
        self._report()

    def _end_fenced(self, epoch: Epoch) -> None:
        self._stopping = True
        self._tally.fenced += 1
        self.phase, self.reason = ActorPhase.STOPPING, Reason.FENCED.value
        self.message = f"another owner wrote at epoch {epoch}, ours is {self.desired.epoch}"
        logger.warning("an actor was fenced off", extra={logs.ACTOR_ID: str(self.desired.actor), logs.EPOCH: epoch})
        self._refuse_waiting()
        self._become_idle()
        self._report(fenced_by=epoch)
        self._listener.on_ended(self)

    def _end_stale(self) -> None:
        """The log no longer holds our past (purged, restored, made anew), and nobody outranks us: begin anew from what it holds."""
        self._stopping = True
        logger.warning("the log holds another past than the actor replayed; it replays again", extra={logs.ACTOR_ID: str(self.desired.actor)})
        self._refuse_waiting()
        self._become_idle()
        self._listener.on_stale(self)

    def _spawn(self, step: Coroutine[None, None, None], name: str) -> None:
        self._services.spawn(self._guard(step), f"{name} {self.desired.actor}")

    async def _guard(self, step: Coroutine[None, None, None]) -> None:
        try:
            await step
        except Exception as exc:
            self._fail(exc)

    def _fail(self, error: Exception) -> None:
        self._stopping = True
        self._tally.failed += 1
        self._refuse_waiting()
        self._become_idle()
        self._listener.on_failed(self, error)

    def _become_idle(self) -> None:
        """Tell a stop that waits that nothing is under way any more."""
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    @property
    def _tally(self) -> ModelTally:
        return self._services.tally.of(self.desired.actor.model)

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

    def _report(self, *, fenced_by: Epoch = NO_EPOCH) -> None:
        self._listener.on_report(self.build_report(fenced_by=fenced_by))
