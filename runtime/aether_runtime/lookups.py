"""Looks up where actors live: one read of an actor for all who wait for it, which ends when none of them waits any more.

A directory that hangs would else collect a read for each call that ever came, long after the callers have gone, and make those who come
when it is back wait behind them. Whoever asks takes only what was read after he came, since the resource may have been applied just
before. So of one actor there are at most two reads: the one under way, and the one that follows it for those who came meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Final

from aether_api import logs
from aether_api.errors import AetherError
from aether_api.identity import ActorId
from aether_runtime.ports import Directory, Home, Spawn

logger = logging.getLogger(__name__)

DIRECTORY_AGAIN_S: Final = 1.0
"""Seconds for which a call that waits takes the directory's word: what moves shows as a live VM first, and a lost pod of hundreds of actors, each
with a caller, would else be thousands of reads a second, just when the API server has their moves to write."""

UNWANTED_S: Final = 0.2
"""Seconds that a read may go on which nobody awaits any more: cut short at once it costs its connection, and the next one a TLS handshake. A busy API
server answers in that time."""


class _Read:
    """One read for all who wait for it; `known` tells whether it succeeded, else `problem` why not."""

    __slots__ = ("answered", "answered_s", "home", "known", "limit", "problem", "waiting")

    def __init__(self) -> None:
        self.answered = asyncio.Event()
        self.answered_s = 0.0
        self.home: Home | None = None
        self.known = False
        self.problem = "no answer yet"
        self.limit = asyncio.timeout(None)
        self.waiting = 0


class _Reads:
    """The reads of one actor."""

    __slots__ = ("following", "under_way")

    def __init__(self) -> None:
        self.under_way: _Read | None = None
        self.following: _Read | None = None


class Lookups:
    """Looks actors up in one directory."""

    def __init__(self, directory: Directory, spawn: Spawn) -> None:
        self._directory = directory
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._actors: dict[ActorId, _Reads] = {}

    def __len__(self) -> int:
        return len(self._actors)

    def open(self, actor: ActorId) -> Lookup:
        """Return a look-up for one call; nothing is read before it asks."""
        return Lookup(self, actor)

    def join(self, actor: ActorId) -> _Read:
        """Have an actor read from now on, together with all others who want that."""
        reads = self._actors.get(actor)
        if reads is None:
            reads = self._actors[actor] = _Reads()
            self._spawn(self._run(actor, reads), f"look for {actor}")
        if reads.following is None:
            reads.following = _Read()
        reads.following.waiting += 1
        return reads.following

    def leave(self, actor: ActorId, read: _Read) -> None:
        """Wait for a read no more; the last one who leaves ends it."""
        read.waiting -= 1
        reads = self._actors.get(actor)
        if reads is None or read.waiting:
            return
        if reads.following is read:
            reads.following = None
        elif reads.under_way is read:
            read.limit.reschedule(self._loop.time() + UNWANTED_S)

    async def _run(self, actor: ActorId, reads: _Reads) -> None:
        """Read for as long as somebody waits."""
        try:
            while (read := reads.following) is not None:
                reads.under_way, reads.following = read, None
                await self._read(actor, read)
        finally:
            del self._actors[actor]
            if reads.following is not None:
                reads.following.answered.set()

    async def _read(self, actor: ActorId, read: _Read) -> None:
        try:
            async with read.limit:
                read.home, read.known = await self._directory.find(actor), True
        except TimeoutError:
            logger.debug("a look-up is given up, since nobody waits for it", extra={logs.ACTOR_ID: str(actor)})
        except AetherError as exc:
            read.problem = str(exc)
            logger.debug("the actor's resource cannot be read now", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
        finally:
            read.answered_s = self._loop.time()
            read.answered.set()


class Lookup:
    """What the directory says to one call while it waits, which is the `with` block.

    Attributes:
        home: where the actor lives, None where it has no resource; means something only if `known`, after `ask` returned True.
    """

    __slots__ = ("_actor", "_lookups", "_read")

    def __init__(self, lookups: Lookups, actor: ActorId) -> None:
        self._lookups = lookups
        self._actor = actor
        self._read: _Read | None = None

    def __enter__(self) -> Lookup:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leave()

    @property
    def home(self) -> Home | None:
        """The directory's last word."""
        return None if self._read is None else self._read.home

    @property
    def known(self) -> bool:
        """Whether the directory could tell."""
        return self._read is not None and self._read.known

    @property
    def problem(self) -> str:
        """Why the directory could not tell; empty if it could, or was not asked."""
        return "" if self._read is None or self._read.known else self._read.problem

    async def ask(self, within_s: float) -> bool:
        """Ask the directory, unless it answered a moment ago, and return whether it has answered in time; if not, it goes on."""
        read = self._read
        if read is None or (read.answered.is_set() and asyncio.get_running_loop().time() >= read.answered_s + DIRECTORY_AGAIN_S):
            self._leave()
            read = self._read = self._lookups.join(self._actor)
        if not read.answered.is_set():
            try:
                async with asyncio.timeout(within_s):
                    await read.answered.wait()
            except TimeoutError:
                return False
        return True

    def _leave(self) -> None:
        read, self._read = self._read, None
        if read is not None:
            self._lookups.leave(self._actor, read)
