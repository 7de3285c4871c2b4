"""What a subscriber to stored events is told, and the pure rule that decides it.

An announcement of a stored commit carries its own sequence and the one of the actor's commit before it. So a subscriber that
keeps one position (sequence, version) for each actor knows of every hole: the commit before is its position: take it; the
announcement is not newer: drop it; else a `Gap`. Nothing is dropped without a word:

- of an actor that was never heard of, the first announcement begins its position, if the commit before it is from before the
  subscription began (`begin`); else commits of it were missed, and that is a `Gap`, too;
- a tombstone, or a commit of another incarnation, is a `Reset`: the versions before it are of a life that was purged;
- an actor in another stream than before is a `Reset`, too: the streams were made anew with another number of partitions;
- bytes that are no commit, or a commit whose versions do not follow, are `Unreadable`, as their actor is quarantined.

The table of positions is bounded: beyond `actors_max` the actor that was quiet longest is forgotten, and the begin of its
stream rises to its position, as if the subscription had begun only then. Its next announcement counts as the first. But the
begin never passes what is still to be read (`StreamMark.known_to`), since unknown actors may have commits there. So what was told
of a forgotten actor may be told again as a `Gap`; nothing is passed over.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from aether_api.envelope import Event, StoredCommit
from aether_api.errors import InvalidEnvelope
from aether_api.identity import ActorId
from aether_nats.hearing import Hearing

UNKNOWN_VERSION: Final = -1
"""The version of an actor of which nothing readable was seen; what follows is version 0 or higher, whatever it is."""

ANOTHER_LIFE: Final = -1
"""The incarnation of a past that the log does not hold: no commit has it, so whatever is read is a reset."""


@dataclass(frozen=True, slots=True)
class EventStored:
    """One event of one actor, stored for good.

    Attributes:
        sequence: of its commit; several events may share it.
        incarnation: how often the actor was purged before.
    """

    actor: ActorId
    version: int
    sequence: int
    incarnation: int
    event: Event


@dataclass(frozen=True, slots=True)
class Gap:
    """Commits of one actor were missed; `fetch_missed` reads them, and what is told of the actor next comes after them.

    Attributes:
        from_version: the first version that was missed; 0 when the actor was never heard of, so nobody knows.
        to_version: the last one.
        after_sequence: the missed commits lie after this sequence, up to `to_sequence`.
        incarnation: of the missed commits.
    """

    actor: ActorId
    from_version: int
    to_version: int
    after_sequence: int
    to_sequence: int
    incarnation: int = 0


@dataclass(frozen=True, slots=True)
class Reset:
    """The actor's history was purged, or its stream was made anew or restored from a backup: what was known of it is void, and versions count from 1 again."""

    actor: ActorId
    incarnation: int


@dataclass(frozen=True, slots=True)
class Overflow:
    """The subscriber was too slow: `dropped` commits found no room. What was missed is told next, a `Gap` for each actor."""

    dropped: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something stands in the log that is no commit, or none that follows; the actor's owner quarantines it."""

    actor: ActorId
    sequence: int
    reason: str


Delivery = EventStored | Gap | Reset | Overflow | Unreadable


@dataclass(frozen=True, slots=True)
class ActorVersion:
    """How far somebody knows an actor.

    Attributes:
        sequence: of the commit that reached `version`; 0 if only the version is known.
    """

    version: int
    sequence: int = 0
    incarnation: int = 0


