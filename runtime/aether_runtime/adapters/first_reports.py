"""Tells the operator how new actors are, a moment before it writes where they are."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from aether_api import logs
from aether_api.control import FirstReport, FirstReports, encode
from aether_api.errors import AetherError
from aether_api.identity import PodUid
from aether_api.subjects import report_subject
from aether_nats.connection import NatsConnection

logger = logging.getLogger(__name__)

REPORTS_MAX: Final = 100
"""Reports of one message: some 60 KB, well below what a server takes."""

GATHER_S: Final = 0.005
"""Seconds for which reports are gathered: actors that were applied together become ready together."""


class ReportingPod:
    """Sends first reports of one pod, many at a time; what cannot be sent is dropped, since the pod writes it later itself."""

    def __init__(self, connection: NatsConnection, namespace: str, pod_uid: PodUid) -> None:
        self._connection = connection
        self._subject = report_subject(namespace, pod_uid)
        self._pod_uid = pod_uid
        self._waiting: list[FirstReport] = []

    def tell(self, report: FirstReport) -> None:
        """Send a report soon."""
        if not self._waiting:
            asyncio.get_running_loop().call_later(GATHER_S, self._send)
        self._waiting.append(report)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            for start in range(0, len(waiting), REPORTS_MAX):
                self._connection.publish(self._subject, encode(FirstReports(self._pod_uid, tuple(waiting[start : start + REPORTS_MAX]))))
        except AetherError as exc:
            logger.debug("first reports could not be sent", extra={logs.COUNT: len(waiting), logs.REASON: str(exc)})
