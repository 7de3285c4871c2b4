"""Decides what a user's pod template makes of ours: objects are merged, named things by their name, the rest is replaced.

Kubernetes' strategic merge needs the schema of every field; this needs one rule, which holds for all that people change in a
pod template: containers, volumes, variables and ports are lists of objects with names. None removes a field.
"""

from __future__ import annotations

from aether_kube.documents import JsonObject, JsonValue


def merge_documents(base: JsonObject, changes: JsonObject) -> JsonObject:
    """Return `base` with `changes` laid over it; neither is touched."""
    merged = dict(base)
    for name, change in changes.items():
        if change is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge_values(merged.get(name), change)
    return merged


def _merge_values(base: JsonValue, change: JsonValue) -> JsonValue:
    if isinstance(base, dict) and isinstance(change, dict):
        return merge_documents(base, change)
    if isinstance(base, list) and isinstance(change, list):
        return _merge_lists(base, change)
    return change


def _merge_lists(base: list[JsonValue], change: list[JsonValue]) -> JsonValue:
    """Merge lists of named objects by name, in the order of `base`, new names last; any other list is replaced."""
    known, changed = _by_name(base), _by_name(change)
    if known is None or changed is None:
        return list(change)
    merged: list[JsonValue] = [merge_documents(item, changed.get(name, {})) for name, item in known.items()]
    return merged + [item for name, item in changed.items() if name not in known]


def _by_name(items: list[JsonValue]) -> dict[str, JsonObject] | None:
    named: dict[str, JsonObject] = {}
    for item in items:
        if not isinstance(item, dict) or not isinstance(name := item.get("name"), str):
            return None
        named[name] = item
    return named