@dataclass(slots=True)
class StreamMark:
    """One event stream as a subscription sees it.

    Attributes:
        created: when it was made; another time means another stream of the same name.
        begin: the last sequence from before the subscription.
        forgotten_to: the highest position of an actor that was forgotten.
        seen: the highest sequence that it is known to have had; stays while announcements may have been lost, as the proof that it is the same stream still.
        seen_time: when that was stored, RFC 3339; empty if nobody said.
        announced_to: the sequence that was announced last.
        doubted: an announcement denied what is known of it, so what is announced waits until the log was asked.
        read_to: everything up to here was read, or is known to have been heard.
        lost: whether announcements may have been lost since; of a stream that came later all may.
        announced: whether the server announces what it stores.
        replicated: whether who answers may be behind.
        doubtful: first and last sequence of what a replica did not have that may have been behind; to be read once more.
        hearing: how much of it was announced to us.
    """

    name: str
    namespace: str
    partition: int
    created: str = ""
    begin: int = 0
    forgotten_to: int = 0
    seen: int = 0
    seen_time: str = ""
    announced_to: int = 0
    doubted: bool = False
    read_to: int = 0
    lost: bool = True
    announced: bool = True
    replicated: bool = False
    doubtful: tuple[int, int] | None = None
    hearing: Hearing = field(default_factory=Hearing)

    def known_to(self) -> int:
        """Return the sequence up to which everything was read or heard; what is still to be read lies behind it."""
        return max(self.read_to, self.hearing.whole_to()) if self.read_to >= self.hearing.start else self.read_to

    def told_to(self) -> int:
        """Return the sequence up to which an actor that is not known was told of and forgotten, or is none of the subscription's."""
        return max(self.begin, min(self.forgotten_to, self.known_to()))

    def note_seen(self, sequence: int, time: str) -> None:
        """Note what stands in the stream and when it was stored, if nothing newer is known; what comes after a loss may be of another stream."""
        if sequence >= self.seen and not self.lost:
            self.seen, self.seen_time = sequence, time

    def note_read(self, first: int, last: int) -> None:
        """Note that everything from `first` to `last` was read, or heard; it counts where what lies before it was."""
        if first <= self.read_to + 1:
            self.read_to = max(self.read_to, last)


class Taken(NamedTuple):
    """A commit that is delivered; its events are decoded when the subscriber asks for them."""

    actor: ActorId
    commit: StoredCommit


class Position(NamedTuple):
    """Where a subscriber stands with one actor."""

    sequence: int
    version: int
    incarnation: int
    stream: StreamMark

    @property
    def is_reset(self) -> bool:
        """Whether nothing is known of the actor any more."""
        return not self.sequence and not self.version


Step = Taken | Gap | Reset | Unreadable


