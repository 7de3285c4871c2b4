"""Snapshots in the namespace's `SNAP` stream, which keeps two a subject."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from aether_api import logs
from aether_api.errors import InvalidEnvelope
from aether_api.identity import ActorId
from aether_api.subjects import snapshot_stream, snapshot_subject, snapshot_wildcard, tries_subject
from aether_nats.jetstream import JetStream
from aether_nats.jetstream_wire import StoredMessage
from aether_nats.streams import SNAPSHOTS_KEPT
from aether_runtime.core.snapshot_policy import choose_outdated
from aether_runtime.core.snapshots import Snapshot, SnapshotBody, decode_snapshot, read_last_time

logger = logging.getLogger(__name__)


class JetStreamSnapshotStore:
    """Reads and writes snapshots; a broken one is counted in `dropped` and ignored."""

    def __init__(self, js: JetStream) -> None:
        self._js = js
        self.dropped = 0

    async def read_kept(self, actor: ActorId, fold: str) -> AsyncIterator[SnapshotBody]:
        """Yield what is kept, newest first; a stale replica only costs replay, since the log confirms what is used."""
        stream, subject = snapshot_stream(actor.namespace), snapshot_subject(actor, fold)
        message = await self._js.direct_by_last(stream, subject)
        for left in reversed(range(SNAPSHOTS_KEPT)):
            body = None if message is None else self._decode(actor, message)
            if body is not None:
                yield body
            if message is None or not left:
                return
            message = await self._js.direct_by_last(stream, subject, before_sequence=message.sequence)

    async def read_latest(self, actor: ActorId, fold: str) -> SnapshotBody | None:
        """Read the newest one that is not broken."""
        return await anext(self.read_kept(actor, fold), None)

    def _decode(self, actor: ActorId, message: StoredMessage) -> SnapshotBody | None:
        try:
            return decode_snapshot(message.raw_headers, message.payload)
        except InvalidEnvelope as exc:
            self.dropped += 1
            logger.warning("a snapshot is ignored", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
            return None

    async def write(self, actor: ActorId, snapshot: Snapshot) -> None:
        """Store a snapshot; the server drops the third newest."""
        await self._js.publish(snapshot_subject(actor, snapshot.fold), snapshot.payload, snapshot.headers)

    async def drop_outdated(self, actor: ActorId, fold: str, last_time: str) -> None:
        """Remove snapshots of former models; beside less than two folds of them the server is asked for names only.

        Each is removed up to what was read of it, so one that a pod with the former model writes meanwhile stays.
        """
        stream = snapshot_stream(actor.namespace)
        info = await self._js.stream_info(stream, subjects_filter=snapshot_wildcard(actor))
        others = set(info.state.subjects if info else ()) - {snapshot_subject(actor, fold), tries_subject(actor)}
        if len(others) < 2:
            return
        newest = [message for subject in sorted(others) if (message := await self._js.message_by_last(stream, subject)) is not None]
        times = {message.subject: read_last_time(message.raw_headers, message.payload) for message in newest}
        sequences = {message.subject: message.sequence for message in newest}
        for subject in choose_outdated(times, last_time):
            await self._js.purge(stream, subject, before_sequence=sequences[subject] + 1)
