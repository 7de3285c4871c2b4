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
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeVarTuple

from aether_api import logs
from aether_api.durable import Tick
from aether_api.envelope import Commit, StoredCommit
from aether_api.errors import Disconnected, EventInvalid, Reason, VersionConflictError
from aether_api.identity import Epoch
from aether_api.messages import build_error
from aether_api.v1alpha1 import ActorPhase
from aether_model.model import Model
from aether_runtime.activation import Activation, measure
from aether_runtime.answers import (
    CONFLICTS_MAX,
    MOVING_RETRY_MS,
    build_conflict,
    build_moving,
    build_quarantined,
    build_unknown,
    build_unstored,
    describe_quarantine,
    describe_replay,
    send,
)
from aether_runtime.backlog import BACKLOG_BYTES_MAX
from aether_runtime.core.group import COMMANDS_MAX, Group, Waiting, begin_group, decide_group
from aether_runtime.core.history import Position
from aether_runtime.permits import Permit
from aether_runtime.ports import DesiredActor
from aether_runtime.reminders import choose_patience_s, end_schedules, find_ended, find_made, is_overdue, make_schedules, remake_schedules
from aether_runtime.replays import ReplayWatch
from aether_runtime.snapshotter import SnapshotMark
from aether_runtime.vm_reading import Tail, answer_repeats, fold_announced, read_history, read_tail
from aether_runtime.vm_world import build_commit

logger = logging.getLogger(__name__)

Ts = TypeVarTuple("Ts")

MAILBOX_MAX: Final = 1024
"""Commands that may wait for one actor: four full groups, some 100 ms of work; more would only time out."""

MAILBOX_BYTES_MAX: Final = BACKLOG_BYTES_MAX // 4
"""Bytes of payload that large commands may add up to there: two of the largest, and no actor leaves the others without room."""

LARGE_BYTES: Final = MAILBOX_BYTES_MAX // MAILBOX_MAX
"""Bytes above which a command is large; of smaller ones a full mailbox holds no more than that."""

STOP_TIMEOUT_S: Final = 10.0
"""Seconds that a stop waits for the step under way: an append is re-sent for a whole leader election."""


