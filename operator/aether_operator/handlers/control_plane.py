"""Puts the parts of the acting operator together, for one term of leadership, and names the tasks that keep it alive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Final

from aether_api.v1alpha1.meta import GROUP
from aether_kube.client import KubeClient
from aether_kube.kinds import LEASES
from aether_kube.kube_events import Involved, KubeEvent, KubeEventRecorder, Reporter
from aether_kube.leader import Leadership
from aether_kube.store import ObjectKey
from aether_nats.connection import NatsConnection
from aether_operator.cluster.assignments import Assigner
from aether_operator.cluster.deletion_costs import DeletionCosts
from aether_operator.cluster.detector import Detector
from aether_operator.cluster.execute import Executor
from aether_operator.cluster.first_reports import FirstReportListener
from aether_operator.cluster.heartbeats import Heartbeats
from aether_operator.cluster.observe import Listeners, Memory, Observer
from aether_operator.cluster.purges import JetStreamPurger, Purges
from aether_operator.cluster.reconcile import RESYNC_S, Reconciler
from aether_operator.cluster.statuses import StatusWriter
from aether_operator.cluster.survey import Survey
from aether_operator.handlers.models import ModelKeeper
from aether_operator.handlers.pools import COUNT_LATER_S, PoolKeeper
from aether_operator.manifests.pool import RuntimeDefaults
from aether_operator.settings import OperatorSettings

REPORTER: Final = f"{GROUP}/operator"

Work = Coroutine[None, None, None]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a process of the operator watches, whether it leads or not."""

    observer: Observer
    heartbeats: Heartbeats


class ControlPlane:
    """All that acts in one operator, for one term of leadership; what it watches is there before and after."""

    def __init__(self, settings: OperatorSettings, leadership: Leadership, client: KubeClient, connection: NatsConnection, outlook: Outlook) -> None:
        """Build the parts and begin the observer's term; the tasks of `works` make them run.

        Args:
            client: sends no write after the tenure.
        """
        self._wanted = asyncio.Event()
        memory, observer = Memory(), outlook.observer
        self._observer = observer
        self._recorder = KubeEventRecorder(client, Reporter(REPORTER, settings.namespace))
        self._detector = Detector(connection, outlook.heartbeats, observer, on_change=self.wake, ping_timeout_s=settings.ping_timeout_s)
        self._statuses = StatusWriter(client, memory.overlay, self._recorder, find=observer.actors.get, replan=self.wake)
        self._first_reports = FirstReportListener(connection, settings.scopes, self._statuses.hear)
        self._purges = Purges(
            client, JetStreamPurger(connection, leadership.check), memory, self.wake, is_out_of_reach=lambda pool: observer.is_out_of_reach(pool, settings.nats_url)
        )
        self._costs = DeletionCosts(client)
        assigner = Assigner(connection, leadership, memory, observer)
        self._executor = Executor(assigner, self._statuses, self._purges, memory, self.wake, costs=self._costs)
        self._survey = Survey(connection, leadership, memory, observer, self.wake)
        self._reconciler = Reconciler(observer, self._survey, self._executor, self._wanted, check=leadership.check)
        self._models = ModelKeeper(client, observer, self._recorder)
        self._pools = PoolKeeper(client, observer, connection, self._recorder, _defaults(settings))
        observer.begin(memory, Listeners(self.wake, self.check_model, self.check_pool, self._count_pool))
        self._recorder.record(_build_leader_event(settings, leadership))

    def works(self) -> Mapping[str, Work]:
        """Return the tasks to run, by name; when one ends, the operator is broken."""
        return {
            "detector": self._detector.run(),
            "survey": self._survey.run(),
            "executor": self._executor.run(),
            "reconciler": self._reconciler.run(),
            "statuses": self._statuses.queue.run(),
            "first reports": self._first_reports.run(),
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

    @property
    def last_plan_s(self) -> float | None:
        """When the last plan was made, in monotonic seconds; None before the first."""
        return self._reconciler.last_turn_s if self._reconciler.plans else None

    def wake(self) -> None:
        """Make a plan soon."""
        self._wanted.set()
        self._survey.wake()

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


def _build_leader_event(settings: OperatorSettings, leadership: Leadership) -> KubeEvent:
    record = leadership.tenure.record
    lease = Involved(LEASES, settings.namespace, settings.lease_name, record.uid)
    return KubeEvent(lease, "LeaderElection", f"{record.holder} leads", "Lead")


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
