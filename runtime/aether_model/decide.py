"""Runs a compiled model: `decide` says which events a command makes, `apply` what an event makes of the state.

Both are pure: no clock, no randomness, no waiting; neither changes what it is given (Chassaing's decider, which Emmett and
the Python track share). So replay gives exactly the state that the actor had when it was live.

All `emits` of a command see the state *before* it. The author then reads one state throughout the command, and the order of
the list decides only the order of the events; an event that depends on another belongs to a command of its own.

Values that types cannot rule out (limits of a schema, `dyn`, an overflow of 64 bits) are checked here, before anything is stored:
whatever the model computes wrongly fails the command and no more. The same check on a *stored* event means that the
model no longer fits the log, and quarantines the actor.

The values that pass through here are msgspec structs: a frozen dataclass takes four times as long to make, and three of
them were a sixth of the time of a command (measured).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from aether_api.errors import CommandFailed, EventInvalid, InternalError, Reason
from aether_model.cel import Activation, CelEvaluationError
from aether_model.compile import CompiledCommand, CompiledEmit, CompiledEvent, CompiledGuard, CompiledModel


class CommandInput(msgspec.Struct, frozen=True):
    """A command as the model sees it.

    Attributes:
        payload: the decoded JSON object; not yet checked.
        version: the actor's version before the command.
        time: when the command was made, RFC 3339 or an aware time; needed only by models that name `command.time`.
    """

    name: str
    payload: dict[str, object]
    actor_id: str
    version: int
    time: str | datetime | None = None


class DomainEvent(msgspec.Struct, frozen=True):
    """An event that is not stored yet: its name in the model and its fields."""

    type: str
    data: dict[str, object]


class Emitted(msgspec.Struct, frozen=True):
    """The command was accepted; there is at least one event."""

    events: tuple[DomainEvent, ...]


class Rejected(msgspec.Struct, frozen=True):
    """The command was refused: the reason is for programs, the message for people."""

    reason: str
    message: str


class NoOp(msgspec.Struct, frozen=True):
    """The command was allowed and changes nothing."""


Decision = Emitted | Rejected | NoOp

NO_OP: Final = NoOp()
"""The one value of its class."""


class Advance(msgspec.Struct, frozen=True):
    """A decision, and the state and version after its events."""

    decision: Decision
    state: dict[str, object]
    version: int


def decide(model: CompiledModel, state: dict[str, object], command: CommandInput) -> Decision:
    """Say what a command does to an actor in `state`, which is what `apply` or `initial_state` gave.

    Raises:
        CommandFailed: the model computed something impossible; its author must repair it.
    """
    compiled = model.commands.get(command.name)
    if compiled is None:
        return Rejected(Reason.UNKNOWN_COMMAND.value, f"model {model.name} has no command {command.name!r}; known are {', '.join(sorted(model.commands)) or 'none'}")
    violation = compiled.fields.violation(command.payload, strict=True)
    if violation is not None:
        return Rejected(Reason.INVALID_COMMAND.value, f"{command.name}: {violation}")
    activation = _bind(compiled, state, command)
    for i, guard in enumerate(compiled.guards):
        if not _holds(guard, activation, command.name, i):
            return Rejected(guard.reason, _message(guard, activation))
    events = [event for i, emit in enumerate(compiled.emits) if (event := _emit(emit, activation, command.name, i)) is not None]
    return Emitted(tuple(events)) if events else NO_OP


def apply(model: CompiledModel, state: dict[str, object], event_type: str, data: dict[str, object], *, time: str | datetime, version: int) -> dict[str, object]:
    """Return the state after an event; fields that it does not set are shared with the old state.

    Args:
        time: the event's own time.
        version: the version that this event makes.

    Raises:
        EventInvalid: the model cannot apply the event.
    """
    compiled = model.events.get(event_type)
    if compiled is None:
        raise EventInvalid(f"model {model.name} has no event {event_type!r}; known are {', '.join(sorted(model.events)) or 'none'}")
    violation = compiled.fields.violation(data, strict=False)
    if violation is not None:
        raise EventInvalid(f"event {event_type}, version {version}: {violation}")
    return _fold(compiled, state, compiled.fields.complete(data), time=time, version=version)


def advance(model: CompiledModel, state: dict[str, object], command: CommandInput, *, event_time: str | datetime) -> Advance:
    """Decide and apply in one step, on state that is not stored yet; an event that cannot be applied fails the command.

    Raises:
        CommandFailed: the model computed something impossible; nothing may be stored.
    """
    decision = decide(model, state, command)
    if not isinstance(decision, Emitted):
        return Advance(decision, state, command.version)
    version = command.version
    try:
        for event in decision.events:
            version += 1
            state = _fold(model.events[event.type], state, event.data, time=event_time, version=version)
    except EventInvalid as exc:
        raise CommandFailed(f"command {command.name} made an event that cannot be applied: {exc}") from exc
    return Advance(decision, state, version)


def replay(model: CompiledModel, events: Sequence[tuple[str, dict[str, object], str]]) -> dict[str, object]:
    """Return the state after `(type, data, time)` events from version 1 on, as tests and tools want it.

    Raises:
        EventInvalid: the model cannot apply one of them.
    """
    state = model.initial_state()
    for version, (event_type, data, time) in enumerate(events, start=1):
        state = apply(model, state, event_type, data, time=time, version=version)
    return state


def _fold(compiled: CompiledEvent, state: dict[str, object], data: dict[str, object], *, time: str | datetime, version: int) -> dict[str, object]:
    """Apply valid and complete data."""
    try:
        activation = compiled.binder.bind(state, data, actor_id="", version=version, time=time)
        changes = compiled.set.evaluate(activation)
    except CelEvaluationError as exc:
        raise EventInvalid(f"event {compiled.name}, version {version}, set: {exc}") from exc
    except KeyError as exc:
        raise InternalError(f"event {compiled.name}: the state has no field {exc}, though its model gives it one") from exc
    if compiled.settled:
        return state | changes
    violation = compiled.changes.violation(changes, strict=True)
    if violation is not None:
        raise EventInvalid(f"event {compiled.name}, version {version}, set: {violation}")
    return state | compiled.changes.complete(changes)


def _bind(compiled: CompiledCommand, state: dict[str, object], command: CommandInput) -> Activation:
    fields = compiled.fields.complete(command.payload)
    try:
        return compiled.binder.bind(state, fields, actor_id=command.actor_id, version=command.version, time=command.time)
    except CelEvaluationError as exc:
        raise CommandFailed(f"command {command.name}: {exc}") from exc
    except KeyError as exc:
        raise InternalError(f"the state has no field {exc}, though the model of command {command.name} gives it one") from exc


def _holds(guard: CompiledGuard, activation: Activation, command: str, position: int) -> bool:
    try:
        return guard.rule.holds(activation)
    except CelEvaluationError as exc:
        raise CommandFailed(f"command {command}, guards[{position}] ({guard.reason}): {exc}") from exc


def _message(guard: CompiledGuard, activation: Activation) -> str:
    """A message that cannot be computed must not turn a rejection into a failure; Kubernetes falls back in the same way."""
    if guard.message_expression is None:
        return guard.message
    try:
        return str(guard.message_expression.value(activation))
    except CelEvaluationError:
        return guard.message


def _emit(emit: CompiledEmit, activation: Activation, command: str, position: int) -> DomainEvent | None:
    try:
        if emit.when is not None and not emit.when.holds(activation):
            return None
        data = emit.data.evaluate(activation)
    except CelEvaluationError as exc:
        raise CommandFailed(f"command {command}, emits[{position}] ({emit.event}): {exc}") from exc
    if emit.settled:
        return DomainEvent(emit.event, data)
    if emit.fields.nulls_left_out:
        data = {name: value for name, value in data.items() if value is not None or name not in emit.fields.nulls_left_out}
    violation = emit.fields.violation(data, strict=True)
    if violation is not None:
        raise CommandFailed(f"command {command}, emits[{position}] ({emit.event}): {violation}")
    return DomainEvent(emit.event, emit.fields.complete(data))
