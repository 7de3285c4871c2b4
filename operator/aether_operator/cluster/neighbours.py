"""Lets the processes of the operator find each other over NATS: the second witness of an election, beside the Lease.

A killed process loses its connection at once, and the server then answers that nobody listens [0.14 ms]: nobody need wait until its
lease runs out. A process that is there says whether it leads, so one that gave up because its API calls hang is not waited for
either. Silence alone proves nothing: whoever is paused keeps its connection, and its lease runs out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from aether_api import logs
from aether_api.control import OperatorPulse, decode_operator_pulse, encode
from aether_api.errors import UNANSWERED, AetherError, NoResponders
from aether_api.subjects import operator_ping_subject
from aether_nats.connection import NatsConnection
from aether_nats.message import Message

logger = logging.getLogger(__name__)

SEPARATOR: Final = "_"
"""Between the pod's name and what is unique of the process: no name of a pod holds it."""

PING_TIMEOUT_S: Final = 0.5
"""Seconds for an answer: 500 times a healthy one, and short beside a renewal."""


class Neighbours:
    """Answers for this process and asks for others.

    Attributes:
        find_term: returns the term under which this process acts now, 0 while it does not.
    """

    def __init__(self, connection: NatsConnection, namespace: str, me: str) -> None:
        """Make a witness; `subscribe` lets others find us.

        Args:
            namespace: the operator's own.
            me: `build_process_name`'s.
        """
        self._connection = connection
        self._namespace = namespace
        self._me = me
        self.find_term: Callable[[], int] = lambda: 0

    @property
    def in_sight_since_s(self) -> float | None:
        """Since when others can find this process."""
        return self._connection.connected_since

    def subscribe(self) -> None:
        """Begin to answer; it ends with the connection."""
        self._connection.subscribe(self._subject(self._me), self._on_ping)

    async def is_absent(self, holder: str) -> bool:
        """Return whether nobody answers to that name, or it says itself that it does not lead."""
        try:
            answer = await self._connection.request(self._subject(holder), b"", timeout_s=PING_TIMEOUT_S)
            return decode_operator_pulse(answer.payload).term == 0
        except NoResponders:
            return True
        except UNANSWERED as exc:
            logger.debug("a ping says nothing", extra={logs.NAME: holder, logs.REASON: str(exc)})
            return False

    def _subject(self, process: str) -> str:
        return operator_ping_subject(self._namespace, process.rpartition(SEPARATOR)[2])

    def _on_ping(self, message: Message) -> None:
        try:
            if message.raw_reply:
                self._connection.respond(message.raw_reply, encode(OperatorPulse(self._me, self.find_term())))
        except AetherError as exc:
            logger.debug("a ping could not be answered", extra={logs.REASON: str(exc)})


def build_process_name(pod_name: str, unique: str) -> str:
    """Return a name that no process ever had, of which people recognise the pod."""
    return f"{pod_name}{SEPARATOR}{unique}"
