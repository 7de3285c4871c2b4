"""Expressions that together make one object: the `with` of an event, the `set` of a state.

They are compiled into one map literal, so an event costs one evaluation however many fields it has. The engine cannot say
which entry of a literal failed, so after a failure, and only then, each is evaluated alone to name it.
"""

from __future__ import annotations

from collections.abc import Mapping

from aether_model.cel import Activation, CelEvaluationError, CompiledExpression, Environment


class ObjectExpression:
    """Named expressions, evaluated at once.

    Attributes:
        entries: the expressions by field, in the author's order, which the result keeps.
    """

    __slots__ = ("_literal", "entries")

    def __init__(self, environment: Environment, entries: Mapping[str, CompiledExpression]) -> None:
        """Compile the literal.

        Raises:
            CelError: the literal is nested too deeply.
        """
        self.entries = dict(entries)
        self._literal = environment.compile_map(entries) if entries else None

    def evaluate(self, activation: Activation) -> dict[str, object]:
        """Return the value of every field.

        Raises:
            CelEvaluationError: one failed; the message begins with the name of its field.
        """
        if self._literal is None:
            return {}
        try:
            values = self._literal.value(activation)
        except CelEvaluationError as exc:
            raise CelEvaluationError(f"{self._culprit(activation)}{exc}") from exc
        # The engine returns a map in the order of its hash table.
        return {name: values[name] for name in self.entries} if isinstance(values, dict) else {}

    def _culprit(self, activation: Activation) -> str:
        for name, expression in self.entries.items():
            try:
                expression.value(activation)
            except CelEvaluationError:
                return f"{name}: "
        return ""
