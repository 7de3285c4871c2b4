"""Snapshots in the namespace's `SNAP` stream, which keeps two a subject."""

from __future__ import annotations

import logging

from aether_api import logs
from aether_api.errors import InvalidEnvelope
from aether_api.identity import ActorId
from aether_api.subjects import snapshot_stream, snapshot_subject
from aether_nats.jetstream import JetStream
from aether_runtime.core.snapshots import Snapshot, SnapshotBody, decode_snapshot

logger = logging.getLogger(__name__)


class JetStreamSnapshotStore:
    """Reads and writes snapshots; a broken one is counted in `dropped` and ignored."""

    def __init__(self, js: JetStream) -> None:
        self._js = js
        self.dropped = 0

    async def read_latest(self, actor: ActorId, fold: str) -> SnapshotBody | None:
        """Read the newest snapshot; a stale replica only costs replay, since the log confirms what is used."""
        message = await self._js.direct_by_last(snapshot_stream(actor.namespace), snapshot_subject(actor, fold))
        if message is None:
            return None
        try:
            return decode_snapshot(message.raw_headers, message.payload)
        except InvalidEnvelope as exc:
            self.dropped += 1
            logger.warning("a snapshot is ignored", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
            return None

    async def write(self, actor: ActorId, snapshot: Snapshot) -> None:
        """Store a snapshot; the server drops the third newest."""
        await self._js.publish(snapshot_subject(actor, snapshot.fold), snapshot.payload, snapshot.headers)
