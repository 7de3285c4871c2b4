"""An actor's past, folded: the position in the log, the state, and the window of known commands.

`History` is what replay gives and what a snapshot stores. Folding a stored commit is the only way in which it changes, so a
live VM and a replaying one can never disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

import msgspec

from aether_api.commit_index import NO_COMMITS, CommitIndex
from aether_api.commit_run import CommitRun
from aether_api.durable import NO_INBOX, InboxPosition, parse_inbox_position
from aether_api.envelope import Event, StoredCommit
from aether_api.errors import EventInvalid, InvalidEnvelope, PermanentError
from aether_api.messages import normalise_time, parse_second, parse_seconds
from aether_model.model import Model, State
from aether_runtime.core.reminders import NO_REMINDERS, find_fired, fold_changes, no_reminders
from aether_runtime.core.window import KEPT_MIN, WINDOW_S, CommandWindow, hash_command_id


class Position(msgspec.Struct, frozen=True, gc=False):
    """Where in the log an actor stands.

    Attributes:
        sequence: of its last commit, 0 for none; the next append expects it.
        index: of all commits so far, carried by the next one.
        commit_id: of the last commit.
        last_time: time of the last event in the form of `format_time`, whatever form a foreign writer gave it; event time never runs back.
    """

    version: int = 0
    sequence: int = 0
    index: CommitIndex = NO_COMMITS
    incarnation: int = 0
    commit_id: str = ""
    last_time: str = ""


class Forgotten(msgspec.Struct, frozen=True, gc=False):
    """The commits before ordinal `n` whose events are from before a unix second."""

    n: int = 0
    second: int = 0


NOTHING_FORGOTTEN: Final = Forgotten()


def build_forgotten(head: StoredCommit) -> Forgotten:
    """Return what the window of an actor whose log ends at `head` would have dropped again; noting it costs a third of a replay."""
    try:
        events = head.events()
        return Forgotten(head.n - KEPT_MIN, parse_second(events[-1].time) - int(WINDOW_S)) if events else NOTHING_FORGOTTEN
    except InvalidEnvelope:  # whoever folds it says what is wrong
        return NOTHING_FORGOTTEN


@dataclass(slots=True)
class History:
    """The folded past of one actor; `fold_commit` moves it on.

    Attributes:
        inbox: how far it has settled its durable commands.
        reminders: names with the tokens under which they are in force; replaced, never changed in place.
        fired: those of `reminders` that are one-shots and have fired, though nothing was stored of it: the next commit of this VM ends
            them. It is in no snapshot, and replaced like them.
        forgotten: commits whose commands nobody needs to know any more, since a long past is folded.
    """

    model: Model
    position: Position = field(default_factory=Position)
    state: State = None
    window: CommandWindow = field(default_factory=CommandWindow)
    inbox: InboxPosition = NO_INBOX
    reminders: Mapping[str, str] = field(default_factory=no_reminders)
    fired: Mapping[str, str] = field(default_factory=no_reminders)
    forgotten: Forgotten = NOTHING_FORGOTTEN

    @classmethod
    def empty(cls, model: Model) -> History:
        """Return the history of an actor without events."""
        return cls(model, Position(), model.initial_state(), CommandWindow())

    def fold_commit(self, commit: StoredCommit) -> None:
        """Apply one stored commit; atomic, and raises as `fold_run`."""
        self.fold_run((commit,))

    def fold_run(self, commits: Sequence[StoredCommit]) -> int:
        """Apply stored commits in order and return how many events they held. Atomic for each commit: what came before one that fails is applied.

        Raises:
            EventInvalid: a commit does not follow, or an event cannot be applied; the message names sequence and version.
        """
        if isinstance(commits, CommitRun) and self._fold_whole(commits):
            return commits.last_version - commits.first_version + 1
        folded = start = 0
        for place, commit in enumerate(commits):
            if commit.tombstone:
                folded += self._fold_lives(commits[start:place])
                self._restart(commit)
                start = place + 1
        return folded + self._fold_lives(commits[start:] if start else commits)

    def _fold_whole(self, run: CommitRun) -> bool:
        """Apply a run at once; False, and nothing is changed, where something in it does not fit: going through it commit by commit tells what."""
        position = self.position
        if run.first_version != position.version + 1 or run.first_n != position.index.n or run.incarnation != position.incarnation:
            return False
        try:
            batches = run.events()
            events = [*chain.from_iterable(batches)]
            seconds = _find_seconds(events, batches)
            state = self.model.apply_all(self.state, events, position.version)
            last = run[-1]
            moved = Position(run.last_version, last.sequence, position.index.extended(run.sequences), position.incarnation, last.id, normalise_time(events[-1].time))
        except (InvalidEnvelope, PermanentError):
            return False
        self.state, self.position = state, moved
        self.window.add_each(self._find_entries(run, batches, seconds))
        return True

    def _find_entries(self, run: CommitRun, batches: Sequence[Sequence[Event]], seconds: Sequence[int]) -> list[tuple[int, int, int]]:
        """Return what the window must know of a run; `seconds` are the times of its commits."""
        forgotten = self.forgotten
        facts: Iterable[tuple[int, int, Sequence[Event]]] = zip(run.sequences, seconds, batches, strict=True)
        if run.first_n < forgotten.n and min(seconds) < forgotten.second:
            if run.first_n + len(run) <= forgotten.n and max(seconds) < forgotten.second:
                return []
            facts = (fact for n, fact in enumerate(facts, start=run.first_n) if n >= forgotten.n or fact[1] >= forgotten.second)
        elif run.last_version - run.first_version < len(run):  # one event in each
            return [(hash_command_id(event.command_id), sequence, second) for sequence, second, (event,) in facts if event.command_id]
        return [(hash_command_id(id), sequence, second) for sequence, second, batch in facts for id in dict.fromkeys([event.command_id for event in batch]) if id]

    def _fold_lives(self, commits: Sequence[StoredCommit]) -> int:
        """Apply commits of one incarnation; index and position, which cost as much as an event, move once for all of them."""
        position = self.position
        version, n, last_time, done = position.version, position.index.n, position.last_time, 0
        try:
            for commit in commits:
                if commit.first_version != version + 1 or commit.n != n or commit.incarnation != position.incarnation:
                    raise _build_gap(commit, version, n)
                last_time = self._fold_events(commit, version) or last_time
                version = commit.last_version
                n += 1
                done += 1
        finally:
            if done:
                last = commits[done - 1]
                index = position.index.extended([commit.sequence for commit in commits[:done]]) if done > 1 else position.index.appended(last.sequence)
                self.position = Position(version, last.sequence, index, position.incarnation, last.id, last_time and normalise_time(last_time))
        return version - position.version

    def _fold_events(self, commit: StoredCommit, version: int) -> str:
        """Apply what one commit holds, all or nothing, and return the time of its last event."""
        try:
            events = commit.events()
            time, second = _find_moment(events)
            state = self.model.apply_all(self.state, events, version)
            if commit.inbox or commit.reminders:
                self.inbox, self.reminders = self._read_durable(commit.inbox, commit.reminders)
                self.note_fired({})
        except (InvalidEnvelope, PermanentError) as exc:
            raise EventInvalid(f"sequence {commit.sequence}, versions {commit.first_version} to {commit.last_version}: {exc}") from exc
        self.state = state
        if commit.n < self.forgotten.n and second < self.forgotten.second:
            return time
        if len(events) == 1 and events[0].command_id:
            self.window.add(events[0].command_id, commit.sequence, second)
        else:
            self.note_commands(commit.sequence, second, [event.command_id for event in events])
        return time

    def accept(self, position: Position, second: int, digests: Sequence[int], state: State) -> None:
        """Move to `position`, whose commit came of the commands with these hashes in that unix second, and whose events were already applied to give `state`."""
        self.window.add_digests(digests, position.sequence, second)
        self.state = state
        self.position = position

    def note_commands(self, sequence: int, second: int, command_ids: Iterable[str]) -> None:
        """Remember the commands that a stored commit came of; `second` is the unix time of its last event."""
        distinct = dict.fromkeys(command_id for command_id in command_ids if command_id)
        self.window.add_digests(map(hash_command_id, distinct), sequence, second)

    def note_fired(self, fired: Mapping[str, str]) -> None:
        """Remember one-shots, by name with their tokens, whose commands were run and stored nothing."""
        if fired or self.fired:
            self.fired = find_fired({**self.fired, **fired}, self.reminders) or NO_REMINDERS

    def is_in_force(self, name: str, token: str) -> bool:
        """Tell whether a reminder is in force under a token, and has not fired for good."""
        return self.reminders.get(name) == token and self.fired.get(name) != token

    def note_durable(self, inbox: str, reminders: str, fired: Mapping[str, str]) -> None:
        """Move inbox and reminders on as an accepted commit of ours says; `fired` are the one-shots of its group."""
        self.inbox, self.reminders = self._read_durable(inbox, reminders)
        self.note_fired(fired)

    def _read_durable(self, inbox: str, reminders: str) -> tuple[InboxPosition, Mapping[str, str]]:
        return parse_inbox_position(inbox) if inbox else self.inbox, fold_changes(self.reminders, reminders) if reminders else self.reminders

    def _restart(self, commit: StoredCommit) -> None:
        self.state = self.model.initial_state()
        self.window = CommandWindow()
        self.inbox = parse_inbox_position(commit.inbox) if commit.inbox else NO_INBOX
        self.reminders = self.fired = NO_REMINDERS
        self.position = Position(0, commit.sequence, NO_COMMITS.appended(commit.sequence), commit.incarnation, commit.id, "")


def _find_seconds(events: Sequence[Event], batches: Sequence[Sequence[Event]]) -> list[int]:
    """Return the unix second of the last event of each commit, all of whose times are looked at; those of one commit are mostly equal."""
    times = [event.time for event in events]
    if len(events) == len(batches):
        return parse_seconds(times)
    distinct = [*dict.fromkeys(times)]
    known = dict(zip(distinct, parse_seconds(distinct), strict=True))
    return [known[batch[-1].time] for batch in batches]


def _find_moment(events: Iterable[Event]) -> tuple[str, int]:
    """Return time and unix second of the last event of a commit, all of whose times are looked at."""
    time, second = "", 0
    for event in events:
        if event.time != time:
            time = event.time
            second = parse_second(time)
    return time, second


def _build_gap(commit: StoredCommit, version: int, n: int) -> EventInvalid:
    return EventInvalid(
        f"sequence {commit.sequence} holds versions {commit.first_version} to {commit.last_version} as commit {commit.n}, but version {version + 1} as commit {n} should come next"
    )
