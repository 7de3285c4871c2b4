"""The parts of a compiled model: commands and events with every expression ready to run."""

from __future__ import annotations

from dataclasses import dataclass

from aether_model.cel import CompiledExpression
from aether_model.fields import Fields
from aether_model.model import Cron, Missed
from aether_model.objects import ObjectExpression
from aether_model.variables import Binder


@dataclass(frozen=True, slots=True)
class CompiledGuard:
    """A condition of a command, and what its caller is told when it does not hold."""

    rule: CompiledExpression
    reason: str
    message: str
    message_expression: CompiledExpression | None


@dataclass(frozen=True, slots=True)
class CompiledEmit:
    """An event that a command may produce.

    Attributes:
        fields: those of the event.
        settled: types alone show that `data` gives valid and complete fields.
    """

    event: str
    when: CompiledExpression | None
    data: ObjectExpression
    fields: Fields
    settled: bool


@dataclass(frozen=True, slots=True)
class CompiledReminder:
    """A reminder that a command sets or cancels.

    Attributes:
        command: sent later; empty for one that is cancelled.
        data: gives the fields of `command`, whose schema is `fields`.
        at: gives a moment; `after` a duration; of these and `cron` there is one.
    """

    name: str
    when: CompiledExpression | None
    command: str = ""
    data: ObjectExpression | None = None
    fields: Fields | None = None
    at: CompiledExpression | None = None
    after: CompiledExpression | None = None
    cron: Cron | None = None
    missed: Missed = "late"


@dataclass(frozen=True, slots=True)
class CompiledCommand:
    """A command, ready to decide."""

    name: str
    fields: Fields
    guards: tuple[CompiledGuard, ...]
    emits: tuple[CompiledEmit, ...]
    reminders: tuple[CompiledReminder, ...]
    binder: Binder


@dataclass(frozen=True, slots=True)
class CompiledEvent:
    """An event, ready to apply.

    Attributes:
        changes: the state fields that it sets.
        settled: types alone show that `set` gives valid values for them.
    """

    name: str
    fields: Fields
    set: ObjectExpression
    changes: Fields
    settled: bool
    binder: Binder
