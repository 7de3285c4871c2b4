"""The inboxes of a namespace, as a runtime keeps them: their stream is made anew where somebody deleted it.

Without that nothing durable could be sent, and no reminder set, until a runtime starts. What the stream held is lost all the same: the
reminders in force have no schedules any more, which only their actors can set again. So somebody must hear of it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from aether_api import logs
from aether_api.errors import StreamUnavailable
from aether_nats.inbox import Inbox
from aether_nats.jetstream import JetStream
from aether_nats.jetstream_wire import StreamInfo
from aether_nats.streams import remake_inbox

logger = logging.getLogger(__name__)

MISSED_S: Final = 30.0
"""Seconds without the stream after which it is made anew: somebody who restores it from a backup deletes it first."""


class KeptInbox(Inbox):
    """Durable commands of one namespace, for a runtime."""

    def __init__(self, js: JetStream, namespace: str) -> None:
        super().__init__(js, namespace)
        self._connection = js.connection
        self._missed_since_s: float | None = None

    async def read_info(self, subjects_filter: str = "") -> StreamInfo:
        """Return what the server knows of the stream; one that is gone for a while is made anew."""
        try:
            info = await super().read_info(subjects_filter)
        except StreamUnavailable:
            if not await self._is_made_anew():
                raise
            info = await super().read_info(subjects_filter)
        self._missed_since_s = None
        return info

    async def _is_made_anew(self) -> bool:
        now_s = asyncio.get_running_loop().time()
        if self._missed_since_s is None:
            self._missed_since_s = now_s
        elif now_s >= self._missed_since_s + MISSED_S:
            self._missed_since_s = now_s
            if await remake_inbox(self._connection, self._namespace):
                message = "the stream of durable commands and reminders was gone and is made anew; what it held is lost, and reminders that are in force must be set again"
                logger.error(message, extra={logs.NAMESPACE: self._namespace})
                return True
        return False
