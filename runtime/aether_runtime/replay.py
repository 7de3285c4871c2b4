"""Rebuild an actor's history: the newest valid snapshot, then every commit after it, in batches.

Memory stays flat: one batch of commits at a time is decoded and folded, and other actors have the event loop in between. A snapshot that the log does not confirm is ignored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from msgspec import structs

from aether_api import logs
from aether_api.commit_run import sizes_of
from aether_api.envelope import StoredCommit
from aether_api.errors import EventInvalid, InvalidEnvelope, PermanentError, RetryableError
from aether_api.identity import ActorId, Epoch
from aether_api.messages import parse_second, parse_time
from aether_model.model import Model
from aether_runtime.core.history import NOTHING_FORGOTTEN, History, build_forgotten
from aether_runtime.core.snapshots import SnapshotBody, restore_history
from aether_runtime.core.window import WINDOW_S, CommandWindow
from aether_runtime.ports import CommitLog, SnapshotStore
from aether_runtime.replays import ReplayWatch

logger = logging.getLogger(__name__)

REFILL_COMMITS: Final = 1024
"""Commits before a snapshot that are looked at first for the window's beginning, then four times as many, and so on."""

FOLD_BYTES: Final = 131_072
"""Payload bytes that are folded before others have the event loop: 3 ms with a model in YAML. So much is more than 256 commits of one event (51 KB),
which a consumer's reader hands over at once, and an eighth of as many of 32 events each (34 ms). A commit is never cut."""

SNAPSHOT_TRIES: Final = 3
"""Tries of one replay to read its snapshots, before it goes through the whole log: a lost answer is worth another one, and a stream that stays dead
stops nobody for longer than three requests may take (15 s)."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay gave.

    Attributes:
        snapshot_version: version of the snapshot it began from, 0 for none; `snapshot_n` is the number of commits in it.
        events: how many events were folded after it.
        epoch: of the last commit in the log.
        writer: `<podUID>/<bootId>` of the last commit; empty without one.
    """

    history: History
    snapshot_version: int
    events: int
    epoch: Epoch
    writer: str = ""
    snapshot_n: int = 0


async def replay(actor: ActorId, model: Model, events: CommitLog, snapshots: SnapshotStore, watch: ReplayWatch) -> Replayed:
    """Rebuild the actor's history from the log; `watch` learns after every batch how far it is.

    Raises:
        EventInvalid: a stored event cannot be applied, or versions have a gap; the actor must be quarantined.
        RetryableError: the log cannot be read now, or the snapshots cannot for the first times.
    """
    try:
        head = await events.read_head(actor)
    except InvalidEnvelope as exc:
        raise EventInvalid(f"the last message of the actor is no commit: {exc}") from exc
    if head is None:
        watch.begin(0, 0)
        return Replayed(History.empty(model), 0, 0, Epoch(0))
    history = await _restore(actor, model, events, _read_snapshots(actor, model, snapshots, watch), head)
    start_version, start_n = history.position.version, history.position.index.n
    watch.begin(start_version, head.last_version)
    folded = 0
    try:
        history.forgotten = build_forgotten(head)
        async for commits in _read_slices(actor, events, head, history.position.index.n):
            folded += history.fold_run(commits)
            watch.move(history.position.version)
        history.forgotten = NOTHING_FORGOTTEN
    except InvalidEnvelope as exc:
        raise await _explain_missing(actor, events, head, exc) from exc
    return Replayed(history, start_version, folded, head.epoch, head.pod, start_n)


async def catch_up(history: History, actor: ActorId, events: CommitLog, head: StoredCommit, seen: list[StoredCommit]) -> bool:
    """Fold all commits from the history's position up to `head` and add them to `seen`, which is right after a failure, too; without their events, since whoever was cut off may have missed very many.

    Its own last commit is read with them. If the log holds another one there, it was restored and went another way: returns False, and nothing is folded.

    Raises:
        EventInvalid: the log does not continue the history.
        RetryableError: the log cannot be read now; go on with the same arguments later.
    """
    last = history.position
    is_proven = not last.index.n
    try:
        async with aclosing(_read_slices(actor, events, head, max(0, last.index.n - 1))) as slices:
            async for commits in slices:
                for commit in commits:
                    if is_proven:
                        history.fold_commit(commit)
                        seen.append(structs.replace(commit, payload=b""))
                    elif (commit.sequence, commit.id) != (last.sequence, last.commit_id):
                        return False
                    is_proven = True
        return True
    except InvalidEnvelope as exc:
        raise await _explain_missing(actor, events, head, exc) from exc


