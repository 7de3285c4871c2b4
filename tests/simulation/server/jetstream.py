"""JetStream: which stream takes a message, and what becomes of it.

A write to a replicated stream is proposed first and stored a moment later; while it is under way, another write to its subject is
refused (10164), as the server does, and if the leader falls meanwhile it is stored unheard or lost. What is refused is decided
when it is proposed. An atomic batch (ADR-50) is kept by the leader until its last message has come, and then is one write: whole or not at all.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Final

from aether_api import headers
from aether_api.headers import FIRST_LINE, decode_headers, encode_headers
from aether_api.messages import format_time
from aether_nats.jetstream_wire import ERROR_BAD_SCHEDULE, ERROR_BAD_TIME_ZONE, ERROR_ID_UNDER_WAY, ERROR_WRITE_UNDER_WAY, ERROR_WRONG_LAST_SEQUENCE, StreamConfig
from tests.simulation.server.broker import Broker, Publication, matches_subject
from tests.simulation.server.stream import Batch, Stored, Stream
from tests.simulation.server.ticks import BadSchedule, BadZone, next_tick

BATCH_ID: Final = "Nats-Batch-Id"
BATCH_SEQUENCE: Final = "Nats-Batch-Sequence"
BATCH_COMMIT: Final = "Nats-Batch-Commit"
BATCH_IDLE_S: Final = 10.0
"""Seconds after its newest message for which a batch is kept, the server's default."""

ERROR_NO_BATCHES: Final = 10174
ERROR_INCOMPLETE_BATCH: Final = 10176
SCHEDULER: Final = "Nats-Scheduler"
_WILDCARD: Final = re.compile(r"\{\{wildcard\((\d+)\)\}\}")


