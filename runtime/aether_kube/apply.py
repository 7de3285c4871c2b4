"""Decides whether a write is needed. Pure.

An equal server-side apply costs the API server as much as a real one [5.7 ms], so every writer compares first. `differs`
compares what we want with what is there, and ignores what others or the server's defaults added. That has one blind spot:
a field that we dropped from a document is not missed in it. Three ways to see that: write an empty value instead of leaving
a field out (placement does), name the conditions that we own, or keep a `fingerprint` of the document in an annotation of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Final

import orjson

from aether_kube.documents import Document, JsonObject, JsonValue, text_at

FINGERPRINT_ANNOTATION: Final = "aether.flowmade.one/applied"

FINGERPRINT_CHARACTERS: Final = 16
"""Hexadecimal digits, 64 bits: it tells successive documents of one object apart, nothing more."""


def differs(desired: JsonValue, observed: JsonValue, *, owned_conditions: Collection[str] = ()) -> bool:
    """Return whether any leaf of `desired` is not so in `observed`.

    Objects are compared by the names that `desired` has, None meaning absent. Lists must match in length and order; lists of
    conditions (objects that all have `type` and `status`) are compared by `type`, without regard to their transition times.

    Args:
        owned_conditions: types that we own; one that is observed and no longer desired is a difference.
    """
    if isinstance(desired, dict):
        return _object_differs(desired, observed, owned_conditions)
    if isinstance(desired, list):
        return _list_differs(desired, observed, owned_conditions)
    # To Python True equals 1; to JSON it does not.
    return desired != observed or isinstance(desired, bool) != isinstance(observed, bool)


def fingerprint(document: Document) -> str:
    """Return a short digest of a document, equal for equal content in any order of names."""
    content = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(content).hexdigest()[:FINGERPRINT_CHARACTERS]


def with_fingerprint(document: JsonObject) -> JsonObject:
    """Return a copy that carries its own fingerprint as an annotation, so that dropped fields are seen as well."""
    metadata = document.get("metadata")
    metadata = dict(metadata) if isinstance(metadata, dict) else {}
    annotations = metadata.get("annotations")
    annotations = dict(annotations) if isinstance(annotations, dict) else {}
    annotations[FINGERPRINT_ANNOTATION] = fingerprint(document)
    return {**document, "metadata": {**metadata, "annotations": annotations}}


def is_applied(desired: JsonObject, observed: JsonObject) -> bool:
    """Return whether the object was last applied from this very document; both must come from `with_fingerprint`.

    Values that the server rewrites (quantities such as `1000m`) do not matter here, nor do changes by others.
    """
    path = ("metadata", "annotations", FINGERPRINT_ANNOTATION)
    return text_at(desired, *path) != "" and text_at(desired, *path) == text_at(observed, *path)


def _object_differs(desired: JsonObject, observed: JsonValue, owned: Collection[str]) -> bool:
    if not isinstance(observed, dict):
        return observed is not None or any(differs(value, None) for value in desired.values())
    return any(differs(value, observed.get(name), owned_conditions=owned) for name, value in desired.items())


def _list_differs(desired: list[JsonValue], observed: JsonValue, owned: Collection[str]) -> bool:
    if not isinstance(observed, list):
        return bool(desired) or observed is not None
    wanted, there = _by_type(desired), _by_type(observed)
    if wanted is not None and there is not None:
        return _conditions_differ(wanted, there, owned)
    return len(desired) != len(observed) or any(differs(want, have, owned_conditions=owned) for want, have in zip(desired, observed, strict=True))


def _conditions_differ(wanted: dict[str, JsonObject], there: dict[str, JsonObject], owned: Collection[str]) -> bool:
    dropped = any(type_ in owned and type_ not in wanted for type_ in there)
    return dropped or any(differs(condition, there.get(type_)) for type_, condition in wanted.items())


def _by_type(items: list[JsonValue]) -> dict[str, JsonObject] | None:
    """Return conditions by type, without their transition times; None when the items are no conditions."""
    conditions: dict[str, JsonObject] = {}
    for item in items:
        if not isinstance(item, dict) or "status" not in item or not isinstance(type_ := item.get("type"), str):
            return None
        conditions[type_] = {name: value for name, value in item.items() if name != "lastTransitionTime"}
    return conditions
