"""Commits that follow each other, read and checked together: what a long replay folds.

An object for each commit is what a replay spends most on, and nobody looks at it: of a run that is whole, the history needs the events, the sequences
and the last commit. In a run by one writer, with one event in each commit, the headers can be foretold, and comparing costs half of reading them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Final, overload

from aether_api import headers
from aether_api.envelope import Event, StoredCommit, build_event_id, decode_commit, decode_event_batches, match_usual_headers
from aether_api.errors import InvalidEnvelope

_AETHER: Final = b"\r\nAether-"
_EPOCH: Final = f"\r\n{headers.EPOCH}: ".encode()
_ID, _VERSIONS, _ORDINAL, _BACK = (
    line.removeprefix("Aether-").encode() for line in (f"{headers.COMMIT}: ", f"{headers.VERSIONS}: %d-%d", f"{headers.ORDINAL}: %d", f"{headers.BACK}: ")
)
_PLACE: Final = f"\r\n{headers.STORED_SEQUENCE}: ".encode()
_PLACE_AND_TIME: Final = _PLACE + b"%d\r\nNats-Time-Stamp: "
_PLACE_LINES: Final = 4
"""Ends of lines from there on: before and behind the sequence, behind the time, and the empty line."""


class CommitRun(Sequence[StoredCommit]):
    """Commits of one incarnation without a gap in ordinals or versions, none of which ends a life, settles durable commands or sets reminders.

    As a sequence it reads a commit each time when one is looked at.

    Attributes:
        first_n: ordinal of its first commit.
        first_version: of its first event.
        last_version: of its last event.
        sequences: where the commits stand in the stream.
        payloads: the raw batches.
    """

    __slots__ = ("_last", "_raw_headers", "_sizes", "first_n", "first_version", "incarnation", "last_version", "payloads", "sequences")

    def __init__(self, first: tuple[int, int, int], sizes: Sequence[int], sequences: Sequence[int], raw_headers: Sequence[bytes], payloads: Sequence[bytes]) -> None:
        """Keep what `build_run` has checked: ordinal, version and incarnation of the first commit, and how many events each has."""
        self.first_n, self.first_version, self.incarnation = first
        self.last_version = self.first_version + sum(sizes) - 1
        self.sequences = sequences
        self.payloads = payloads
        self._sizes = sizes
        self._raw_headers = raw_headers
        self._last: StoredCommit | None = None

    def __len__(self) -> int:
        return len(self.sequences)

    @overload
    def __getitem__(self, place: int) -> StoredCommit: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[StoredCommit]: ...

    def __getitem__(self, place: int | slice) -> StoredCommit | Sequence[StoredCommit]:
        if isinstance(place, slice):
            return self._cut(place)
        at = range(len(self))[place]
        if self._last is not None and at == len(self) - 1:
            return self._last
        return decode_commit(self.sequences[at], self._raw_headers[at], self.payloads[at])

    def events(self) -> list[list[Event]]:
        """Decode the events of each commit.

        Raises:
            InvalidEnvelope: one of them is no batch, or its versions do not fit its header; looking at each commit tells which.
        """
        batches = decode_event_batches(self.payloads)
        prefix = build_event_id(self.incarnation, 0)[:-1]
        expected = [f"{prefix}{version}" for version in range(self.first_version, self.last_version + 1)]
        if [*map(len, batches)] != self._sizes or [event.id for event in chain.from_iterable(batches)] != expected:
            raise InvalidEnvelope(f"sequences {self.sequences[0]} to {self.sequences[-1]}: the events do not carry the versions {self.first_version} to {self.last_version}")
        return batches

    def followed_by(self, commit: StoredCommit) -> CommitRun | None:
        """Return the run with one more commit, which was read before by itself; None if that does not follow, or is none that a run may hold, or the second one."""
        follows = (commit.n, commit.first_version, commit.incarnation) == (self.first_n + len(self), self.last_version + 1, self.incarnation)
        if not follows or commit.sequence <= self.sequences[-1] or commit.tombstone or commit.inbox or commit.reminders or self._last is not None:
            return None
        sizes = [*self._sizes, commit.last_version - commit.first_version + 1]
        first = (self.first_n, self.first_version, self.incarnation)
        run = CommitRun(first, sizes, [*self.sequences, commit.sequence], self._raw_headers, [*self.payloads, commit.payload])
        run._last = commit
        return run

    def _cut(self, place: slice) -> Sequence[StoredCommit]:
        start, stop, step = place.indices(len(self))
        if step != 1 or start >= stop:
            return [self[at] for at in range(start, stop, step)]
        first = (self.first_n + start, self.first_version + sum(self._sizes[:start]), self.incarnation)
        part = slice(start, stop)
        run = CommitRun(first, self._sizes[part], self.sequences[part], self._raw_headers[part], self.payloads[part])
        run._last = self._last if stop == len(self) else None
        return run


def build_run(sequences: Sequence[int], raw_headers: Sequence[bytes], payloads: Sequence[bytes], subject: bytes = b"") -> CommitRun | None:
    """Return commits as a run if all of them have their usual form and follow each other; None where that needs a closer look at each.

    Args:
        subject: where it is given, the messages are answers of Direct Get, which must name it and the sequences.
    """
    usual = match_usual_headers(raw_headers[0]) if raw_headers else None
    if usual is None or not len(sequences) == len(raw_headers) == len(payloads) or not _rise(sequences):
        return None
    first_version, last_version, n, incarnation = map(int, usual.group(2, 3, 4, 9))
    first = (n, first_version, incarnation)
    if first_version == last_version and (not subject or usual[10] == subject):
        stripped = _strip_places(sequences, raw_headers) if subject else raw_headers
        if stripped and _is_foretold(stripped, n, first_version):
            return CommitRun(first, [1] * len(sequences), sequences, raw_headers, payloads)
    sizes = _read_sizes(sequences, raw_headers, subject, first)
    return None if sizes is None else CommitRun(first, sizes, sequences, raw_headers, payloads)


def _strip_places(sequences: Sequence[int], raw_headers: Sequence[bytes]) -> list[bytes]:
    """Return the headers without what Direct Get says of each message alone, nothing if one stands at another sequence than it should."""
    stripped: list[bytes] = []
    for sequence, raw in zip(sequences, raw_headers, strict=True):
        at = raw.rfind(_PLACE)
        if not raw.startswith(_PLACE_AND_TIME % sequence, at) or raw.count(b"\n", at) != _PLACE_LINES or raw[-4:] != b"\r\n\r\n":
            return []
        stripped.append(raw[:at])
    return stripped


def _is_foretold(raw_headers: Sequence[bytes], n: int, version: int) -> bool:
    """Tell whether each commit holds one event, follows the one before, and has what is equal in all commits of a writer from the first of them."""
    shared = raw_headers[0][raw_headers[0].find(_EPOCH) :]
    width = len(shared)
    try:
        for raw in raw_headers:
            _, id, versions, ordinal, back = raw[:-width].split(_AETHER)
            if (
                not raw.isascii()
                or versions != _VERSIONS % (version, version)
                or ordinal != _ORDINAL % n
                or not (id.startswith(_ID) and back.startswith(_BACK) and raw.endswith(shared))
            ):
                return False
            version += 1
            n += 1
    except ValueError:  # another number of headers
        return False
    return True


def _read_sizes(sequences: Sequence[int], raw_headers: Sequence[bytes], subject: bytes, first: tuple[int, int, int]) -> list[int] | None:
    """Return how many events each commit holds; None if one is not usual, does not follow, or stands elsewhere."""
    sizes: list[int] = []
    n, version, incarnation = first
    for sequence, raw in zip(sequences, raw_headers, strict=True):
        usual = match_usual_headers(raw)
        if usual is None:
            return None
        first_version, last_version, ordinal, life, place, named = usual.group(2, 3, 4, 9, 10, 11)
        last = int(last_version)
        if int(first_version) != version or last < version or int(ordinal) != n or int(life) != incarnation:
            return None
        if subject and (place != subject or int(named) != sequence):
            return None
        sizes.append(last - version + 1)
        version = last + 1
        n += 1
    return sizes


def _rise(sequences: Sequence[int]) -> bool:
    return isinstance(sequences, range) or sorted(set(sequences)) == sequences


def sizes_of(commits: Sequence[StoredCommit]) -> list[int]:
    """Return the bytes of each commit's payload."""
    return [*map(len, commits.payloads)] if isinstance(commits, CommitRun) else [len(commit.payload) for commit in commits]
