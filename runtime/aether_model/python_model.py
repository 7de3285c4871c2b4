"""Runs a model in Python: decodes into its structs, calls its methods, and trusts nothing that comes back.

A handler that raises fails its command and no other; a method that raises while a *stored* event is applied means that the model
no longer fits the log, and quarantines the actor. Whatever a handler makes was decoded from its own bytes before it is stored,
since live takes the path of replay.
"""

from __future__ import annotations

import re
from asyncio import CancelledError
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import msgspec

from aether_api.envelope import Event
from aether_api.errors import MALFORMED, CommandFailed, EventInvalid, InvalidEnvelope, Reason
from aether_api.identity import MEMBER_PATTERN
from aether_model.model import NO_OP, CancelReminder, CommandInput, Decision, DomainEvent, Emitted, NoOp, Rejected, SetReminder, State
from aether_model.python import CommandContext, EventContext, Remind
from aether_model.schedule import check_schedule

Fields = dict[str, Any]
Upcast = Callable[[Fields], Fields]

RESERVED_REASONS: Final = frozenset(reason.value for reason in Reason)
"""Reasons by which clients decide whether to try again; a model has its own."""

ANY_FAULT: Final = (Exception, SystemExit, CancelledError)
"""What an author's code may raise: `sys.exit` in a handler must not end the process of everybody's actors, nor a `CancelledError`
the task that runs them, which cannot be cancelled while code without `await` runs."""

