"""What a VM reads of its log, for as long as that takes: at its start, after a refused append, and for answers given before.

Nothing here changes anything but the history that it is given, and that only by folding what the log holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from aether_api import logs
from aether_api.envelope import StoredCommit
from aether_api.errors import AetherError, EventInvalid, InvalidEnvelope, PermissionDenied, Reason, RetryableError
from aether_api.identity import ActorId, Epoch
from aether_api.messages import Reply, build_error, build_reply_events
from aether_model.model import Model
from aether_runtime.answers import MOVING_RETRY_MS, build_moving, send, send_all
from aether_runtime.core.group import Waiting
from aether_runtime.core.history import History, Position
from aether_runtime.permits import Permit
from aether_runtime.ports import CommitLog
from aether_runtime.replay import Replayed, catch_up, replay
from aether_runtime.replays import ReplayWatch
from aether_runtime.vm_world import VmServices

logger = logging.getLogger(__name__)

RETRY_S: Final = 0.2
"""Seconds between tries to read the log while NATS is away."""

DENIED_RETRY_S: Final = 5.0
"""Seconds between tries while NATS does not let this process read the log: somebody must grant it, which takes longer."""

LOOKS_MAX: Final = 50
"""Times, `RETRY_S` apart, that an unmoved log is read after a refused append: ten seconds, longer than an election. A write that was in
flight then died with its leader, and deciding again is safe, since ids that took effect are in the window."""


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

    def holds(self, commit_id: str) -> bool:
        """Tell whether a commit is among those that were read."""
        return any(commit.id == commit_id for commit in self.commits)

    def has_rival(self, epoch: Epoch, pod_uid: str) -> bool:
        """Tell whether another pod wrote at our own epoch; a program that is no pod owns no actor."""
        return any(commit.epoch == epoch and commit.pod.partition("/")[0] not in ("", pod_uid) for commit in self.commits)


async def read_history(actor: ActorId, model: Model, services: VmServices, watch: ReplayWatch, permit: Permit | None) -> tuple[Replayed, float]:
    """Replay; waits while the log cannot be read. Return what it gave, and the seconds of the try that succeeded.

    Args:
        permit: is held at first and at the end, but not while it waits; None where any number of replays may run.

    Raises:
        EventInvalid: as `replay`.
    """
    warning = logs.Seldom()
    while True:
        began_s = services.now().monotonic_s
        try:
            replayed = await replay(actor, model, services.events, services.snapshotter.store, watch)
            return replayed, services.now().monotonic_s - began_s
        except (RetryableError, PermissionDenied) as exc:
            is_worth_telling = isinstance(exc, PermissionDenied) and warning.is_due(began_s)
            logger.log(logging.WARNING if is_worth_telling else logging.DEBUG, "replay has to wait", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
            watch.wait(str(exc))
            if permit is not None:
                permit.give_back()
            await asyncio.sleep(DENIED_RETRY_S if isinstance(exc, PermissionDenied) else max(RETRY_S, exc.retry_after_s))
            if permit is not None:
                await permit.take(again=True)


async def read_tail(history: History, actor: ActorId, events: CommitLog, *, may_be_empty: bool, is_stopping: Callable[[], bool]) -> Tail:
    """Read and fold what the log holds beyond the history; waits while the log cannot be read.

    Args:
        may_be_empty: False after a refused append: on replicas a write of this subject may still be in flight, so an
            unmoved head is read again, at most `LOOKS_MAX` times.
        is_stopping: ends the waiting.

    Raises:
        EventInvalid: the log does not continue the history.
    """
    seen: list[StoredCommit] = []
    looks = 0
    while True:
        try:
            head = await events.read_head(actor)
            if not _continues(history.position, head):
                return Tail("other", seen, head)
            if head is not None and head.sequence != history.position.sequence and not await catch_up(history, actor, events, head, seen):
                return Tail("other", seen, head)
            looks += 1
            if seen or may_be_empty or is_stopping() or looks >= LOOKS_MAX:
                return Tail("moved" if seen else "same", seen, head)
        except InvalidEnvelope as exc:
            raise EventInvalid(str(exc)) from exc
        except RetryableError as exc:
            logger.debug("reading the log has to wait", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
            if is_stopping():
                return Tail("unread", seen)
        await asyncio.sleep(RETRY_S)


def _continues(position: Position, head: StoredCommit | None) -> bool:
    """Whether the log that ends with `head` can be one that holds the past that leads to `position`."""
    if head is None:
        return not position.sequence
    if head.sequence == position.sequence:
        return head.id == position.commit_id
    return head.sequence > position.sequence and head.n >= position.index.n and head.incarnation == position.incarnation and not head.tombstone


def fold_announced(history: History, commit: StoredCommit) -> bool:
    """Fold a commit that the server announced, if it can only be the one that follows; returns False where the log must be asked.

    The index of a commit names the actor's commits before it, so one of another past, or after a gap, never fits. One whose events
    cannot be applied changes nothing: only what is read from the log may put an actor into quarantine.
    """
    position = history.position
    if commit.tombstone or commit.incarnation != position.incarnation or commit.sequence <= position.sequence:
        return False
    if (commit.first_version, commit.n, commit.index_text) != (position.version + 1, position.index.n, position.index.text):
        return False
    try:
        history.fold_commit(commit)
    except EventInvalid as exc:
        logger.debug("an announced commit cannot be applied", extra={logs.SEQUENCE: commit.sequence, logs.REASON: str(exc)})
        return False
    return True


async def answer_repeats(actor: ActorId, events: CommitLog, repeats: Sequence[tuple[Waiting, Sequence[int]]], decide: Callable[[Waiting], None]) -> None:
    """Answer commands whose ids took effect before, from the commits at these sequences.

    One that none of its commits holds shares the hash of its id with another command, and goes to `decide`.
    """
    for place, (item, sequences) in enumerate(repeats):
        try:
            reply = await _read_first_answer(actor, events, item, sequences)
        except asyncio.CancelledError:
            send_all((other, build_moving(other.command.id)) for other, _ in repeats[place:])
            raise
        except AetherError as exc:
            reply = build_error(Reason.BUSY, f"its first answer cannot be read now: {exc}", command_id=item.command.id, retry_after_ms=MOVING_RETRY_MS)
        if reply is not None:
            send(item, reply)
        else:
            item.cleared = sequences[0]
            decide(item)


async def _read_first_answer(actor: ActorId, events: CommitLog, item: Waiting, sequences: Sequence[int]) -> Reply | None:
    """Return what the command was answered first, or None if none of these commits holds it.

    Raises:
        InvalidEnvelope: one of them is not there, so nobody knows what it held.
    """
    for sequence in sequences:
        commit = await events.read_at(actor, sequence)
        if commit is None:
            raise InvalidEnvelope(f"sequence {sequence} does not hold a commit of the actor")
        found = [event for event in commit.events() if event.command_id == item.command.id]
        if found:
            return Reply("accepted", found[-1].version, build_reply_events(found), command_id=item.command.id)
    return None
