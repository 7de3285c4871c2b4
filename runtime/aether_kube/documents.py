"""JSON as the API server speaks it, and the few safe ways to read it.

Documents from the API server are plain dictionaries of `JsonValue`, so type checkers force every reader to look before it
takes. The `_at` functions below do the looking: a path that is missing, or holds another type, reads as empty, because
everything in a resource may be absent. Whoever must tell absent from empty parses with pydantic instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TypeAlias

import orjson

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: TypeAlias = dict[str, JsonValue]
Document: TypeAlias = Mapping[str, object]
"""A document to send: any mapping that orjson can write."""


def parse_json(payload: bytes) -> JsonValue:
    """Return the value that the bytes hold.

    Raises:
        orjson.JSONDecodeError: they hold none; a ValueError.
    """
    value: JsonValue = orjson.loads(payload)
    return value


def value_at(document: JsonValue, *path: str) -> JsonValue:
    """Return what the path names, or None."""
    current = document
    for name in path:
        if not isinstance(current, dict):
            return None
        current = current.get(name)
    return current


def text_at(document: JsonValue, *path: str) -> str:
    """Return the text that the path names, or the empty text."""
    value = value_at(document, *path)
    return value if isinstance(value, str) else ""


def integer_at(document: JsonValue, *path: str) -> int:
    """Return the integer that the path names, or 0."""
    value = value_at(document, *path)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def object_at(document: JsonValue, *path: str) -> JsonObject:
    """Return the object that the path names, or an empty one."""
    value = value_at(document, *path)
    return value if isinstance(value, dict) else {}


def objects_at(document: JsonValue, *path: str) -> list[JsonObject]:
    """Return the objects of the list that the path names, in order; anything else in it is left out."""
    value = value_at(document, *path)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def texts_at(document: JsonValue, *path: str) -> dict[str, str]:
    """Return the object of texts that the path names (labels, annotations), without entries that hold no text."""
    return {name: value for name, value in object_at(document, *path).items() if isinstance(value, str)}


def format_time(moment: datetime) -> str:
    """Return a moment in RFC 3339 with whole seconds, as Kubernetes writes times; it must know its time zone."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_micro_time(moment: datetime) -> str:
    """Return a moment in RFC 3339 with microseconds, as Kubernetes wants it for events and leases."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