class VirtualMachine(Activation):
    """One live activation of an actor."""

    __slots__ = ()

    async def start(self, permit: Permit | None = None) -> None:
        """Replay and take commands; tries again for as long as the log cannot be read, without the permit while it waits.

        Ends in Ready, Quarantined or (fenced) `on_ended`; after any other error `fail` is to be called. Cancel it to give up.
        """
        watch = self.replaying = ReplayWatch(self._services.now, self._show_replay)
        self.message = watch.describe()
        try:
            with self._services.replays.following(watch):
                replayed, took_s = await read_history(self.desired.actor, self.model, self._services, watch, permit)
        except EventInvalid as exc:
            return self._quarantine(str(exc))
        self.replaying = None
        replayed.history.model = self.model  # another model of equal fold may have come meanwhile
        self._history = replayed.history
        self.snapshot = SnapshotMark(replayed.snapshot_version, replayed.snapshot_n, replayed.snapshot_version, is_first=0 == replayed.snapshot_version < self.get_version())
        self.touched_s = self._services.now().monotonic_s
        self._services.snapshotter.rate.note(self.snapshot.tail(self._history), watch.applying_s)
        self._tally.note_replay(replayed.events, took_s)
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
        size = len(waiting.command.payload)
        if self._stopping:
            send(waiting, build_moving(waiting.command.id))
        elif self.phase is ActorPhase.QUARANTINED:
            send(waiting, build_quarantined(waiting.command.id, self.message, self.shown_version))
        elif len(self._mailbox) >= MAILBOX_MAX or (size > LARGE_BYTES and self._is_too_much(waiting)):
            self._refuse_busy(waiting, f"{len(self._mailbox)} commands wait for this actor already")
        elif not self._services.backlog.admit(size) and waiting.inbox is None:
            self._refuse_busy(waiting, f"{BACKLOG_BYTES_MAX >> 20} MB of commands wait in this process already")
        else:
            self._mailbox.append(waiting)
            if not self._busy and len(self._mailbox) == 1:
                self._services.turn.decide(self)

    def _refuse_busy(self, waiting: Waiting, why: str) -> None:
        self._tally.busy += 1
        send(waiting, build_error(Reason.BUSY, f"{why}; send the command again with the same id", command_id=waiting.command.id, retry_after_ms=MOVING_RETRY_MS))

    def _is_too_much(self, waiting: Waiting) -> bool:
        return sum(len(item.command.payload) for item in (*self._mailbox, waiting)) > MAILBOX_BYTES_MAX

    def process_event(self, commit: StoredCommit) -> bool:
        """Apply a commit that the server announced as stored, if it is the next one and nothing is under way.

        What is newer and does not follow makes an idle VM read the log. Returns whether the VM stands at the commit or beyond it; after
        False, look at its version again later. It is a root like `decide`.
        """
        if commit.sequence <= self.sequence:
            return True
        if not self.is_ready or self._busy:
            return False
        try:
            if not fold_announced(self._history, commit):
                self.look_again()
                return False
            self._after_progress()
            self._go_on_or_end(Tail("moved", [commit], commit))
        except Exception as exc:
            self.fail(exc)
        return True

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

    def skip_tick(self, tick: Tick) -> None:
        """Note that a tick is not run, or was given up: a one-shot is over then."""
        if not tick.recurring:
            self._history.note_fired({tick.name: tick.token})

    def take_model(self, model: Model) -> None:
        """Decide with another model of equal fold from the next group on."""
        self._history.model = model
        self._report()

    def look_again(self) -> None:
        """Read the log once more if nothing is under way: a former owner may have appended after our replay."""
        if self.is_ready and not self._busy:
            self._busy = True
            self._spawn("follow", self._follow)

    async def stop(self, *, snapshot: bool = True) -> None:
        """Finish the step under way, answer what waits with "moving", take a snapshot. Bounded; a repeat waits for the first one's end."""
        if self._ended is not None:
            await asyncio.wait({self._ended})
            return
        self._ended = asyncio.get_running_loop().create_future()
        try:
            await self._finish(snapshot=snapshot)
        finally:
            self._ended.set_result(None)

    async def _finish(self, *, snapshot: bool) -> None:
        self._stopping = True
        self._refuse_waiting()
        if self._busy and self.phase is ActorPhase.READY:
            self._idle = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self._idle
            except TimeoutError:
                self.cut_short()
        self._refuse_waiting()
        if snapshot and self.phase is ActorPhase.READY and self.get_version() > self.snapshot.version and not self.snapshot.problem:
            await self._write_snapshot()
        self.phase = ActorPhase.STOPPING

    def cut_short(self) -> None:
        """Take nothing more and give up an append under way; its callers learn that its outcome is unknown."""
        self._stopping = True
        self._refuse_waiting()
        if self._append is not None:
            self._append.cancel()

    def fail(self, error: Exception) -> None:
        """End after what must not happen: answer what waits with "moving", and tell the listener."""
        self._stopping = self.failed = True
        self._tally.failed += 1
        self._refuse_waiting()
        self._become_idle()
        self._listener.on_failed(self, error)

    # One step at a time. `Turn` calls what is public here; each is a root at which a failure of this VM is caught, so that it harms no other.

    def decide(self) -> Group | None:
        """Decide what waits, unless a step is under way; returns the group that is to be stored."""
        if self._busy:
            return None
        try:
            return self._decide_next()
        except Exception as exc:
            self.fail(exc)
            return None

    def store(self, group: Group) -> None:
        """Append what was decided."""
        try:
            commit = build_commit(group, self._history, self.desired, self._services)
            if group.reminders:
                return self._spawn("reminders", self._append_scheduled, commit, group)
            self._append_commit(commit, group)
        except Exception as exc:
            self._mailbox[:0] = group.members
            self.fail(exc)

    def accept(self, commit: Commit, group: Group, sequence: int) -> bool:
        """Move on to a commit that is stored at `sequence`; False if that failed, and the VM is over."""
        try:
            position = Position(commit.last_version, sequence, commit.index.appended(sequence), commit.incarnation, commit.id, group.time)
            self._history.accept(position, int(group.time_s), group.digests, group.state)
            if commit.inbox or commit.reminders:
                self._history.note_durable(commit.inbox, commit.reminders, group.fired)
                self._after_scheduled(commit, group)
        except Exception as exc:
            self._send([(item, build_unknown(item)) for item in group.members])
            self.fail(exc)
            return False
        self._conflicts = 0
        return True

    def answer(self, group: Group) -> None:
        """Answer the commands of an accepted group."""
        try:
            self._send_committed(group)
        except Exception as exc:
            self.fail(exc)

    def go_on(self) -> None:
        """Tell of the progress and take the next step."""
        try:
            self._after_progress()
            self._release_step()
        except Exception as exc:
            self.fail(exc)

    def _decide_next(self) -> Group | None:
        """Decide the next group and start what it needs, except for its append; called only when idle."""
        while self._mailbox and not self._stopping:
            size, self._next_size = self._next_size, COMMANDS_MAX
            waiting, self._mailbox = (self._mailbox, []) if len(self._mailbox) <= size else (self._mailbox[:size], self._mailbox[size:])
            now = self._services.now()
            self.uses += 1
            self.touched_s = now.monotonic_s
            try:
                group = decide_group(self._history, waiting, now, bytes_max=self._services.bytes_max)
            except Exception:
                self._mailbox[:0] = waiting
                raise
            if group.rest:
                self._mailbox[:0] = group.rest
            if group.immediate:
                self._send(group.immediate)
            if group.repeats:
                self._spawn("repeats", self._answer_repeats, group.repeats)
            if group.answers:
                self._busy = True
                self._in_hand = group.bytes * 2 + measure(group.members)
                if group.encoded:
                    return group
                self._spawn("confirm", self._confirm, group)
                return None
        self._become_idle()
        return None

    def _release_step(self) -> None:
        self._busy = False
        if self._mailbox and not self._stopping:
            self._services.turn.decide(self)
        else:
            self._become_idle()

    def _append_commit(self, commit: Commit, group: Group) -> None:
        self._append = self._services.events.append(commit)
        self._append.add_done_callback(partial(self._on_append, commit, group))

    def _on_append(self, commit: Commit, group: Group, outcome: asyncio.Future[int]) -> None:
        self._append = None
        if outcome.cancelled() or outcome.exception() is not None:
            self._settle_failed(commit, group, outcome)
        else:
            self._services.turn.accept(self, commit, group, outcome.result())

    def _settle_failed(self, commit: Commit, group: Group, outcome: asyncio.Future[int]) -> None:
        """Settle a group that was not stored, or of which nobody knows; a root like `decide`."""
        try:
            error = None if outcome.cancelled() else outcome.exception()
            if error is None or isinstance(error, Disconnected):
                self._send([(item, build_unknown(item)) for item in group.members])
                return self._release_step()
            if isinstance(error, VersionConflictError):
                self._tally.conflicts += 1
                return self._spawn("recover", self._recover, commit, group)
            self._end_schedules(find_made(group, commit.id))
            self._send([(item, build_unstored(item, error, self.get_version())) for item in group.members])
            self._release_step()
        except Exception as exc:
            self.fail(exc)

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
        if tail.holds(commit.id):
            self._history.note_fired(group.fired)
            self._after_scheduled(commit, group)
            self._send_committed(group)
            self._conflicts = 0
        elif tail.end == "moved":
            self._end_schedules(find_made(group, commit.id))
            self._decide_again(group)
        elif tail.end == "same" and not self._stopping:
            self._decide_again(group)  # its schedules stay: the commit may land still, and a tick without a reminder is dropped
        else:
            if tail.end == "other":
                self._end_schedules(find_made(group, commit.id))  # a purge took what was made before, and the first tick of these may find nobody who ends them
            self._send([(item, build_unknown(item)) for item in group.members])
        self._after_progress()
        self._go_on_or_end(tail)

    async def _answer_repeats(self, repeats: Sequence[tuple[Waiting, Sequence[int]]]) -> None:
        with self._services.backlog.holding(measure([item for item, _ in repeats])):
            await answer_repeats(self.desired.actor, self._services.events, repeats, self.process_command)

    async def _append_scheduled(self, commit: Commit, group: Group) -> None:
        """Make the schedules of a group, then append its commit: a reminder in force then always has a schedule."""
        group.ended = find_ended(group, self._history.reminders)
        patience_s = choose_patience_s(group, self._services.now().monotonic_s)
        try:
            failed, made = await make_schedules(self._services.reminders, self.desired.actor, group, commit.id, patience_s=patience_s, is_stopping=lambda: self._stopping)
            if not failed:
                return self._append_commit(commit, group)
        except BaseException:
            self._send([(item, build_moving(item.command.id)) for item in group.members])
            raise
        self._end_schedules(made)
        self._send(failed)
        others = [item for item in group.members if all(item is not other for other, _ in failed)]
        self._mailbox[:0] = others
        self._next_size = len(others) or COMMANDS_MAX  # without whoever came meanwhile, who may set reminders, too
        self._release_step()

    def _after_scheduled(self, commit: Commit, group: Group) -> None:
        """End the schedules that a commit replaced; make anew what came due before the commit was there."""
        self._end_schedules(group.ended)
        if group.reminders and is_overdue(group, self._services.now().unix_s):
            self._spawn("reminders", remake_schedules, self._services.reminders, self.desired.actor, group, commit.id)

    def _end_schedules(self, schedules: list[tuple[str, str]]) -> None:
        if schedules:
            self._spawn("reminders", end_schedules, self._services.reminders, self.desired.actor, schedules)

    async def _confirm(self, group: Group) -> None:
        """Send answers that store nothing once the log is known not to have moved."""
        tail = await self._look(group, may_be_empty=True)
        if tail is None:
            return
        if tail.end == "same":
            self._send(group.answers)
            self._history.note_fired(group.fired)
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
            return await read_tail(self._history, self.desired.actor, self._services.events, may_be_empty=may_be_empty, is_stopping=lambda: self._stopping)
        except EventInvalid as exc:
            self._send([(item, build_unknown(item)) for item in group.members])
            self._quarantine(str(exc))
            return None
        except BaseException:
            self._send([(item, build_unknown(item)) for item in group.members])
            raise

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
        if tail.has_rival(epoch, self._services.writer.partition("/")[0]) and not self._services.may_keep(self.desired.actor):
            return self._end_fenced(epoch)
        self._release_step()

    def _consider_snapshot(self) -> None:
        if not self._snapshotting and self._services.snapshotter.is_due(self.snapshot, self._history, self.desired):
            self._snapshotting = True
            self._spawn("snapshot", self._write_snapshot)

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
        self.phase, self.reason, self.message = ActorPhase.QUARANTINED, Reason.QUARANTINED.value, describe_quarantine(message, self.desired)
        self.touched_s = self._services.now().monotonic_s
        logger.error("an actor is quarantined", extra={logs.ACTOR_ID: str(self.desired.actor), logs.REASON: message})
        waiting, self._mailbox = self._mailbox, []
        for item in waiting:
            self.process_command(item)
        self._become_idle()
        self._report()
        self._listener.on_quarantined(self)

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

    def _spawn(self, name: str, step: Callable[[*Ts], Coroutine[None, None, None]], *args: *Ts) -> None:
        self._services.spawn(self._guard(step, *args), f"{name} {self.desired.actor}")

    async def _guard(self, step: Callable[[*Ts], Coroutine[None, None, None]], *args: *Ts) -> None:
        try:
            await step(*args)
        except Exception as exc:
            self.fail(exc)
