"""The logs of all actors as the server ever held them, purged lives included: what answers and live actors are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from aether_api.envelope import Event, StoredCommit, decode_commit
from aether_api.errors import InvalidName
from aether_api.identity import ActorId
from aether_api.subjects import parse_event_subject
from aether_model.model import Model, State
from tests.histories.alarm import Alarm
from tests.histories.bank import compile_account
from tests.histories.invariants import check_log, events_of
from tests.simulation.server.jetstream import JetStreamEngine, build_block


@dataclass(slots=True)
class Life:
    """What an actor did between two purges.

    Attributes:
        states: after each version, from 0 on.
    """

    commits: list[StoredCommit] = field(default_factory=list[StoredCommit])
    states: list[State] = field(default_factory=list[State])

    @property
    def events(self) -> list[Event]:
        """All events, oldest first."""
        return events_of(self.commits)

    def command_ids(self) -> list[str]:
        """Return the ids of the commands that took effect, in order, each once."""
        return list(dict.fromkeys(event.command_id for event in self.events))


@dataclass(slots=True)
class Ledger:
    """All lives of all actors, oldest first; `read_ledger` makes one."""

    lives: dict[ActorId, list[Life]]

    def all_of(self, actor: ActorId) -> list[Life]:
        """Return all lives of an actor, oldest first; one that never did anything has one."""
        return self.lives.get(actor) or [Life([], [model_of(actor).initial_state()])]

    def of(self, actor: ActorId) -> Life:
        """Return the present life of an actor."""
        return self.all_of(actor)[-1]


def model_of(actor: ActorId) -> Model:
    """Return the model of an actor."""
    return Alarm() if actor.model == "alarm" else compile_account()


def read_ledger(engine: JetStreamEngine) -> tuple[Ledger, list[str]]:
    """Read everything, and return what is wrong with it."""
    found: dict[ActorId, list[StoredCommit]] = {}
    for stream in engine.streams.values():
        for message in stream.archive.values():
            try:
                actor, _ = parse_event_subject(message.subject)
            except InvalidName:
                continue
            found.setdefault(actor, []).append(decode_commit(message.sequence, build_block(message.lines), message.payload))
    problems: list[str] = []
    ledger = Ledger({actor: _split(actor, commits, problems) for actor, commits in found.items()})
    return ledger, problems


def _split(actor: ActorId, commits: Sequence[StoredCommit], problems: list[str]) -> list[Life]:
    lives: list[Life] = []
    for commit in commits:
        if not lives or commit.tombstone:
            lives.append(Life())
        lives[-1].commits.append(commit)
    for number, life in enumerate(lives):
        try:
            check_log(life.commits)
            assert {commit.incarnation for commit in life.commits} == {number}, "lives are mixed"
            life.states = _fold(actor, life.events)
        except AssertionError as exc:
            problems.append(f"{actor.id}, life {number}: {str(exc).partition(chr(10))[0]}")
    epochs = [commit.epoch for commit in commits]
    if epochs != sorted(epochs):
        problems.append(f"{actor.id}: an epoch fell: {epochs}")
    return lives


def _fold(actor: ActorId, events: Sequence[Event]) -> list[State]:
    model = model_of(actor)
    states = [model.initial_state()]
    for event in events:
        states.append(model.apply(states[-1], event.type, bytes(event.data), time=event.time, version=event.version, schema_version=event.schema_version))
    return states
