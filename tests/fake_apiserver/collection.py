"""The documents of the fake API server and their history. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

from aether_kube.documents import JsonObject, JsonValue, object_at, text_at


@dataclass(frozen=True, slots=True)
class Recorded:
    """One entry of the history that watches are served from."""

    resource_version: int
    kind: str
    path: str
    document: JsonObject


@dataclass(slots=True)
class Documents:
    """All objects by path, and what happened to them.

    Attributes:
        forgotten: the history up to this resourceVersion is compacted; watches from before it get 410.
    """

    objects: dict[str, JsonObject] = field(default_factory=dict[str, JsonObject])
    history: list[Recorded] = field(default_factory=list[Recorded])
    resource_version: int = 1
    forgotten: int = 0
    _uids: int = 0

    def put(self, path: str, document: Mapping[str, JsonValue], *, silently: bool = False) -> JsonObject:
        """Create or replace an object; silently leaves no trace for watches, as a missed event does."""
        known = self.objects.get(path)
        self.resource_version += 1
        stored = copy.deepcopy(dict(document))
        metadata = {**object_at(stored, "metadata"), "resourceVersion": str(self.resource_version)}
        metadata.setdefault("uid", text_at(known, "metadata", "uid") or self._new_uid())
        stored["metadata"] = metadata
        self.objects[path] = stored
        self._record("ADDED" if known is None else "MODIFIED", path, stored, silently=silently)
        return stored

    def remove(self, path: str, *, silently: bool = False) -> JsonObject:
        """Delete an object and return its last state."""
        self.resource_version += 1
        removed = copy.deepcopy(self.objects.pop(path))
        object_at(removed, "metadata")["resourceVersion"] = str(self.resource_version)
        self._record("DELETED", path, removed, silently=silently)
        return removed

    def under(self, collection: str) -> dict[str, JsonObject]:
        """Return the objects of a collection, of all namespaces when its path names none."""
        return {path: document for path, document in sorted(self.objects.items()) if is_under(path, collection)}

    def since(self, collection: str, resource_version: int) -> list[Recorded]:
        """Return what happened in a collection after a resourceVersion."""
        return [entry for entry in self.history if entry.resource_version > resource_version and is_under(entry.path, collection)]

    def _record(self, kind: str, path: str, document: JsonObject, *, silently: bool) -> None:
        if not silently:
            self.history.append(Recorded(self.resource_version, kind, path, copy.deepcopy(document)))

    def _new_uid(self) -> str:
        self._uids += 1
        return f"uid-{self._uids}"


def is_under(path: str, collection: str) -> bool:
    """Return whether an object's path belongs to a collection."""
    parent, _, _ = path.rpartition("/")
    root, _, plural = collection.rpartition("/")
    return parent == collection or (parent.startswith(f"{root}/namespaces/") and parent.endswith(f"/{plural}") and "/namespaces/" not in collection)


def merge(target: JsonValue, patch: JsonValue) -> JsonValue:
    """Return the JSON merge patch (RFC 7396) of two values."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged
