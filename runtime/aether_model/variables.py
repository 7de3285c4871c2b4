"""What an expression sees, by place. There is no clock and no randomness, so replay gives what live gave.

All variables are flat: `state.balance` is one name, `state` alone is none. `VARIABLES` is the table that the documentation
prints and that `Binder` fills; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from aether_model.cel import Activation, CelEvaluationError, CompiledExpression, Environment
from aether_model.cel_types import INT, STRING, TIMESTAMP, CelType
from aether_model.fields import parse_time

Place = Literal["command", "event"]
"""Where an expression stands: guards, emits and reminders belong to a command, `set` to an event."""

RESERVED_FIELD: Final = "time"
"""Commands and events cannot have a field of this name: it would hide `command.time` or `event.time`."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One row of the table; `<field>` stands for each field of the schema."""

    place: Place
    name: str
    type: str
    meaning: str


VARIABLES: Final = (
    Variable("command", "state.<field>", "as in spec.state", "the state before the command, also in every one of its `emits` and `reminders`"),
    Variable("command", "command.<field>", "as in the command's schema; dyn if it may be absent, and then null", "what the caller sent, with defaults filled in"),
    Variable("command", "command.time", "timestamp", "when the command was made"),
    Variable("command", "actor.id", "string", "the actor's id within its model"),
    Variable("command", "actor.version", "int", "number of the actor's events so far, those before it in the same group included"),
    Variable("event", "state.<field>", "as in spec.state", "the state before the event"),
    Variable("event", "event.<field>", "as in the event's schema; dyn if it may be absent, and then null", "the event's data, with defaults filled in"),
    Variable("event", "event.time", "timestamp", "when the event happened; never runs back within an actor"),
    Variable("event", "actor.version", "int", "the version that this event makes"),
)


def variables_of(place: Place, state: Mapping[str, CelType], fields: Mapping[str, CelType]) -> dict[str, CelType]:
    """Return the flat variables of a place; `fields` are those of the command or event."""
    declared: dict[str, CelType] = {f"state.{name}": kind for name, kind in state.items()}
    declared |= {f"{place}.{name}": kind for name, kind in fields.items()}
    declared |= {f"{place}.{RESERVED_FIELD}": TIMESTAMP, "actor.version": INT}
    return declared | ({"actor.id": STRING} if place == "command" else {})


class Binder:
    """Fills the variables that a group of expressions names, and no others."""

    __slots__ = ("_environment", "_fields", "_id_wanted", "_state", "_time_name", "_version_wanted")

    def __init__(self, place: Place, environment: Environment, expressions: Iterable[CompiledExpression]) -> None:
        names = frozenset[str]().union(*(expression.names for expression in expressions))
        time_name = f"{place}.{RESERVED_FIELD}"
        self._environment = environment
        self._state = tuple((name, name.removeprefix("state.")) for name in sorted(names) if name.startswith("state."))
        self._fields = tuple((name, name.removeprefix(f"{place}.")) for name in sorted(names) if name.startswith(f"{place}.") and name != time_name)
        self._time_name = time_name if time_name in names else None
        self._id_wanted = "actor.id" in names
        self._version_wanted = "actor.version" in names

    def bind(self, state: Mapping[str, object], fields: Mapping[str, object], *, actor_id: str, version: int, time: str | datetime | None) -> Activation:
        """Hand the values to the engine.

        Raises:
            CelEvaluationError: an expression names the time, and it is unknown or none.
        """
        values = {flat: state[name] for flat, name in self._state}
        for flat, name in self._fields:
            values[flat] = fields.get(name)
        if self._version_wanted:
            values["actor.version"] = version
        if self._id_wanted:
            values["actor.id"] = actor_id
        if self._time_name is not None:
            values[self._time_name] = _read_time(self._time_name, time)
        return self._environment.bind(values)


def _read_time(name: str, time: str | datetime | None) -> datetime:
    if isinstance(time, datetime):
        return time
    try:
        return parse_time(time or "")
    except ValueError as exc:
        raise CelEvaluationError(f"{name} is not known: {exc}") from exc
