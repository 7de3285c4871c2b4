"""Listens to what pods say of actors that were just assigned to them, for whoever writes the placements."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from aether_api import logs
from aether_api.control import FirstReport, decode_first_reports
from aether_api.errors import InvalidEnvelope, InvalidName
from aether_api.identity import PodUid
from aether_api.subjects import parse_report_subject, report_wildcard
from aether_kube.store import ObjectKey
from aether_nats.connection import NatsConnection
from aether_nats.message import Message

logger = logging.getLogger(__name__)

Hear = Callable[[ObjectKey, PodUid, FirstReport], None]


class FirstReportListener:
    """Hands first reports on; callbacks come from the connection's read loop and only note."""

    def __init__(self, connection: NatsConnection, namespaces: Collection[str | None], hear: Hear) -> None:
        """Make a listener for the namespaces, None meaning all of them; `run` listens."""
        self._connection = connection
        self._namespaces = namespaces
        self._hear = hear

    async def run(self) -> None:
        """Listen until cancelled."""
        subscriptions = [self._connection.subscribe(report_wildcard(namespace), self._on_message) for namespace in self._namespaces]
        try:
            await asyncio.Event().wait()
        finally:
            for subscription in subscriptions:
                subscription.unsubscribe()

    def _on_message(self, message: Message) -> None:
        try:
            namespace, uid = parse_report_subject(message.subject)
            said = decode_first_reports(message.payload)
        except (InvalidEnvelope, InvalidName) as exc:
            logger.warning("first reports cannot be read", extra={logs.REASON: str(exc)})
            return
        if said.pod_uid == uid:
            for report in said.reports:
                self._hear(ObjectKey(namespace, report.name), uid, report)
