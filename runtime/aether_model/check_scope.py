"""Compiles the expressions of one place and turns what is wrong with them into problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from aether_api.v1alpha1.actor_model import ActorModelSpec, FieldsSchema, JsonSchema
from aether_model.agreement import disagreement
from aether_model.cel import CelError, CompiledExpression, Environment
from aether_model.cel_types import CelType
from aether_model.check_schema import Problem, is_field_name, join_path
from aether_model.fields import has_default, may_be_absent, types_of
from aether_model.objects import ObjectExpression
from aether_model.variables import Place, variables_of


@dataclass(frozen=True, slots=True)
class Target:
    """Whose fields the expressions give; those in `absent` may be null, which leaves them out.

    Attributes:
        missing: fields that must be given.
    """

    name: str
    properties: Mapping[str, JsonSchema]
    absent: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()

    @classmethod
    def of(cls, name: str, fields: FieldsSchema) -> Target:
        """Return the fields of a command or event."""
        properties, required = fields.properties, fields.required
        absent = frozenset(field for field, schema in properties.items() if may_be_absent(field, schema, required))
        return cls(name, properties, absent, frozenset(field for field in required if field in properties and not has_default(properties[field])))


class Scope:
    """Compiles expressions of one place and turns errors into problems."""

    def __init__(self, place: Place, spec: ActorModelSpec, fields: Mapping[str, CelType]) -> None:
        # Names that are refused elsewhere would spoil the environment, and with it every other message.
        state = {name: kind for name, kind in types_of(spec.state.properties, spec.state.properties).items() if is_field_name(name, "state")}
        own = {name: kind for name, kind in fields.items() if is_field_name(name, place)}
        self._environment = Environment(variables_of(place, state, own))

    def check(self, path: str, source: str, expected: CelType) -> Iterator[Problem]:
        """Check one expression, whose result must have the expected type."""
        yield from self._compile(path, source, expected)[1]

    def check_object(self, path: str, sources: Mapping[str, str], target: Target) -> Iterator[Problem]:
        """Check expressions that together give the fields of an object."""
        compiled: dict[str, CompiledExpression] = {}
        for name, source in sources.items():
            at = join_path(path, name)
            expression, problems = self._compile(at, source, None)
            yield from problems
            schema = target.properties.get(name)
            if schema is None:
                yield Problem(at, f"{target.name} has no field {name!r}; known are {', '.join(sorted(target.properties)) or 'none'}")
            elif expression is not None:
                reason = disagreement(schema, expression.type, null_allowed=name in target.absent)
                yield from [Problem(at, reason)] if reason else []
                compiled |= {name: expression} if is_field_name(name, "state") else {}
        yield from self._check_literal(path, compiled)
        for name in sorted(target.missing - set(sources)):
            yield Problem(path, f"{name} is missing: {target.name} requires it")

    def _check_literal(self, path: str, compiled: dict[str, CompiledExpression]) -> Iterator[Problem]:
        try:
            ObjectExpression(self._environment, compiled)
        except CelError as exc:
            yield Problem(path, f"one of the expressions is nested too deeply: {exc.message}")

    def _compile(self, path: str, source: str, expected: CelType | None) -> tuple[CompiledExpression | None, list[Problem]]:
        try:
            return self._environment.compile(source, expected), []
        except CelError as exc:
            return None, [Problem(path, finding.message, finding.line, finding.column) for finding in exc.findings]
