"""Bounds the bytes that a client of JetStream has asked a server for and not received yet.

A server keeps 64 MB for a client that reads more slowly than it is sent to, and then cuts the link, which every actor of the process feels (measured: 64 replays
at once of commits of 60 KB lost it three times in two seconds, commits of 300 KB for half a minute). Nobody knows how large a message is before it is there, so what
the caller knows and what came last tells how many may be under way. Where that was wrong, the link was lost or answers came too late, and much less is asked
for until better is known. Each stream has a budget of its own, so one that does not answer holds up nobody else.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from aether_api.errors import Disconnected, RequestTimeout
from aether_nats.message import Message

RUNS_BYTES_MAX: Final = 4 << 20
"""Bytes under way by reads of several messages of a stream by their sequences: beyond what hides a round trip of 10 ms."""

SINGLES_BYTES_MAX: Final = 4 << 20
"""Bytes under way by reads of one message, such as snapshots and last commits, of which nothing is known but how large others were."""

BATCHES_BYTES_MAX: Final = 2 << 20
"""Bytes under way by batches of inboxes and of comparisons."""

REQUEST_BYTES: Final = 1 << 20
"""Bytes that one read of several messages is expected to bring: they are in memory at once, and others come between."""

PULLS_BYTES_MAX: Final = 16 << 20
PULL_BYTES_MAX: Final = 1 << 20
"""Bytes under way by all consumers of a client, and of one request of one of them."""

MESSAGE_BYTES_MIN: Final = 512
"""Bytes that the smallest of our messages has with its headers."""

MESSAGE_BYTES_MAX: Final = 8 << 20
"""Bytes of the largest message that a server takes by our settings."""

SURPRISE: Final = 8
"""How much larger messages count as after the link was lost, or an answer was late, since they may be why."""

PATIENCE_S: Final = 5.0
"""Seconds without any answer to the reads under way after which one that waits for them fails, as they do by then."""

_Answer = TypeVar("_Answer", Message, list[Message])


class ReadBudget:
    """What reads of one kind from one stream share; first come, first served. What is given up is counted no more, though it may be on its way."""

    def __init__(self, bytes_max: int) -> None:
        self._all = self._left = bytes_max
        self._usual = MESSAGE_BYTES_MIN
        self._answers = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def count(self, size: int = 0) -> int:
        """Return how many messages one request may ask for, at least one.

        Args:
            size: bytes of one of them, as far as the caller knows.
        """
        return max(1, REQUEST_BYTES // self._expect(size))

    async def read(self, count: int, size: int, ask: Callable[[], Awaitable[_Answer]], *, bytes_max: int = sys.maxsize) -> _Answer:
        """Return what `ask` gives, at most `count` messages of some `size` bytes, once there is room for them.

        Args:
            ask: sends the question, or raises at once, and returns what is to be awaited.
            bytes_max: of all of them, if they were asked for with such a bound.

        Raises:
            RequestTimeout: there was none, and those who have it get no answers.
        """
        expected = self._expect(size)
        taken = min(max(expected, min(count * expected, bytes_max)), self._all)  # one message comes whatever the bound
        if self._waiting or taken > self._left:
            await self._wait(taken)
        else:
            self._left -= taken
        try:
            answer = ask()
            try:
                found = await answer
            except (Disconnected, RequestTimeout):
                self._usual = max(self._usual, min(MESSAGE_BYTES_MAX, SURPRISE * expected))  # many fail at once, for one reason
                raise
        finally:
            self._left += taken
            if self._waiting:
                self._let_in()
        self._answers += 1
        mean = len(found.payload) if isinstance(found, Message) else sum([len(message.payload) for message in found]) // max(1, len(found))
        self._usual = max(MESSAGE_BYTES_MIN, self._usual // 2, mean)
        return found

    def _expect(self, size: int) -> int:
        return max(self._usual, size + MESSAGE_BYTES_MIN)

    async def _wait(self, wanted: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, turn))
        try:
            answers = -1
            while not turn.done() and answers != self._answers:
                answers = self._answers
                await asyncio.wait({turn}, timeout=PATIENCE_S)
            if not turn.done():
                raise RequestTimeout(f"reads under way get no answers, and leave no room for another one, for {PATIENCE_S:g} s")
        except BaseException:
            if turn.done():
                self._left += wanted
            else:
                self._waiting.remove((wanted, turn))
            self._let_in()
            raise

    def _let_in(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._left:
            wanted, turn = self._waiting.popleft()
            self._left -= wanted
            turn.set_result(None)


class StreamBudgets:
    """The budgets of one stream, for each kind of read."""

    __slots__ = ("batches", "runs", "singles")

    def __init__(self) -> None:
        self.runs = ReadBudget(RUNS_BYTES_MAX)
        self.singles = ReadBudget(SINGLES_BYTES_MAX)
        self.batches = ReadBudget(BATCHES_BYTES_MAX)


class PullShares:
    """Divides the bytes that consumers may have under way among those that there are."""

    def __init__(self) -> None:
        self._sharing = 0

    @property
    def each(self) -> int:
        """Bytes of one request of one of them, two of which may be under way."""
        return min(PULL_BYTES_MAX, PULLS_BYTES_MAX // (2 * max(1, self._sharing)))

    def has_room(self, size: int) -> bool:
        """Whether one more may join, though each is to have two messages of so many bytes under way at least."""
        return not self._sharing or 2 * (self._sharing + 1) * size <= PULLS_BYTES_MAX

    def join(self) -> None:
        """Count one more."""
        self._sharing += 1

    def leave(self) -> None:
        """Count one less."""
        self._sharing -= 1
