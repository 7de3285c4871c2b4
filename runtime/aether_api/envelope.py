"""Events and commits: what is stored, and how it looks on the wire.

One JetStream message is one commit: the events of one command, or of all commands that waited for a hot actor. The payload
is a batch of CloudEvents with only the attributes that differ from event to event; the headers carry what the machinery
needs, so that a reader decides without decoding events. Versions count an actor's events from 1 without gaps; sequences
are JetStream's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from aether_api import headers
from aether_api.commit_index import NO_COMMITS, CommitIndex, decode_index
from aether_api.errors import InvalidEnvelope
from aether_api.identity import ActorId, Epoch

CONTENT_TYPE_BATCH: Final = "application/cloudevents-batch+json"


class Event(
    msgspec.Struct,
    frozen=True,
    omit_defaults=True,
    rename={"command_id": "commandid", "correlation_id": "correlationid", "causation_id": "causationid", "schema_version": "schemaversion"},
):
    """One fact of one actor, as a CloudEvent.

    Attributes:
        id: the version, or `<incarnation>.<version>` after a purge.
        source: `/aether/<namespace>/<model>/<actor>`.
        type: name of the event in its model, such as `Deposited`.
        time: RFC 3339, UTC, microseconds; never runs back within an actor.
        data: the event's fields.
        command_id: id of the command that caused it.
        correlation_id: empty when it equals `command_id`; `causation_id` likewise.
        schema_version: version of the event's schema in its model.
    """

    specversion: str
    id: str
    source: str
    type: str
    time: str
    data: dict[str, Any]
    command_id: str = ""
    correlation_id: str = ""
    causation_id: str = ""
    schema_version: int = 1
    metadata: dict[str, str] = {}

    @property
    def version(self) -> int:
        """The actor's version after this event."""
        return int(self.id.rpartition(".")[2])


@dataclass(frozen=True, slots=True)
class Commit:
    """Everything that one append stores; re-sending an equal commit is safe.

    Attributes:
        id: unique id, by which a writer finds its own commit after an unknown outcome.
        expected_sequence: sequence of the actor's last commit, 0 for none: the fence.
        first_version: version of the first event, `last_version` of the last one.
        index: names the earlier commits; `index.n` is this commit's ordinal.
        pod: `<podUID>/<bootId>` of the writer.
        model: `<name>@<content hash>` that decided.
        payload: the encoded batch, see `join_events`.
        incarnation: how many tombstones came before, this one included.
        tombstone: ends the incarnation before; carries no events.
    """

    id: str
    actor: ActorId
    expected_sequence: int
    first_version: int
    last_version: int
    index: CommitIndex
    epoch: Epoch
    pod: str
    model: str
    payload: bytes
    incarnation: int = 0
    tombstone: bool = False


@dataclass(frozen=True, slots=True)
class StoredCommit:
    """A commit as it was read: `sequence` is where it stands in the stream.

    Attributes:
        index_text: the raw header, decoded only by readers that need it.
        payload: the raw batch; decode it with `events()`.
    """

    id: str
    sequence: int
    n: int
    index_text: str
    first_version: int
    last_version: int
    epoch: Epoch
    pod: str
    model: str
    incarnation: int
    tombstone: bool
    payload: bytes

    def events(self) -> list[Event]:
        """Decode the events.

        Raises:
            InvalidEnvelope: the payload is no batch of events, or their versions do not fit the header.
        """
        if self.tombstone:
            return []
        events = decode_events(self.payload)
        if [event.id for event in events] != [build_event_id(self.incarnation, version) for version in range(self.first_version, self.last_version + 1)]:
            raise InvalidEnvelope(f"sequence {self.sequence}: the events do not carry the versions {self.first_version} to {self.last_version}")
        return events

    def index(self) -> CommitIndex:
        """Decode the index of the commits before this one."""
        return decode_index(self.n, self.index_text)

    def next_index(self) -> CommitIndex:
        """Return the index that the commit after this one carries."""
        return self.index().appended(self.sequence)


_decode_batch = msgspec.json.Decoder(list[Event]).decode


def build_source(actor: ActorId) -> str:
    """Return the CloudEvents source of an actor."""
    return f"/aether/{actor.namespace}/{actor.model}/{actor.id}"


