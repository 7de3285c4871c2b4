"""One subscription to stored events: a bounded queue that announcements fill, and the looks into the log (`stream_watch`) that mend it.

Announcements are taken in the connection's read loop: a position is compared, and the commit is queued undecoded. All that
waits happens on behalf of the subscriber, while `__anext__` waits or in a task that outlives a wait which is given up. When the queue is full, commits are counted and left where they
are, positions stay, and the subscriber is told `Overflow`, then what it missed, as gaps.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from functools import lru_cache
from math import inf
from typing import Final

from aether_api import logs
from aether_api.errors import InvalidEnvelope, InvalidName, RetryableError, StreamUnavailable
from aether_api.identity import ActorId
from aether_api.subjects import parse_stored_subject, stored_filter
from aether_nats.bus_settings import BusSettings, Start
from aether_nats.connection import Subscription
from aether_nats.deliveries import Delivery, EventStored, Gap, Overflow, Step, Taken, Unreadable, read_events
from aether_nats.errand import Errand
from aether_nats.jetstream import JetStream
from aether_nats.message import Message
from aether_nats.missed import GapReading, MissedReader
from aether_nats.patterns import ActorPattern
from aether_nats.stream_watch import StreamWatch

logger = logging.getLogger(__name__)

RETRY_S: Final = 0.5
"""Seconds between looks into a log that cannot be read: an election takes seconds."""

WARN_AFTER_S: Final = 5.0
"""Seconds of waiting for one gap after which that is told: longer than an election, so somebody may have to act."""

ACTORS_CACHED: Final = 16_384
"""Subjects whose actors are remembered: those that are announced often are few (3 MB)."""


class EventSubscription:
    """Iterate it for everything as it is told, or `complete()` to have gaps filled; `EventBus` makes it.

    Attributes:
        pattern: whose events it sees.
    """

    def __init__(self, js: JetStream, missed: MissedReader, pattern: ActorPattern, types: frozenset[str], settings: BusSettings) -> None:
        self.pattern = pattern
        self._js = js
        self._missed = missed
        self._types = types
        self._settings = settings
        self._watch = StreamWatch(js, missed, pattern, settings, self._push)
        self._loop = asyncio.get_running_loop()
        self._subscription: Subscription | None = None
        self._queue: deque[Step] = deque()
        self._queued_bytes = 0
        self._ready: deque[Delivery] = deque()
        self._dropped = 0
        self._started = False
        self._held: list[Message] = []
        self._retry_at = 0.0
        self._warn_at: float | None = None
        self._closed = False
        self._looking = Errand("look into the log", self._wake)
        self._reading: GapReading | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_s = 0.0

    async def open(self, start: Start) -> None:
        """Subscribe, and learn where the streams end now; `EventBus` calls it. What is announced meanwhile waits until that is known."""
        self._subscription = self._js.connection.subscribe(stored_filter(*self.pattern.tokens), self._on_message)
        await self._js.connection.flush()
        if self._subscription.denied is not None:
            raise self._subscription.denied
        await self._watch.open(start)
        self._started = True
        held, self._held, self._queued_bytes = self._held, [], 0
        dropped, self._dropped = self._dropped, 0
        for message in held:
            self._on_message(message)
        self._dropped += dropped

    def close(self) -> None:
        """End the subscription; a subscriber that waits is released."""
        self._closed = True
        self._looking.cancel()
        if self._subscription is not None:
            self._subscription.unsubscribe()
        self._stop_alarm()
        self._wake()

    async def end(self) -> None:
        """Close it, and end what is under way for a subscriber that gave up its wait; `EventBus` calls it."""
        self.close()
        await self._looking.end()
        if self._reading is not None:  # what follows comes after what is not read any more
            self._ready.clear()
            self._queue.clear()
        await self.end_reading()

    def note_loss(self) -> None:
        """Look into the log soon: from here on announcements may have been lost, whatever is announced until then."""
        self._watch.note_loss()
        self._look_soon()

    def fetch_missed(self, gap: Gap) -> AsyncIterator[EventStored | Unreadable]:
        """Read the events of a gap from the log, in order, of the types that were asked for; see `MissedReader.read`."""
        return self._missed.read(gap, self._types)

    def complete(self) -> CompleteEvents:
        """Return what yields every event in order, those of gaps read from the log, with resets and what is unreadable; see `CompleteEvents`."""
        return CompleteEvents(self)

    async def read_gap(self, gap: Gap) -> EventStored | Unreadable | None:
        """Return the next of the gap that was told last, for `CompleteEvents`; None where there is no more, or where the log had to be waited for.

        What is left of the gap stands before all other items, so that whoever goes on, in whatever way, goes on there. It is read in a task, which goes on
        where the wait is given up.
        """
        self._ready.appendleft(gap)
        if self._reading is None or self._reading.rest is not gap or self._reading.has_failed:
            await self.end_reading()
            self._reading = GapReading(gap, self._read_missed(gap), self._wake)
        reading = self._reading
        try:
            while not reading.is_ready():
                await self._wait()
        except RetryableError as exc:
            await self._wait_for_log(gap, exc)
            return None
        if not self._ready or self._ready[0] is not gap:
            return None
        self._ready.popleft()
        self._warn_at = None
        found = reading.take()
        if found is not None and (rest := reading.pass_over(found)) is not None:
            self._ready.appendleft(rest)
        return found

    async def end_reading(self) -> None:
        """End the reading of the gap that was told last; what is left of it is told to whoever goes on."""
        reading, self._reading = self._reading, None
        if reading is not None:
            await reading.aclose()

    async def _read_missed(self, gap: Gap) -> AsyncGenerator[EventStored | Unreadable]:
        """Read a gap; where its stream is gone, or another one has its name, all goes on without the rest of it."""
        try:
            async with aclosing(self._missed.read(gap, self._types)) as items:
                async for item in items:
                    yield item
        except StreamUnavailable:
            if not await self._watch.is_void(gap.actor):
                raise
            self._look_soon()

    async def _wait_for_log(self, gap: Gap, error: RetryableError) -> None:
        """Wait until the log may be tried again; who closes the subscription meanwhile waits for nothing more."""
        if self._js.connection.is_closed:
            raise error
        logger.debug("a gap cannot be read now", extra={logs.ACTOR_ID: str(gap.actor), logs.REASON: str(error)})
        now_s = self._loop.time()
        self._warn_at = now_s + WARN_AFTER_S if self._warn_at is None else self._warn_at
        if now_s >= self._warn_at:
            logger.warning("a gap waits for its log, and what follows waits for it", extra={logs.ACTOR_ID: str(gap.actor), logs.REASON: str(error)})
            self._warn_at = inf
        self._retry_at = now_s + max(RETRY_S, error.retry_after_s)
        while self._loop.time() < self._retry_at and not self._closed:
            await self._wait(self._retry_at)
        if self._closed:
            self._ready.clear()
            self._queue.clear()

    def __aiter__(self) -> EventSubscription:
        return self

    async def __anext__(self) -> Delivery:
        """Return the next item; waits for it, and looks into the log meanwhile where that is due."""
        self._js.connection.check_loop()
        while True:
            if self._ready:
                return self._ready.popleft()
            if self._queue:
                self._unpack(self._queue.popleft())
            elif self._closed:
                raise StopAsyncIteration
            elif self._dropped:
                dropped, self._dropped = self._dropped, 0
                self.note_loss()
                return Overflow(dropped)
            else:
                await self._wait_or_look()

    def _unpack(self, step: Step) -> None:
        if isinstance(step, Taken):
            self._queued_bytes -= len(step.commit.payload)
            self._ready.extend(read_events(step.actor, step.commit, self._types))
        else:
            self._ready.append(step)

    def _push(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self._queue.append(step)
            if isinstance(step, Taken):
                self._queued_bytes += len(step.commit.payload)
        if steps:
            self._wake()

    # What is announced.

    def _on_message(self, message: Message) -> None:
        try:
            actor = _read_actor(message.raw_subject)
            if not self.pattern.is_whole and not self.pattern.matches(actor):
                return self._watch.note_other(message) if self._started else None
            if self._dropped or len(self._queue) + len(self._held) >= self._settings.queue_max or self._queued_bytes >= self._settings.queue_bytes_max:
                self._dropped += 1
                self._wake()
            elif not self._started:
                self._held.append(message)
                self._queued_bytes += len(message.payload)
            elif self._watch.take(actor, message):
                self._look_soon()
        except (InvalidEnvelope, InvalidName) as exc:
            logger.debug("not an announcement of the server", extra={logs.NAME: message.subject, logs.REASON: str(exc)})

    # What the log says.

    def _look_soon(self) -> None:
        self._retry_at = 0.0
        self._wake()

    async def _wait_or_look(self) -> None:
        """Wait for an announcement, or for what is found in the log, if a look is due or under way."""
        if not self._looking.is_over():
            return await self._wait()
        at_s = max(self._watch.find_next(), self._retry_at)
        if at_s > self._loop.time():
            return await self._wait(at_s)
        self._looking.begin(self._look())
        return await self._wait()

    async def _look(self) -> None:
        """Take one step of what is to be looked for in the log."""
        try:
            await self._watch.step()
        except RetryableError as exc:
            if self._js.connection.is_closed:
                raise
            logger.debug("the log cannot be compared now", extra={logs.REASON: str(exc)})
            self._retry_at = self._loop.time() + max(RETRY_S, exc.retry_after_s)

    async def _wait(self, at_s: float | None = None) -> None:
        """Wait for an announcement, a loss, something from the log, the end, or a time.

        The alarm stays from one wait to the next: most end with an announcement, and the next look is as far away as before.
        """
        if self._waiter is not None and not self._waiter.done():
            raise RuntimeError("another task waits for this subscription already")
        if at_s is not None and (self._alarm is None or self._alarm_s != at_s):
            self._stop_alarm()
            self._alarm, self._alarm_s = self._loop.call_at(at_s, self._ring), at_s
        self._waiter = self._loop.create_future()
        await self._waiter

    def _ring(self) -> None:
        self._alarm = None
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _stop_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None


class CompleteEvents(AsyncIterator[Delivery]):
    """Every event in order, those of gaps read from the log, with resets and what is unreadable; `EventSubscription.complete` makes it.

    Nothing is yielded twice or skipped, whatever ends a wait: `anext` may be cancelled and called again, a loop may be left and another one begun, and while
    NATS does not answer it waits, as a plain subscription does. Of a gap whose commits a purge takes meanwhile, what was not read yet is left out, and a `Reset` follows.

    Raises:
        Disconnected: the connection was closed.
        PermanentError: a gap cannot be read at all, and `anext` says so again; `anext(subscription)` takes what is left of the gap, and all goes on behind it.
    """

    def __init__(self, subscription: EventSubscription) -> None:
        self._subscription = subscription

    async def __anext__(self) -> Delivery:
        """Return the next item; waits for it."""
        while True:
            item = await self._subscription.__anext__()
            if isinstance(item, EventStored):
                return item
            if isinstance(item, Gap):
                found = await self._subscription.read_gap(item)
                if found is not None:
                    return found
            elif not isinstance(item, Overflow):
                return item

    async def aclose(self) -> None:
        """End the reading of the gap that was told last, as `contextlib.aclosing` does; what is left of it is told to whoever goes on."""
        await self._subscription.end_reading()


@lru_cache(ACTORS_CACHED)
def _read_actor(subject: bytes) -> ActorId:
    return parse_stored_subject(subject.decode())
