"""Checks the schemas of a model: names, limits, defaults. Together with `check`; apart from it because nothing here is CEL."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import orjson

from aether_api.v1alpha1.actor_model import JsonSchema
from aether_model.fields import build_json_schema, compile_validator, has_default, holds_nul
from aether_model.variables import RESERVED_FIELD

FIELDS_MAX: Final = 128
"""Fields of one state, command or event: above that a person no longer reads it, and each costs on the hot path."""

SCHEMA_DEPTH_MAX: Final = 8
"""Levels of objects and arrays in one field: enough for documents, and no recursion anywhere comes near its limit."""

NAME_SHOWN_MAX: Final = 63
"""Characters of a name that a path shows; longer ones are refused anyway."""

CEL_KEYWORDS: Final = frozenset({"false", "in", "null", "true"})
"""Words that cannot follow the dot of a variable; all other reserved words of CEL can."""

_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
_ORDINAL = re.compile(r"(\d+)")
_KEYWORDS_OF: Final = {
    "minimum": ("integer", "number"),
    "maximum": ("integer", "number"),
    "min_length": ("string",),
    "max_length": ("string",),
    "pattern": ("string",),
    "format": ("string",),
    "min_items": ("array",),
    "max_items": ("array",),
    "items": ("array",),
    "properties": ("object",),
    "required": ("object",),
    "additional_properties": ("object",),
}
_PAIRS: Final = (("minimum", "maximum"), ("min_length", "max_length"), ("min_items", "max_items"))


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a model.

    Attributes:
        path: the field, such as `spec.commands.Withdraw.guards[0].rule`.
        line: line within the expression, from 1; 0 where there is none; `column` likewise.
    """

    path: str
    message: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        place = f" (line {self.line}, column {self.column})" if self.line else ""
        return f"{self.path}: {self.message}{place}"

    def sort_key(self) -> tuple[object, ...]:
        """Order by path, numbers in it by their value, then by place."""
        steps = tuple((int(part), "") if part.isdecimal() else (-1, part) for part in _ORDINAL.split(self.path))
        return steps, self.line, self.column, self.message


def join_path(path: str, name: str) -> str:
    """Append a name to a path, in brackets if it is no identifier."""
    if _FIELD.fullmatch(name):
        return f"{path}.{name}"
    return f"{path}[{json.dumps(name[:NAME_SHOWN_MAX])}]"


def is_field_name(name: str, place: Literal["state", "command", "event"]) -> bool:
    """Say whether a field may have this name, so that `<place>.<name>` is a variable."""
    return _FIELD.fullmatch(name) is not None and name not in CEL_KEYWORDS and (place == "state" or name != RESERVED_FIELD)


def check_fields(path: str, properties: Mapping[str, JsonSchema], required: Collection[str], *, place: Literal["state", "command", "event"]) -> Iterator[Problem]:
    """Find what is wrong with the fields of a state, command or event; `path` is where they are."""
    if len(properties) > FIELDS_MAX:
        yield Problem(f"{path}.properties", f"{len(properties)} fields are more than {FIELDS_MAX}: group them into objects")
    for name, schema in properties.items():
        at = join_path(f"{path}.properties", name)
        yield from _check_name(at, name, place)
        if place == "state" and not has_default(schema):
            yield Problem(at, "a field of the state needs a default: all defaults together are the initial state")
        yield from _check_schema(at, schema, depth=1)
    yield from _check_required(f"{path}.required", properties, required)


def _check_name(path: str, name: str, place: Literal["state", "command", "event"]) -> Iterator[Problem]:
    if not _FIELD.fullmatch(name):
        yield Problem(path, "a field's name is a letter, then letters, digits and '_', at most 63, since it becomes a variable")
    elif name in CEL_KEYWORDS:
        yield Problem(path, f"'{name}' is a keyword of CEL: call the field otherwise")
    elif not is_field_name(name, place):
        yield Problem(path, f"{place}.{name} is the {place}'s own time: call the field otherwise, such as 'due' or 'paidAt'")


def _check_required(path: str, properties: Mapping[str, JsonSchema], required: Collection[str]) -> Iterator[Problem]:
    for name in sorted(set(required) - set(properties)):
        yield Problem(path, f"{name!r} is not among the properties")


