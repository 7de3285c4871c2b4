"""Events that a program saves without a VM: how they become one commit, and what is refused before anything is written.

A commit of a program is like that of a VM: the next versions, the actor's index, times that never run back. Where the
program has the actor's model, each event is applied to the actor's state first, so that what a VM could not apply later, and
would be quarantined for, is never stored. The commit carries the epoch that it found, and no pod: its writer owns nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, cast

from aether_api.envelope import Commit, Event, build_event_id, build_source, check_nesting, decode_events, encode_event, encode_fields, join_events
from aether_api.errors import EventInvalid, InternalError, InvalidEnvelope, InvalidName, describe_value
from aether_api.identity import ActorId, Epoch, check_member
from aether_api.messages import format_time, parse_second, parse_time
from aether_model.model import CommandInput, Decision, Model, State, apply_each
from aether_runtime.core.history import History, Position
from aether_runtime.core.window import SKEW_S, hash_command_id


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event that is to be saved.

    Attributes:
        type: its name in the model, such as `Deposited`.
        fields: its data, a JSON object: numbers are finite.
        schema_version: that of the fields, for models that upcast.
        time: when it happened, RFC 3339; empty for now. Time never runs back within an actor.
        command_id: of the command that it comes of, if any; empty for none. `correlation_id` and `causation_id` likewise.
    """

    type: str
    fields: Mapping[str, object] = field(default_factory=dict[str, object])
    schema_version: int = 1
    time: str = ""
    command_id: str = ""
    correlation_id: str = ""
    causation_id: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Writer:
    """Who saves: `name` for people, and the epoch of the log's last commit, which is passed on."""

    name: str
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class PlannedCommit:
    """A commit that may be appended, and all that the history takes over of it: once it is stored nothing may fail.

    Attributes:
        state: the actor's state after it.
        second: unix time of its last event.
        digests: the `hash_command_id` of its commands.
    """

    commit: Commit
    events: tuple[Event, ...]
    state: State
    second: int
    digests: tuple[int, ...]

    def accept(self, history: History, sequence: int) -> None:
        """Move the history on: the commit is stored at `sequence`."""
        commit = self.commit
        position = Position(commit.last_version, sequence, commit.index.appended(sequence), commit.incarnation, commit.id, self.events[-1].time)
        history.accept(position, self.second, self.digests, self.state)


def take_events(events: object) -> tuple[NewEvent, ...]:
    """Return the events of one call, of which an iterator may give each only once.

    Raises:
        EventInvalid: one of them is no `NewEvent`, or they are no collection.
    """
    if not isinstance(events, Iterable):
        raise EventInvalid(f"events must be a list of NewEvent, not {describe_value(events)}; save_event saves one event. Nothing was saved")
    taken = list[NewEvent]()
    for place, event in enumerate(cast("Iterable[object]", events)):
        if not isinstance(event, NewEvent):
            raise EventInvalid(f"events[{place}] must be a NewEvent, not {describe_value(event)}. Nothing was saved")
        taken.append(event)
    return tuple(taken)


def plan_commit(actor: ActorId, history: History, events: Sequence[NewEvent], writer: Writer, *, commit_id: str, now_s: float) -> PlannedCommit:
    """Return the commit that saves events after the history.

    Raises:
        EventInvalid: there are none; or one of them has no valid name, fields or time, or the model cannot apply it; the message names it.
    """
    if not events:
        raise EventInvalid(f"{actor}: a commit holds at least one event")
    position, model = history.position, history.model
    state, time, second, planned, encoded = history.state, position.last_time, 0, list[Event](), list[bytes]()
    for version, new in enumerate(events, position.version + 1):
        try:
            _check_parts(new)
            time = _choose_time(new.time, time, now_s)
            second = parse_second(time)
            event = _build_event(actor, position.incarnation, version, new, time)
            encoded.append(_encode_readable(event))
            state = model.apply(state, new.type, bytes(event.data), time=time, version=version, schema_version=new.schema_version)
        except (EventInvalid, InvalidEnvelope, InvalidName) as exc:
            raise EventInvalid(f"{actor}: event {new.type!r}, which would be version {version}, is refused: {exc}. Nothing was saved") from exc
        planned.append(event)
    commit = Commit(
        id=commit_id,
        actor=actor,
        expected_sequence=position.sequence,
        first_version=position.version + 1,
        last_version=position.version + len(planned),
        index=position.index,
        epoch=writer.epoch,
        pod=f"/{writer.name}",
        model="" if isinstance(model, AnyEvents) else f"{model.name}@{model.content_hash}",
        payload=join_events(encoded),
        incarnation=position.incarnation,
    )
    commands = dict.fromkeys(event.command_id for event in planned if event.command_id)
    return PlannedCommit(commit, tuple(planned), state, second, tuple(map(hash_command_id, commands)))


