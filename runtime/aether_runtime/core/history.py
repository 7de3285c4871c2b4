"""An actor's past, folded: the position in the log, the state, and the window of known commands.

`History` is what replay gives and what a snapshot stores. Folding a stored commit is the only way in which it changes, so a
live VM and a replaying one can never disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from aether_api.commit_index import NO_COMMITS, CommitIndex
from aether_api.durable import NO_INBOX, InboxPosition, parse_inbox_position
from aether_api.envelope import Event, StoredCommit
from aether_api.errors import EventInvalid, InvalidEnvelope, PermanentError
from aether_api.messages import parse_second
from aether_model.model import Model, State
from aether_runtime.core.reminders import NO_REMINDERS, fold_changes, no_reminders
from aether_runtime.core.window import CommandWindow


class Position(msgspec.Struct, frozen=True, gc=False):
    """Where in the log an actor stands.

    Attributes:
        sequence: of its last commit, 0 for none; the next append expects it.
        index: of all commits so far, carried by the next one.
        commit_id: of the last commit.
        last_time: time of the last event, RFC 3339; event time never runs back.
    """

    version: int = 0
    sequence: int = 0
    index: CommitIndex = NO_COMMITS
    incarnation: int = 0
    commit_id: str = ""
    last_time: str = ""


@dataclass(slots=True)
class History:
    """The folded past of one actor; `fold_commit` moves it on.

    Attributes:
        inbox: how far it has settled its durable commands.
        reminders: names with the tokens under which they are in force; replaced, never changed in place.
    """

    model: Model
    position: Position = field(default_factory=Position)
    state: State = None
    window: CommandWindow = field(default_factory=CommandWindow)
    inbox: InboxPosition = NO_INBOX
    reminders: Mapping[str, str] = field(default_factory=no_reminders)

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
        position = self.position
        if commit.first_version != position.version + 1 or commit.n != position.index.n or commit.incarnation != position.incarnation:
            raise self._build_gap(commit)
        try:
            events = commit.events()
            state = self._apply_all(events, position.version)
            inbox, reminders = self._read_durable(commit.inbox, commit.reminders)
            second = parse_second(events[-1].time) if events else 0
        except (InvalidEnvelope, PermanentError) as exc:
            raise EventInvalid(f"sequence {commit.sequence}, versions {commit.first_version} to {commit.last_version}: {exc}") from exc
        last_time = events[-1].time if events else position.last_time
        self.note_commands(commit.sequence, second, [event.command_id for event in events])
        self.position = Position(commit.last_version, commit.sequence, position.index.appended(commit.sequence), commit.incarnation, commit.id, last_time)
        self.state, self.inbox, self.reminders = state, inbox, reminders
        return events

    def accept(self, position: Position, second: int, command_ids: Iterable[str], state: State) -> None:
        """Move to `position`, whose commit came of these commands in that unix second, and whose events were already applied to give `state`."""
        self.note_commands(position.sequence, second, command_ids)
        self.state = state
        self.position = position

    def note_commands(self, sequence: int, second: int, command_ids: Iterable[str]) -> None:
        """Remember the commands that a stored commit came of; `second` is the unix time of its last event."""
        noted = ""
        for command_id in command_ids:
            if command_id and command_id != noted:
                noted = command_id
                self.window.add(command_id, sequence, second)

    def _apply_all(self, events: list[Event], version: int) -> State:
        state, apply, time = self.state, self.model.apply, ""
        for event in events:
            version += 1
            if event.time != time:
                time = event.time
                parse_second(time)
            state = apply(state, event.type, bytes(event.data), time=time, version=version, schema_version=event.schema_version)
        return state

    def note_durable(self, inbox: str, reminders: str) -> None:
        """Move inbox and reminders on as an accepted commit of ours says."""
        self.inbox, self.reminders = self._read_durable(inbox, reminders)

    def _read_durable(self, inbox: str, reminders: str) -> tuple[InboxPosition, Mapping[str, str]]:
        return parse_inbox_position(inbox) if inbox else self.inbox, fold_changes(self.reminders, reminders) if reminders else self.reminders

    def _restart(self, commit: StoredCommit) -> None:
        self.state = self.model.initial_state()
        self.window = CommandWindow()
        self.inbox = parse_inbox_position(commit.inbox) if commit.inbox else NO_INBOX
        self.reminders = NO_REMINDERS
        self.position = Position(0, commit.sequence, NO_COMMITS.appended(commit.sequence), commit.incarnation, commit.id, "")

    def _build_gap(self, commit: StoredCommit) -> EventInvalid:
        position = self.position
        return EventInvalid(
            f"sequence {commit.sequence} holds versions {commit.first_version} to {commit.last_version} as commit {commit.n}, "
            f"but version {position.version + 1} as commit {position.index.n} should come next"
        )
