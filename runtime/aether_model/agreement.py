"""Says whether an expression can give the value of a field, as far as types are known before it runs."""

from __future__ import annotations

from typing import Final

from aether_api.v1alpha1.actor_model import JsonSchema
from aether_model.cel_types import BOOL, DOUBLE, DYN, INT, NULL, STRING, TIMESTAMP, CelType

_SCALARS: Final = {"string": (STRING,), "integer": (INT,), "number": (INT, DOUBLE), "boolean": (BOOL,)}
_CONVERSIONS: Final = {
    ("double", "integer"): "int(...)",
    ("uint", "integer"): "int(...)",
    ("uint", "number"): "double(...)",
    ("string", "integer"): "int(...)",
    ("string", "number"): "double(...)",
    ("int", "string"): "string(...)",
    ("double", "string"): "string(...)",
    ("bool", "string"): "string(...)",
    ("uint", "string"): "string(...)",
    ("duration", "string"): "string(...)",
    ("bytes", "string"): "string(...)",
}


def disagreement(schema: JsonSchema, given: CelType, *, null_allowed: bool) -> str | None:
    """Return why a result of type `given` can never be a value of the schema, and what to write instead; None if it can be."""
    if given == DYN or _agrees(schema, given, null_allowed=null_allowed):
        return None
    if given == NULL:
        return f"gives null, but the field is {_describe(schema)} that is not nullable"
    if given == TIMESTAMP and schema.type == "string":
        return "gives a timestamp, but the field is a string: add `format: date-time` to it, or use string(...)"
    conversion = _CONVERSIONS.get((given.name, schema.type))
    return f"gives {given}, but the field is {_describe(schema)}" + (f": use {conversion}" if conversion else "")


def _agrees(schema: JsonSchema, given: CelType, *, null_allowed: bool) -> bool:
    if given == DYN:
        return True
    if given == NULL:
        return schema.nullable or null_allowed
    match schema.type:
        case "array":
            return given.name == "list" and (schema.items is None or _agrees(schema.items, _parameter(given, 0), null_allowed=False))
        case "object":
            return given.name == "map" and _parameter(given, 0) in (STRING, DYN) and _values_agree(schema, _parameter(given, 1))
        case _:
            return given in _SCALARS[schema.type] or (given == TIMESTAMP and schema.format == "date-time")


def _values_agree(schema: JsonSchema, given: CelType) -> bool:
    """A map of one type of values fits if each field that the schema names, or its additional fields, may have that type."""
    extra = schema.additional_properties
    candidates = [*(schema.properties or {}).values(), *([extra] if isinstance(extra, JsonSchema) else [])]
    return extra is True or not candidates or any(_agrees(candidate, given, null_allowed=True) for candidate in candidates)


def _parameter(given: CelType, position: int) -> CelType:
    return given.parameters[position] if position < len(given.parameters) else DYN


def _describe(schema: JsonSchema) -> str:
    if schema.type == "array" and schema.items is not None:
        return f"an array of {schema.items.type}"
    return f"an {schema.type}" if schema.type[0] in "aio" else f"a {schema.type}"
