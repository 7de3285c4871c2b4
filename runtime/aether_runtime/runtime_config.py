"""What one runtime is told, and the outside world that it is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from aether_api.identity import PodIdentity, PoolName
from aether_nats.connection import NatsConnection
from aether_runtime.followers import COMPARE_EVERY_S
from aether_runtime.inbox import SWEEP_S
from aether_runtime.passivation import SleepConfig
from aether_runtime.ports import ActorSource, CommitLog, Heads, InboxStore, ReminderStore, ReportSink, SnapshotStore

STOP_TIMEOUT_S: Final = 100.0
"""Seconds for leaving: what a pool's pods have as grace, less what the process needs besides."""


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """What one process needs to know.

    Attributes:
        pod: UID of the pod and boot id of this process.
        recovery_permits: replays under way at once.
        status_budget_per_s: versions written into statuses of the whole namespace, shared by its live pods.
        sleep: how many actors stay awake, and for how long.
        inbox_sweep_s: seconds between looks at what waits in the namespace's inboxes.
        compare_every_s: seconds between comparisons of all VMs with the log.
        stop_timeout_s: seconds for leaving in order; then what is left is cut short.
    """

    namespace: str
    pool: PoolName
    pod: PodIdentity
    pod_name: str
    recovery_permits: int = 50
    status_budget_per_s: float = 50.0
    sleep: SleepConfig = field(default_factory=SleepConfig)
    inbox_sweep_s: float = SWEEP_S
    compare_every_s: float = COMPARE_EVERY_S
    stop_timeout_s: float = STOP_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class RuntimePorts:
    """The outside world of one runtime.

    Attributes:
        inbox: None where there are no durable commands, and `reminders` where no command can set one.
        heads: None where VMs need not be compared with the log, since nobody else writes.
    """

    connection: NatsConnection
    events: CommitLog
    snapshots: SnapshotStore
    source: ActorSource
    sink: ReportSink
    inbox: InboxStore | None = None
    reminders: ReminderStore | None = None
    heads: Heads | None = None
