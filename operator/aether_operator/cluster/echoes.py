"""Remembers our own writes until the informer shows them, so that a check in between does not write the same again."""

from __future__ import annotations

from dataclasses import dataclass

from aether_kube.apply import differs
from aether_kube.documents import JsonObject
from aether_kube.store import ObjectKey


@dataclass(frozen=True, slots=True)
class _Written:
    content: JsonObject
    resource_version: int


class Echoes:
    """The last write to each object of one kind."""

    def __init__(self) -> None:
        """Start with nothing written."""
        self._written: dict[ObjectKey, _Written] = {}

    def note(self, key: ObjectKey, content: JsonObject, resource_version: int) -> None:
        """Note a write and the resourceVersion that it made."""
        self._written[key] = _Written(content, resource_version)

    def is_awaited(self, key: ObjectKey, content: JsonObject, observed_version: int) -> bool:
        """Return whether this very content was written and does not show yet."""
        written = self._written.get(key)
        if written is None:
            return False
        if observed_version >= written.resource_version:
            del self._written[key]
            return False
        return not differs(content, written.content) and not differs(written.content, content)