_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(Fields).decode
_MEMBER = re.compile(MEMBER_PATTERN)
_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(.*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(.*)`$")


@dataclass(frozen=True, slots=True)
class Handler:
    """The method of one command.

    Attributes:
        fields: names that a caller may send.
        run: `(state, command)`, or with a context.
    """

    name: str
    method: str
    fields: tuple[str, ...]
    decode: Callable[[bytes], msgspec.Struct]
    run: Callable[..., object]
    wants_context: bool


@dataclass(frozen=True, slots=True)
class Applier:
    """The method of one event.

    Attributes:
        upcasts: by the schema version that they take; empty if data never changed its shape.
        run: `(state, event)`, or with a context.
    """

    method: str
    type: type[msgspec.Struct]
    schema_version: int
    upcasts: Mapping[int, Upcast]
    decode: Callable[[bytes | msgspec.Raw], msgspec.Struct]
    run: Callable[..., object]
    wants_context: bool


@dataclass(frozen=True, slots=True)
class PythonRuntimeModel:
    """A model in Python, ready to run; its states are structs.

    Attributes:
        event_names: what new events are stored under, and the version of their schema.
        command_names: by struct, for reminders.
    """

    name: str
    version: str
    content_hash: str
    fold: str
    on_demand: bool
    handlers: Mapping[str, Handler]
    appliers: Mapping[str, Applier]
    event_names: Mapping[type[object], tuple[str, int]]
    command_names: Mapping[type[object], str]
    state_type: type[msgspec.Struct]
    _decode_state: Callable[[bytes], msgspec.Struct]

    def initial_state(self) -> State:
        """Return the state of the struct's defaults."""
        return self.state_type()

    def decide(self, state: State, command: CommandInput) -> Decision:
        """Say what a command does.

        Raises:
            CommandFailed: the handler or the command's struct raised, or what was returned is what no model may.
        """
        handler = self.handlers.get(command.name)
        if handler is None:
            return Rejected(Reason.UNKNOWN_COMMAND.value, f"model {self.name} has no command {command.name!r}; known are {', '.join(sorted(self.handlers)) or 'none'}")
        try:
            fields = handler.decode(command.payload)
        except MALFORMED as exc:
            return Rejected(Reason.INVALID_COMMAND.value, _explain_payload(handler, exc))
        except ANY_FAULT as exc:  # a root, too: reading fields runs the author's `__post_init__`, of which msgspec takes ValueError and TypeError for a refusal
            raise CommandFailed(f"command {command.name}: reading its fields raised {type(exc).__name__}: {exc}") from exc
        try:
            answer = handler.run(state, fields, _context_of(command)) if handler.wants_context else handler.run(state, fields)
            named = self.event_names.get(type(answer))
            if named is not None:
                return Emitted((DomainEvent(named[0], _encode(answer), named[1]),))
            return self._read_answer(command.name, answer)
        except CommandFailed:
            raise
        except ANY_FAULT as exc:  # the root of everything that an author wrote: it costs its own command and no other
            raise CommandFailed(f"command {command.name}: {handler.method} raised {type(exc).__name__}: {exc}") from exc

    def apply(self, state: State, event_type: str, data: bytes, *, time: str, version: int, schema_version: int = 1) -> State:
        """Return the state after an event.

        Raises:
            EventInvalid: the model cannot apply the event.
        """
        applier = self.appliers.get(event_type)
        if applier is None:
            raise EventInvalid(f"model {self.name} has no event {event_type!r}; known are {', '.join(sorted(self.appliers)) or 'none'}")
        try:
            event = applier.decode(data) if schema_version == applier.schema_version else _upcast(applier, data, schema_version)
            after = applier.run(state, event, EventContext(version, time)) if applier.wants_context else applier.run(state, event)
        except ANY_FAULT as exc:  # the root of everything that an author wrote: it costs its own actor and no other
            raise _build_failure(applier, event_type, version, exc) from exc
        if type(after) is not self.state_type:
            raise EventInvalid(f"event {event_type}, version {version}: {applier.method} returned {type(after).__name__}, not {self.state_type.__name__}")
        return after

    def apply_all(self, state: State, events: Iterable[Event], version: int) -> State:
        """Return the state after stored events. Most are of one kind in a row, so what an event needs is looked up once; whatever is not plain goes through `apply`."""
        name, number, plain = "", 0, None
        state_type = self.state_type
        run: Callable[..., object] = self.apply
        decode: Callable[[msgspec.Raw], object] = bytes
        for next_version, event in enumerate(events, start=version + 1):
            if event.type != name or event.schema_version != number:
                name, number = event.type, event.schema_version
                plain = self._find_plain(name, number)
                if plain is not None:
                    run, decode = plain.run, plain.decode
            if plain is not None:
                try:
                    after = run(state, decode(event.data))
                except ANY_FAULT as exc:  # a root, as in `apply`
                    raise _build_failure(plain, name, next_version, exc) from exc
                if type(after) is state_type:
                    state = after
                    continue
            state = self.apply(state, name, bytes(event.data), time=event.time, version=next_version, schema_version=number)
        return state

    def _find_plain(self, event_type: str, schema_version: int) -> Applier | None:
        """Return what applies an event, if it takes nothing but state and fields, and those as they are stored."""
        applier = self.appliers.get(event_type)
        return None if applier is None or applier.wants_context or applier.schema_version != schema_version else applier

    def encode_state(self, state: State) -> bytes:
        """Encode a state as a JSON object.

        Raises:
            InvalidEnvelope: it holds what JSON cannot, such as an object of another class in a field that says so.
        """
        try:
            return _encode(state)
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise InvalidEnvelope(f"the state of model {self.name} cannot be written as JSON: {exc}") from exc

    def decode_state(self, encoded: bytes) -> State:
        """Read a state that a model of equal `fold` encoded.

        Raises:
            InvalidEnvelope: the bytes are no state of this model.
        """
        try:
            return self._decode_state(encoded)
        except MALFORMED as exc:
            raise InvalidEnvelope(f"not a state of model {self.name}: {exc}") from exc
        except ANY_FAULT as exc:  # a root, as in `decide`: a snapshot that the class refuses may be dropped, since the log holds everything
            raise InvalidEnvelope(f"not a state of model {self.name}: reading it raised {type(exc).__name__}: {exc}") from exc

    def _read_answer(self, command: str, answer: object) -> Decision:
        """Read whatever is not one event, which is what most commands make."""
        if answer is None or isinstance(answer, NoOp):
            return NO_OP
        if isinstance(answer, Rejected):
            if answer.reason in RESERVED_REASONS or not _MEMBER.fullmatch(answer.reason):
                raise CommandFailed(f"command {command} was rejected with the reason {answer.reason!r}, which is Aether's own or no CamelCase word: use another")
            return answer
        several = isinstance(answer, list | tuple)
        return self._read_answers(command, cast("list[object] | tuple[object, ...]", answer) if several else (answer,))

    def _read_answers(self, command: str, answers: Iterable[object]) -> Decision:
        events: list[DomainEvent] = []
        reminders: list[SetReminder | CancelReminder] = []
        for item in answers:
            if isinstance(item, Remind):
                reminders.append(self._read_reminder(command, item))
            elif isinstance(item, CancelReminder):
                reminders.append(item)
            elif (named := self.event_names.get(type(item))) is not None:
                events.append(DomainEvent(named[0], _encode(item), named[1]))
            else:
                raise CommandFailed(f"command {command} returned {type(item).__name__}, which no @applies method takes")
        if reminders and not events:
            raise CommandFailed(f"command {command} returned reminders without an event: they take effect with the commit of one")
        return Emitted(tuple(events), tuple(reminders)) if events else NO_OP

    def _read_reminder(self, command: str, item: Remind) -> SetReminder:
        name = self.command_names.get(type(item.command))
        if name is None:
            raise CommandFailed(f"command {command}, reminder {item.name}: no @handles method takes {type(item.command).__name__}")
        problem = check_schedule(item.schedule) if _MEMBER.fullmatch(item.name) else "its name must be a letter, then letters, digits and '_', at most 63"
        if problem is not None:
            raise CommandFailed(f"command {command}, reminder {item.name!r}: {problem}")
        payload = _encode(item.command)
        violation = _violation(self.handlers[name], payload)
        if violation is not None:
            raise CommandFailed(f"command {command}, reminder {item.name}: {violation}")
        return SetReminder(item.name, name, payload, item.schedule, item.missed)


def _context_of(command: CommandInput) -> CommandContext:
    return CommandContext(command.actor_id, command.version, command.time or "")


def _build_failure(applier: Applier, event_type: str, version: int, error: BaseException) -> EventInvalid:
    why = _explain(error, ()) if isinstance(error, (EventInvalid, *MALFORMED)) else f"{applier.method} raised {type(error).__name__}: {error}"
    return EventInvalid(f"event {event_type}, version {version}: {why}")


def _upcast(applier: Applier, data: bytes, schema_version: int) -> msgspec.Struct:
    """Read data of an older schema version."""
    if schema_version > applier.schema_version:
        raise EventInvalid(f"its schema version is {schema_version}, this model knows {applier.schema_version}")
    fields = _decode_fields(data)
    for version in range(schema_version, applier.schema_version):
        fields = applier.upcasts[version](fields)
    return msgspec.convert(fields, applier.type, str_keys=True)  # those of JSON are texts, where a field has numbers for keys, too


def _violation(handler: Handler, payload: bytes) -> str | None:
    try:
        handler.decode(payload)
    except MALFORMED as exc:
        return _explain_payload(handler, exc)
    return None


def _explain_payload(handler: Handler, error: Exception) -> str:
    if not isinstance(error, msgspec.ValidationError):
        return f"the payload is not JSON: {error}"
    if str(error).startswith("Expected `object`") and " - at " not in str(error):
        return "the payload must be a JSON object with the command's fields"
    return f"{handler.name}: {_explain(error, handler.fields)}"


def _explain(error: Exception, known: tuple[str, ...]) -> str:
    """Put the field first, and say which ones there are."""
    match = _PLACE.match(str(error))
    what, path = (match["what"], match["path"] or "") if match else (str(error), "")
    prefix = f"{path}." if path else ""
    if missing := _MISSING.match(what):
        return f"{prefix}{missing[1]} is required"
    if unknown := _UNKNOWN.match(what):
        return f"unknown field {prefix}{unknown[1]}" + (f"; known are {', '.join(sorted(known))}" if known and not path else "")
    return f"{path}: {what}" if path else what