def _check_schema(path: str, schema: JsonSchema, *, depth: int) -> Iterator[Problem]:
    if depth > SCHEMA_DEPTH_MAX:
        yield Problem(path, f"schemas are nested more than {SCHEMA_DEPTH_MAX} deep")
        return
    yield from _check_keywords(path, schema)
    yield from _check_limits(path, schema)
    own = [*_check_pattern(path, schema), *_check_children(path, schema, depth=depth)]
    yield from own
    # What is wrong below or with the pattern would only be found a second time, without its path.
    if not own:
        yield from _check_values(path, schema)


def _check_keywords(path: str, schema: JsonSchema) -> Iterator[Problem]:
    for keyword, types in _KEYWORDS_OF.items():
        if keyword in schema.model_fields_set and getattr(schema, keyword) not in (None, ()) and schema.type not in types:
            yield Problem(f"{path}.{_camel(keyword)}", f"has no meaning for type {schema.type}, only for {' and '.join(types)}")
    if schema.type == "array" and schema.items is None:
        yield Problem(path, "an array needs `items`, which say what it holds")
    if schema.type == "object" and not schema.properties and schema.additional_properties in (None, False):
        yield Problem(path, "an object needs `properties`, or `additionalProperties` (a schema, or true for any field)")


def _check_limits(path: str, schema: JsonSchema) -> Iterator[Problem]:
    for low_name, high_name in _PAIRS:
        low, high = getattr(schema, low_name), getattr(schema, high_name)
        for name, limit in ((low_name, low), (high_name, high)):
            if limit is not None and not math.isfinite(limit):
                yield Problem(f"{path}.{_camel(name)}", f"{limit} is no limit")
        if low is not None and high is not None and low > high:
            yield Problem(f"{path}.{_camel(low_name)}", f"{low:g} is above {_camel(high_name)}, {high:g}: no value could be valid")
    if schema.enum is not None and not schema.enum:
        yield Problem(f"{path}.enum", "is empty: no value could be valid")


def _check_pattern(path: str, schema: JsonSchema) -> Iterator[Problem]:
    if schema.pattern is None:
        return
    try:
        compile_validator({"pattern": schema.pattern})
    except ValueError:
        yield Problem(f"{path}.pattern", f"{schema.pattern!r} is no regular expression of linear time (RE2: no look-around, no back references)")


def _check_children(path: str, schema: JsonSchema, *, depth: int) -> Iterator[Problem]:
    for name, child in (schema.properties or {}).items():
        yield from _check_schema(join_path(f"{path}.properties", name), child, depth=depth + 1)
    if schema.items is not None:
        yield from _check_schema(f"{path}.items", schema.items, depth=depth + 1)
    if isinstance(schema.additional_properties, JsonSchema):
        yield from _check_schema(f"{path}.additionalProperties", schema.additional_properties, depth=depth + 1)
    yield from _check_required(f"{path}.required", schema.properties or {}, schema.required)


def _check_values(path: str, schema: JsonSchema) -> Iterator[Problem]:
    """Check that default and enum are values of the schema, and that the validator takes it at all."""
    values = {"default": schema.default} if has_default(schema) else {}
    values |= {f"enum[{i}]": value for i, value in enumerate(schema.enum or ())}
    plain = schema.model_copy(update={"enum": None, "default": None})
    try:
        whole = compile_validator({**build_json_schema(schema), "default": None})
        shape = compile_validator({**build_json_schema(plain), "default": None})
        for name, value in values.items():
            reason = _cannot_be_kept(value) or next((error.message for error in (whole if name == "default" else shape).iter_errors(value)), None)
            if reason:
                yield Problem(f"{path}.{name}", reason)
    except (ValueError, TypeError) as exc:
        yield Problem(path, f"is no valid schema: {str(exc).partition(chr(10))[0]}")


def _cannot_be_kept(value: object) -> str | None:
    try:
        orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATETIME)
    except TypeError as exc:
        return f"cannot be written as JSON: {exc}"
    return "holds the character NUL" if holds_nul(value) else None


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)
