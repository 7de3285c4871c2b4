"""Turns a sound model into what the hot path runs: everything is compiled here, once, and nothing later.

Two hashes name a model. `content_hash` covers all of it: commits carry it, so one can see which model decided. `fold` covers only
what state depends on (the state's schema, the events' schemas and `set`): a new wording of a message or a new guard keeps
every snapshot, and two versions of a model that fold alike share theirs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import orjson

from aether_api.errors import InternalError, ModelInvalid
from aether_api.v1alpha1.actor_model import ActorModelSpec, CommandSpec, EmitSpec, EventSpec, GuardSpec, ReminderSpec
from aether_model.cel import CompiledExpression, Environment
from aether_model.cel_types import BOOL, DURATION, STRING, TIMESTAMP
from aether_model.check import check_model
from aether_model.compiled import CompiledCommand, CompiledEmit, CompiledEvent, CompiledGuard, CompiledReminder
from aether_model.decide import CompiledModel
from aether_model.fields import Fields, compile_fields
from aether_model.model import Cron
from aether_model.objects import ObjectExpression
from aether_model.variables import Binder, variables_of

HASH_LENGTH: Final = 16
"""Hex digits (64 bits): short enough for a header and a subject, and no two models of a cluster ever meet."""

FOLD_FORMAT: Final = 1
"""Raised when the same model would fold the same events into another state; snapshots of before are then left alone."""


def compile_model(name: str, spec: ActorModelSpec) -> CompiledModel:
    """Compile a model.

    Raises:
        ModelInvalid: with every problem of the model, one line each, sorted by path.
    """
    problems = check_model(spec)
    if problems:
        raise ModelInvalid(name, tuple(map(str, problems)))
    if spec.python is not None:
        raise InternalError(f"model {name} is in Python: it is imported, not compiled")
    state = compile_fields(spec.state.properties, ())
    events = {event: _compile_event(event, spec, state) for event in spec.events}
    return CompiledModel(
        name=name,
        version=spec.version,
        content_hash=_hash(spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)),
        fold=_hash([FOLD_FORMAT, state.json_schema, {name: [event.fields.json_schema, event.set.sources()] for name, event in events.items()}]),
        on_demand=spec.on_demand,
        commands={command: _compile_command(command, spec, state, events) for command in spec.commands},
        events=events,
        _initial_state_json=orjson.dumps(state.complete({})),
    )


def _compile_command(name: str, spec: ActorModelSpec, state: Fields, events: Mapping[str, CompiledEvent]) -> CompiledCommand:
    command: CommandSpec = spec.commands[name]
    fields = compile_fields(command.fields.properties, command.fields.required)
    environment = Environment(variables_of("command", state.types, fields.types))
    guards = tuple(_compile_guard(environment, guard) for guard in command.guards)
    emits = tuple(_compile_emit(environment, emit, events[emit.event].fields) for emit in command.emits)
    reminders = tuple(_compile_reminder(environment, reminder, spec) for reminder in command.reminders)
    expressions = [*_expressions_of(guards, emits), *_expressions_of_reminders(reminders)]
    return CompiledCommand(name, fields, guards, emits, reminders, Binder("command", environment, expressions))


def _compile_guard(environment: Environment, guard: GuardSpec) -> CompiledGuard:
    message_expression = environment.compile(guard.message_expression, STRING) if guard.message_expression is not None else None
    return CompiledGuard(environment.compile(guard.rule, BOOL), guard.reason, guard.message or f"failed rule: {guard.rule}", message_expression)


def _compile_emit(environment: Environment, emit: EmitSpec, fields: Fields) -> CompiledEmit:
    when = environment.compile(emit.when, BOOL) if emit.when is not None else None
    data = _compile_object(environment, emit.with_)
    return CompiledEmit(emit.event, when, data, fields, fields.settled_by(data.types()))


def _compile_reminder(environment: Environment, reminder: ReminderSpec, spec: ActorModelSpec) -> CompiledReminder:
    when = environment.compile(reminder.when, BOOL) if reminder.when is not None else None
    if reminder.set is None or reminder.command is None:
        return CompiledReminder(reminder.cancel or "", when)
    fields = spec.commands[reminder.command].fields
    return CompiledReminder(
        name=reminder.set,
        when=when,
        command=reminder.command,
        data=_compile_object(environment, reminder.with_),
        fields=compile_fields(fields.properties, fields.required),
        at=environment.compile(reminder.at, TIMESTAMP) if reminder.at is not None else None,
        after=environment.compile(reminder.after, DURATION) if reminder.after is not None else None,
        cron=Cron(reminder.cron, reminder.zone or "UTC") if reminder.cron is not None else None,
        missed=reminder.missed,
    )


def _compile_event(name: str, spec: ActorModelSpec, state: Fields) -> CompiledEvent:
    event: EventSpec = spec.events[name]
    fields = compile_fields(event.fields.properties, event.fields.required)
    environment = Environment(variables_of("event", state.types, fields.types))
    changed = compile_fields({field: spec.state.properties[field] for field in event.set}, tuple(event.set))
    values = _compile_object(environment, event.set)
    return CompiledEvent(name, fields, values, changed, changed.settled_by(values.types()), Binder("event", environment, values.entries.values()))


def _compile_object(environment: Environment, sources: Mapping[str, str]) -> ObjectExpression:
    return ObjectExpression(environment, {name: environment.compile(source) for name, source in sources.items()})


def _expressions_of(guards: Iterable[CompiledGuard], emits: Iterable[CompiledEmit]) -> list[CompiledExpression]:
    optional = [guard.message_expression for guard in guards] + [emit.when for emit in emits]
    always = [guard.rule for guard in guards] + [expression for emit in emits for expression in emit.data.entries.values()]
    return always + [expression for expression in optional if expression is not None]


def _expressions_of_reminders(reminders: Iterable[CompiledReminder]) -> Iterator[CompiledExpression]:
    for reminder in reminders:
        yield from filter(None, (reminder.when, reminder.at, reminder.after))
        yield from reminder.data.entries.values() if reminder.data is not None else ()


def _hash(content: object) -> str:
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:HASH_LENGTH]
