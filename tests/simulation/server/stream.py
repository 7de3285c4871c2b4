"""One stream: messages by sequence and by subject, and everything that it ever held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

from aether_api.headers import FIRST_LINE, decode_headers
from aether_api.messages import format_time
from aether_nats.jetstream_wire import StreamConfig
from tests.simulation.server.broker import Publication, matches

DUPLICATES_S: Final = 120.0
"""Seconds for which an id of a message is remembered, the server's default."""


@dataclass(eq=False, slots=True)
class Stored:
    """A message of a stream.

    Attributes:
        lines: its header lines, without the first and the last line of a block.
        removed_s: when it was removed; infinite while it is there.
    """

    sequence: int
    subject: str
    lines: bytes
    payload: bytes
    stored_s: float
    removed_s: float = inf

    @property
    def time(self) -> str:
        """When it was stored, RFC 3339."""
        return format_time(self.stored_s)

    def headers(self) -> dict[str, str]:
        """Decode its headers."""
        return decode_headers(FIRST_LINE + b"\r\n" + self.lines)


@dataclass(slots=True)
class Batch:
    """An atomic batch whose last message has not come yet.

    Attributes:
        touched_s: when its newest message came.
    """

    messages: list[Publication] = field(default_factory=list[Publication])
    touched_s: float = 0.0


@dataclass(slots=True)
class Stream:
    """What a stream holds, and how.

    Attributes:
        archive: every message that it ever held, by sequence.
        writing: subjects with a write under way, and how many; `writing_ids` their ids.
        leaderless_s: unix time until which it has no leader.
        scheduled: the schedules, by subject, with the time of the next tick.
        batches: those that are being sent, by id; in memory only, at the leader.
    """

    config: StreamConfig
    created_s: float
    last_sequence: int = 0
    first_sequence: int = 1
    archive: dict[int, Stored] = field(default_factory=dict[int, Stored])
    messages: dict[int, Stored] = field(default_factory=dict[int, Stored])
    subjects: dict[str, list[Stored]] = field(default_factory=dict[str, list[Stored]])
    ids: dict[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])
    writing: dict[str, int] = field(default_factory=dict[str, int])
    writing_ids: list[str] = field(default_factory=list[str])
    leaderless_s: float = 0.0
    scheduled: dict[str, float] = field(default_factory=dict[str, float])
    batches: dict[str, Batch] = field(default_factory=dict[str, Batch])

    @property
    def created(self) -> str:
        """When it was made, RFC 3339."""
        return format_time(self.created_s)

    def takes(self, subject: str) -> bool:
        """Tell whether messages of a subject are stored here."""
        tokens = tuple(subject.split("."))
        return any(matches(tuple(pattern.split(".")), tokens) for pattern in self.config.subjects)

    def last_of(self, subject: str) -> int:
        """Return the last sequence of a subject, 0 if it holds nothing."""
        found = self.subjects.get(subject)
        return found[-1].sequence if found else 0

    def find_duplicate(self, id: str, now_s: float) -> int | None:
        """Return where a message with this id stands, if one was stored lately."""
        known = self.ids.get(id)
        return known[0] if known is not None and now_s - known[1] < DUPLICATES_S else None

    def begin_write(self, subject: str, id: str) -> None:
        """Note that a write is under way."""
        self.writing[subject] = self.writing.get(subject, 0) + 1
        if id:
            self.writing_ids.append(id)

    def end_write(self, subject: str, id: str) -> None:
        """Note that it is not any more."""
        self.writing[subject] -= 1
        if id:
            self.writing_ids.remove(id)

    def store(self, subject: str, lines: bytes, payload: bytes, now_s: float) -> Stored:
        """Add a message; the oldest of its subject go if there are too many."""
        self.last_sequence += 1
        message = Stored(self.last_sequence, subject, lines, payload, now_s)
        self.archive[message.sequence] = self.messages[message.sequence] = message
        self.subjects.setdefault(subject, []).append(message)
        kept = self.config.max_msgs_per_subject
        if kept > 0:
            for old in self.subjects[subject][:-kept]:
                self.remove(old, now_s)
        return message

    def remove(self, message: Stored, now_s: float) -> None:
        """Remove a message."""
        message.removed_s = now_s
        del self.messages[message.sequence]
        self.subjects[message.subject].remove(message)
        if not self.subjects[message.subject]:
            del self.subjects[message.subject]
        if message.sequence == self.first_sequence:
            self.first_sequence = next(iter(self.messages), self.last_sequence + 1)

    def purge(self, pattern: str, keep: int, before: int, now_s: float) -> int:
        """Remove messages of some subjects, but for the newest or from a sequence on."""
        gone = [message for message in self.select(pattern) if not before or message.sequence < before]
        for message in gone[: len(gone) - keep] if keep else gone:
            self.remove(message, now_s)
        return len(gone) - min(keep, len(gone))

    def select(self, pattern: str = ">", at_s: float = inf) -> list[Stored]:
        """Return the messages of some subjects in order, as they were at an earlier time if one is given."""
        if at_s == inf and not {"*", ">"} & set(pattern.split(".")):
            return list(self.subjects.get(pattern, ()))
        tokens = tuple(pattern.split("."))
        return [message for message in self.view(at_s) if matches(tokens, tuple(message.subject.split(".")))]

    def view(self, at_s: float = inf) -> Iterator[Stored]:
        """Yield what the stream held at a time."""
        if at_s == inf:
            yield from list(self.messages.values())
        else:
            yield from (message for message in self.archive.values() if message.stored_s <= at_s < message.removed_s)

    def find(self, sequence: int, at_s: float = inf) -> Stored | None:
        """Return one message, if it was there at a time."""
        if at_s == inf:
            return self.messages.get(sequence)
        message = self.archive.get(sequence)
        return message if message is not None and message.stored_s <= at_s < message.removed_s else None

    def last_each(self, patterns: Sequence[str], at_s: float = inf, up_to: float = inf) -> list[Stored]:
        """Return the last message up to a sequence of each subject that matches a pattern, in order."""
        last = {message.subject: message for pattern in patterns for message in self.select(pattern, at_s) if message.sequence <= up_to}
        return sorted(last.values(), key=lambda message: message.sequence)
