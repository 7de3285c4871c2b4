"""Decides what a list or a watch event changes in the local copy of a collection. Pure: no clock, no network.

Invariants:

- The store equals what the API server held at `position` (a resourceVersion), for every object that parses.
- `position` only rises, but for a list that the informer accepts after a restore of etcd. An event that is not newer is a
  repeat and changes nothing, so neither a repeated event nor an old one brings a deleted object back.
- A list is the whole truth: what it does not hold is deleted, with a Change for each, however many events were missed.
- A name whose UID changed is another object: consumers see a deletion and an addition, never a modification.

An object that does not parse never stops the others. Its last good value stays, since acting on a stale value is mended by
the next good one while acting on a false deletion would evict an actor; if it never had one, it is left out. Its deletion
needs no parsing and always works. `on_unparsable` hears of each resourceVersion once, however often it is listed.

resourceVersions are compared as integers: the API promises that for its own kinds and for custom resources (KEP-5504).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from aether_api.errors import AetherError, InternalError
from aether_kube.documents import JsonObject, object_at, text_at
from aether_kube.watch import MalformedAnswer, WatchEvent

T = TypeVar("T")

ParseProblem: Final = (ValueError, TypeError, LookupError, AttributeError, AetherError)
"""What a parser may raise for a bad object (pydantic's and orjson's errors are ValueErrors); anything else is a bug of it."""

ChangeKind = Literal["added", "modified", "deleted"]


class ObjectKey(NamedTuple):
    """What an object is found by; the namespace is empty for kinds without one."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """One change of the store, for its consumer.

    Attributes:
        old: None exactly when the kind is `added`.
        new: None exactly when the kind is `deleted`.
    """

    kind: ChangeKind
    key: ObjectKey
    old: T | None
    new: T | None


@dataclass(frozen=True, slots=True)
class Identity:
    """What names one state of one object."""

    key: ObjectKey
    uid: str
    resource_version: int


@dataclass(frozen=True, slots=True)
class Parsed(Generic[T]):
    """An object that was read."""

    identity: Identity
    value: T


@dataclass(frozen=True, slots=True)
class Unparsable:
    """An object that exists but could not be read, and why."""

    identity: Identity
    problem: str


Observed: TypeAlias = Parsed[T] | Unparsable


class ObjectStore(Generic[T]):
    """The local copy of one collection."""

    def __init__(self, parse: Callable[[JsonObject], T], on_unparsable: Callable[[Unparsable], None] = lambda _: None) -> None:
        """Start empty, before any position.

        Args:
            parse: makes a value of a document; may keep the document, which nobody else holds.
            on_unparsable: told once of each state that `parse` refused.
        """
        self._parse = parse
        self._on_unparsable = on_unparsable
        self._values: dict[ObjectKey, T] = {}
        self._identities: dict[ObjectKey, Identity] = {}
        self._refused: dict[ObjectKey, Identity] = {}
        self._position = 0

    @property
    def objects(self) -> Mapping[ObjectKey, T]:
        """Return a live, read-only view of all objects."""
        return MappingProxyType(self._values)

    @property
    def position(self) -> int:
        """Return the resourceVersion up to which all is known; 0 before the first list."""
        return self._position

    @property
    def unparsable_count(self) -> int:
        """Return how many objects exist whose newest state could not be read."""
        return len(self._refused)

    def read(self, document: JsonObject) -> Observed[T]:
        """Parse an object; one that the store already holds in this state is not parsed again.

        Raises:
            MalformedAnswer: the document has no name or no resourceVersion, so it is no object.
        """
        identity = identity_of(document)
        if self._identities.get(identity.key) == identity:
            return Parsed(identity, self._values[identity.key])
        if self._refused.get(identity.key) == identity:
            return Unparsable(identity, "as before")
        object_at(document, "metadata").pop("managedFields", None)
        try:
            return Parsed(identity, self._parse(document))
        except ParseProblem as exc:
            refused = Unparsable(identity, f"{type(exc).__name__}: {exc}")
            self._on_unparsable(refused)
            return refused

    def apply_event(self, event: WatchEvent) -> list[Change[T]]:
        """Take one watch event (never an ERROR) and return what it changed.

        Raises:
            MalformedAnswer: it names no object or no resourceVersion; the store is as before.
        """
        if event.kind == "BOOKMARK":
            self._position = max(self._position, resource_version_of(event.document))
            return []
        if event.kind == "ERROR":
            raise InternalError("an ERROR of a watch reached the store; whoever reads the watch handles it")
        identity = identity_of(event.document)
        if identity.resource_version <= self._position:
            return []
        changes = self._remove(identity.key) if event.kind == "DELETED" else self._put(self.read(event.document))
        self._position = identity.resource_version
        return changes

    def replace(self, listed: Iterable[Observed[T]], position: int) -> list[Change[T]]:
        """Take a complete list as the whole truth and return the difference, deletions first."""
        observed = {item.identity.key: item for item in listed}
        changes = [change for key in [*self._identities, *self._refused] if key not in observed for change in self._remove(key)]
        for item in observed.values():
            changes += self._put(item)
        self._position = position
        return changes

    def _put(self, observed: Observed[T]) -> list[Change[T]]:
        identity = observed.identity
        known = self._identities.get(identity.key)
        changes = self._remove(identity.key) if known is not None and known.uid != identity.uid else []
        if isinstance(observed, Unparsable):
            self._refused[identity.key] = identity
            return changes
        self._refused.pop(identity.key, None)
        if known == identity:
            return changes
        old = self._values.get(identity.key)
        kind: ChangeKind = "modified" if identity.key in self._identities else "added"
        self._values[identity.key] = observed.value
        self._identities[identity.key] = identity
        return [*changes, Change(kind, identity.key, old, observed.value)]

    def _remove(self, key: ObjectKey) -> list[Change[T]]:
        self._refused.pop(key, None)
        if self._identities.pop(key, None) is None:
            return []
        return [Change("deleted", key, self._values.pop(key), None)]


def identity_of(document: JsonObject) -> Identity:
    """Return what names the state of an object.

    Raises:
        MalformedAnswer: it has no name or no resourceVersion.
    """
    metadata = object_at(document, "metadata")
    name = text_at(metadata, "name")
    if not name:
        raise MalformedAnswer("an object without a name")
    return Identity(ObjectKey(text_at(metadata, "namespace"), name), text_at(metadata, "uid"), resource_version_of(document))


def resource_version_of(document: JsonObject) -> int:
    """Return the resourceVersion of an object or a list.

    Raises:
        MalformedAnswer: it has none, or one that is no number.
    """
    text = text_at(document, "metadata", "resourceVersion")
    if not (text.isascii() and text.isdigit()):
        raise MalformedAnswer(f"a resourceVersion that is no number: {text!r}")
    return int(text)
