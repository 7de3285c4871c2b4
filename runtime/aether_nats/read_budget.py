"""Bounds the bytes that a connection has asked a server for and not received yet.

A server keeps 64 MB for a client that reads more slowly than it is sent to, and then cuts the link, which every actor of the process feels (measured: 64 replays
at once of commits of 60 KB lost it three times in two seconds, commits of 300 KB for half a minute). Nobody knows how large a message is before it is there, so what
the caller knows and what came last tells how many may be under way. Where that was wrong and the link was lost, much less is asked for until better is known.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

from aether_api.errors import Disconnected, RequestTimeout
from aether_nats.message import Message

READS_BYTES_MAX: Final = 16 << 20
"""Bytes under way by reads of several messages by their sequences, which may be some times as large as expected before a server minds: beyond what hides a round trip of 10 ms."""

SINGLES_BYTES_MAX: Final = 16 << 20
"""Bytes under way by reads of one message, such as snapshots and last commits, of which nothing is known but how large others were."""

BATCHES_BYTES_MAX: Final = 8 << 20
"""Bytes under way by batches of inboxes and of comparisons, apart from others: a stream that does not answer keeps what it was asked for until that is late."""

REQUEST_BYTES: Final = 1 << 20
"""Bytes that one read of several messages is expected to bring: they are in memory at once, and others come between."""

PULLS_BYTES_MAX: Final = 16 << 20
PULL_BYTES_MAX: Final = 1 << 20
"""Bytes under way by all consumers of a connection, and of one request of one of them."""

MESSAGE_BYTES_MIN: Final = 512
"""Bytes that the smallest of our messages has with its headers."""

MESSAGE_BYTES_MAX: Final = 8 << 20
"""Bytes of the largest message that a server takes by our settings."""

SURPRISE: Final = 8
"""How much larger messages count as after the link was lost, since they may be why."""

_Answer = TypeVar("_Answer", Message, list[Message])

WAIT_TIMEOUT_S: Final = 30.0
"""Seconds that a read waits for others, each of which ends within a request's time-out."""


class ReadBudget:
    """What reads of one kind over one connection share; first come, first served."""

    def __init__(self, bytes_max: int) -> None:
        self._all = self._left = bytes_max
        self._usual = MESSAGE_BYTES_MIN
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def count(self, size: int = 0) -> int:
        """Return how many messages one request may ask for, at least one.

        Args:
            size: bytes of one of them, as far as the caller knows.
        """
        return max(1, REQUEST_BYTES // self._expect(size))

    async def read(self, count: int, size: int, ask: Callable[[], Awaitable[_Answer]], *, bytes_max: int = READS_BYTES_MAX) -> _Answer:
        """Return what `ask` gives, at most `count` messages of some `size` bytes, once there is room for them.

        Args:
            bytes_max: of all of them, if they were asked for with such a bound.

        Raises:
            RequestTimeout: there was none for a long time.
        """
        expected = self._expect(size)
        taken = min(count * expected, bytes_max, self._all)
        if self._waiting or taken > self._left:
            await self._wait(taken)
        else:
            self._left -= taken
        try:
            found = await ask()
        except Disconnected:
            self._usual = max(self._usual, min(MESSAGE_BYTES_MAX, SURPRISE * expected))  # many fail at once, of the same loss
            raise
        finally:
            self._left += taken
            if self._waiting:
                self._let_in()
        mean = len(found.payload) if isinstance(found, Message) else sum([len(message.payload) for message in found]) // max(1, len(found))
        if mean > self._usual or self._usual > MESSAGE_BYTES_MIN:
            self._usual = max(MESSAGE_BYTES_MIN, self._usual // 2, mean)
        return found

    def _expect(self, size: int) -> int:
        size += MESSAGE_BYTES_MIN
        return size if size > self._usual else self._usual

    async def _wait(self, wanted: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, turn))
        try:
            async with asyncio.timeout(WAIT_TIMEOUT_S):
                await turn
        except BaseException as exc:
            if turn.done() and not turn.cancelled():
                self._left += wanted
            else:
                with suppress(ValueError):  # it may have been passed over already
                    self._waiting.remove((wanted, turn))
            self._let_in()
            if isinstance(exc, TimeoutError):
                raise RequestTimeout(f"reads under way left no room for another one within {WAIT_TIMEOUT_S:g} s") from exc
            raise

    def _let_in(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._left:
            wanted, turn = self._waiting.popleft()
            if turn.done():
                continue  # given up
            self._left -= wanted
            turn.set_result(None)


class PullShares:
    """Divides the bytes that consumers may have under way among those that there are."""

    def __init__(self) -> None:
        self._sharing = 0

    @property
    def each(self) -> int:
        """Bytes of one request of one of them, two of which may be under way."""
        return min(PULL_BYTES_MAX, PULLS_BYTES_MAX // (2 * max(1, self._sharing)))

    def join(self) -> None:
        """Count one more."""
        self._sharing += 1

    def leave(self) -> None:
        """Count one less."""
        self._sharing -= 1
