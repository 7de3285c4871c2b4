"""An actor's past, folded: the position in the log, the state, and the window of known commands.

`History` is what replay gives and what a snapshot stores. Folding a stored commit is the only way in which it changes, so a
live VM and a replaying one can never disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from aether_api.commit_index import NO_COMMITS, CommitIndex
from aether_api.envelope import Event, StoredCommit
from aether_api.errors import EventInvalid, InvalidEnvelope, PermanentError
from aether_api.messages import parse_time
from aether_model.model import Model, State
from aether_runtime.core.window import CommandWindow


class Position(msgspec.Struct, frozen=True, gc=False):
    """Where in the log an actor stands.

    Attributes:
        sequence: of its last commit, 0 for none; the next append expects it.
        index: of all commits so far, carried by the next one.
        commit_id: of the last commit.
        last_time: time of the last event, RFC 3339; event time never runs back. `last_time_s` is the same moment, unix time.
    """

    version: int = 0
    sequence: int = 0
    index: CommitIndex = NO_COMMITS
    incarnation: int = 0
    commit_id: str = ""
    last_time: str = ""
    last_time_s: float = 0.0


@dataclass(slots=True)
class History:
    """The folded past of one actor; `fold_commit` moves it on."""

    model: Model
    position: Position = field(default_factory=Position)
    state: State = None
    window: CommandWindow = field(default_factory=CommandWindow)

    @classmethod
    def empty(cls, model: Model) -> History:
        """Return the history of an actor without events."""
        return cls(model, Position(), model.initial_state(), CommandWindow())

    def fold_commit(self, commit: StoredCommit) -> list[Event]:
        """Apply one stored commit and return its events. Atomic: on an error nothing has changed.

        Raises:
            EventInvalid: the commit does not follow, or an event cannot be applied; the message names sequence and version.
        """
        if commit.tombstone:
            self._restart(commit)
            return []
        self._check_follows(commit)
        try:
            events = commit.events()
            state = self.state
            for event in events:
                state = apply_event(self.model, state, event)
                parse_time(event.time)
        except (InvalidEnvelope, PermanentError) as exc:
            raise EventInvalid(f"sequence {commit.sequence}, versions {commit.first_version} to {commit.last_version}: {exc}") from exc
        last_time = events[-1].time if events else self.position.last_time
        self.accept(Position(commit.last_version, commit.sequence, self.position.index.appended(commit.sequence), commit.incarnation, commit.id, last_time), events, state)
        return events

    def accept(self, position: Position, events: list[Event], state: State) -> None:
        """Move to `position`, whose commit's events were already applied to give `state`."""
        self.note_commands(position.sequence, events)
        self.state = state
        self.position = position

    def note_commands(self, sequence: int, events: list[Event]) -> None:
        """Remember the commands that a stored commit's events came from."""
        time_s = parse_time(events[-1].time).timestamp() if events else 0.0
        noted = ""
        for event in events:
            if event.command_id and event.command_id != noted:
                noted = event.command_id
                self.window.add(noted, sequence, time_s)

    def _restart(self, commit: StoredCommit) -> None:
        self.state = self.model.initial_state()
        self.window = CommandWindow()
        self.position = Position(0, commit.sequence, NO_COMMITS.appended(commit.sequence), commit.incarnation, commit.id, "")

    def _check_follows(self, commit: StoredCommit) -> None:
        position = self.position
        if commit.first_version != position.version + 1 or commit.n != position.index.n or commit.incarnation != position.incarnation:
            raise EventInvalid(
                f"sequence {commit.sequence} holds versions {commit.first_version} to {commit.last_version} as commit {commit.n}, "
                f"but version {position.version + 1} as commit {position.index.n} should come next"
            )


def apply_event(model: Model, state: State, event: Event) -> State:
    """Return the state after a stored event."""
    return model.apply(state, event.type, bytes(event.data), time=event.time, version=event.version)
