"""Finds every problem of a model before anything runs.

Checking is total: it ends with a list for whatever the resource's classes let through, and never raises. It is static: kro tried
dry runs on invented data and went back to types, since index and map access broke them. All problems are reported at once,
sorted by path, each with a place that the author can find.

What cannot be known before it runs (a `dyn` value, a limit such as `minimum`) is checked when there is a value, in `decide`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from aether_api.errors import Reason
from aether_api.v1alpha1.actor_model import ActorModelSpec, CommandSpec, EmitSpec, EventSpec
from aether_model.cel_types import BOOL, STRING
from aether_model.check_reminder import check_reminder
from aether_model.check_schema import Problem, check_fields, join_path
from aether_model.check_scope import Scope, Target
from aether_model.fields import types_of

MEMBERS_MAX: Final = 128
"""Commands, and events, of one model: several times what an event-storming board of one aggregate shows."""

EXPRESSIONS_MAX: Final = 500
"""Expressions of one model: of 56 characters each they take 0.4 s to check (measured), which the operator's loop can wait for."""

SOURCE_LENGTH_MAX: Final = 100_000
"""Characters of all expressions of one model; see `EXPRESSIONS_MAX` for the same argument with long ones."""

_MEMBER = re.compile(r"[A-Z][A-Za-z0-9]{0,62}")
_RESERVED_REASONS = frozenset(reason.value for reason in Reason)


def check_model(spec: ActorModelSpec) -> list[Problem]:
    """Return every problem of the model, sorted by path; an empty list means that `compile_model` accepts it."""
    if spec.python is not None:
        return _check_python(spec)
    found = [*_check_members("spec.commands", spec.commands), *_check_members("spec.events", spec.events)]
    found += check_fields("spec.state", spec.state.properties, (), place="state")
    too_much = _check_amount(list(_sources_of(spec)))
    if too_much is not None:
        return sorted([*found, too_much], key=Problem.sort_key)
    for name, command in spec.commands.items():
        found += _check_command(join_path("spec.commands", name), spec, command)
    for name, event in spec.events.items():
        found += _check_event(join_path("spec.events", name), spec, event)
    return sorted(set(found), key=Problem.sort_key)


def _check_python(spec: ActorModelSpec) -> list[Problem]:
    """A class says all of its model itself; only a runtime can look into it."""
    given = [name for name, members in (("commands", spec.commands), ("events", spec.events), ("state", spec.state.properties)) if members]
    return [Problem(f"spec.{name}", "a model is written in YAML or in Python: with spec.python, leave this out") for name in given]


def _sources_of(spec: ActorModelSpec) -> Iterator[str]:
    for command in spec.commands.values():
        for guard in command.guards:
            yield from filter(None, (guard.rule, guard.message_expression))
        for emit in command.emits:
            yield from filter(None, (emit.when, *emit.with_.values()))
        for reminder in command.reminders:
            yield from filter(None, (reminder.when, reminder.at, reminder.after, *reminder.with_.values()))
    for event in spec.events.values():
        yield from event.set.values()


def _check_amount(sources: list[str]) -> Problem | None:
    length = sum(map(len, sources))
    if len(sources) > EXPRESSIONS_MAX:
        return Problem("spec", f"{len(sources)} expressions are more than {EXPRESSIONS_MAX}: split the model")
    if length > SOURCE_LENGTH_MAX:
        return Problem("spec", f"{length} characters of expressions are more than {SOURCE_LENGTH_MAX}: split the model")
    return None


def _check_members(path: str, members: Mapping[str, object]) -> Iterator[Problem]:
    if len(members) > MEMBERS_MAX:
        yield Problem(path, f"{len(members)} are more than {MEMBERS_MAX}: split the model")
    for name in members:
        if not _MEMBER.fullmatch(name):
            yield Problem(join_path(path, name), "names are PascalCase, such as MoneyDeposited: a capital, then letters and digits, at most 63")


def _check_command(path: str, spec: ActorModelSpec, command: CommandSpec) -> Iterator[Problem]:
    fields = command.fields
    yield from check_fields(f"{path}.schema", fields.properties, fields.required, place="command")
    scope = Scope("command", spec, types_of(fields.properties, fields.required))
    for i, guard in enumerate(command.guards):
        at = f"{path}.guards[{i}]"
        yield from scope.check(f"{at}.rule", guard.rule, BOOL)
        if guard.message_expression is not None:
            yield from scope.check(f"{at}.messageExpression", guard.message_expression, STRING)
        if guard.reason in _RESERVED_REASONS:
            yield Problem(f"{at}.reason", f"{guard.reason} is a reason of Aether itself, by which clients decide whether to try again: use another word")
    for i, emit in enumerate(command.emits):
        yield from _check_emit(f"{path}.emits[{i}]", spec, scope, emit)
    for i, reminder in enumerate(command.reminders):
        yield from check_reminder(f"{path}.reminders[{i}]", spec, scope, reminder)
    if command.reminders and not command.emits:
        yield Problem(f"{path}.reminders", "reminders take effect with the commit of an event: add one to `emits`")


def _check_emit(path: str, spec: ActorModelSpec, scope: Scope, emit: EmitSpec) -> Iterator[Problem]:
    if emit.when is not None:
        yield from scope.check(f"{path}.when", emit.when, BOOL)
    event = spec.events.get(emit.event)
    if event is None:
        known = ", ".join(sorted(spec.events)) or "none"
        yield Problem(f"{path}.event", f"there is no event {emit.event}; known are {known}")
        return
    yield from scope.check_object(f"{path}.with", emit.with_, Target.of(f"event {emit.event}", event.fields))


def _check_event(path: str, spec: ActorModelSpec, event: EventSpec) -> Iterator[Problem]:
    fields = event.fields
    yield from check_fields(f"{path}.schema", fields.properties, fields.required, place="event")
    scope = Scope("event", spec, types_of(fields.properties, fields.required))
    yield from scope.check_object(f"{path}.set", event.set, Target("the state", spec.state.properties))
