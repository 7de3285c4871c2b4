"""The fields of a state, a command or an event: what is valid, what is filled in, and which types CEL sees.

Three rules that a schema alone does not say:

- What is not named is refused (`additionalProperties` is false unless the schema says otherwise) where data is born: in commands
  and in new events. Stored events are read tolerantly, since a newer version of the model may have written more.
- A field with a default is always there: the default is filled in, after validation, at every depth.
- A `number` is a float and an `integer` an int of 64 bits afterwards, however JSON spelt it, since CEL keeps them apart.

A date-time is a string, in CEL too, as in JSON; `timestamp(state.dueAt)` reads it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, cast

import jsonschema_rs

from aether_api.v1alpha1.actor_model import JsonSchema
from aether_model.cel_types import BOOL, DOUBLE, DYN, INT, STRING, CelType, list_of, map_of
from aether_model.shortcuts import INT64_MAX, INT64_MIN

VIOLATIONS_SHOWN_MAX: Final = 5
"""Violations that one message names: enough to repair a form, short enough for a log line."""

VIOLATION_LENGTH_MAX: Final = 300
"""Characters of one violation: the validator repeats the offending value, which may be a megabyte."""

Completion = Callable[[object], object]
"""Fills in defaults and settles kinds of numbers in a valid value; never changes its argument."""

_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_SCALARS: Final = {"string": STRING, "integer": INT, "number": DOUBLE, "boolean": BOOL}
_UNLIMITED: Final[list[dict[str, object]]] = [{"type": "string"}, {"type": "boolean"}, {"type": "number"}, {"type": "integer", "minimum": INT64_MIN, "maximum": INT64_MAX}]


def parse_time(text: str) -> datetime:
    """Read an RFC 3339 moment as an aware time in UTC; digits below a microsecond are dropped.

    Raises:
        ValueError: it is none, or lies outside of the years 1 to 9999.
    """
    if not _TIME.fullmatch(text):
        raise ValueError(f"{text!r} is no RFC 3339 time such as 2026-07-01T12:00:00Z")
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except OverflowError as exc:
        raise ValueError(f"{text!r} lies outside of the years 1 to 9999") from exc


def has_default(schema: JsonSchema) -> bool:
    """Say whether the author gave a default, which may be null."""
    return "default" in schema.model_fields_set


def cel_type_of(schema: JsonSchema) -> CelType:
    """Return the type that CEL's checker sees; what may be null is `dyn`."""
    if schema.nullable:
        return DYN
    if schema.type == "array":
        return list_of(cel_type_of(schema.items) if schema.items else DYN)
    if schema.type == "object":
        extra = schema.additional_properties
        return map_of(cel_type_of(extra) if isinstance(extra, JsonSchema) and not schema.properties else DYN)
    return _SCALARS[schema.type]


def build_json_schema(schema: JsonSchema, *, strict: bool = True) -> dict[str, object]:
    """Build the JSON Schema of one value, without words for people; `strict` refuses fields that are not named."""
    built: dict[str, object] = {"type": [schema.type, "null"] if schema.nullable else schema.type}
    if schema.enum is not None:
        built["enum"] = [*schema.enum, *([None] if schema.nullable and None not in schema.enum else [])]
    if has_default(schema):
        built["default"] = schema.default
    if schema.type == "object":
        extra = schema.additional_properties
        built = _build_object(schema.properties or {}, schema.required, strict=strict) | built
        built |= {"additionalProperties": build_json_schema(extra, strict=strict)} if isinstance(extra, JsonSchema) else {}
        built |= {"additionalProperties": True} if extra is True else {}
    if schema.items is not None:
        built["items"] = build_json_schema(schema.items, strict=strict)
    return built | _build_limits(schema)


def compile_validator(json_schema: dict[str, object]) -> jsonschema_rs.Draft202012Validator:
    """Compile a JSON Schema; patterns take linear time, date-times are those that `parse_time` reads.

    Raises:
        ValueError: it is no JSON Schema (jsonschema-rs' own errors are ValueErrors).
    """
    return jsonschema_rs.Draft202012Validator(
        json_schema,
        formats={"date-time": _is_time},
        validate_formats=True,
        pattern_options=jsonschema_rs.RegexOptions(),
        offline=True,
    )


