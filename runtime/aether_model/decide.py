"""Runs a compiled model: `decide` says which events a command makes, `apply` what an event makes of the state.

All `emits` of a command see the state *before* it. The author then reads one state throughout the command, and the order of
the list decides only the order of the events; an event that depends on another belongs to a command of its own.

Values that types cannot rule out (limits of a schema, `dyn`, an overflow of 64 bits) are checked here, before anything is stored:
whatever the model computes wrongly fails the command and no more. The same check on a *stored* event means that the
model no longer fits the log, and quarantines the actor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import orjson

from aether_api.envelope import Event
from aether_api.errors import CommandFailed, EventInvalid, InternalError, InvalidEnvelope, Reason
from aether_model.cel import Activation, CelEvaluationError, encode_json
from aether_model.compiled import CompiledCommand, CompiledEmit, CompiledEvent, CompiledGuard
from aether_model.model import NO_OP, CommandInput, Decision, DomainEvent, Emitted, Rejected, State, apply_each
from aether_model.remind import build_reminders

Fields = dict[str, object]
"""A JSON object: the fields of a state, a command or an event by name."""


@dataclass(frozen=True, slots=True)
class CompiledModel:
    """A model in CEL, ready to run; its states are dictionaries of fields.

    Attributes:
        version: the author's, for people.
        content_hash: names the whole content.
        fold: names what state depends on; snapshots are kept apart by it.
        on_demand: actors without a resource may start at their first command.
    """

    name: str
    version: str
    content_hash: str
    fold: str
    on_demand: bool
    commands: Mapping[str, CompiledCommand]
    events: Mapping[str, CompiledEvent]
    _initial_state_json: bytes

    def initial_state(self) -> Fields:
        """Return the state before the first event; the caller's own."""
        return cast("Fields", orjson.loads(self._initial_state_json))

    def decide(self, state: State, command: CommandInput) -> Decision:
        """Say what a command does to an actor in `state`, which is what `apply` or `initial_state` gave.

        Raises:
            CommandFailed: the model computed something impossible; its author must repair it.
        """
        compiled = self.commands.get(command.name)
        if compiled is None:
            return Rejected(Reason.UNKNOWN_COMMAND.value, f"model {self.name} has no command {command.name!r}; known are {', '.join(sorted(self.commands)) or 'none'}")
        try:
            payload = orjson.loads(command.payload)
        except orjson.JSONDecodeError as exc:
            return Rejected(Reason.INVALID_COMMAND.value, f"the payload is not JSON: {exc}")
        if type(payload) is not dict:
            return Rejected(Reason.INVALID_COMMAND.value, "the payload must be a JSON object with the command's fields")
        fields = cast("Fields", payload)
        violation = compiled.fields.violation(fields, command.payload, strict=True)
        if violation is not None:
            return Rejected(Reason.INVALID_COMMAND.value, f"{command.name}: {violation}")
        return _decide(compiled, cast("Fields", state), compiled.fields.complete(fields), command)

    def apply(self, state: State, event_type: str, data: bytes, *, time: str, version: int, schema_version: int = 1) -> Fields:
        """Return the state after an event; fields that it does not set are shared with the old state.

        Raises:
            EventInvalid: the model cannot apply the event.
        """
        compiled = self.events.get(event_type)
        if compiled is None:
            raise EventInvalid(f"model {self.name} has no event {event_type!r}; known are {', '.join(sorted(self.events)) or 'none'}")
        try:
            decoded = orjson.loads(data)
        except orjson.JSONDecodeError as exc:
            raise EventInvalid(f"event {event_type}, version {version}: the data is not JSON: {exc}") from exc
        if type(decoded) is not dict:
            raise EventInvalid(f"event {event_type}, version {version}: the data must be a JSON object with the event's fields")
        fields = cast("Fields", decoded)
        violation = compiled.fields.violation(fields, data, strict=False)
        if violation is not None:
            raise EventInvalid(f"event {event_type}, version {version}: {violation}")
        return _fold(compiled, cast("Fields", state), compiled.fields.complete(fields), time=time, version=version)

    def apply_all(self, state: State, events: Iterable[Event], version: int) -> State:
        """Return the state after stored events."""
        return apply_each(self, state, events, version)

    def encode_state(self, state: State) -> bytes:
        """Encode a state as a JSON object.

        Raises:
            InvalidEnvelope: it holds what JSON cannot, or is nested too deeply.
        """
        try:
            return orjson.dumps(state)
        except orjson.JSONEncodeError as exc:
            raise InvalidEnvelope(f"the state of model {self.name} cannot be written as JSON: {exc}") from exc

    def decode_state(self, encoded: bytes) -> Fields:
        """Read a state that a model of equal `fold` encoded.

        Raises:
            InvalidEnvelope: the bytes are no JSON object with the fields of the state.
        """
        try:
            state = orjson.loads(encoded)
        except orjson.JSONDecodeError as exc:
            raise InvalidEnvelope(f"a state is not JSON: {exc}") from exc
        if type(state) is not dict or state.keys() != self.initial_state().keys():
            raise InvalidEnvelope(f"a state does not have the fields of model {self.name}")
        return cast("Fields", state)


def _decide(compiled: CompiledCommand, state: Fields, fields: Fields, command: CommandInput) -> Decision:
    """Decide on valid and complete fields."""
    activation = _bind(compiled, state, fields, command)
    for i, guard in enumerate(compiled.guards):
        if not _holds(guard, activation, command.name, i):
            return Rejected(guard.reason, _message(guard, activation))
    events = [event for i, emit in enumerate(compiled.emits) if (event := _emit(emit, activation, command.name, i)) is not None]
    if not events:
        return NO_OP
    return Emitted(tuple(events), build_reminders(compiled.reminders, activation, command.name) if compiled.reminders else ())


def _fold(compiled: CompiledEvent, state: Fields, data: Fields, *, time: str, version: int) -> Fields:
    """Apply valid and complete data."""
    try:
        activation = compiled.binder.bind(state, data, actor_id="", version=version, time=time)
        changes = compiled.set.evaluate(activation)
        encoded = b"" if compiled.settled else encode_json(changes)
    except CelEvaluationError as exc:
        raise EventInvalid(f"event {compiled.name}, version {version}, set: {exc}") from exc
    except KeyError as exc:
        raise InternalError(f"event {compiled.name}: the state has no field {exc}, though its model gives it one") from exc
    if compiled.settled:
        return state | changes
    violation = compiled.changes.violation(changes, encoded, strict=True)
    if violation is not None:
        raise EventInvalid(f"event {compiled.name}, version {version}, set: {violation}")
    return state | compiled.changes.complete(changes)


def _bind(compiled: CompiledCommand, state: Fields, fields: Fields, command: CommandInput) -> Activation:
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
        data = emit.fields.without_nulls(emit.data.evaluate(activation))
        encoded = encode_json(data)
    except CelEvaluationError as exc:
        raise CommandFailed(f"command {command}, emits[{position}] ({emit.event}): {exc}") from exc
    if emit.settled:
        return DomainEvent(emit.event, encoded)
    violation = emit.fields.violation(data, encoded, strict=True)
    if violation is not None:
        raise CommandFailed(f"command {command}, emits[{position}] ({emit.event}): {violation}")
    return DomainEvent(emit.event, orjson.dumps(emit.fields.complete(data)))