class Positions:
    """The position of each actor that a subscription heard of; see the module for the rules."""

    def __init__(self, actors_max: int) -> None:
        self._actors_max = actors_max
        self._positions: OrderedDict[ActorId, Position] = OrderedDict()

    def __len__(self) -> int:
        return len(self._positions)

    def get(self, actor: ActorId) -> Position | None:
        """Return the actor's position, if it was heard of."""
        return self._positions.get(actor)

    def actors_by_stream(self) -> dict[str, list[ActorId]]:
        """Return the actors that were heard of, by the name of their stream."""
        found: dict[str, list[ActorId]] = {}
        for actor, position in self._positions.items():
            found.setdefault(position.stream.name, []).append(actor)
        return found

    def is_newer(self, stream: StreamMark, actor: ActorId, sequence: int) -> bool:
        """Tell whether something at `sequence` moves the actor's position."""
        position = self._positions.get(actor)
        return position is None or position.stream is not stream or sequence > position.sequence

    def contradicts(self, stream: StreamMark, actor: ActorId, last_sequence: int, sequence: int) -> bool:
        """Tell whether an announcement denies the actor's position, which only another log can."""
        position = self._positions.get(actor)
        if position is None or position.is_reset:
            return False
        return position.stream is not stream or last_sequence < position.sequence < sequence

    def take(self, stream: StreamMark, actor: ActorId, last_sequence: int, commit: StoredCommit) -> list[Step]:
        """Decide what an announced commit means, in order, and move the position.

        Args:
            last_sequence: of the actor's commit before it, 0 for none.
        """
        position, steps = self._find(stream, actor, commit.incarnation)
        if position is not None and (commit.sequence <= position.sequence or last_sequence < position.sequence):
            return []
        self._move(actor, Position(commit.sequence, commit.last_version, commit.incarnation, stream))
        if commit.tombstone:
            return [Reset(actor, commit.incarnation)]
        if position is not None and commit.incarnation != position.incarnation:
            steps.append(Reset(actor, commit.incarnation))
            position = position._replace(version=0)
        steps += _find_gap(actor, position, _missed_after(stream, position, last_sequence), last_sequence, commit)
        if not steps and position is not None and commit.first_version != position.version + 1 and position.version != UNKNOWN_VERSION:
            return [Unreadable(actor, commit.sequence, f"it begins with version {commit.first_version}, and the commit before it ends with {position.version}")]
        return [*steps, Taken(actor, commit)]

    def take_unreadable(self, stream: StreamMark, actor: ActorId, sequence: int, reason: str) -> list[Step]:
        """Tell of something that is no commit, once."""
        position, steps = self._find(stream, actor, 0)
        if position is not None and sequence <= position.sequence:
            return []
        self._move(actor, Position(sequence, position.version if position else UNKNOWN_VERSION, position.incarnation if position else 0, stream))
        return [*steps, Unreadable(actor, sequence, reason)]

    def take_head(self, stream: StreamMark, actor: ActorId, head: StoredCommit) -> list[Step]:
        """Decide what the actor's last commit, read from the log, means for what was announced so far."""
        position, steps = self._find(stream, actor, head.incarnation)
        if position is None:
            told_to = stream.told_to()
            if head.sequence <= told_to:
                return []
            self._move(actor, Position(head.sequence, head.last_version, head.incarnation, stream))
            return [Reset(actor, head.incarnation)] if head.tombstone else [Gap(actor, 0, head.last_version, told_to, head.sequence, head.incarnation)]
        if head.sequence <= position.sequence:
            return []
        self._move(actor, Position(head.sequence, head.last_version, head.incarnation, stream))
        first = position.version + 1
        if head.incarnation != position.incarnation:
            steps.append(Reset(actor, head.incarnation))
            first = 1
        if first <= head.last_version:
            steps.append(Gap(actor, first, head.last_version, position.sequence, head.sequence, head.incarnation))
        return steps

    def take_known(self, stream: StreamMark, actor: ActorId, known: ActorVersion, head: StoredCommit | None) -> list[Step]:
        """Begin with what the caller knows of an actor, and decide what the log holds beyond it."""
        if head is None:
            self._move(actor, Position(0, 0, 0, stream))
            return [Reset(actor, 0)] if known.version else []
        if head.incarnation != known.incarnation or head.last_version < known.version or head.sequence < known.sequence:
            self._move(actor, Position(0, 0, ANOTHER_LIFE, stream))
        else:
            sequence = known.sequence or (head.sequence if head.last_version == known.version else 0)
            self._move(actor, Position(sequence, known.version, known.incarnation, stream))
        return self.take_head(stream, actor, head)

    def begin_known(self, stream: StreamMark, actor: ActorId, known: ActorVersion) -> list[Step]:
        """Begin with what the caller knows of an actor whose log says nothing of it."""
        self._move(actor, Position(known.sequence, known.version, known.incarnation, stream))
        return []

    def reset_stream(self, stream: StreamMark) -> list[Step]:
        """Forget all positions of a stream that was made anew."""
        forgotten = [actor for actor, position in self._positions.items() if position.stream is stream and not position.is_reset]
        for actor in forgotten:
            self._positions[actor] = Position(0, 0, 0, stream)
        return [Reset(actor, 0) for actor in forgotten]

    def _find(self, stream: StreamMark, actor: ActorId, incarnation: int) -> tuple[Position | None, list[Step]]:
        """Return the actor's position in a stream; one in another stream is void, which is told, since each actor lives in one alone."""
        position = self._positions.get(actor)
        if position is None or position.stream is stream:
            return position, []
        return Position(0, 0, incarnation, stream), [] if position.is_reset else [Reset(actor, incarnation)]

    def _move(self, actor: ActorId, position: Position) -> None:
        self._positions[actor] = position
        self._positions.move_to_end(actor)
        if len(self._positions) > self._actors_max:
            _, oldest = self._positions.popitem(last=False)
            oldest.stream.forgotten_to = max(oldest.stream.forgotten_to, oldest.sequence)


def _missed_after(stream: StreamMark, position: Position | None, last_sequence: int) -> int | None:
    """Return the sequence after which commits were missed; None if none were."""
    if position is not None:
        return None if last_sequence == position.sequence else position.sequence
    told_to = stream.told_to()
    return None if last_sequence <= told_to else told_to


def _find_gap(actor: ActorId, position: Position | None, after: int | None, last_sequence: int, commit: StoredCommit) -> list[Step]:
    """Return the gap before a commit, if there is one; where all that was missed was a tombstone, there is none."""
    if after is None or commit.first_version <= 1:
        return []
    first = position.version + 1 if position is not None else 0
    if first >= commit.first_version:
        return []
    return [Gap(actor, first, commit.first_version - 1, after, last_sequence, commit.incarnation)]


def read_events(actor: ActorId, commit: StoredCommit, types: frozenset[str]) -> Iterable[EventStored | Unreadable]:
    """Return what a subscriber sees of a commit: its events of the wanted types, all for no types."""
    try:
        events = commit.events()
    except InvalidEnvelope as exc:
        return [Unreadable(actor, commit.sequence, str(exc))]
    return [EventStored(actor, event.version, commit.sequence, commit.incarnation, event) for event in events if not types or event.type in types]