def holds_nul(value: object) -> bool:
    """Say whether a string in the value, or a key, holds the character NUL."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(holds_nul(name) or holds_nul(item) for name, item in cast("dict[str, object]", value).items())
    return isinstance(value, list) and any(map(holds_nul, cast("list[object]", value)))


@dataclass(frozen=True, slots=True)
class Fields:
    """Named fields, ready to check and complete.

    Attributes:
        types: what CEL sees of each field.
        json_schema: the strict schema, for hashes and documents.
        nulls_left_out: optional fields that cannot hold null; a null computed for them means "not given".
    """

    types: Mapping[str, CelType]
    json_schema: Mapping[str, object]
    nulls_left_out: frozenset[str]
    _strict: jsonschema_rs.Draft202012Validator
    _tolerant: jsonschema_rs.Draft202012Validator
    _completion: Completion | None

    def violation(self, values: dict[str, object], encoded: bytes, *, strict: bool) -> str | None:
        """Say what is wrong with values of JSON, naming fields and what they should be; None if they are valid.

        Args:
            encoded: the same values as JSON.
        """
        # CEL would end the string there without a word.
        if rb"\u0000" in encoded and holds_nul(values):
            return "a string holds the character NUL (\\u0000), which cannot be kept"
        validator = self._strict if strict else self._tolerant
        return None if validator.is_valid(values) else self._explain(validator, values)

    def without_nulls(self, values: dict[str, object]) -> dict[str, object]:
        """Leave out computed nulls that mean "not given"."""
        if not self.nulls_left_out:
            return values
        return {name: value for name, value in values.items() if value is not None or name not in self.nulls_left_out}

    def complete(self, values: dict[str, object]) -> dict[str, object]:
        """Copy valid values with defaults filled in and numbers settled."""
        if self._completion is None:
            return values.copy()
        return cast("dict[str, object]", self._completion(values))

    def settled_by(self, types: Mapping[str, CelType]) -> bool:
        """Say whether any values of these types, as CEL gives them, are valid and complete: scalars without limits, every field given."""
        properties = cast("dict[str, dict[str, object]]", self.json_schema["properties"])
        return types.keys() == self.types.keys() and all(
            types[name] == kind != DYN and {keyword: value for keyword, value in properties[name].items() if keyword != "default"} in _UNLIMITED
            for name, kind in self.types.items()
        )

    def _explain(self, validator: jsonschema_rs.Draft202012Validator, values: object) -> str:
        try:
            lines = sorted({_explain_error(error, self.types) for error in validator.iter_errors(values)})
        except ValueError as exc:
            return f"a value is nested too deeply: {exc}"
        return "; ".join(lines[:VIOLATIONS_SHOWN_MAX])


def types_of(properties: Mapping[str, JsonSchema], required: Collection[str]) -> dict[str, CelType]:
    """Return what CEL sees of each field: an optional field without a default is `dyn`, and null while it is absent."""
    return {name: cel_type_of(schema) if name in required or has_default(schema) else DYN for name, schema in properties.items()}


def compile_fields(properties: Mapping[str, JsonSchema], required: Collection[str]) -> Fields:
    """Compile fields.

    Raises:
        ValueError: a schema is not well-formed; `check` finds that first.
    """
    strict = _build_object(properties, required, strict=True)
    return Fields(
        types=types_of(properties, required),
        json_schema=strict,
        nulls_left_out=frozenset(name for name, schema in properties.items() if may_be_absent(name, schema, required) and not schema.nullable),
        _strict=compile_validator(strict),
        _tolerant=compile_validator(_build_object(properties, required, strict=False)),
        _completion=_completion_of_object(properties, None),
    )


def may_be_absent(name: str, schema: JsonSchema, required: Collection[str]) -> bool:
    """Say whether a field may be missing even after defaults were filled in."""
    return name not in required and not has_default(schema)


def _build_object(properties: Mapping[str, JsonSchema], required: Collection[str], *, strict: bool) -> dict[str, object]:
    return {
        "type": "object",
        "properties": {name: build_json_schema(schema, strict=strict) for name, schema in properties.items()},
        "required": sorted(name for name in set(required) if name not in properties or not has_default(properties[name])),
        "additionalProperties": not strict,
    }


def _build_limits(schema: JsonSchema) -> dict[str, object]:
    lowest = INT64_MIN if schema.type == "integer" else None
    highest = INT64_MAX if schema.type == "integer" else None
    limits = {
        "minimum": _whole(max(schema.minimum, lowest or schema.minimum)) if schema.minimum is not None else lowest,
        "maximum": _whole(min(schema.maximum, highest or schema.maximum)) if schema.maximum is not None else highest,
        "minLength": schema.min_length,
        "maxLength": schema.max_length,
        "pattern": schema.pattern,
        "minItems": schema.min_items,
        "maxItems": schema.max_items,
        "format": schema.format,
    }
    return {keyword: value for keyword, value in limits.items() if value is not None}


def _completion_of(schema: JsonSchema) -> Completion | None:
    """Return what settles a valid value of the schema, or None if nothing ever needs to."""
    if schema.type == "integer":
        return _whole
    if schema.type == "number":
        return _decimal
    if schema.type == "array" and schema.items is not None:
        inner = _completion_of(schema.items)
        return None if inner is None else lambda value: [inner(item) for item in cast("list[object]", value)] if isinstance(value, list) else value
    if schema.type == "object":
        extra = schema.additional_properties
        return _completion_of_object(schema.properties or {}, _completion_of(extra) if isinstance(extra, JsonSchema) else None)
    return None


def _completion_of_object(properties: Mapping[str, JsonSchema], extra: Completion | None) -> Completion | None:
    inner = {name: completion for name, schema in properties.items() if (completion := _completion_of(schema)) is not None}
    defaults = {name: _default_of(schema) for name, schema in properties.items() if has_default(schema)}
    if not inner and not defaults and extra is None:
        return None
    known = frozenset(properties)

    def complete(value: object) -> object:
        if not isinstance(value, dict):
            return value
        completed = cast("dict[str, object]", value).copy()
        for name, settle in inner.items():
            if name in completed:
                completed[name] = settle(completed[name])
        for name, default in defaults.items():
            if name not in completed:
                completed[name] = default if default is None or isinstance(default, bool | int | float | str) else copy.deepcopy(default)
        if extra is not None:
            completed |= {name: extra(item) for name, item in completed.items() if name not in known}
        return completed

    return complete


def _default_of(schema: JsonSchema) -> object:
    completion = _completion_of(schema)
    default: object = schema.default
    return default if completion is None else completion(default)


def _whole(value: object) -> object:
    """An integer may be spelt 1.0 in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _decimal(value: object) -> object:
    return float(value) if type(value) is int else value


def _is_time(text: str) -> bool:
    try:
        parse_time(text)
    except ValueError:
        return False
    return True


def _explain_error(error: jsonschema_rs.ValidationError, names: Collection[str]) -> str:
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.instance_path).lstrip(".")
    prefix = f"{path}." if path else ""
    match error.kind:
        case jsonschema_rs.ValidationErrorKind.Required(property=name):
            return f"{prefix}{name} is required"
        case jsonschema_rs.ValidationErrorKind.AdditionalProperties(unexpected=unexpected):
            known = f"; known are {', '.join(sorted(names))}" if not path and names else ""
            return f"unknown field {', '.join(f'{prefix}{name}' for name in unexpected)}"[:VIOLATION_LENGTH_MAX] + known
        case _:
            message = error.message if len(error.message) <= VIOLATION_LENGTH_MAX else f"...{error.message[-VIOLATION_LENGTH_MAX:]}"
            return f"{path or 'the payload'}: {message}"
