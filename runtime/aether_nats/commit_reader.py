"""Reads an actor's commits back: by their sequences where they lie far apart, in one run where they lie close.

Between two commits of one actor the server walks every message of others, while writers wait (measured: 19 ms an actor, appends
down to a fortieth). So commits are read by sequence, which the index in each of them names: two or three rounds of pipelined
reads. Where many commits lie close, the walk is short, and a consumer delivers them for a quarter of what reads cost the server; the index tells which it is.

What a consumer delivers is checked like everything else: what does not continue the run is read by sequence instead, and only if that does not find
what the index promises, the subject is scanned, and counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Final

from msgspec import structs

from aether_api import logs
from aether_api.commit_index import RADIX, Block, decode_short_index, inner_blocks
from aether_api.commit_run import CommitRun, build_run, sizes_of
from aether_api.envelope import StoredCommit, decode_commit, decode_found_commit
from aether_api.errors import AetherError, InvalidEnvelope, JetStreamError, PermissionDenied, RequestTimeout, RetryableError, StreamUnavailable
from aether_api.identity import ActorId
from aether_nats.deliveries import Unreadable
from aether_nats.jetstream import JetStream
from aether_nats.jetstream_wire import StoredMessage, stored_of
from aether_nats.message import Message
from aether_nats.pull import Pull, Pulled, Wanted

logger = logging.getLogger(__name__)

BATCH_COMMITS: Final = 256
"""Commits read at once by sequence, fewer where they are large: hides the round trip, and bounds memory to some MB for an actor."""

WINDOW_COMMITS: Final = 32_768
"""Commits whose sequences are found at once, before any is read: a third power of the index's radix, so that a shorter history takes not one round
more than finding all of them would, and a longer one three more for each 128 batches. They and the blocks that name them take some 6 MB."""

RUN_MIN: Final = 512
"""Commits from which on a consumer is made: making and deleting it costs about as much as reading a hundred, and a few times that with replicas."""

REFUSED_S: Final = 60.0
"""Seconds without another try to make a consumer where one was refused or brought nothing, as without the permission for it: to find that out takes five."""

CLOSE: Final = 16
"""Mean distance of an actor's commits, in messages of the stream, under which they are read in a run (the walk costs 50 ns a message, a
read by sequence some 5 us)."""


class CommitReader:
    """Reads commits of one namespace.

    Attributes:
        scans: how often an index was broken.
    """

    def __init__(self, js: JetStream, locate: Callable[[ActorId], tuple[str, str]]) -> None:
        """Make a reader; `locate` returns the stream and the subject of an actor."""
        self._js = js
        self._locate = locate
        self.scans = 0
        self._pull_again_s = 0.0

    async def read_commits(self, actor: ActorId, head: StoredCommit, *, from_n: int = 0) -> AsyncGenerator[Sequence[StoredCommit]]:
        """Yield the commits with ordinals from `from_n` up to `head`, in order, in batches.

        Raises:
            InvalidEnvelope: the log does not hold what the index names, and a scan did not find it either.
        """
        next_n = from_n
        if head.n - from_n >= RUN_MIN and _lie_close(head):
            async with aclosing(self._read_run(actor, head, from_n)) as runs:
                async for commits in runs:
                    yield commits
                    next_n += len(commits)
        elif from_n < head.n < RADIX and head.n - from_n <= self._count_at_once(actor, len(head.payload)):
            commits = await self._read_short(actor, head, from_n)
            whole = commits.followed_by(head) if isinstance(commits, CommitRun) else None
            if whole is not None:
                yield whole
                return
            if commits:
                yield commits
                next_n += len(commits)
        if next_n < head.n:
            async for commits in self._read_by_sequence(actor, head, next_n):
                yield commits
        if head.n >= from_n:
            yield [head]

    async def read_sequences(self, actor: ActorId, sequences: Sequence[int], *, size: int = 0) -> list[StoredCommit | None]:
        """Read the actor's commits at some sequences; None where nothing stands, or another message.

        Args:
            size: bytes of one of them, as far as the caller knows.
        """
        return await self._decode_each(actor, sequences, await self._ask(actor, sequences, size))

    async def _ask(self, actor: ActorId, sequences: Sequence[int], size: int) -> list[Message]:
        return await self._js.messages_by_sequence(self._locate(actor)[0], sequences, size=size)

    async def _decode_each(self, actor: ActorId, sequences: Sequence[int], answers: Sequence[Message]) -> list[StoredCommit | None]:
        stream, subject = self._locate(actor)
        wanted = subject.encode()
        found: dict[int, StoredCommit | None] = {}
        for message in answers:
            commit = decode_found_commit(message.raw_headers, message.payload, wanted)
            if commit is not None:
                found[commit.sequence] = commit
            else:
                _note_stored(found, stored_of(message), subject)
        # What a replica does not have yet, the leader has.
        for sequence in sequences:
            if sequence not in found:
                _note_stored(found, await self._js.leader_message(stream, sequence), subject)
        return [found.get(sequence) for sequence in sequences]

    async def walk(self, actor: ActorId, end: int) -> list[StoredCommit]:
        """Return every commit of the actor before `end`, where a message of the actor stands, without its events; what is no commit is left out."""
        commits: list[StoredCommit] = []
        async for found in self._walk_from(actor, 1, end):
            commits += [structs.replace(item, payload=b"") for item in found if isinstance(item, StoredCommit) and item.sequence < end]
        return commits

    async def scan(self, actor: ActorId, after_sequence: int = 0) -> AsyncIterator[Sequence[StoredCommit | Unreadable]]:
        """Yield everything that stands on the actor's subject after a sequence, in order, in batches; counts as a scan."""
        self.scans += 1
        last = await self._js.message_by_last(*self._locate(actor))
        if last is not None:
            async for found in self._walk_from(actor, after_sequence + 1, last.sequence):
                yield found

    async def _walk_from(self, actor: ActorId, first: int, end: int) -> AsyncIterator[Sequence[StoredCommit | Unreadable]]:
        """Yield what stands on the actor's subject from `first` to `end`, both included.

        A message of the actor stands at `end`, so a replica that runs out before it is behind, and the leader has what follows.
        """
        stream, subject = self._locate(actor)
        while first <= end:
            batch, _ = await self._js.read_batch(stream, subject, first, BATCH_COMMITS)
            if not batch:
                batch = await self._read_next(stream, subject, first)
            found = [_decode_any(actor, message) for message in batch if message.sequence <= end]
            if not found:
                return
            yield found
            first = found[-1].sequence + 1

    async def _read_next(self, stream: str, subject: str, sequence: int) -> list[StoredMessage]:
        message = await self._js.leader_next(stream, subject, sequence)
        return [] if message is None else [message]

    async def _read_run(self, actor: ActorId, head: StoredCommit, from_n: int) -> AsyncGenerator[Sequence[StoredCommit]]:
        """Yield commits from `from_n` on for as long as they follow each other, at most up to the one before `head`; ends where there is trouble of any kind."""
        stream, subject = self._locate(actor)
        start = 1 if not from_n else await self._find_one(actor, head, from_n)
        pull = await self._open_pull(stream, subject, start, Wanted(head.n - from_n, len(head.payload))) if start else None
        if pull is None:
            return
        first_n = from_n
        try:
            while pulled := await pull.take():
                commits = _decode_run(pulled, from_n, head)
                if commits:
                    yield commits
                    await asyncio.sleep(0)  # several batches may have come at once, and others wait
                    from_n += len(commits)
                if len(commits) < len(pulled.payloads):
                    return
        except (RetryableError, JetStreamError, PermissionDenied) as exc:
            if from_n == first_n:
                self._note_refusal(stream, exc)
            else:
                logger.info("a consumer ended early, the rest is read by sequence", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
        finally:
            pull.close()

    async def _open_pull(self, stream: str, subject: str, first_sequence: int, wanted: Wanted) -> Pull | None:
        """Make a consumer, if there is room for another one; where that is refused, nobody tries for a while."""
        if time.monotonic() < self._pull_again_s or not self._js.has_room_for_pull(wanted.size):
            return None
        try:
            return await self._js.open_pull(stream, subject, first_sequence, wanted)
        except (RequestTimeout, StreamUnavailable, JetStreamError, PermissionDenied) as exc:
            self._note_refusal(stream, exc)
            return None

    def _note_refusal(self, stream: str, error: AetherError) -> None:
        self._pull_again_s = time.monotonic() + REFUSED_S
        logger.warning("consumers bring nothing, long histories are read by sequence, which takes longer", extra={logs.NAME: stream, logs.REASON: str(error)})

    async def _read_by_sequence(self, actor: ActorId, head: StoredCommit, from_n: int) -> AsyncIterator[Sequence[StoredCommit]]:
        next_n = from_n
        async for commits in self._read_indexed(actor, head, from_n):
            yield commits
            next_n += len(commits)
        if next_n >= head.n:
            return
        sequences = await self._scan(actor, head, next_n)
        async for commits in self._read_each(actor, head, sequences, next_n):
            yield commits
            next_n += len(commits)
        if next_n < head.n:
            raise InvalidEnvelope(f"{actor}: commit {next_n} is missing from the log")

    async def _read_indexed(self, actor: ActorId, head: StoredCommit, from_n: int) -> AsyncIterator[Sequence[StoredCommit]]:
        """Yield the commits [from_n, head.n), for as long as they stand where the index names them."""
        blocks: list[Block] | None = None
        while from_n < head.n:
            try:
                sequences, blocks = await self._find_sequences(actor, head, from_n, blocks)
            except InvalidEnvelope as exc:
                logger.debug("the commit index cannot be used", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
                return
            end_n = from_n + len(sequences)
            async for commits in self._read_each(actor, head, sequences, from_n):
                yield commits
                from_n += len(commits)
            if from_n != end_n or not sequences:
                return

    async def _read_each(self, actor: ActorId, head: StoredCommit, sequences: Sequence[int], next_n: int) -> AsyncIterator[Sequence[StoredCommit]]:
        """Yield the commits at some sequences, for as long as they are those from `next_n` on in the life of `head`."""
        start, size = 0, len(head.payload)
        while start < len(sequences):
            some = sequences[start : start + self._count_at_once(actor, size)]
            commits = await self._read_some(actor, head, some, next_n + start, size)
            if not commits:
                return
            yield commits
            start, size = start + len(some), sum(sizes_of(commits)) // len(some)

    def _count_at_once(self, actor: ActorId, size: int) -> int:
        return min(BATCH_COMMITS, self._js.count_at_once(self._locate(actor)[0], size))

    async def _read_some(self, actor: ActorId, head: StoredCommit, sequences: Sequence[int], next_n: int, size: int) -> Sequence[StoredCommit]:
        """Return the commits at so many sequences that they are read at once; none if one of them is not the one that must come next."""
        answers = await self._ask(actor, sequences, size)
        run = build_run(sequences, [answer.raw_headers for answer in answers], [answer.payload for answer in answers], self._locate(actor)[1].encode())
        if run is not None and run.first_n == next_n and run.incarnation == head.incarnation:
            return run
        return _check_run(await self._decode_each(actor, sequences, answers), next_n, head.incarnation)

    async def _read_short(self, actor: ActorId, head: StoredCommit, from_n: int) -> Sequence[StoredCommit]:
        """Return the commits [from_n, head.n), all of which the index of `head` names, by one read: what most actors are started with."""
        try:
            sequences = decode_short_index(head.n, head.index_text)
        except InvalidEnvelope:  # who goes on says what is wrong
            return ()
        return await self._read_some(actor, head, sequences[from_n:], from_n, len(head.payload)) if sequences is not None else ()

    async def _find_sequences(self, actor: ActorId, head: StoredCommit, from_n: int, blocks: list[Block] | None) -> tuple[list[int], list[Block]]:
        """Return the sequences of the next commits from `from_n` on, oldest first, and the blocks that follow.

        Args:
            blocks: what is left, newest first; None at the beginning.

        Raises:
            InvalidEnvelope: the index is broken.
        """
        if blocks is None:
            blocks = [block for block in head.index().blocks() if block.last >= from_n]
        window = await self._take_window(actor, head, blocks, from_n)
        known: dict[int, int] = {}
        while window:
            known.update((block.last, block.sequence) for block in window)
            window = await self._open(actor, head, [block for block in window if block.first < block.last], from_n)
        return [known[n] for n in sorted(known)], blocks

    async def _take_window(self, actor: ActorId, head: StoredCommit, blocks: list[Block], from_n: int) -> list[Block]:
        """Take the oldest blocks off the end of the list, as many as fit into a window; opens one that is too big."""
        while blocks and _size_of(blocks[-1]) > WINDOW_COMMITS:
            big = blocks.pop()
            blocks += [Block(big.last, big.last, big.sequence), *await self._open(actor, head, [big], from_n)]
        window: list[Block] = []
        while blocks and blocks[-1].last < (window or blocks[-1:])[0].first + WINDOW_COMMITS:
            window.append(blocks.pop())
        return window

    async def _open(self, actor: ActorId, head: StoredCommit, closed: Sequence[Block], from_n: int) -> list[Block]:
        """Return the blocks inside closed ones without their last commits, those of each newest first; what is read for it is dropped batch by batch."""
        inner: list[Block] = []
        start, size = 0, len(head.payload)
        while start < len(closed):
            batch = closed[start : start + self._count_at_once(actor, size)]
            commits = await self.read_sequences(actor, [block.sequence for block in batch], size=size)
            inner += _expand(batch, commits, from_n)
            start, size = start + len(batch), sum(len(commit.payload) for commit in commits if commit is not None) // len(batch)
        return inner

    async def _find_one(self, actor: ActorId, head: StoredCommit, n: int) -> int:
        """Return the sequence of commit `n`, or 0 where the index does not tell."""
        try:
            block = next(found for found in head.index().blocks() if found.first <= n <= found.last)
            while block.last != n:
                block = next(found for found in await self._open(actor, head, [block], n) if found.first <= n <= found.last)
        except (InvalidEnvelope, StopIteration) as exc:
            logger.debug("the commit index cannot be used", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
            return 0
        return block.sequence

    async def _scan(self, actor: ActorId, head: StoredCommit, from_n: int) -> list[int]:
        """Find commits by walking the subject: slow for everybody, so only where the index is broken."""
        self.scans += 1
        logger.warning("the commit index is broken, scanning the actor's subject", extra={logs.ACTOR_ID: str(actor), logs.SEQUENCE: head.sequence})
        return [commit.sequence for commit in await self.walk(actor, head.sequence) if commit.incarnation == head.incarnation and commit.n >= from_n]


def decode_stored(message: StoredMessage) -> StoredCommit:
    """Read a commit, or raise `InvalidEnvelope`."""
    return decode_commit(message.sequence, message.raw_headers, message.payload)


def _note_stored(found: dict[int, StoredCommit | None], message: StoredMessage | None, subject: str) -> None:
    """Note what stands at a sequence: a commit, or something of another subject."""
    if message is not None:
        found[message.sequence] = decode_stored(message) if message.subject == subject else None


def _decode_any(actor: ActorId, message: StoredMessage) -> StoredCommit | Unreadable:
    try:
        return decode_stored(message)
    except InvalidEnvelope as exc:
        return Unreadable(actor, message.sequence, str(exc))


def _lie_close(head: StoredCommit) -> bool:
    """Tell from the oldest commit that the index names whether the actor's commits lie close."""
    try:
        oldest = min(head.index().blocks(), key=lambda block: block.last)
    except (InvalidEnvelope, ValueError):
        return False
    return head.sequence - oldest.sequence <= CLOSE * (head.n - oldest.last)


def _decode_run(pulled: Pulled, from_n: int, head: StoredCommit) -> Sequence[StoredCommit]:
    """Return the commits that continue the run at `from_n`, without `head`; what does not ends it."""
    if len(pulled.sequences) == len(pulled.payloads):
        run = build_run(*pulled)
        if run is not None and run.first_n == from_n and run.incarnation == head.incarnation and from_n + len(run) <= head.n:
            return run
    commits: list[StoredCommit] = []
    for sequence, raw_headers, payload in zip(*pulled, strict=False):
        try:
            commit = decode_commit(sequence, raw_headers, payload)
        except InvalidEnvelope:
            break
        if commit.n != from_n + len(commits) or commit.incarnation != head.incarnation or commit.n >= head.n:
            break
        commits.append(commit)
    return commits


def _size_of(block: Block) -> int:
    return block.last - block.first + 1


def _expand(closed: Sequence[Block], commits: Sequence[StoredCommit | None], from_n: int) -> list[Block]:
    """Return the blocks inside closed ones, from the commits that end them.

    Raises:
        InvalidEnvelope: one of them is not the commit that ends its block.
    """
    inner: list[Block] = []
    for block, commit in zip(closed, commits, strict=True):
        if commit is None or commit.n != block.last:
            raise InvalidEnvelope(f"sequence {block.sequence} does not hold commit {block.last}")
        inner += [found for found in inner_blocks(block, commit.index()) if found.last >= from_n]
    return inner


def _check_run(commits: Sequence[StoredCommit | None], first_n: int, incarnation: int) -> list[StoredCommit]:
    """Return the commits if they are those from `first_n` on, else nothing."""
    found = [commit for commit in commits if commit is not None and commit.incarnation == incarnation]
    return found if len(found) == len(commits) and [commit.n for commit in found] == list(range(first_n, first_n + len(found))) else []
