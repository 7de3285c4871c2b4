"""Expressions that together make one object: the `with` of an event, the `set` of a state.

What the engine must compute is compiled into one map literal, so an event costs at most one evaluation however many fields it
has; copied variables, constants and shortcuts cost none. The engine cannot say which entry of a literal failed, so after a
failure, and only then, each is evaluated alone to name it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from aether_model.cel import Activation, CelEvaluationError, CompiledExpression, Environment
from aether_model.cel_types import CelType


class ObjectExpression:
    """Named expressions, evaluated at once.

    Attributes:
        entries: the expressions by field, in the author's order, which the result keeps.
    """

    __slots__ = ("_copied", "_literal", "_shortcuts", "_single", "_template", "entries")

    def __init__(self, environment: Environment, entries: Mapping[str, CompiledExpression]) -> None:
        """Compile the literal.

        Raises:
            CelError: the literal is nested too deeply.
        """
        self.entries = dict(entries)
        self._copied = tuple((name, expression.copied) for name, expression in entries.items() if expression.copied is not None)
        self._template: dict[str, object] = {name: None for name in entries}  # noqa: C420  # fromkeys has no type for the values to come
        constants = {name: value for name, expression in entries.items() if (value := _constant(environment, expression)) is not None}
        self._template |= constants
        self._shortcuts = tuple((name, expression) for name, expression in entries.items() if expression.shortcut is not None and name not in constants)
        direct = {*constants, *(name for name, _ in self._shortcuts)}
        computed = {name: expression for name, expression in entries.items() if expression.copied is None and name not in direct}
        self._single = next(iter(computed.items())) if len(computed) == 1 else None
        self._literal = environment.compile_map(computed) if computed else None

    def types(self) -> dict[str, CelType]:
        """Return what the checker knows of each field."""
        return {name: expression.type for name, expression in self.entries.items()}

    def sources(self) -> dict[str, str]:
        """Return what runs for each field."""
        return {name: expression.source for name, expression in self.entries.items()}

    def evaluate(self, activation: Activation) -> dict[str, object]:
        """Return the value of every field.

        Raises:
            CelEvaluationError: one failed; the message begins with the name of its field.
        """
        values = self._template.copy()
        for name, variable in self._copied:
            values[name] = activation.values[variable]
        try:
            for name, expression in self._shortcuts:
                values[name] = expression.value(activation)
            if self._literal is None:
                return values
            if self._single is not None:
                values[self._single[0]] = self._single[1].value(activation)
                return values
            computed = self._literal.value(activation)
        except CelEvaluationError as exc:
            raise CelEvaluationError(f"{self._culprit(activation)}{exc}") from exc
        # Updating keeps the author's order; the engine's is that of a hash table.
        values.update(cast("dict[str, object]", computed))
        return values

    def _culprit(self, activation: Activation) -> str:
        for name, expression in self.entries.items():
            try:
                expression.value(activation)
            except CelEvaluationError:
                return f"{name}: "
        return ""


def _constant(environment: Environment, expression: CompiledExpression) -> object:
    """Return the value of an expression without variables if it is a scalar, which can be shared; else None."""
    if expression.names:
        return None
    try:
        value = expression.value(environment.bind({}))
    except CelEvaluationError:
        return None
    return value if isinstance(value, bool | int | float | str) else None
