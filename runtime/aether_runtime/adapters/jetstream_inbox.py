"""The inboxes of a namespace, as a runtime keeps them: their stream is made anew where somebody deleted it.

Without that nothing durable could be sent, and no reminder set, until a runtime starts. What the stream held is lost all the same: the
reminders in force have no schedules any more, which only their actors can set again. So somebody must hear of it.
"""

from __future__ import annotations

import logging

from aether_api import logs
from aether_api.errors import StreamUnavailable
from aether_api.identity import ActorId
from aether_nats.inbox import Inbox
from aether_nats.jetstream import JetStream
from aether_nats.streams import remake_inbox

logger = logging.getLogger(__name__)


class KeptInbox(Inbox):
    """Durable commands of one namespace, for a runtime."""

    def __init__(self, js: JetStream, namespace: str) -> None:
        super().__init__(js, namespace)
        self._connection = js.connection
        self._missed = False

    async def read_backlog(self) -> dict[ActorId, int]:
        """Return how many messages wait for which actor; the second look in a row that finds no stream has it made anew."""
        try:
            backlog = await super().read_backlog()
        except StreamUnavailable:
            if self._missed and await remake_inbox(self._connection, self._namespace):
                message = "the stream of durable commands and reminders was gone and is made anew; what it held is lost, and reminders that are in force must be set again"
                logger.error(message, extra={logs.NAMESPACE: self._namespace})
            self._missed = True
            raise
        self._missed = False
        return backlog
