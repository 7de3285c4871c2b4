"""The inboxes of a namespace, as a runtime keeps them: their stream is made anew where somebody deleted it.

Without that nothing durable could be sent, and no reminder set, until a runtime starts. What the stream held is lost all the same: the
reminders in force have no schedules any more, which only their actors can set again. So somebody must hear of it.

The pod that sweeps the inboxes also looks after the other streams. That of snapshots, where tries of durable commands lie, too, is made anew
in the same way: what it held costs replays. One of events is not, since its histories can only come from a backup; what is missing is told.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from aether_api import logs
from aether_api.errors import AetherError, StreamUnavailable
from aether_api.identity import ActorId
from aether_api.subjects import event_stream, snapshot_stream
from aether_nats.inbox import Inbox
from aether_nats.jetstream import GONE_CURE, JetStream
from aether_nats.jetstream_wire import StreamInfo
from aether_nats.streams import read_layout, remake_inbox, remake_snapshots

logger = logging.getLogger(__name__)

MISSED_S: Final = 30.0
"""Seconds without the stream after which it is made anew: somebody who restores it from a backup deletes it first."""


class Absence:
    """For how long one stream has been missed."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def end(self) -> None:
        """The stream is there."""
        self._since_s = None

    def is_long(self) -> bool:
        """Note that the stream is missed, and tell whether that has been so for `MISSED_S`, once in that time."""
        now_s = asyncio.get_running_loop().time()
        if self._since_s is None:
            self._since_s = now_s
        if now_s < self._since_s + MISSED_S:
            return False
        self._since_s = now_s
        return True


class KeptInbox(Inbox):
    """Durable commands of one namespace, for a runtime."""

    def __init__(self, js: JetStream, namespace: str) -> None:
        super().__init__(js, namespace)
        self._connection = js.connection
        self._absence = Absence()
        self._snapshots_absence = Absence()
        self._event_streams: tuple[str, ...] = (event_stream(namespace, 0),)
        self._lost: set[str] = set()

    async def read_info(self, subjects_filter: str = "") -> StreamInfo:
        """Return what the server knows of the stream; one that is gone for a while is made anew."""
        try:
            info = await super().read_info(subjects_filter)
        except StreamUnavailable:
            if not await self._is_made_anew():
                raise
            info = await super().read_info(subjects_filter)
        self._absence.end()
        return info

    async def read_backlog(self) -> dict[ActorId, int]:
        """Return how many messages wait for which actor; who sweeps looks after the other streams, too."""
        backlog = await super().read_backlog()
        try:
            await self._keep_snapshots()
            await self._look_for_events()
        except AetherError as exc:
            logger.debug("the streams could not be looked at; the next sweep does", extra={logs.NAMESPACE: self._namespace, logs.REASON: str(exc)})
        return backlog

    async def _is_made_anew(self) -> bool:
        if not self._absence.is_long() or not await remake_inbox(self._connection, self._namespace):
            return False
        message = "the stream of durable commands and reminders was gone and is made anew; what it held is lost, and reminders that are in force must be set again"
        logger.error(message, extra={logs.NAMESPACE: self._namespace})
        return True

    async def _keep_snapshots(self) -> None:
        if await self._js.stream_info(snapshot_stream(self._namespace)) is not None:
            self._snapshots_absence.end()
        elif self._snapshots_absence.is_long() and await remake_snapshots(self._connection, self._namespace):
            logger.warning("the stream of snapshots was gone and is made anew; replays take longer until there are new ones", extra={logs.NAMESPACE: self._namespace})

    async def _look_for_events(self) -> None:
        """Say once of each event stream that it is gone: its actors cannot act on their own."""
        layout = await read_layout(self._connection, self._namespace)
        if layout is not None:
            self._event_streams = layout.event_streams
        lost = {name for name in self._event_streams if await self._js.stream_info(name) is None}
        for name in sorted(lost - self._lost):
            extra = {logs.NAMESPACE: self._namespace, logs.NAME: name, logs.REASON: GONE_CURE}
            logger.error("an event stream is gone, so its actors can neither start nor store anything", extra=extra)
        self._lost = lost