class JetStreamEngine:
    """All streams of a server, and how they are written."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.clock = broker.clock
        self.hazards = broker.hazards
        self.streams: dict[str, Stream] = {}
        self.archived: list[Stream] = []
        self._waking_s: dict[str, float] = {}
        self._announced_s: dict[str, float] = {}

    def find_stream(self, subject: str) -> Stream | None:
        """Return the stream that stores a subject."""
        return next((stream for stream in self.streams.values() if stream.takes(subject)), None)

    def create(self, config: StreamConfig) -> Stream:
        """Make a stream."""
        stream = self.streams[config.name] = Stream(config, self.clock.now_s())
        return stream

    def delete(self, stream: Stream) -> None:
        """Delete a stream with all that it holds."""
        del self.streams[stream.config.name]
        self.archived.append(stream)

    # Writing.

    def write(self, stream: Stream, message: Publication) -> None:
        """Propose a message, or refuse it."""
        lines = strip_block(message.headers)
        found = decode_headers(message.headers) if message.headers else {}
        if BATCH_ID in found:
            return self._take_part(stream, message, found)
        duplicate = stream.find_duplicate(found.get(headers.MESSAGE_ID, ""), self.clock.now_s())
        if duplicate is not None:
            return self.broker.answer(message.reply, build_json({"stream": stream.config.name, "seq": duplicate, "duplicate": True}))
        refusal = self._find_refusal(stream, message.subject, found)
        if refusal is not None:
            self.broker.trace(f"{stream.config.name} refuses {message.subject}: {refusal}")
            return self.broker.answer(message.reply, build_error(400, *refusal))
        stream.begin_write(message.subject, found.get(headers.MESSAGE_ID, ""))
        delay_s = self.hazards.write_delay_s(stream.config.num_replicas)
        self.clock.later(delay_s, partial(self._commit, stream, message, lines, found))

    def _find_refusal(self, stream: Stream, subject: str, found: dict[str, str]) -> tuple[int, str] | None:
        """Return why a message is refused: the server's number and its words."""
        if found.get(headers.MESSAGE_ID, "") in stream.writing_ids:
            return ERROR_ID_UNDER_WAY, "duplicate message id is in process"
        expected = found.get(headers.EXPECTED_SEQUENCE)
        if expected is not None:
            last = stream.last_of(subject)
            if stream.writing.get(subject) or self.hazards.refuses_write(stream.config.num_replicas):
                return ERROR_WRITE_UNDER_WAY, "wrong last sequence"
            if int(expected) != last:
                return ERROR_WRONG_LAST_SEQUENCE, f"wrong last sequence: {last}"
        if headers.SCHEDULE in found:
            try:
                next_tick(found[headers.SCHEDULE], found.get(headers.SCHEDULE_ZONE, ""), self.clock.now_s())
            except BadSchedule:
                return ERROR_BAD_SCHEDULE, "message schedule is invalid"
            except BadZone:
                return ERROR_BAD_TIME_ZONE, "message schedule time zone is invalid"
        return None

    def _commit(self, stream: Stream, message: Publication, lines: bytes, found: dict[str, str]) -> None:
        """Store what was proposed, and say so."""
        stream.end_write(message.subject, found.get(headers.MESSAGE_ID, ""))
        is_led = stream.leaderless_s <= self.clock.now_s()
        if not is_led and self.hazards.fate_of_write() == "lost":
            return self.broker.trace(f"{stream.config.name} loses {message.subject}, whose leader fell")
        stored = self.store(stream, message.subject, lines, message.payload, found)
        if is_led:
            self.broker.answer(message.reply, build_json({"stream": stream.config.name, "seq": stored.sequence}))

    # Atomic batches.

    def _take_part(self, stream: Stream, message: Publication, found: dict[str, str]) -> None:
        """Keep a message of a batch, and propose all of them with the last one."""
        id, now_s = found[BATCH_ID], self.clock.now_s()
        if not stream.config.allow_atomic:
            return self.broker.answer(message.reply, build_error(400, ERROR_NO_BATCHES, "atomic publish is disabled"))
        batch = stream.batches.pop(id, Batch())
        if batch.messages and now_s - batch.touched_s > BATCH_IDLE_S:
            batch = Batch()
        if found.get(BATCH_SEQUENCE) != str(len(batch.messages) + 1):
            self.broker.trace(f"{stream.config.name} gives batch {id} up")
            return self.broker.answer(message.reply, build_error(400, ERROR_INCOMPLETE_BATCH, "atomic publish batch is incomplete"))
        batch.messages.append(message)
        batch.touched_s = now_s
        if BATCH_COMMIT in found:
            return self._propose(stream, id, batch.messages)
        stream.batches[id] = batch
        return self.broker.answer(message.reply, (b"", b""))

    def _propose(self, stream: Stream, id: str, messages: list[Publication]) -> None:
        """Propose a batch, or refuse it for the first of its messages that cannot be stored."""
        subjects = set[str]()
        for message in messages:
            found = decode_headers(message.headers)
            is_second = message.subject in subjects and headers.EXPECTED_SEQUENCE in found
            refusal = (ERROR_WRITE_UNDER_WAY, "wrong last sequence") if is_second else self._find_refusal(stream, message.subject, found)
            if refusal is not None:
                self.broker.trace(f"{stream.config.name} refuses batch {id} for {message.subject}: {refusal}")
                return self.broker.answer(messages[-1].reply, build_error(400, *refusal))
            subjects.add(message.subject)
        for message in messages:
            stream.begin_write(message.subject, "")
        self.clock.later(self.hazards.write_delay_s(stream.config.num_replicas), partial(self._commit_batch, stream, id, messages))

    def _commit_batch(self, stream: Stream, id: str, messages: list[Publication]) -> None:
        """Store a batch that was proposed, in a row, and say so."""
        for message in messages:
            stream.end_write(message.subject, "")
        is_led = stream.leaderless_s <= self.clock.now_s()
        if not is_led and self.hazards.fate_of_write() == "lost":
            return self.broker.trace(f"{stream.config.name} loses batch {id}, whose leader fell")
        for message in messages:
            self.store(stream, message.subject, strip_block(message.headers), message.payload, decode_headers(message.headers))
        if is_led:
            self.broker.answer(messages[-1].reply, build_json({"stream": stream.config.name, "seq": stream.last_sequence, "batch": id, "count": len(messages)}))

    def store(self, stream: Stream, subject: str, lines: bytes, payload: bytes, found: dict[str, str]) -> Stored:
        """Store a message, announce it, and keep its schedule."""
        now_s, last = self.clock.now_s(), stream.last_of(subject)
        if headers.SCHEDULE in found:
            stream.purge(subject, 0, 0, now_s)
        stored = stream.store(subject, lines, payload, now_s)
        self.broker.trace(f"{stream.config.name} {stored.sequence} {subject} {found.get(headers.COMMIT, '')}")
        if headers.MESSAGE_ID in found:
            stream.ids[found[headers.MESSAGE_ID]] = (stored.sequence, now_s)
        self._announce(stream, stored, last)
        if headers.SCHEDULE in found and stream.config.allow_msg_schedules:
            stream.scheduled[subject] = next_tick(found[headers.SCHEDULE], found.get(headers.SCHEDULE_ZONE, ""), now_s)
            self.wake(stream)
        return stored

    def _announce(self, stream: Stream, stored: Stored, last: int) -> None:
        republish = stream.config.republish
        if republish is None or not matches_subject(republish.src, stored.subject):
            return
        wildcards = [token for part, token in zip(republish.src.split("."), stored.subject.split("."), strict=True) if part == "*"]
        subject = _WILDCARD.sub(lambda match: wildcards[int(match[1]) - 1], republish.dest)
        lines = stored.lines + build_place(stream, stored) + encode_headers({"Nats-Last-Sequence": str(last)})
        if republish.headers_only:
            lines += encode_headers({"Nats-Msg-Size": str(len(stored.payload))})
        message = Publication(subject, "", build_block(lines), b"" if republish.headers_only else stored.payload)
        now_s, name = self.clock.now_s(), stream.config.name
        self._announced_s[name] = max(self._announced_s.get(name, 0.0), now_s + self.hazards.answer_delay_s())  # a stream announces in order
        self.clock.later(self._announced_s[name] - now_s, partial(self.broker.route_all, [message]))

    # Schedules.

    def wake(self, stream: Stream) -> None:
        """Look at a stream's schedules when the next is due."""
        if not stream.scheduled:
            return
        due_s, name = min(stream.scheduled.values()), stream.config.name
        if not self.clock.now_s() < self._waking_s.get(name, 0.0) <= due_s:
            self._waking_s[name] = due_s
            self.clock.later(max(0.001, due_s - self.clock.now_s()), partial(self._tick, stream))

    def _tick(self, stream: Stream) -> None:
        now_s = self.clock.now_s()
        if self.streams.get(stream.config.name) is not stream:
            return
        self._waking_s.pop(stream.config.name, None)
        for subject in [subject for subject, due_s in stream.scheduled.items() if due_s <= now_s]:
            if stream.leaderless_s > now_s:
                stream.scheduled[subject] = stream.leaderless_s + 0.01
            elif subject in stream.subjects:
                self._fire(stream, stream.subjects[subject][-1])
            else:
                del stream.scheduled[subject]
        self.wake(stream)

    def _fire(self, stream: Stream, schedule: Stored) -> None:
        found, now_s = schedule.headers(), self.clock.now_s()
        text, zone, target = found[headers.SCHEDULE], found.get(headers.SCHEDULE_ZONE, ""), found[headers.SCHEDULE_TARGET]
        lines = {name: value for name, value in found.items() if not name.startswith("Nats-")}
        if text.startswith("@at"):
            following = "purge"
            stream.remove(schedule, now_s)
            del stream.scheduled[schedule.subject]
        else:
            stream.scheduled[schedule.subject] = next_tick(text, zone, now_s)
            following = format_time(stream.scheduled[schedule.subject])
        lines |= {SCHEDULER: schedule.subject, headers.SCHEDULE_NEXT: following}
        self.store(stream, target, encode_headers(lines), schedule.payload, {})

    # Trouble.

    def elect(self, stream: Stream, until_s: float) -> None:
        """Take a stream's leader away for a while."""
        stream.leaderless_s = max(stream.leaderless_s, until_s)
        stream.batches.clear()

    def end(self) -> None:
        """Forget what is in memory only."""
        for stream in self.streams.values():
            stream.batches.clear()


def strip_block(block: bytes) -> bytes:
    """Return the lines of a header block without its first and its last."""
    return block[block.find(b"\r\n") + 2 : -2] if block else b""


def build_block(lines: bytes) -> bytes:
    """Return a header block."""
    return FIRST_LINE + b"\r\n" + lines + b"\r\n"


def build_place(stream: Stream, stored: Stored) -> bytes:
    """Return the lines that say where a message stands."""
    return encode_headers({"Nats-Stream": stream.config.name, "Nats-Subject": stored.subject, "Nats-Sequence": str(stored.sequence), "Nats-Time-Stamp": stored.time})


def build_json(answer: object) -> tuple[bytes, bytes]:
    """Return an answer in JSON."""
    return b"", json.dumps(answer).encode()


def build_error(code: int, number: int, description: str) -> tuple[bytes, bytes]:
    """Return a refusal."""
    return build_json({"error": {"code": code, "err_code": number, "description": description}})


def build_status(text: str) -> tuple[bytes, bytes]:
    """Return an answer that is nothing but a status."""
    return b"NATS/1.0 " + text.encode() + b"\r\n\r\n", b""
