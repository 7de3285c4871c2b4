"""One process of the operator: it always watches, so that it can act at once, and acts while it leads.

What is watched (informers, heartbeats, our own links) outlives terms; what acts (`ControlPlane`) is made anew for each, with a client
of its own that is closed at its end. A process whose tenure ends goes on as a candidate, with its caches warm.

It campaigns only once everything was listed: whoever cannot act yet must not hold the lease.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time

from aether_api import logs
from aether_kube.client import KubeClient
from aether_kube.connection import KubeConnection
from aether_kube.leader import LeaderElector, Leadership, LeasePlace
from aether_kube.store import ObjectKey
from aether_nats.connection import NatsConnection
from aether_operator.cluster.heartbeats import Heartbeats
from aether_operator.cluster.neighbours import Neighbours, build_process_name
from aether_operator.cluster.observe import Motion, Observer
from aether_operator.cluster.wakefulness import Wakefulness
from aether_operator.handlers.control_plane import ControlPlane, Outlook
from aether_operator.handlers.probes import find_sickness
from aether_operator.planning.liveness import Windows
from aether_operator.settings import OperatorSettings

logger = logging.getLogger(__name__)


class Candidate:
    """A process that leads or waits to lead."""

    def __init__(self, settings: OperatorSettings, kube: KubeConnection, connection: NatsConnection) -> None:
        """Build what watches; `run` does the rest. Must run inside an event loop."""
        self._settings = settings
        self._kube = kube
        self._connection = connection
        self._name = build_process_name(socket.gethostname(), secrets.token_hex(8))
        # Three clients: watches last for ever, and neither they nor hung calls of the leader may hold up a renewal.
        self._watching, self._voting = KubeClient(kube), KubeClient(kube)
        self._wakefulness = Wakefulness()
        windows = Windows(settings.suspect_after_s, settings.detection_window_s)
        heartbeats = Heartbeats(windows, self._on_heartbeats)
        observer = Observer(self._watching, settings.scopes, heartbeats, windows, motion=Motion(settings.limits, settings.deletion_costs))
        observer.nats_since_s = lambda: connection.connected_since
        observer.awake_since_s = lambda: self._wakefulness.since_s
        self._outlook = Outlook(observer, heartbeats)
        self._neighbours = Neighbours(connection, settings.namespace, self._name)
        place = LeasePlace(settings.namespace, settings.lease_name)
        self._elector = LeaderElector(self._voting, place, self._name, self._neighbours, timing=settings.lease_timing)
        self._neighbours.find_term = lambda: self._elector.term
        self._campaigns = False
        self._plane: ControlPlane | None = None

    async def run(self) -> None:
        """Watch, campaign and act until cancelled; the lease is given back at the end.

        Raises:
            ExceptionGroup: a part died; the operator cannot do without it.
        """
        async with self._watching, self._voting, asyncio.TaskGroup() as tasks:
            self._outlook.heartbeats.subscribe(self._connection, self._settings.scopes)
            self._neighbours.subscribe()
            tasks.create_task(self._wakefulness.run(), name="wakefulness")
            tasks.create_task(self._outlook.observer.run(), name="informers")
            tasks.create_task(self._campaign(), name="election")

    def check_model(self, key: ObjectKey) -> None:
        """Look at an ActorModel soon, if this process leads."""
        if self._plane is not None:
            self._plane.check_model(key)

    def check_pool(self, key: ObjectKey) -> None:
        """Look at an ActorPool soon, if this process leads."""
        if self._plane is not None:
            self._plane.check_pool(key)

    def find_sickness(self) -> list[str]:
        """Return what is wrong with this process; that it does not lead is not."""
        last_plan_s = self._plane.last_plan_s if self._plane is not None else None
        last_vote_s = self._elector.last_turn_s if self._campaigns else None
        return find_sickness(now_s=time.monotonic(), last_plan_s=last_plan_s, last_vote_s=last_vote_s, informers=self._outlook.observer.health())

    async def _campaign(self) -> None:
        await self._outlook.observer.wait_synced()
        logger.info("everything is listed; this process is ready to lead", extra={logs.NAME: self._name})
        self._campaigns = True
        await self._elector.run(self._lead)

    async def _lead(self, leadership: Leadership) -> None:
        async with KubeClient(self._kube, before_write=leadership.check) as client:
            plane = self._plane = ControlPlane(self._settings, leadership, client, self._connection, self._outlook)
            try:
                async with asyncio.TaskGroup() as tasks:
                    for name, work in plane.works().items():
                        tasks.create_task(work, name=name)
            finally:
                self._plane = None
                self._outlook.observer.end()

    def _on_heartbeats(self) -> None:
        if self._plane is not None:
            self._plane.wake()
