"""A log that misbehaves as networks do: it loses acks, refuses, waits, and is away for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from enum import Enum, auto

from aether_api.envelope import Commit, StoredCommit
from aether_api.errors import AetherError, Disconnected, VersionConflictError
from aether_api.identity import ActorId, Epoch
from aether_nats.deliveries import Unreadable
from aether_runtime.ports import CommitLog


class Fate(Enum):
    """What becomes of an append."""

    STORED = auto()
    STORED_ACK_LOST = auto()
    """Stored, but the ack is lost; the identical resend meets a conflict."""
    REFUSED = auto()
    """A spurious conflict, as a replicated stream gives while another write is under way."""
    HELD = auto()
    """Nothing happens until `release`."""


class FaultyCommitLog:
    """A `CommitLog` around another, which has to be one in memory if acks are to be lost or appends to be released.

    Attributes:
        choose: decides the fate of each append, in order.
        away: no read succeeds.
        away_after: the link drops once, after so many commits were read.
        read_error: what every read fails with.
    """

    def __init__(self, inner: CommitLog, choose: Callable[[Commit], Fate] = lambda commit: Fate.STORED) -> None:
        self.inner = inner
        self.choose = choose
        self.away = False
        self.away_after: int | None = None
        self.read_error: AetherError | None = None
        self.appends: list[Commit] = []
        self._held: list[tuple[Commit, asyncio.Future[int]]] = []

    def append(self, commit: Commit) -> asyncio.Future[int]:
        """Store a commit as its fate has it."""
        self.appends.append(commit)
        match self.choose(commit):
            case Fate.STORED:
                return self.inner.append(commit)
            case Fate.STORED_ACK_LOST:
                self.inner.append(commit).exception()
                return self.inner.append(commit)
            case Fate.REFUSED:
                refused: asyncio.Future[int] = asyncio.get_running_loop().create_future()
                refused.set_exception(VersionConflictError(str(commit.actor), commit.first_version - 1, -1))
                return refused
            case Fate.HELD:
                outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()
                self._held.append((commit, outcome))
                return outcome

    def release(self) -> None:
        """Let everything that was held go on, in order."""
        held, self._held = self._held, []
        for commit, outcome in held:
            if outcome.done():
                continue
            found = self.inner.append(commit)
            error = found.exception()
            if error is None:
                outcome.set_result(found.result())
            else:
                outcome.set_exception(error)

    @property
    def holds(self) -> bool:
        """Whether an append waits for `release`."""
        return any(not outcome.done() for _, outcome in self._held)

    async def read_head(self, actor: ActorId) -> StoredCommit | None:
        """Read the last commit, unless the log is away."""
        self._check()
        return await self.inner.read_head(actor)

    async def read_at(self, actor: ActorId, sequence: int) -> StoredCommit | None:
        """Read one commit, unless the log is away."""
        self._check()
        return await self.inner.read_at(actor, sequence)

    async def read_commits(self, actor: ActorId, head: StoredCommit, *, from_n: int = 0) -> AsyncGenerator[Sequence[StoredCommit]]:
        """Yield the commits one by one, so that the log can be lost in between."""
        async for batch in self.inner.read_commits(actor, head, from_n=from_n):
            for commit in batch:
                self._check()
                if self.away_after is not None:
                    self.away_after -= 1
                    if self.away_after < 0:
                        self.away_after = None
                        raise Disconnected("the link dropped")
                yield [commit]

    def scan(self, actor: ActorId, *, after_sequence: int = 0) -> AsyncIterator[Sequence[StoredCommit | Unreadable]]:
        """Scan the inner one, unless the log is away."""
        self._check()
        return self.inner.scan(actor, after_sequence=after_sequence)

    async def purge(self, actor: ActorId, *, epoch: Epoch, writer: str) -> None:
        """Purge as the inner one does."""
        await self.inner.purge(actor, epoch=epoch, writer=writer)

    def _check(self) -> None:
        if self.read_error is not None:
            raise self.read_error
        if self.away:
            raise Disconnected("the log is away")
