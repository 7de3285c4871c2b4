"""What every model is, whatever it is written in: the values that pass through it, and the protocol.

A model turns a command into a decision, and an event into the next state. Both are pure: no clock, no randomness, no waiting;
neither changes what it is given (Chassaing's decider). Commands and the data of events cross this border as raw JSON: a model
decodes them in its own way, once, and an event is encoded once for the log, the reply and the state after it. What `apply` gets
live is byte for byte what it gets in replay, so the two can never disagree.

The values are msgspec structs: a frozen dataclass takes four times as long to make, and three of them were a sixth of the time
of a command (measured).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, Protocol

import msgspec

from aether_api.envelope import Event

State = object
"""A state belongs to its model, which alone looks into it; it is never changed in place, so it may be shared."""

Missed = Literal["late", "collapse", "skip"]
"""What becomes of ticks whose time passed while nothing ran: each fires late, one fires for all of them, none fires."""


class CommandInput(msgspec.Struct, frozen=True):
    """A command as the model sees it.

    Attributes:
        payload: raw JSON as it came; not yet checked.
        version: the actor's version before the command.
        time: when the command was made, RFC 3339; needed only by models that name it.
    """

    name: str
    payload: bytes
    actor_id: str
    version: int
    time: str | None = None


class DomainEvent(msgspec.Struct, frozen=True):
    """An event that is not stored yet: its name in the model and its fields, encoded as a JSON object."""

    type: str
    data: bytes
    schema_version: int = 1


class At(msgspec.Struct, frozen=True):
    """Once, at a moment (RFC 3339); one that has passed means as soon as possible."""

    time: str


class After(msgspec.Struct, frozen=True):
    """Once, some seconds after the command was decided."""

    seconds: float


class Cron(msgspec.Struct, frozen=True):
    """Again and again, as a cron text of six fields (seconds first) says, in a time zone of the IANA database."""

    text: str
    zone: str = "UTC"


Schedule = At | After | Cron


class SetReminder(msgspec.Struct, frozen=True):
    """Sends a command to the actor itself later; a reminder of the same name is replaced.

    Attributes:
        command: its name in the model.
        payload: the command's fields, encoded as a JSON object.
    """

    name: str
    command: str
    payload: bytes
    schedule: Schedule
    missed: Missed = "late"


class CancelReminder(msgspec.Struct, frozen=True):
    """Ends a reminder; harmless if there is none of that name."""

    name: str


class Emitted(msgspec.Struct, frozen=True):
    """The command was accepted; there is at least one event, whose commit carries what becomes of reminders."""

    events: tuple[DomainEvent, ...]
    reminders: tuple[SetReminder | CancelReminder, ...] = ()


class Rejected(msgspec.Struct, frozen=True):
    """The command was refused: the reason is for programs, the message for people."""

    reason: str
    message: str


class NoOp(msgspec.Struct, frozen=True):
    """The command was allowed and changes nothing."""


Decision = Emitted | Rejected | NoOp

NO_OP: Final = NoOp()
"""The one value of its class."""


class Model(Protocol):
    """A model, ready to run; safe to share between actors."""

    @property
    def name(self) -> str:
        """Its name, which is part of an actor's identity."""
        ...

    @property
    def version(self) -> str:
        """The author's version, for people."""
        ...

    @property
    def content_hash(self) -> str:
        """Names the whole content: commits carry it."""
        ...

    @property
    def fold(self) -> str:
        """Names what state depends on; snapshots are kept apart by it."""
        ...

    @property
    def on_demand(self) -> bool:
        """Whether actors without a resource may start at their first command."""
        ...

    def initial_state(self) -> State:
        """Return the state before the first event."""
        ...

    def decide(self, state: State, command: CommandInput) -> Decision:
        """Say what a command does to an actor in `state`; what it says about events can be applied, unless the model is at fault.

        Raises:
            CommandFailed: the model computed something impossible; its author must repair it.
        """
        ...

    def apply(self, state: State, event_type: str, data: bytes, *, time: str, version: int, schema_version: int = 1) -> State:
        """Return the state after an event; the old one stays as it is.

        Args:
            data: raw JSON.
            time: the event's own time.
            version: the version that this event makes.
            schema_version: that of the model which stored the event.

        Raises:
            EventInvalid: the model cannot apply the event.
        """
        ...

    def apply_all(self, state: State, events: Iterable[Event], version: int) -> State:
        """Return the state after stored events that follow `version`, as `apply` gives it for one after the other."""
        ...

    def encode_state(self, state: State) -> bytes:
        """Encode a state as a JSON object, for snapshots and for people.

        Raises:
            InvalidEnvelope: it holds what JSON cannot.
        """
        ...

    def decode_state(self, encoded: bytes) -> State:
        """Read a state that a model of equal `fold` encoded.

        Raises:
            InvalidEnvelope: the bytes are no state of this model.
        """
        ...


def apply_each(model: Model, state: State, events: Iterable[Event], version: int) -> State:
    """Return the state after stored events: `Model.apply_all` of a model that has no quicker way."""
    for next_version, event in enumerate(events, start=version + 1):
        state = model.apply(state, event.type, bytes(event.data), time=event.time, version=next_version, schema_version=event.schema_version)
    return state
