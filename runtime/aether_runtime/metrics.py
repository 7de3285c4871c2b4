"""The metrics of one process: their names, and where each is read from when somebody scrapes.

`METRICS` is the whole list; `docs/metrics.md` says what to do with each, and a test holds the two equal. Names are public:
changing one is a breaking change. No label holds the name of an actor, so the number of series depends on models alone.
A scrape looks at every VM once: some 20 ms for 100,000 of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from aether_api.v1alpha1 import ActorPhase
from aether_nats.connection import NatsConnection
from aether_nats.journal import Journal
from aether_runtime.ports import CommitLog
from aether_runtime.registry import VMRegistry
from aether_runtime.replays import Replays
from aether_runtime.reporter import Reporter
from aether_runtime.snapshotter import Snapshotter
from aether_runtime.tally import ModelTally, Tally, Timing

Samples = Iterable[tuple[tuple[str, ...], float]]
"""Values by the values of the labels."""


@dataclass(frozen=True, slots=True)
class MetricSources:
    """The parts of a runtime that count.

    Attributes:
        models: models in use, by whether they compiled: `accepted` and `refused`.
        replaying: replays under way, and those that wait, for a permit or for a log that cannot be read: `running` and `waiting`; `replays` says how far they are.
        subscriptions: actors whose commands come directly.
        searching: calls that look for their actor now.
        sleeps: actors put to sleep, by reason; `asleep` is how many with a resource sleep here now.
        behind: how often a VM was found behind its log.
        live_pods: pods whose heartbeats arrive.
        durable: messages of inboxes that are done with, by result.
        backlog: `messages` that wait in inboxes, and of how many `actors`; 0 in pods that do not sweep.
    """

    registry: VMRegistry
    tally: Tally
    reporter: Reporter
    snapshotter: Snapshotter
    connection: NatsConnection
    events: CommitLog
    models: Callable[[], Mapping[str, int]]
    replaying: Callable[[], Mapping[str, int]]
    replays: Replays
    subscriptions: Callable[[], int]
    searching: Callable[[], int]
    sleeps: Callable[[], Mapping[str, int]]
    asleep: Callable[[], int]
    behind: Callable[[], int]
    live_pods: Callable[[], int]
    durable: Callable[[], Mapping[str, int]]
    backlog: Callable[[], Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric: a counter (its name ends in `_total`) or a gauge."""

    name: str
    meaning: str
    labels: tuple[str, ...]
    read: Callable[[MetricSources], Samples]

    @property
    def kind(self) -> Literal["counter", "gauge"]:
        """What Prometheus calls it."""
        return "counter" if self.name.endswith("_total") else "gauge"


@dataclass(frozen=True, slots=True)
class TimingRow:
    """One histogram by model."""

    name: str
    meaning: str
    read: Callable[[ModelTally], Timing]

    labels = ("model",)
    kind = "histogram"


def _by_model(read: Callable[[ModelTally], float]) -> Callable[[MetricSources], Samples]:
    return lambda sources: [((name,), read(tally)) for name, tally in sources.tally.models.items()]


def _one(read: Callable[[MetricSources], float]) -> Callable[[MetricSources], Samples]:
    return lambda sources: [((), read(sources))]


def _by_key(read: Callable[[MetricSources], Mapping[str, float]]) -> Callable[[MetricSources], Samples]:
    return lambda sources: [((key,), value) for key, value in read(sources).items()]


def _read_commands(sources: MetricSources) -> Samples:
    for name, tally in sources.tally.models.items():
        outcomes = {"accepted": tally.accepted, "rejected": tally.rejected, "noop": tally.noop, "error": tally.error}
        yield from (((name, outcome), count) for outcome, count in outcomes.items())


def _read_vms(sources: MetricSources) -> Samples:
    counts = dict.fromkeys(ActorPhase, 0)
    for vm in sources.registry.vms.values():
        counts[vm.phase] += 1
    shown = (ActorPhase.REPLAYING, ActorPhase.READY, ActorPhase.QUARANTINED, ActorPhase.STOPPING)
    return [((phase.value,), counts[phase]) for phase in shown]


def _read_snapshots(sources: MetricSources) -> Mapping[str, float]:
    taker = sources.snapshotter
    return {"written": taker.written, "too_large": taker.too_large, "failed": taker.failed, "dropped": taker.store.dropped}


def _read_status_writes(sources: MetricSources) -> Mapping[str, float]:
    reporter = sources.reporter
    return {"written": reporter.written, "retried": reporter.retried, "refused": reporter.refused}


def _read_journal(read: Callable[[Journal], int]) -> Callable[[MetricSources], Samples]:
    return _one(lambda sources: read(sources.events) if isinstance(sources.events, Journal) else 0)