def _check_parts(new: NewEvent) -> None:
    """Refuse parts of another type than they are declared with: a reader would take the stored event for broken, for ever."""
    for name in ("type", "time", "command_id", "correlation_id", "causation_id"):
        value: object = getattr(new, name)
        if not isinstance(value, str):
            raise EventInvalid(f"its {name} must be a text, not {describe_value(value)}; write {_suggest_text(name, value)}")
    _check_schema_version(new.schema_version)
    _check_metadata(new.metadata)


def _check_schema_version(version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise EventInvalid(f"its schema_version must be a whole number of at least 1, not {describe_value(version)}")


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, Mapping):
        raise EventInvalid(f"its metadata must be a mapping of texts, not {describe_value(metadata)}")
    for key, value in cast("Mapping[object, object]", metadata).items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise EventInvalid(f"its metadata must be a mapping of texts, but holds {describe_value(key)}: {describe_value(value)}; write {key!s}={str(value)!r}")


def _suggest_text(name: str, value: object) -> str:
    if isinstance(value, datetime):
        return f"{name}=moment.isoformat() of a datetime with a time zone"
    return f'{name}="", or leave it out' if value is None else f"{name}={str(value)!r}"


def _encode_readable(event: Event) -> bytes:
    """Encode an event, and see to it that every reader will decode it as what it is."""
    try:
        check_nesting(bytes(event.data))
        encoded = encode_event(event)
        if decode_events(join_events([encoded])) == [event]:
            return encoded
    except (TypeError, ValueError, OverflowError, InvalidEnvelope) as exc:
        raise EventInvalid(f"it cannot be written so that it is read again: {exc}") from exc
    raise EventInvalid("it cannot be written so that it is read again as what it is")


def _build_event(actor: ActorId, incarnation: int, version: int, new: NewEvent, time: str) -> Event:
    return Event(
        "1.0",
        build_event_id(incarnation, version),
        build_source(actor),
        check_member("the name of an event", new.type),
        time,
        encode_fields(new.fields),
        new.command_id,
        new.correlation_id,
        new.causation_id,
        new.schema_version,
        dict(new.metadata),
    )


def _choose_time(wanted: str, last_time: str, now_s: float) -> str:
    """Return the time of an event that follows one of `last_time`."""
    if not wanted:
        return max(format_time(now_s), last_time)
    unix_s = parse_time(wanted).timestamp()
    time = format_time(unix_s)
    if time < last_time:
        raise EventInvalid(f"its time {wanted} lies before {last_time}, that of the event before it; save events in the order of their times")
    if unix_s > now_s + SKEW_S:
        raise EventInvalid(f"its time {wanted} lies in the future")
    return time


@dataclass(frozen=True, slots=True)
class AnyEvents:
    """A model that takes every event and keeps no state: for a store that was given none."""

    name: str = ""
    version: str = ""
    content_hash: str = ""
    fold: str = ""
    on_demand: bool = False

    def initial_state(self) -> State:
        """Return None."""
        return None

    def decide(self, state: State, command: CommandInput) -> Decision:
        """Fail: nothing sends commands to a store."""
        raise InternalError("a store without models decides nothing")

    def apply(self, state: State, event_type: str, data: bytes, *, time: str, version: int, schema_version: int = 1) -> State:
        """Take the event as it is."""
        return state

    def apply_all(self, state: State, events: Iterable[Event], version: int) -> State:
        """Return the state after stored events."""
        return apply_each(self, state, events, version)

    def encode_state(self, state: State) -> bytes:
        """Return an empty object."""
        return b"{}"

    def decode_state(self, encoded: bytes) -> State:
        """Return None."""
        return None


ANY_EVENTS: Final[Model] = AnyEvents()
"""The one value of its class."""
