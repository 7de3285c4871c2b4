"""What can be read of an actor's log, and what cannot: events in order, with the errors of everything that is no event.

A VM stops at the first thing that it cannot apply. Who repairs a log, exports it or only wants to look needs the rest as well:
`ReplayReader` goes on behind every error, and tells where it stands and why.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from aether_api.envelope import Event, StoredCommit
from aether_api.errors import InvalidEnvelope
from aether_api.identity import ActorId
from aether_nats.deliveries import Unreadable


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """Events of one actor, and what could not be read between them.

    Attributes:
        events: by version.
        errors: each with the sequence in the stream and the reason; empty for a log that is whole.
        incarnation: how often the actor was purged before; a result of a higher one makes those of lower ones void.
    """

    events: tuple[Event, ...] = ()
    errors: tuple[Unreadable, ...] = ()
    incarnation: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether everything could be read."""
        return not self.errors


class ReplayReader:
    """Takes what stands in an actor's log, in order, and says what it holds from a version on.

    Attributes:
        sequence: of the last thing that was taken.
    """

    def __init__(self, actor: ActorId, from_version: int = 1, *, is_start: bool = True) -> None:
        """Begin with the actor's first version, or without `is_start` with whatever comes first."""
        self.sequence = 0
        self._actor = actor
        self._from_version = from_version
        self._next_version = 1 if is_start else 0
        self._incarnation = -1
        self._events: list[Event] = []
        self._errors: list[Unreadable] = []

    def take(self, found: Iterable[StoredCommit | Unreadable]) -> ReplayResult:
        """Return what a batch holds."""
        self._events, self._errors = [], []
        for item in found:
            self.sequence = item.sequence
            if isinstance(item, Unreadable):
                self._errors.append(item)
            elif item.tombstone:
                self._begin_life(item)
            else:
                self._take_commit(item)
        return ReplayResult(tuple(self._events), tuple(self._errors), max(0, self._incarnation))

    def _begin_life(self, tombstone: StoredCommit) -> None:
        """Forget what came before a tombstone: a purge has removed it, or is about to."""
        self._incarnation, self._next_version = tombstone.incarnation, 1
        self._events, self._errors = [], []

    def _take_commit(self, commit: StoredCommit) -> None:
        if self._incarnation < 0:
            self._incarnation, self._next_version = commit.incarnation, self._next_version or commit.first_version
        if commit.incarnation != self._incarnation:
            return self._note(commit, f"it is of incarnation {commit.incarnation}, the actor's is {self._incarnation}")
        if commit.first_version < self._next_version:
            return self._note(commit, f"it holds versions {commit.first_version} to {commit.last_version}, but version {self._next_version} should come next")
        if commit.first_version > self._next_version:
            self._note(commit, f"versions {self._next_version} to {commit.first_version - 1}, which should come before it, are missing")
        self._next_version = commit.last_version + 1
        if commit.last_version >= self._from_version:
            self._take_events(commit)

    def _take_events(self, commit: StoredCommit) -> None:
        try:
            self._events += [event for event in commit.events() if event.version >= self._from_version]
        except InvalidEnvelope as exc:
            self._note(commit, str(exc))

    def _note(self, commit: StoredCommit, reason: str) -> None:
        if commit.last_version >= self._from_version:
            self._errors.append(Unreadable(self._actor, commit.sequence, reason))


def join_results(results: Iterable[ReplayResult]) -> ReplayResult:
    """Return one result of several, in order; those of lives that were purged are void."""
    kept: list[ReplayResult] = []
    for result in results:
        if kept and result.incarnation > kept[-1].incarnation:
            kept.clear()
        kept.append(result)
    incarnation = kept[-1].incarnation if kept else 0
    return ReplayResult(tuple(event for result in kept for event in result.events), tuple(error for result in kept for error in result.errors), incarnation)
