"""Puts the parts of the operator together, and names the tasks that keep it alive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Final

from aether_api.v1alpha1.meta import GROUP
from aether_kube.client import KubeClient
from aether_kube.kube_events import KubeEventRecorder, Reporter
from aether_kube.store import ObjectKey
from aether_nats.connection import NatsConnection
from aether_operator.cluster.assignments import Assigner
from aether_operator.cluster.deletion_costs import DeletionCosts
from aether_operator.cluster.detector import Detector
from aether_operator.cluster.execute import Executor
from aether_operator.cluster.heartbeats import Heartbeats
from aether_operator.cluster.observe import Listeners, Memory, Motion, Observer
from aether_operator.cluster.purges import JetStreamPurger, Purges
from aether_operator.cluster.reconcile import RESYNC_S, Reconciler
from aether_operator.cluster.statuses import StatusWriter
from aether_operator.handlers.models import ModelKeeper
from aether_operator.handlers.pools import COUNT_LATER_S, PoolKeeper
from aether_operator.handlers.probes import find_sickness
from aether_operator.manifests.pool import RuntimeDefaults
from aether_operator.planning.liveness import Windows
from aether_operator.settings import OperatorSettings

REPORTER: Final = f"{GROUP}/operator"

Work = Coroutine[None, None, None]


class ControlPlane:
    """All parts of one operator, for one term of leadership."""

    def __init__(self, settings: OperatorSettings, client: KubeClient, connection: NatsConnection) -> None:
        """Build the parts; the tasks of `works` make them run."""
        memory, wanted = Memory(), asyncio.Event()
        self._recorder = KubeEventRecorder(client, Reporter(REPORTER, settings.namespace))
        heartbeats = Heartbeats(wanted.set)
        windows, motion = Windows(settings.suspect_after_s, settings.detection_window_s), Motion(settings.limits, settings.deletion_costs)
        self._observer = Observer(client, settings.scopes, heartbeats, memory, windows, motion=motion)
        self._detector = Detector(connection, heartbeats, self._observer, on_change=wanted.set, ping_timeout_s=settings.ping_timeout_s)
        self._statuses = StatusWriter(client, memory.overlay, self._recorder, find=self._observer.actors.get, replan=wanted.set)
        self._purges = Purges(client, JetStreamPurger(connection), memory, wanted.set)
        self._costs = DeletionCosts(client)
        self._executor = Executor(Assigner(connection, _now_ms(), memory), self._statuses, self._purges, memory, wanted.set, costs=self._costs)
        self._reconciler = Reconciler(self._observer, self._executor, wanted)
        self._models = ModelKeeper(client, self._observer, self._recorder)
        self._pools = PoolKeeper(client, self._observer, connection, self._recorder, _defaults(settings))
        self._observer.listeners = Listeners(wanted.set, self.check_model, self.check_pool, self._count_pool)
        self._observer.nats_since_s = lambda: connection.connected_since
        self._observer.awake_since_s = lambda: self._detector.awake_since_s
        heartbeats.subscribe(connection, settings.scopes)

    def works(self) -> Mapping[str, Work]:
        """Return the tasks to run, by name; when one ends, the operator is broken."""
        return {
            "informers": self._observer.run(),
            "detector": self._detector.run(),
            "executor": self._executor.run(),
            "reconciler": self._reconciler.run(),
            "statuses": self._statuses.queue.run(),
            "finalizers": self._purges.queue.run(),
            "deletion costs": self._costs.queue.run(),
            "actormodels": self._after_sync(self._models.queue.run),
            "actorpools": self._after_sync(self._pools.queue.run),
            "kube events": self._recorder.run(),
            "resync": self._after_sync(self._resync),
        }

    def check_model(self, key: ObjectKey) -> None:
        """Look at an ActorModel soon."""
        self._models.queue.add(key)

    def check_pool(self, key: ObjectKey) -> None:
        """Look at an ActorPool soon."""
        self._pools.queue.add(key)

    def find_sickness(self) -> list[str]:
        """Return what is wrong with this process."""
        last_turn_s = self._reconciler.last_turn_s if self._reconciler.plans else None
        return find_sickness(now_s=time.monotonic(), last_turn_s=last_turn_s, informers=self._observer.health())

    def _count_pool(self, key: ObjectKey) -> None:
        self._pools.queue.add_later(key, COUNT_LATER_S)

    async def _after_sync(self, run: Callable[[], Work]) -> None:
        """Begin only when everything was listed, since what is not there yet would look as if it were missing."""
        await self._observer.wait_synced()
        await run()

    async def _resync(self) -> None:
        """Look at every model and pool now and then, whatever was heard."""
        while True:
            for model in self._observer.models:
                self.check_model(model.key)
            for pool in self._observer.pools:
                self.check_pool(pool.key)
            await asyncio.sleep(RESYNC_S)


def _now_ms() -> int:
    return int(time.time() * 1000)


def _defaults(settings: OperatorSettings) -> RuntimeDefaults:
    return RuntimeDefaults(
        image=settings.runtime_image,
        image_pull_policy=settings.runtime_image_pull_policy,
        image_pull_secrets=settings.runtime_image_pull_secrets,
        cluster_role=settings.runtime_cluster_role,
        nats_url=settings.nats_url,
        event_partitions=settings.event_partitions,
        event_replicas=settings.event_replicas,
        sync_always=settings.sync_always,
        log_level=settings.log_level,
    )
