"""One subscription to stored events: a bounded queue that announcements fill, and the looks into the log that mend it.

Announcements are taken in the connection's read loop: a position is compared, and the commit is queued undecoded. All that
waits happens in `__anext__`, on behalf of the subscriber. When the queue is full, commits are counted and left where they
are, positions stay, and the subscriber is told `Overflow`, then what it missed, as gaps.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf
from typing import Final

from aether_api import logs
from aether_api.envelope import StoredCommit, decode_commit
from aether_api.errors import InvalidEnvelope, InvalidName, RetryableError, StreamUnavailable
from aether_api.identity import ActorId, ModelName, Namespace
from aether_api.subjects import (
    event_filter,
    event_stream,
    event_streams_filter,
    parse_event_stream,
    parse_event_subject,
    parse_stored_subject,
    partition_of,
    stored_filter,
)
from aether_nats.announcement import decode_announced, read_place
from aether_nats.bus_settings import BusSettings, Start
from aether_nats.connection import Subscription
from aether_nats.deliveries import ActorVersion, Delivery, EventStored, Gap, Overflow, Positions, Step, StreamMark, Taken, Unreadable, read_events
from aether_nats.hearing import Stretch
from aether_nats.jetstream import SUBJECTS_IN_REQUEST_MAX, JetStream
from aether_nats.jetstream_wire import StoredMessage, StreamInfo
from aether_nats.message import Message
from aether_nats.missed import GapReading, MissedReader
from aether_nats.patterns import ActorPattern, matches_part

logger = logging.getLogger(__name__)

RETRY_S: Final = 0.5
"""Seconds between looks into a log that cannot be read: an election takes seconds."""

WARN_AFTER_S: Final = 5.0
"""Seconds of waiting for one gap after which that is told: longer than an election, so somebody may have to act."""

SETTLE_S: Final = 1.0
"""Seconds for which a comparison waits for an announcement that may be on its way, before it calls it missed."""

ACTORS_CACHED: Final = 16_384
"""Subjects whose actors are remembered: those that are announced often are few (3 MB)."""

SWEEP_BATCH: Final = 256
"""Messages of a stream read at once after a loss: hides the round trip, and bounds the queue beyond its own limit."""


@dataclass(slots=True)
class _Sweep:
    """Part of a stream that is to be read: from `first` to `end`, where `next_sequence` comes next.

    Attributes:
        may_lag: who answers may not have all of it yet.
    """

    mark: StreamMark
    first: int
    end: int
    may_lag: bool = False
    next_sequence: int = field(init=False)

    def __post_init__(self) -> None:
        self.next_sequence = self.first


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
        _, model, id = pattern.tokens
        self._only = None if "*" in (model, id) else (ModelName(model), id)
        self._loop = asyncio.get_running_loop()
        self._subscription: Subscription | None = None
        self._positions = Positions(settings.actors_max)
        self._marks: dict[str, StreamMark] = {}
        self._queue: deque[Step] = deque()
        self._queued_bytes = 0
        self._ready: deque[Delivery] = deque()
        self._dropped = 0
        self._started = False
        self._held: list[Message] = []
        self._lost = False
        self._sweeps: deque[_Sweep] = deque()
        self._checks: deque[tuple[StreamMark, list[ActorId]]] = deque()
        self._suspects: deque[tuple[StreamMark, StoredMessage, float]] = deque()
        self._stretches: deque[tuple[StreamMark, Stretch]] = deque()
        self._compare_at = self._loop.time() + settings.compare_every_s
        self._retry_at = 0.0
        self._warn_at: float | None = None
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_s = 0.0

    async def open(self, start: Start) -> None:
        """Subscribe, and learn where the streams end now; `EventBus` calls it. What is announced meanwhile waits until that is known."""
        self._subscription = self._js.connection.subscribe(stored_filter(*self.pattern.tokens), self._on_message)
        await self._js.connection.flush()
        if self._subscription.denied is not None:
            raise self._subscription.denied
        for mark, info in await self._read_streams():
            if start.from_beginning:
                self._sweeps.append(_Sweep(mark, 1, info.state.last_seq, mark.replicated))
            else:
                mark.begin = mark.seen = mark.read_to = info.state.last_seq
            mark.lost = False
            mark.hearing.begin(info.state.last_seq, self._loop.time())
        for actor, known in start.known.items():
            if self.pattern.matches(actor):
                await self._take_known(actor, known)
        self._started = True
        held, self._held = self._held, []
        for message in held:
            self._on_message(message)

    def close(self) -> None:
        """End the subscription; a subscriber that waits is released."""
        self._closed = True
        if self._subscription is not None:
            self._subscription.unsubscribe()
        self._stop_alarm()
        self._wake()

    def note_loss(self) -> None:
        """Look into the log soon: from here on announcements may have been lost, whatever is announced until then."""
        for mark in self._marks.values():
            mark.read_to, mark.lost = mark.known_to(), True
        self._lost = True
        self._retry_at = 0.0
        self._wake()

    def fetch_missed(self, gap: Gap) -> AsyncIterator[EventStored | Unreadable]:
        """Read the events of a gap from the log, in order, of the types that were asked for; see `MissedReader.read`."""
        return self._missed.read(gap, self._types)

    def complete(self) -> CompleteEvents:
        """Return what yields every event in order, those of gaps read from the log, with resets and what is unreadable; see `CompleteEvents`."""
        return CompleteEvents(self)

    async def read_gap(self, gap: Gap, reading: GapReading | None) -> tuple[EventStored | Unreadable | None, GapReading | None]:
        """Return the next of the gap that was told last, for `CompleteEvents`, and what reads on; nothing where there is no more, or where the log had to be waited for.

        What is left of the gap stands before all other items, so that whoever goes on, in whatever way, goes on there.
        """
        self._ready.appendleft(gap)
        if reading is None or reading.rest is not gap:
            reading = GapReading(gap, self._missed.read(gap, self._types))
        try:
            found = await anext(reading.items, None)
        except RetryableError as exc:
            if isinstance(exc, StreamUnavailable) and await self._is_void(gap):
                self._ready.popleft()
            else:
                await self._wait_for_log(gap, exc)
            return None, None
        self._ready.popleft()
        self._warn_at = None
        if found is None:
            return None, None
        if (rest := reading.pass_over(found)) is not None:
            self._ready.appendleft(rest)
        return found, reading

    async def _is_void(self, gap: Gap) -> bool:
        """Tell whether the stream of a gap is gone, or another one has its name; then its actors are reset, and all goes on without the gap."""
        position = self._positions.get(gap.actor)
        self._missed.forget(gap.actor.namespace)  # the streams may be others, or more, than when it was read
        if position is None:
            return False
        mark = position.stream
        try:
            info = await self._js.stream_info(mark.name)
        except RetryableError as exc:
            logger.debug("a stream cannot be looked at now", extra={logs.NAME: mark.name, logs.REASON: str(exc)})
            return False
        if info is not None and mark.created in ("", info.created):
            return False
        self._begin_anew(mark)
        mark.created = "" if info is None else info.created
        self.note_loss()
        return True

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
            elif not await self._look():
                await self._wait(self._find_next_look())

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
                return self._note_other(message)
            if not self._started and len(self._held) < self._settings.queue_max:
                self._held.append(message)
                return
            if self._dropped or not self._started or len(self._queue) >= self._settings.queue_max or self._queued_bytes >= self._settings.queue_bytes_max:
                self._dropped += 1
                self._wake()
                return
            self._take(actor, message)
        except (InvalidEnvelope, InvalidName) as exc:
            logger.debug("not an announcement of the server", extra={logs.NAME: message.subject, logs.REASON: str(exc)})

    def _note_other(self, message: Message) -> None:
        """Count what NATS cannot tell from what is meant, as the server will count it."""
        place = read_place(message)
        mark = self._marks.get(place.stream) if self._started else None
        if mark is not None:
            mark.hearing.note(place.sequence)

    def _take(self, actor: ActorId, message: Message) -> None:
        stream, sequence, last_sequence = read_place(message)
        mark = self._mark_of(stream)
        if sequence <= mark.announced_to or self._positions.contradicts(actor, last_sequence, sequence):
            self._suspect(mark, sequence)
        mark.announced_to = max(mark.announced_to, sequence)
        mark.seen = max(mark.seen, sequence)
        mark.hearing.note(sequence)
        try:
            commit = decode_announced(sequence, message)
        except InvalidEnvelope as exc:
            return self._push(self._positions.take_unreadable(mark, actor, sequence, str(exc)))
        self._push(self._positions.take(mark, actor, last_sequence, commit))

    def _suspect(self, mark: StreamMark, sequence: int) -> None:
        """The server announces a stream in order; one that goes back was perhaps made anew."""
        if not self._lost:
            logger.debug("a stream seems to have gone back", extra={logs.NAME: mark.name, logs.SEQUENCE: sequence})
            self.note_loss()

    def _mark_of(self, name: str) -> StreamMark:
        mark = self._marks.get(name)
        if mark is None:
            mark = self._marks[name] = StreamMark(name, *parse_event_stream(name))
        return mark

    # What the log says.

    async def _look(self) -> bool:
        """Take one step of what is to be looked for in the log; returns whether there was one."""
        now_s = self._loop.time()
        if now_s < self._retry_at:
            return False
        try:
            if self._lost or now_s >= self._compare_at:
                await self._plan()
            elif self._sweeps:
                await self._take_sweep(self._sweeps[0])
            elif self._checks:
                await self._check(*self._checks[0])
                self._checks.popleft()
            elif self._stretches:
                await self._judge(*self._stretches[0])
                self._stretches.popleft()
            elif self._suspects and self._suspects[0][2] <= now_s:
                mark, message, _ = self._suspects.popleft()
                self._take_heads(mark, [message])
            else:
                return False
        except RetryableError as exc:
            if self._js.connection.is_closed:
                raise
            logger.debug("the log cannot be compared now", extra={logs.REASON: str(exc)})
            self._retry_at = self._loop.time() + max(RETRY_S, exc.retry_after_s)
        return True

    def _find_next_look(self) -> float:
        """Return the time of the next look into the log."""
        if self._lost or self._sweeps or self._checks or self._stretches:
            return self._retry_at
        times = [self._compare_at, *([self._suspects[0][2]] if self._suspects else [])]
        return max(min(times), self._retry_at)

    async def _wait(self, at_s: float) -> None:
        """Wait for an announcement, a loss, the end, or a time.

        The alarm stays from one wait to the next: most end with an announcement, and the next look is as far away as before.
        """
        if self._waiter is not None and not self._waiter.done():
            raise RuntimeError("another task waits for this subscription already")
        if self._alarm is None or self._alarm_s != at_s:
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

    async def _plan(self) -> None:
        """Decide what to read: after a loss everything since, else the heads of the actors that are known, and what was not heard of."""
        self._lost = False
        try:
            found = await self._read_streams()
        except BaseException:
            self._lost = True
            raise
        self._compare_at = self._loop.time() + self._settings.compare_every_s
        unfinished = {sweep.mark.name for sweep in self._sweeps}
        self._sweeps.clear()
        self._checks.clear()
        for mark, info in found:
            if mark.lost or not mark.announced or mark.name in unfinished:
                self._sweep_anew(mark, info)
            else:
                self._compare(mark, info.state.last_seq)
            actors = self._positions.actors_of(mark)
            self._checks.extend((mark, actors[start : start + SUBJECTS_IN_REQUEST_MAX]) for start in range(0, len(actors), SUBJECTS_IN_REQUEST_MAX))

    def _compare(self, mark: StreamMark, last_sequence: int) -> None:
        """Look at a stream of which nothing is known to be lost."""
        if mark.doubtful is not None:
            self._sweeps.append(_Sweep(mark, *mark.doubtful))  # a minute later no replica is behind
            mark.doubtful = None
        if self._only is not None:
            actor = ActorId(Namespace(mark.namespace), *self._only)
            if self._positions.get(actor) is None:
                self._checks.append((mark, [actor]))
        elif self._loop.time() - mark.hearing.since_s >= SETTLE_S:
            self._stretches.append((mark, mark.hearing.turn(max(last_sequence, mark.announced_to), self._loop.time())))

    def _sweep_anew(self, mark: StreamMark, info: StreamInfo) -> None:
        """Read a stream from where something may be missing to its end, instead of all that was still to be read or judged of it."""
        first, end = mark.known_to() + 1, max(info.state.last_seq, mark.announced_to)
        mark.read_to, mark.lost, mark.doubtful = first - 1, False, None
        mark.hearing.begin(end, self._loop.time())
        self._stretches = deque(item for item in self._stretches if item[0] is not mark)
        if first <= end:
            self._sweeps.append(_Sweep(mark, first, end, mark.replicated))

    async def _read_streams(self) -> list[tuple[StreamMark, StreamInfo]]:
        """Read how the streams are that the pattern covers; one that was made anew begins again."""
        found: list[tuple[StreamMark, StreamInfo]] = []
        for name in await self._js.stream_names(event_streams_filter(self.pattern.tokens[0])):
            with suppress(InvalidName):
                if not matches_part(self.pattern.namespace, parse_event_stream(name)[0]):
                    continue
                seen = self._mark_of(name).seen  # before the question: what is announced meanwhile may be newer than the answer
                info = await self._js.stream_info(name)
                if info is not None:
                    found.append((self._meet(name, info, seen), info))
        return found

    def _meet(self, name: str, info: StreamInfo, seen: int) -> StreamMark:
        mark = self._mark_of(name)
        mark.announced, mark.replicated = info.config.republish is not None, info.config.num_replicas > 1
        if not mark.announced and not mark.created:
            logger.warning("a namespace does not announce its events; they are found by comparison only", extra={logs.NAMESPACE: mark.namespace})
        if mark.created not in ("", info.created) or info.state.last_seq < seen:
            self._begin_anew(mark)
        mark.created = info.created
        return mark

    def _begin_anew(self, mark: StreamMark) -> None:
        """Reset what is known of a stream that is no longer there, or is another one."""
        logger.warning("a stream is gone, was made anew, or goes back", extra={logs.NAME: mark.name})
        self._missed.forget(mark.namespace)
        mark.begin = mark.forgotten_to = mark.seen = mark.announced_to = mark.read_to = 0
        mark.lost, mark.doubtful = True, None
        mark.hearing.begin(0, self._loop.time())
        self._push(self._positions.reset_stream(mark))

    async def _take_sweep(self, sweep: _Sweep) -> None:
        """Read one batch of a sweep, which the server may cut short by its bytes: only what it says to be left out tells whether there is more."""
        subject, pending = self._filter_of(sweep.mark), 0
        if self._only is None:
            batch, pending = await self._js.read_batch(sweep.mark.name, subject, sweep.next_sequence, SWEEP_BATCH)
        else:
            batch = await self._js.multi_last(sweep.mark.name, [subject])  # one actor's last commit is known without a walk
        messages = [message for message in batch if message.sequence <= sweep.end]
        self._take_heads(sweep.mark, messages)
        if messages:
            sweep.next_sequence = messages[-1].sequence + 1
            sweep.mark.seen = max(sweep.mark.seen, messages[-1].sequence)
            sweep.mark.note_read(sweep.first, messages[-1].sequence)
        if not messages or not pending or sweep.next_sequence > sweep.end:
            self._end_sweep(sweep)

    def _end_sweep(self, sweep: _Sweep) -> None:
        """What a replica did not have is read once more at the next comparison, if it may have been behind."""
        if self._sweeps and self._sweeps[0] is sweep:
            self._sweeps.popleft()
        if sweep.may_lag and sweep.next_sequence <= sweep.end:
            sweep.mark.doubtful = (sweep.next_sequence, sweep.end)
        else:
            sweep.mark.note_read(sweep.first, sweep.end)

    def _filter_of(self, mark: StreamMark) -> str:
        _, model, id = self.pattern.tokens
        return event_filter(mark.namespace, mark.partition, model, id)

    async def _judge(self, mark: StreamMark, stretch: Stretch) -> None:
        """Read a stretch of a stream unless everything in it was heard; what is known of it is passed over."""
        if stretch.heard != await self._count_stored(mark, stretch):
            logger.warning("announcements were lost between servers; they are read from the log", extra={logs.NAME: mark.name, logs.SEQUENCE: stretch.end})
            self._sweeps.append(_Sweep(mark, stretch.start + 1, stretch.end))
        else:
            mark.note_read(stretch.start + 1, stretch.end)

    async def _count_stored(self, mark: StreamMark, stretch: Stretch) -> int:
        """Return how many messages of a stretch are for us: all, or as many as the server counts there (more came meanwhile, or were purged: then one reads in vain)."""
        if self.pattern.tokens[1:] == ("*", "*") or stretch.start == stretch.end:
            return stretch.end - stretch.start
        subject = self._filter_of(mark)
        counts = [len(batch) + pending for batch, pending in [await self._js.read_batch(mark.name, subject, first + 1, 1) for first in stretch[:2]]]
        return counts[0] - counts[1]

    async def _check(self, mark: StreamMark, actors: list[ActorId]) -> None:
        """Compare the heads of some actors; what is newer may be on its way, so it is believed a moment later."""
        subjects = [event_filter(actor.namespace, mark.partition, actor.model, actor.id) for actor in actors]
        settled_s = self._loop.time() + SETTLE_S
        for message in await self._js.multi_last(mark.name, subjects):
            actor, _ = parse_event_subject(message.subject)
            if self._positions.is_newer(actor, message.sequence):
                self._suspects.append((mark, message, settled_s))

    def _take_heads(self, mark: StreamMark, messages: Sequence[StoredMessage]) -> None:
        """Tell of the newest of what was read of each actor; what came before it is in its gap."""
        heads: dict[ActorId, StoredCommit] = {}
        for message in messages:
            with suppress(InvalidName):
                actor, _ = parse_event_subject(message.subject)
                if self.pattern.matches(actor) and self._positions.is_newer(actor, message.sequence):
                    self._take_head(mark, actor, message, heads)
        for actor, head in heads.items():
            self._push(self._positions.take_head(mark, actor, head))

    def _take_head(self, mark: StreamMark, actor: ActorId, message: StoredMessage, heads: dict[ActorId, StoredCommit]) -> None:
        try:
            heads[actor] = decode_commit(message.sequence, message.raw_headers, message.payload)
        except InvalidEnvelope as exc:
            before = heads.pop(actor, None)
            if before is not None:
                self._push(self._positions.take_head(mark, actor, before))
            self._push(self._positions.take_unreadable(mark, actor, message.sequence, str(exc)))

    async def _take_known(self, actor: ActorId, known: ActorVersion) -> None:
        """Tell what the log holds beyond what the caller knows of an actor."""
        journal = await self._missed.find_journal(actor.namespace)
        if journal is not None:
            mark = self._mark_of(event_stream(actor.namespace, partition_of(actor, journal.partitions)))
            self._push(self._positions.take_known(mark, actor, known, await journal.read_head(actor)))


class CompleteEvents(AsyncIterator[Delivery]):
    """Every event in order, those of gaps read from the log, with resets and what is unreadable; `EventSubscription.complete` makes it.

    Nothing is yielded twice or skipped, whatever ends a wait: `anext` may be cancelled and called again, a loop may be left and another one begun, and while
    NATS does not answer it waits, as a plain subscription does. Of a gap whose commits a purge takes meanwhile the rest is left out, and a `Reset` follows.

    Raises:
        Disconnected: the connection was closed.
        PermanentError: a gap cannot be read at all, and `anext` says so again; `anext(subscription)` takes what is left of the gap, and all goes on behind it.
    """

    def __init__(self, subscription: EventSubscription) -> None:
        self._subscription = subscription
        self._reading: GapReading | None = None

    async def __anext__(self) -> Delivery:
        """Return the next item; waits for it."""
        while True:
            item = await self._subscription.__anext__()
            if isinstance(item, EventStored):
                return item
            if isinstance(item, Gap):
                reading, self._reading = self._reading, None  # one whose wait is cancelled has ended
                found, self._reading = await self._subscription.read_gap(item, reading)
                if found is not None:
                    return found
            elif not isinstance(item, Overflow):
                return item

    async def aclose(self) -> None:
        """End the reading of the gap that was told last, as `contextlib.aclosing` does; what is left of it is told to whoever goes on."""
        reading, self._reading = self._reading, None
        if reading is not None:
            await reading.items.aclose()


@lru_cache(ACTORS_CACHED)
def _read_actor(subject: bytes) -> ActorId:
    return parse_stored_subject(subject.decode())
