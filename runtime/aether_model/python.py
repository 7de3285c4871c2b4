"""Models in Python: what an author writes, and nothing of how it runs.

A model is a class with one method for each command and one for each event; commands, events and the state are msgspec structs,
so they are typed, and what does not fit its type never reaches a method:

    class Account(PythonModel[AccountState]):
        name = "account"

        @handles
        def deposit(self, state: AccountState, command: Deposit) -> Deposited | Rejected:
            return Deposited(command.amount) if state.open else Rejected("AccountClosed", "the account is closed")

        @applies
        def deposited(self, state: AccountState, event: Deposited) -> AccountState:
            return replace(state, balance=state.balance + event.amount)

Methods are pure: no clock (`CommandContext.time` is the command's), no randomness, no waiting, and nothing is changed in place.
`python_compile` checks a class and makes it a model that runs; the operator cannot import it, so the pods say what is wrong.

Which method takes what is read from its annotations, as FastAPI and singledispatch do; names on the wire are those of the structs.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, ClassVar, Final, Generic, TypeVar, overload

import msgspec

from aether_model.fields import parse_time
from aether_model.model import NO_OP, After, At, CancelReminder, Cron, Missed, NoOp, Rejected, Schedule

__all__ = [
    "NO_OP", "After", "At", "CancelReminder", "CommandContext", "CommandFields", "Cron", "EventContext", "EventFields", "NoOp", "PythonModel", "Rejected", "Remind",
    "StateFields", "applies", "handles", "upcasts",
]  # fmt: skip

HANDLES: Final = "__aether_handles__"
"""Attribute of a method that takes a command: the names on the wire, none for that of the struct."""

APPLIES: Final = "__aether_applies__"
"""Attribute of a method that applies an event: the names in the log, newest first, none for that of the struct."""

UPCASTS: Final = "__aether_upcasts__"
"""Attribute of a method that makes newer data of old: the event's name and the schema version that it takes."""

StateT = TypeVar("StateT", bound=msgspec.Struct)
Method = TypeVar("Method", bound=Callable[..., Any])


class CommandFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of commands: what a caller may send; fields that are not named are refused."""


class EventFields(msgspec.Struct, frozen=True):
    """Base of events: what is stored; fields of a newer version are passed over.

    Attributes:
        schema_version: raised when stored data of before has another shape; `@upcasts` methods then read it.
    """

    schema_version: ClassVar[int] = 1


class StateFields(msgspec.Struct, frozen=True):
    """Base of states; the defaults are the initial state."""


class Remind(msgspec.Struct, frozen=True):
    """Send a command to the actor itself later; one of the same name is replaced."""

    name: str
    command: msgspec.Struct
    schedule: Schedule
    missed: Missed = "late"


class CommandContext(msgspec.Struct, frozen=True):
    """What a handler may know beside state and command.

    Attributes:
        version: number of the actor's events so far, those before it in the same group included.
        time: when the command was made, RFC 3339.
    """

    actor_id: str
    version: int
    time: str

    def moment(self) -> datetime:
        """Return the time as an aware moment in UTC."""
        return parse_time(self.time)


class EventContext(msgspec.Struct, frozen=True):
    """What applying an event may know beside state and event.

    Attributes:
        version: the version that the event makes.
        time: when it happened, RFC 3339; never runs back within an actor.
    """

    version: int
    time: str

    def moment(self) -> datetime:
        """Return the time as an aware moment in UTC."""
        return parse_time(self.time)


class PythonModel(Generic[StateT]):
    """Base of models; `StateT` is the struct of the state. It is made without arguments and keeps nothing between calls.

    Attributes:
        name: of the model; that of its ActorModel resource.
        version: for people.
        state_version: to be raised whenever the same events give another state; snapshots of before are then left alone.
        on_demand: actors without an Actor resource may start at their first command.
    """

    name: ClassVar[str] = ""
    version: ClassVar[str] = "1.0.0"
    state_version: ClassVar[int] = 1
    on_demand: ClassVar[bool] = False


@overload
def handles(name: Method, /) -> Method: ...
@overload
def handles(*names: str) -> Callable[[Method], Method]: ...
def handles(*names: Any) -> Any:
    """Mark the method that takes a command: `(self, state, command)`, or with a `CommandContext` at the end.

    It returns an event, several (with `Remind` and `CancelReminder` among them), `Rejected`, or nothing.

    Names, if given, are those on the wire instead of the struct's.
    """
    return _mark(HANDLES, names)


@overload
def applies(name: Method, /) -> Method: ...
@overload
def applies(*names: str) -> Callable[[Method], Method]: ...
def applies(*names: Any) -> Any:
    """Mark the method that applies an event: `(self, state, event)`, or with an `EventContext` at the end; it returns the new state.

    Names, if given, are those in the log instead of the struct's: new events get the first, older ones may have any.
    """
    return _mark(APPLIES, names)


def upcasts(event: str, schema_version: int) -> Callable[[Method], Method]:
    """Mark the method that turns the decoded data of an event of one schema version into that of the next: `(self, data) -> data`."""

    def mark(method: Method) -> Method:
        setattr(method, UPCASTS, (event, schema_version))
        return method

    return mark


def _mark(attribute: str, names: tuple[Any, ...]) -> Any:
    if len(names) == 1 and callable(names[0]):
        setattr(names[0], attribute, ())
        return names[0]

    def mark(method: Any) -> Any:
        setattr(method, attribute, names)
        return method

    return mark