METRICS: Final[tuple[MetricRow | TimingRow, ...]] = (
    MetricRow("aether_commands_total", "Commands decided, by outcome.", ("model", "outcome"), _read_commands),
    TimingRow("aether_command_seconds", "Seconds from the arrival of the oldest command of a group to its answer, for each command of it.", lambda tally: tally.command_times),
    MetricRow(
        "aether_commands_busy_total",
        "Commands refused because the actor's mailbox, or the memory for what waits in the process, was full.",
        ("model",),
        _by_model(lambda tally: tally.busy),
    ),
    MetricRow("aether_commits_total", "Commits stored.", ("model",), _by_model(lambda tally: tally.commits)),
    MetricRow("aether_events_total", "Events stored.", ("model",), _by_model(lambda tally: tally.events)),
    MetricRow("aether_append_conflicts_total", "Appends refused because another writer came first.", ("model",), _by_model(lambda tally: tally.conflicts)),
    MetricRow("aether_appends_resent_total", "Appends sent again because their outcome was unknown.", (), _read_journal(lambda journal: journal.resent)),
    MetricRow("aether_commits_batched_total", "Commits stored together with those of other actors.", (), _read_journal(lambda journal: journal.batched)),
    MetricRow("aether_log_scans_total", "Walks over a whole subject because a commit index was broken.", (), _read_journal(lambda journal: journal.scans)),
    TimingRow("aether_replay_seconds", "Seconds from the first read of the log to Ready.", lambda tally: tally.replay_times),
    MetricRow("aether_replay_events_total", "Events replayed.", ("model",), _by_model(lambda tally: tally.replayed_events)),
    MetricRow("aether_replays", "Replays that run, and that wait for a permit or for a log that cannot be read.", ("state",), _by_key(lambda sources: sources.replaying())),
    MetricRow("aether_replay_events_to_go", "Events that the replays under way still have to apply.", (), _one(lambda sources: sources.replays.to_go)),
    MetricRow("aether_replay_age_seconds_max", "Seconds since the oldest of the replays under way began.", (), _one(lambda sources: sources.replays.oldest_s)),
    MetricRow("aether_quarantines_total", "Actors quarantined because their log cannot be applied.", ("model",), _by_model(lambda tally: tally.quarantined)),
    MetricRow("aether_fenced_total", "VMs that stopped because a newer owner wrote.", ("model",), _by_model(lambda tally: tally.fenced)),
    MetricRow("aether_vm_failures_total", "VMs thrown away after something that must not happen.", ("model",), _by_model(lambda tally: tally.failed)),
    MetricRow("aether_vms_behind_total", "VMs found behind their log, because somebody else wrote.", (), _one(lambda sources: sources.behind())),
    MetricRow("aether_snapshots_total", "Snapshots written, too large, not stored, and found broken or of another past.", ("result",), _by_key(_read_snapshots)),
    MetricRow("aether_vms", "VMs held, by phase.", ("phase",), _read_vms),
    MetricRow("aether_sleeps_total", "Actors put to sleep, by reason.", ("reason",), _by_key(lambda sources: sources.sleeps())),
    MetricRow("aether_actors_asleep", "Actors with a resource that sleep in this pod.", (), _one(lambda sources: sources.asleep())),
    MetricRow(
        "aether_mailbox_depth_max", "Commands in the fullest mailbox now.", (), _one(lambda sources: max((vm.mailbox_depth for vm in sources.registry.vms.values()), default=0))
    ),
    MetricRow("aether_subscriptions", "Actors whose commands come directly.", (), _one(lambda sources: sources.subscriptions())),
    MetricRow("aether_calls_searching", "Calls that look for their actor now.", (), _one(lambda sources: sources.searching())),
    MetricRow("aether_inbox_messages_total", "Durable commands and ticks done with, by result.", ("result",), _by_key(lambda sources: sources.durable())),
    MetricRow("aether_inbox_backlog", "Messages that waited in inboxes at the last sweep, and actors that they wait for.", ("of",), _by_key(lambda sources: sources.backlog())),
    MetricRow("aether_models", "ActorModels known, by whether they compiled.", ("state",), _by_key(lambda sources: sources.models())),
    MetricRow("aether_status_writes_total", "Status writes, by result.", ("result",), _by_key(_read_status_writes)),
    MetricRow("aether_status_dirty", "Actors whose status is out of date.", (), _one(lambda sources: sources.reporter.dirty)),
    MetricRow("aether_pods_live", "Runtime pods of the namespace whose heartbeats arrive.", (), _one(lambda sources: sources.live_pods())),
    MetricRow("aether_nats_connected", "1 while the link to NATS is up.", (), _one(lambda sources: float(sources.connection.is_connected))),
)
"""Every metric, in the order of docs/metrics.md."""
