"""What a subscription knows of the streams that it hears of, and the looks into the log that mend it.

Announcements move positions as they come. A look is one step: a plan for all streams, one batch of a sweep, or one comparison; `step` takes the next one
that is due, whenever its caller has the time. What is found goes where announcements go: to the subscription's queue.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from msgspec import structs

from aether_api import logs
from aether_api.envelope import StoredCommit, decode_commit
from aether_api.errors import InvalidEnvelope, InvalidName, RetryableError
from aether_api.identity import ActorId, ModelName, Namespace
from aether_api.subjects import event_filter, event_stream, event_streams_filter, parse_event_stream, parse_event_subject, partition_of
from aether_nats.announcement import decode_announced, read_place
from aether_nats.bus_settings import BusSettings, Start
from aether_nats.deliveries import ActorVersion, Positions, Step, StreamMark, Unreadable
from aether_nats.hearing import Stretch
from aether_nats.jetstream import SUBJECTS_IN_REQUEST_MAX, JetStream
from aether_nats.jetstream_wire import StoredMessage, StreamInfo
from aether_nats.message import Message
from aether_nats.missed import MissedReader
from aether_nats.patterns import ActorPattern, matches_part

logger = logging.getLogger(__name__)

SETTLE_S: Final = 1.0
"""Seconds for which a comparison waits for an announcement that may be on its way, before it calls it missed."""

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


class StreamWatch:
    """The streams of one subscription, and how far it is told of each actor.

    Attributes:
        positions: how far it is told of each actor.
    """

    def __init__(self, js: JetStream, missed: MissedReader, pattern: ActorPattern, settings: BusSettings, push: Callable[[Sequence[Step]], None]) -> None:
        """Make one that knows of nothing yet.

        Args:
            push: takes what the subscriber is to be told, in order.
        """
        self.positions = Positions(settings.actors_max)
        self._js = js
        self._missed = missed
        self._pattern = pattern
        self._settings = settings
        self._push = push
        _, model, id = pattern.tokens
        self._only = None if "*" in (model, id) else (ModelName(model), id)
        self._loop = asyncio.get_running_loop()
        self._marks: dict[str, StreamMark] = {}
        self._lost = False
        self._sweeps: deque[_Sweep] = deque()
        self._checks: deque[tuple[StreamMark, list[ActorId]]] = deque()
        self._suspects: deque[tuple[StreamMark, StoredMessage, float]] = deque()
        self._stretches: deque[tuple[StreamMark, Stretch]] = deque()
        self._compare_at = self._loop.time() + settings.compare_every_s

    async def open(self, start: Start) -> None:
        """Learn where the streams end now, and what the log holds beyond what the subscriber knows."""
        for mark, info in await self._read_streams():
            if start.from_beginning:
                self._sweeps.append(_Sweep(mark, 1, info.state.last_seq, mark.replicated))
            else:
                mark.begin = mark.read_to = info.state.last_seq
            mark.lost = False
            mark.note_seen(info.state.last_seq, info.state.last_ts)
            mark.hearing.begin(info.state.last_seq, self._loop.time())
        for actor, known in start.known.items():
            if self._pattern.matches(actor):
                await self._take_known(actor, known)

    def note_loss(self) -> None:
        """Look into the log soon: from here on announcements may have been lost, whatever is announced until then."""
        for mark in self._marks.values():
            mark.read_to, mark.lost = mark.known_to(), True
        self._lost = True

    # What is announced.

    def note_other(self, message: Message) -> None:
        """Count what NATS cannot tell from what is meant, as the server will count it."""
        place = read_place(message)
        mark = self._marks.get(place.stream)
        if mark is not None:
            mark.hearing.note(place.sequence)

    def take(self, actor: ActorId, message: Message) -> bool:
        """Take an announcement, or raise `InvalidEnvelope`; returns whether the log is to be asked what it means."""
        stream, sequence, last_sequence, time = read_place(message)
        mark = self._mark_of(stream)
        is_denial = sequence <= mark.announced_to or self.positions.contradicts(mark, actor, last_sequence, sequence)
        if is_denial and not mark.doubted:
            self._doubt(mark, sequence)
        mark.announced_to = sequence
        if mark.doubted:
            return True
        mark.note_seen(sequence, time)
        mark.hearing.note(sequence)
        try:
            commit = decode_announced(sequence, message)
        except InvalidEnvelope as exc:
            self._push(self.positions.take_unreadable(mark, actor, sequence, str(exc)))
        else:
            self._push(self.positions.take(mark, actor, last_sequence, commit))
        return False

    def _doubt(self, mark: StreamMark, sequence: int) -> None:
        """Leave what is announced of a stream to the log: the server announces in order, so one that goes back was perhaps made anew, or restored."""
        logger.debug("a stream seems to have gone back", extra={logs.NAME: mark.name, logs.SEQUENCE: sequence})
        if not self._lost:
            self.note_loss()
        mark.lost = mark.doubted = True

    def _mark_of(self, name: str) -> StreamMark:
        mark = self._marks.get(name)
        if mark is None:
            mark = self._marks[name] = StreamMark(name, *parse_event_stream(name))
        return mark

    # What the log says.

    async def is_void(self, actor: ActorId) -> bool:
        """Tell whether the stream of a gap is gone, or another one has its name; then its actors are reset, and all goes on without the gap."""
        position = self.positions.get(actor)
        self._missed.forget(actor.namespace)  # the streams may be others, or more, than when it was read
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
        mark.created, mark.announced_to = "" if info is None else info.created, 0
        self.note_loss()
        return True

    def is_due(self, now_s: float) -> bool:
        """Tell whether there is a look to be taken now."""
        return self.find_next() <= now_s

    def find_next(self) -> float:
        """Return the time of the next look into the log."""
        if self._lost or self._sweeps or self._checks or self._stretches:
            return 0.0
        return min(self._compare_at, self._suspects[0][2]) if self._suspects else self._compare_at

    async def step(self) -> None:
        """Take the look that is due; a step that fails is taken again.

        Raises:
            RetryableError: the log cannot be read now.
        """
        now_s = self._loop.time()
        if self._lost or now_s >= self._compare_at:
            await self._plan()
        elif self._sweeps:
            await self._take_sweep(self._sweeps[0])
        elif self._checks:
            await self._check(*self._checks[0])
            self._checks.popleft()
        elif self._stretches:
            stretch = self._stretches[0]
            await self._judge(*stretch)
            if self._stretches and self._stretches[0] is stretch:
                self._stretches.popleft()
        elif self._suspects and self._suspects[0][2] <= now_s:
            mark, message, _ = self._suspects.popleft()
            self._take_heads(mark, [message])

    async def _plan(self) -> None:
        """Decide what to read: after a loss everything since, else the heads of the actors that are known, and what was not heard of."""
        self._lost = False
        try:
            found = await self._read_streams()
        except BaseException:
            self._lost = True
            raise
        if self._lost:  # again, so what was read may be too old
            return
        self._compare_at = self._loop.time() + self._settings.compare_every_s
        unfinished = {sweep.mark.name for sweep in self._sweeps}
        self._sweeps.clear()
        self._checks.clear()
        known = self.positions.actors_by_stream()
        for mark, info in found:
            if mark.lost or not mark.announced or mark.name in unfinished:
                self._sweep_anew(mark, info)
            else:
                self._compare(mark, info.state.last_seq)
            mark.note_seen(info.state.last_seq, info.state.last_ts)
            actors = known.get(mark.name, [])
            self._checks.extend((mark, actors[start : start + SUBJECTS_IN_REQUEST_MAX]) for start in range(0, len(actors), SUBJECTS_IN_REQUEST_MAX))

    def _compare(self, mark: StreamMark, last_sequence: int) -> None:
        """Look at a stream of which nothing is known to be lost."""
        if mark.doubtful is not None:
            self._sweeps.append(_Sweep(mark, *mark.doubtful))  # a minute later no replica is behind
            mark.doubtful = None
        if self._only is not None:
            actor = ActorId(Namespace(mark.namespace), *self._only)
            if self.positions.get(actor) is None:
                self._checks.append((mark, [actor]))
        elif self._loop.time() - mark.hearing.since_s >= SETTLE_S:
            self._stretches.append((mark, mark.hearing.turn(max(last_sequence, mark.announced_to), self._loop.time())))

    def _sweep_anew(self, mark: StreamMark, info: StreamInfo) -> None:
        """Read a stream from where something may be missing to its end, instead of all that was still to be read or judged of it."""
        first, end = mark.known_to() + 1, max(info.state.last_seq, mark.announced_to)
        mark.read_to, mark.lost, mark.doubted, mark.doubtful = first - 1, False, False, None
        mark.hearing.begin(end, self._loop.time())
        self._stretches = deque(item for item in self._stretches if item[0] is not mark)
        if first <= end:
            self._sweeps.append(_Sweep(mark, first, end, mark.replicated))

    async def _read_streams(self) -> list[tuple[StreamMark, StreamInfo]]:
        """Read how the streams are that the pattern covers; what is known of one that was made anew, or is gone, begins again."""
        found: list[tuple[StreamMark, StreamInfo]] = []
        listed = await self._js.stream_names(event_streams_filter(self._pattern.tokens[0]))
        for name in dict.fromkeys([*listed, *self._marks]):
            with suppress(InvalidName):
                if matches_part(self._pattern.namespace, parse_event_stream(name)[0]):
                    mark = self._mark_of(name)
                    info = await self._meet(mark)
                    if info is not None:
                        found.append((mark, info))
        return found

    async def _meet(self, mark: StreamMark) -> StreamInfo | None:
        seen, announced_to = mark.seen, mark.announced_to  # before the question: what is announced meanwhile may be newer than the answer
        info = await self._js.stream_info(mark.name)
        if info is None:
            self._begin_anew(mark)
            self._marks.pop(mark.name, None)
            return None
        mark.announced, mark.replicated = info.config.republish is not None, info.config.num_replicas > 1
        if not mark.announced and not mark.created:
            logger.warning("a namespace does not announce its events; they are found by comparison only", extra={logs.NAMESPACE: mark.namespace})
        if mark.created not in ("", info.created) or info.state.last_seq < seen or await self._is_another(mark, info):
            if mark.announced_to == announced_to and not mark.doubted:
                mark.announced_to = 0
            self._begin_anew(mark)
        mark.created = info.created
        return info

    async def _is_another(self, mark: StreamMark, info: StreamInfo) -> bool:
        """Tell whether a stream was restored from an older backup, and has grown beyond what was seen of it since: something else stands there then.

        Asked after a loss alone: as long as everything is heard, a stream that goes back is heard to do so.
        """
        if not mark.lost or (info.state.last_seq == mark.seen and info.state.last_ts == mark.seen_time):
            return False
        found = await self._js.leader_message(mark.name, mark.seen) if mark.seen and mark.seen_time else None
        return mark.doubted if found is None else found.time != mark.seen_time

    def _begin_anew(self, mark: StreamMark) -> None:
        """Reset what is known of a stream that is no longer there, or is another one."""
        logger.warning("a stream is gone, was made anew, or goes back", extra={logs.NAME: mark.name})
        self._missed.forget(mark.namespace)
        mark.begin = mark.forgotten_to = mark.seen = mark.read_to = 0
        mark.lost, mark.doubtful, mark.seen_time = True, None, ""
        mark.hearing.begin(0, self._loop.time())
        self._suspects = deque(item for item in self._suspects if item[0] is not mark)
        self._stretches = deque(item for item in self._stretches if item[0] is not mark)
        self._push(self.positions.reset_stream(mark))

    async def _take_sweep(self, sweep: _Sweep) -> None:
        """Read one batch of a sweep, which the server may cut short by its bytes: only what it says to be left out tells whether there is more."""
        subject, pending = self._filter_of(sweep.mark), 0
        if self._only is None:
            batch, pending = await self._js.read_batch(sweep.mark.name, subject, sweep.next_sequence, SWEEP_BATCH)
        else:
            batch = [message async for message in self._js.multi_last(sweep.mark.name, [subject])]  # one actor's last commit is known without a walk
        if sweep.mark.lost:  # meanwhile, so it is planned anew, and this may be of a stream that is gone
            return
        messages = [message for message in batch if message.sequence <= sweep.end]
        self._take_heads(sweep.mark, messages)
        if messages:
            sweep.next_sequence = messages[-1].sequence + 1
            sweep.mark.note_seen(messages[-1].sequence, messages[-1].time)
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
        _, model, id = self._pattern.tokens
        return event_filter(mark.namespace, mark.partition, model, id)

    async def _judge(self, mark: StreamMark, stretch: Stretch) -> None:
        """Read a stretch of a stream unless everything in it was heard; what is known of it is passed over."""
        stored = await self._count_stored(mark, stretch)
        if mark.lost:  # meanwhile, so all that was not heard is read
            return
        if stretch.heard != stored:
            logger.warning("announcements were lost between servers; they are read from the log", extra={logs.NAME: mark.name, logs.SEQUENCE: stretch.end})
            self._sweeps.append(_Sweep(mark, stretch.start + 1, stretch.end))
        else:
            mark.note_read(stretch.start + 1, stretch.end)

    async def _count_stored(self, mark: StreamMark, stretch: Stretch) -> int:
        """Return how many messages of a stretch are for us: all, or as many as the server counts there (more came meanwhile, or were purged: then one reads in vain)."""
        if self._pattern.tokens[1:] == ("*", "*") or stretch.start == stretch.end:
            return stretch.end - stretch.start
        subject = self._filter_of(mark)
        counts = [len(batch) + pending for batch, pending in [await self._js.read_batch(mark.name, subject, first + 1, 1) for first in stretch[:2]]]
        return counts[0] - counts[1]

    async def _check(self, mark: StreamMark, actors: list[ActorId]) -> None:
        """Compare the heads of some actors; what is newer may be on its way, so it is believed a moment later."""
        subjects = [event_filter(actor.namespace, mark.partition, actor.model, actor.id) for actor in actors]
        settled_s = self._loop.time() + SETTLE_S
        async for message in self._js.multi_last(mark.name, subjects):
            actor, _ = parse_event_subject(message.subject)
            if not mark.lost and self.positions.is_newer(mark, actor, message.sequence):  # else all are compared anew
                self._suspects.append((mark, structs.replace(message, payload=b""), settled_s))  # its headers say all, and hundreds may be large

    def _take_heads(self, mark: StreamMark, messages: Sequence[StoredMessage]) -> None:
        """Tell of the newest of what was read of each actor; what came before it is in its gap."""
        heads: dict[ActorId, StoredCommit] = {}
        for message in messages:
            with suppress(InvalidName):
                actor, _ = parse_event_subject(message.subject)
                if self._pattern.matches(actor) and self.positions.is_newer(mark, actor, message.sequence):
                    self._take_head(mark, actor, message, heads)
        for actor, head in heads.items():
            self._push(self.positions.take_head(mark, actor, head))

    def _take_head(self, mark: StreamMark, actor: ActorId, message: StoredMessage, heads: dict[ActorId, StoredCommit]) -> None:
        try:
            heads[actor] = decode_commit(message.sequence, message.raw_headers, message.payload)
        except InvalidEnvelope as exc:
            before = heads.pop(actor, None)
            if before is not None:
                self._push(self.positions.take_head(mark, actor, before))
            self._push(self.positions.take_unreadable(mark, actor, message.sequence, str(exc)))

    async def _take_known(self, actor: ActorId, known: ActorVersion) -> None:
        """Tell what the log holds beyond what the caller knows of an actor."""
        journal = await self._missed.find_journal(actor.namespace)
        if journal is not None:
            mark = self._mark_of(event_stream(actor.namespace, partition_of(actor, journal.partitions)))
            try:
                self._push(self.positions.take_known(mark, actor, known, await journal.read_head(actor)))
            except InvalidEnvelope:
                await self._take_known_broken(mark, actor, known, journal.scan(actor, after_sequence=max(0, known.sequence - 1)))

    async def _take_known_broken(self, mark: StreamMark, actor: ActorId, known: ActorVersion, found: AsyncIterator[Sequence[StoredCommit | Unreadable]]) -> None:
        """Tell the same where the log ends with something that is no commit: the last that is one, and what stands behind it."""
        head, behind = None, list[Unreadable]()
        async for items in found:
            for item in items:
                if isinstance(item, Unreadable):
                    behind.append(item)
                else:
                    head, behind = item, []
        self._push(self.positions.take_known(mark, actor, known, head) if head is not None else self.positions.begin_known(mark, actor, known))
        for item in behind:
            self._push(self.positions.take_unreadable(mark, actor, item.sequence, item.reason))
