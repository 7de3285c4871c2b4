"""Asks all runtime pods of a namespace at once how they are."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from aether_api import logs
from aether_api.control import PodStatus, decode_pod_status
from aether_api.errors import AetherError, InvalidEnvelope, RequestTimeout
from aether_nats.connection import NatsConnection
from aether_nats.message import Message
from aether_nats.requests import Exchange

logger = logging.getLogger(__name__)

WAIT_S: Final = 2.0
"""Seconds for the answers of pods that others know to be alive: a busy event loop answers late, a pod that was just killed never."""


async def ask_pods(connection: NatsConnection, subject: str, *, wait_s: float = WAIT_S) -> list[PodStatus]:
    """Return the answers of all pods, by name: of as many as any of them knows to be alive, or of those that answer in time.

    Raises:
        NoResponders: no pod serves the namespace.
        Disconnected: the link is down.
    """
    future: asyncio.Future[dict[str, PodStatus]] = asyncio.get_running_loop().create_future()
    connection.begin(_Survey(subject, future), b"", b"", wait_s)
    return sorted((await future).values(), key=lambda answer: (answer.pod_name, answer.pod_uid))


class _Survey(Exchange):
    """One question to all pods."""

    __slots__ = ("answers", "future")

    def __init__(self, subject: str, future: asyncio.Future[dict[str, PodStatus]]) -> None:
        super().__init__(subject)
        self.future = future
        self.answers: dict[str, PodStatus] = {}

    def take(self, message: Message) -> bool:
        try:
            answer = decode_pod_status(message.payload)
        except InvalidEnvelope as exc:
            logger.warning("the answer of a pod cannot be read", extra={logs.REASON: str(exc)})
            return False
        self.answers[answer.pod_uid] = answer
        complete = len(self.answers) >= max(found.live_pods for found in self.answers.values())
        if complete and not self.future.done():
            self.future.set_result(self.answers)
        return complete

    def fail(self, error: AetherError) -> None:
        if self.future.done():
            return
        if isinstance(error, RequestTimeout) and self.answers:
            self.future.set_result(self.answers)
        else:
            self.future.set_exception(error)
