"""The form of a snapshot: a checked copy of what replay gave.

A snapshot is a cache and may always be thrown away. It names the commit that it was made at, and is valid only if the log
holds that commit at that sequence: this catches purges, restores and re-created streams. It is made of committed state
only. `fold` in its subject ties it to state schema and event application, so another model never reads it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import msgspec

from aether_api import headers
from aether_api.commit_index import CommitIndex
from aether_api.durable import NO_INBOX, InboxPosition
from aether_api.envelope import check_finite
from aether_api.errors import MALFORMED, InvalidEnvelope
from aether_api.messages import normalise_time
from aether_model.model import Model
from aether_runtime.core.history import History, Position
from aether_runtime.core.reminders import NO_REMINDERS
from aether_runtime.core.window import LEFT_OUT, CommandWindow, PackedWindow

FORMAT: Final = "3"
"""Version of the body's layout and of the window's hashes; another one is treated as no snapshot."""


class SnapshotBody(msgspec.Struct, frozen=True):
    """What is stored; the index of the commits so far comes from the commit itself."""

    state: msgspec.Raw
    version: int
    sequence: int
    n: int
    incarnation: int
    commit_id: str
    last_time: str
    window: PackedWindow
    inbox: InboxPosition = NO_INBOX
    reminders: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot as bytes, and what it is of."""

    fold: str
    version: int
    headers: bytes
    payload: bytes


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(SnapshotBody).decode


def build_snapshot(history: History) -> Snapshot:
    """Encode a history.

    Raises:
        PermanentError: the model cannot encode the state, or JSON cannot hold it.
    """
    position, state = history.position, history.model.encode_state(history.state)
    check_finite(history.state, state)
    body = SnapshotBody(
        msgspec.Raw(state),
        position.version,
        position.sequence,
        position.index.n - 1,
        position.incarnation,
        position.commit_id,
        position.last_time,
        history.window.pack(),
        history.inbox,
        dict(history.reminders),
    )
    return _seal(history.model.fold, body)


def leave_window_out(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot without its accepted commands: whoever begins with it reads them from the log."""
    return _seal(snapshot.fold, msgspec.structs.replace(_decode(snapshot.payload), window=LEFT_OUT))


def _seal(fold: str, body: SnapshotBody) -> Snapshot:
    payload = _encode(body)
    lines = {
        headers.SNAPSHOT_FORMAT: FORMAT,
        headers.VERSIONS: str(body.version),
        headers.SNAPSHOT_SEQUENCE: str(body.sequence),
        headers.COMMIT: body.commit_id,
        headers.SNAPSHOT_SHA256: hashlib.sha256(payload).hexdigest(),
    }
    return Snapshot(fold, body.version, headers.encode_headers(lines), payload)


def decode_snapshot(raw_headers: bytes, payload: bytes) -> SnapshotBody:
    """Check and decode a snapshot.

    Raises:
        InvalidEnvelope: unknown format, wrong checksum or broken body; the snapshot is to be ignored.
    """
    found = headers.decode_headers(raw_headers)
    if found.get(headers.SNAPSHOT_FORMAT) != FORMAT:
        raise InvalidEnvelope(f"a snapshot of format {found.get(headers.SNAPSHOT_FORMAT)!r} cannot be read")
    if found.get(headers.SNAPSHOT_SHA256) != hashlib.sha256(payload).hexdigest():
        raise InvalidEnvelope("the snapshot's checksum is wrong")
    try:
        return _decode(payload)
    except MALFORMED as exc:
        raise InvalidEnvelope(f"the snapshot's body is broken: {exc}") from exc


def read_last_time(raw_headers: bytes, payload: bytes) -> str:
    """Return the time of the last commit in a snapshot, empty for one that cannot be read."""
    try:
        return normalise_time(decode_snapshot(raw_headers, payload).last_time)
    except InvalidEnvelope:
        return ""


def restore_history(model: Model, body: SnapshotBody, index: CommitIndex) -> History:
    """Return the history that a valid snapshot holds; `index` is the one after the snapshot's commit.

    Raises:
        InvalidEnvelope: the state is none of this model, or the time is none; the snapshot is to be ignored.
    """
    position = Position(body.version, body.sequence, index, body.incarnation, body.commit_id, body.last_time and normalise_time(body.last_time))
    return History(model, position, model.decode_state(bytes(body.state)), CommandWindow(body.window), body.inbox, body.reminders or NO_REMINDERS)
