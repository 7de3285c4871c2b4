"""The benches by name, with what is asked of each; docs/performance.md has a paragraph for each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from typing import Final

from bench.apply_to_ready import run_apply_to_ready, run_operator_memory
from bench.broadcast import run_broadcast
from bench.commands import ACTORS, Workload, run_commands
from bench.failover import run_failover
from bench.planning import run_planning
from bench.replays import run_cold_start, run_idle_vm, run_replay_million, run_replay_one
from bench.results import Line
from bench.scale import Scale
from bench.status_budget import run_status_budget

Bench = Callable[[Scale], AsyncGenerator[Line, None]]

WORKLOADS: Final[Mapping[str, Workload]] = {
    "commands-64": Workload(64, ACTORS, "single", 0.7, (("pekko-leveldb", 2.0), ("pekko-postgresql", 4.0), ("eventsourcing-sqlite", None), ("eventsourcing-postgresql", None))),
    "commands-hot": Workload(512, 1, "group", 0.7, (("pekko-leveldb", 8.0), ("pekko-postgresql", 8.0))),
    "commands-fsync": Workload(512, ACTORS, "single", None, (("pekko-leveldb-fsync", 3.0), ("pekko-postgresql", 3.0)), sync_always=True),
    "commands-1": Workload(1, ACTORS, "single", 2.0, (("pekko-leveldb", None), ("eventsourcing-sqlite", None)), value="p50"),
}
"""Closed loops of clients. PostgreSQL and SQLite store with fsync, as they do by default."""

BENCHES: Final[Mapping[str, Bench]] = {
    **{name: partial(run_commands, name, workload) for name, workload in WORKLOADS.items()},
    "replay-one": run_replay_one,
    "cold-start": run_cold_start,
    "replay-million": run_replay_million,
    "idle-vm": run_idle_vm,
    "broadcast": run_broadcast,
    "planning": run_planning,
    "apply-to-ready": run_apply_to_ready,
    "operator-memory": run_operator_memory,
    "failover": run_failover,
    "status-budget": run_status_budget,
}