async def _read_slices(actor: ActorId, events: CommitLog, head: StoredCommit, from_n: int) -> AsyncGenerator[Sequence[StoredCommit]]:
    """Yield commits as `read_commits` does, those of a large batch in slices with a turn of the loop behind each."""
    async for commits in events.read_commits(actor, head, from_n=from_n):
        sizes = sizes_of(commits)
        if sum(sizes) <= FOLD_BYTES:
            yield commits
            continue
        for piece in _cut(commits, sizes):
            yield piece
            await asyncio.sleep(0)


def _cut(commits: Sequence[StoredCommit], sizes: Sequence[int]) -> Iterator[Sequence[StoredCommit]]:
    """Cut commits into pieces of at most `FOLD_BYTES`, or of one commit."""
    start = total = 0
    for place, size in enumerate(sizes):
        if total and total + size > FOLD_BYTES:
            yield commits[start:place]
            start, total = place, 0
        total += size
    yield commits[start:]


async def _explain_missing(actor: ActorId, events: CommitLog, head: StoredCommit, error: InvalidEnvelope) -> EventInvalid | RetryableError:
    """Return what missing commits mean: nothing, if a purge took them and `head` with them after that had been read; else the log is broken."""
    now = await events.read_head(actor)
    if now is None or now.incarnation != head.incarnation:
        return RetryableError(f"{actor} was purged while its commits were read: {error}")
    return EventInvalid(str(error))


async def _read_snapshots(actor: ActorId, model: Model, snapshots: SnapshotStore, watch: ReplayWatch) -> AsyncIterator[SnapshotBody]:
    """Yield what is kept, newest first; what is asked for after one of them is counted as of no use.

    Raises:
        RetryableError: they cannot be read now, and `watch` has counted too few tries to do without them.
    """
    try:
        async for body in snapshots.read_kept(actor, model.fold):
            yield body
            snapshots.dropped += 1
    except RetryableError as exc:
        watch.snapshot_tries += 1
        if watch.snapshot_tries < SNAPSHOT_TRIES:
            raise
        logger.warning("snapshots cannot be read, everything is replayed", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})


async def _restore(actor: ActorId, model: Model, events: CommitLog, kept: AsyncIterator[SnapshotBody], head: StoredCommit) -> History:
    """Return the history of the newest of the snapshots that the log confirms; one that cannot be used costs time and nothing else."""
    try:
        async for body in kept:
            commit = await _find_commit(actor, events, head, body)
            history = None if commit is None else _build_history(actor, model, body, commit)
            if commit is not None and history is not None:
                await _refill_window(history, actor, events, commit)
                return history
    except PermanentError as exc:
        logger.warning("a snapshot cannot be used, everything is replayed", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
    return History.empty(model)


def _build_history(actor: ActorId, model: Model, body: SnapshotBody, commit: StoredCommit) -> History | None:
    try:
        return restore_history(model, body, commit.next_index())
    except InvalidEnvelope as exc:
        logger.warning("a snapshot is ignored", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
        return None


async def _find_commit(actor: ActorId, events: CommitLog, head: StoredCommit, body: SnapshotBody) -> StoredCommit | None:
    """Return the commit that a snapshot was made at, if the log holds it still."""
    commit = None
    if body.sequence <= head.sequence and body.incarnation == head.incarnation:
        commit = head if head.sequence == body.sequence else await events.read_at(actor, body.sequence)
    if commit is None or not _confirms(commit, body):
        logger.info("the log does not hold the commit that a snapshot was made at; it is ignored", extra={logs.ACTOR_ID: str(actor), logs.SEQUENCE: body.sequence})
        return None
    return commit


async def _refill_window(history: History, actor: ActorId, events: CommitLog, last: StoredCommit) -> None:
    """Read the accepted commands that a snapshot of a busy actor had no room for, from the commits up to its own."""
    horizon_s = parse_time(history.position.last_time).timestamp() - WINDOW_S if history.position.last_time else 0.0
    if history.window.floor_s <= horizon_s:
        return
    history.window = CommandWindow()
    async for commits in _read_slices(actor, events, last, await _find_start(actor, events, last, horizon_s)):
        for commit in commits:
            facts = commit.events()
            if facts:
                history.note_commands(commit.sequence, parse_second(facts[-1].time), [fact.command_id for fact in facts])


async def _find_start(actor: ActorId, events: CommitLog, last: StoredCommit, horizon_s: float) -> int:
    """Return the ordinal of a commit from before `horizon_s`, looking further and further back."""
    back = REFILL_COMMITS
    while back < last.n:
        async with aclosing(events.read_commits(actor, last, from_n=last.n - back)) as batches:
            oldest = (await anext(batches))[0].events()
        if oldest and parse_time(oldest[0].time).timestamp() < horizon_s:
            return last.n - back
        back *= 4
    return 0


def _confirms(commit: StoredCommit, body: SnapshotBody) -> bool:
    return commit.id == body.commit_id and commit.n == body.n and commit.last_version == body.version