def build_event_id(incarnation: int, version: int) -> str:
    """Return the CloudEvents id of an event: unique within its source, over purges too."""
    return f"{incarnation}.{version}" if incarnation else str(version)


def decode_events(payload: bytes) -> list[Event]:
    """Decode a batch, or raise `InvalidEnvelope`."""
    try:
        return _decode_batch(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise InvalidEnvelope(f"not a batch of events: {exc}") from exc


encode_event = msgspec.json.Encoder().encode
"""Encode one event; a commit's payload is made of these by `join_events`."""


def join_events(encoded: list[bytes]) -> bytes:
    """Return the payload of a commit: a JSON array of encoded events."""
    return b"[" + b",".join(encoded) + b"]"


def build_tombstone(*, id: str, actor: ActorId, expected_sequence: int, epoch: Epoch, pod: str, incarnation: int) -> Commit:
    """Return the commit that ends an incarnation; it is commit 0 of the next one, `incarnation`."""
    return Commit(id, actor, expected_sequence, 0, 0, NO_COMMITS, epoch, pod, "", b"[]", incarnation, tombstone=True)


def encode_commit(commit: Commit) -> tuple[bytes, bytes]:
    """Return header lines and payload of a commit; equal commits give equal bytes."""
    lines = (
        f"{headers.EXPECTED_SEQUENCE}: {commit.expected_sequence}\r\n{headers.COMMIT}: {commit.id}\r\n"
        f"{headers.VERSIONS}: {commit.first_version}-{commit.last_version}\r\n"
        f"{headers.ORDINAL}: {commit.index.n}\r\n{headers.BACK}: {commit.index.text}\r\n{headers.EPOCH}: {commit.epoch}\r\n"
        f"{headers.POD}: {commit.pod}\r\n{headers.MODEL}: {commit.model}\r\n{headers.INCARNATION}: {commit.incarnation}\r\n"
        f"{headers.CONTENT_TYPE}: {CONTENT_TYPE_BATCH}\r\n"
    )
    if commit.tombstone:
        lines += f"{headers.TOMBSTONE}: 1\r\n"
    return lines.encode(), commit.payload


def decode_commit(sequence: int, raw_headers: bytes, payload: bytes) -> StoredCommit:
    """Read the headers of a stored commit; the payload stays as it is.

    Raises:
        InvalidEnvelope: a header is missing or is not what its name says.
    """
    try:
        found = headers.decode_headers(raw_headers)
        tombstone = headers.TOMBSTONE in found
        first, last = _parse_versions(found, tombstone=tombstone)
        return StoredCommit(
            id=found[headers.COMMIT],
            sequence=sequence,
            n=_parse_count(found, headers.ORDINAL),
            index_text=found[headers.BACK],
            first_version=first,
            last_version=last,
            epoch=Epoch(_parse_count(found, headers.EPOCH)),
            pod=found.get(headers.POD, ""),
            model=found.get(headers.MODEL, ""),
            incarnation=_parse_count(found, headers.INCARNATION) if headers.INCARNATION in found else 0,
            tombstone=tombstone,
            payload=payload,
        )
    except KeyError as exc:
        raise InvalidEnvelope(f"sequence {sequence} is not a commit: header {exc.args[0]} is missing") from exc
    except InvalidEnvelope as exc:
        raise InvalidEnvelope(f"sequence {sequence} is not a commit: {exc}") from exc


def _parse_versions(found: dict[str, str], *, tombstone: bool) -> tuple[int, int]:
    first_text, dash, last_text = found[headers.VERSIONS].partition("-")
    first, last = headers.parse_count(first_text), headers.parse_count(last_text)
    if not dash or first is None or last is None or not (tombstone or 1 <= first <= last):
        raise InvalidEnvelope(f"header {headers.VERSIONS} must be FIRST-LAST, not {found[headers.VERSIONS]!r}")
    return first, last


def _parse_count(found: dict[str, str], name: str) -> int:
    count = headers.parse_count(found[name])
    if count is None:
        raise InvalidEnvelope(f"header {name} must be a whole number, not {found[name]!r}")
    return count
