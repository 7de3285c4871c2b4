"""Work by name: whoever is added is handled soon, once at a time, and comes back later after a failure.

- An item that is added while it waits is not added twice; one that is added while it is handled is handled again afterwards.
  So the queue is bounded by the number of names, and the handler, which reads what to do when it begins, misses nothing.
- A retryable failure comes back after a doubling wait, and never sooner than it asks for; a permanent one is logged and forgotten
  until somebody adds it again, which the level-based loops do. Any other error is a bug and ends the queue, and with it the process.

Prior art: client-go's work queue.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

from aether_api import logs
from aether_api.errors import PermanentError, RetryableError
from aether_kube.backoff import Backoff
from aether_kube.store import ObjectKey

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

LOUD_AFTER: Final = 5
"""Failures of one item in a row before they are logged as a warning: with doubling waits, some seconds of trouble."""

BACKOFF: Final = Backoff(first_s=0.2, max_s=30.0)
"""From a conflict that is over at once to an outage, after which everything is tried again within half a minute."""


class KeyedQueue(Generic[K]):
    """Names that wait to be handled, and the workers that do it."""

    def __init__(self, name: str, handle: Callable[[K], Awaitable[None]], *, workers: int, backoff: Backoff = BACKOFF) -> None:
        """Make a queue; `run` works on it.

        Args:
            name: what is handled, for logs and task names.
            workers: items that are handled at once.
        """
        self._name = name
        self._handle = handle
        self._workers = workers
        self._backoff = backoff
        self._queue: asyncio.Queue[K] = asyncio.Queue()
        self._waiting: set[K] = set()
        self._handled: set[K] = set()
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        """Return how many items wait, those that come back later included."""
        return len(self._waiting) + len(self._timers) + len(self._again)

    def add_later(self, key: K, delay_s: float) -> None:
        """Handle an item after a while, unless it is handled sooner; what is added in that time is handled with it."""
        loop, timer = asyncio.get_running_loop(), self._timers.get(key)
        if key in self._waiting or (timer is not None and timer.when() <= loop.time() + delay_s):
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_later(delay_s, self._wake, key)

    def add(self, key: K) -> None:
        """Handle an item soon, however long it was to wait."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._handled:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._queue.put_nowait(key)

    async def run(self) -> None:
        """Handle items until cancelled; what is under way then is cut."""
        try:
            async with asyncio.TaskGroup() as workers:
                for number in range(self._workers):
                    workers.create_task(self._work(), name=f"{self._name} {number}")
        finally:
            for timer in self._timers.values():
                timer.cancel()

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            self._waiting.discard(key)
            self._handled.add(key)
            try:
                await self._attempt(key)
            finally:
                self._handled.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.add(key)

    async def _attempt(self, key: K) -> None:
        try:
            await self._handle(key)
        except RetryableError as exc:
            self._come_back(key, exc)
        except PermanentError as exc:
            self._failures.pop(key, None)
            logger.error("work failed for good; it is tried again when something changes", extra={logs.KIND: self._name, logs.NAME: _name_of(key), logs.REASON: str(exc)})
        else:
            self._failures.pop(key, None)

    def _come_back(self, key: K, error: RetryableError) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        # What the error asks for counts in full, whatever bounds the doubling: it may wait for a person. It is spread, as many are told the same.
        delay_s = max(self._backoff.delay_s(failures, random.random()), error.retry_after_s * random.uniform(1.0, 1.5))
        level = logging.WARNING if failures % LOUD_AFTER == 0 else logging.DEBUG
        logger.log(level, "work failed and is tried again", extra={logs.KIND: self._name, logs.NAME: _name_of(key), logs.REASON: str(error), logs.COUNT: failures})
        if key not in self._again:
            self.add_later(key, delay_s)

    def _wake(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)


def _name_of(key: object) -> str:
    """Return a key as people write it: `shop/alice`."""
    return "/".join(key) if isinstance(key, ObjectKey) else str(key)
