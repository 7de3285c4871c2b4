"""The bench of what statuses cost: writes under traffic, how soon every version is exact after it, and what an idle cluster writes.

The API server's own audit counts, so nothing that anybody forgot to count is left out. Lease renewals are counted apart: they are
leadership's, one a second, and no status.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

import msgspec

from bench.apply_to_ready import ACTORS_IN_ALL, PODS, Crowd, start_crowd
from bench.audit import Audit, count_other_writes, count_writes
from bench.errors import BenchFailed, PeerMissing
from bench.kube_stage import NAMESPACE
from bench.pacer import Pace
from bench.processes import run_python
from bench.results import Comparison, Line, Sample, build_line, build_missing_line
from bench.scale import Scale

COMMANDS_PER_S: Final = 1_000.0
TRAFFIC_S: Final = 20.0
"""Seconds of commands: each of ten thousand actors gets two."""

BUDGET_PER_S: Final = 50.0
"""Versions written a second, the runtime's default."""

QUIET_S: Final = 2.0
"""Seconds beside what the budget takes: a version is written when it has been quiet for one."""

IDLE_S: Final = 300.0

SETTLE_S: Final = 3.0
"""Seconds without a write after which a cluster has settled."""

SETTLE_TIMEOUT_S: Final = 300.0

PATIENCE: Final = 1.5
"""Times the limit after which versions that are not exact are given up."""

SPENT: Final = Comparison("status-budget", "status writes under traffic", "budget of 50/s and one second's burst", 1.0, at_most=True)
EXACT: Final = Comparison("status-budget", "s until every version is exact", "2 s and the dirty ones at 50/s", 1.0, at_most=True)
EVENTS: Final = Comparison("status-budget", "Kubernetes Events under traffic", "commands", 0.0, at_most=True)
IDLE: Final = Comparison("status-budget", "writes of an idle cluster", "Lease renewals meanwhile", 0.0, at_most=True)


@dataclass(frozen=True, slots=True)
class _Pair:
    """What was seen, and what it is compared with."""

    comparison: Comparison
    ours: float
    theirs: float


async def run_status_budget(scale: Scale) -> AsyncGenerator[Line, None]:
    """Fill a cluster, load it, wait until it is exact, and then watch it do nothing."""
    try:
        async with AsyncExitStack() as stack:
            crowd, _ = await start_crowd(stack, scale, scale.of(ACTORS_IN_ALL, at_least=PODS) - 1, audit=True)
            await crowd.fill()
            pairs = await _measure(crowd, scale)
    except PeerMissing as exc:
        for comparison in (SPENT, EXACT, EVENTS, IDLE):
            yield build_missing_line(comparison, str(exc))
    else:
        for pair in pairs:
            yield build_line(pair.comparison, [Sample(pair.ours)], [Sample(pair.theirs)])


async def _measure(crowd: Crowd, scale: Scale) -> list[_Pair]:
    audit = Audit(crowd.stage.plane.audit_log)
    await _settle(audit)
    pace = Pace(crowd.stage.nats.port, NAMESPACE, crowd.begun, COMMANDS_PER_S * scale.size, TRAFFIC_S * max(scale.size, 0.1))
    wanted: list[int] = msgspec.json.decode(await run_python("-m", "bench.pacer", msgspec.json.encode(pace).decode()))
    traffic = audit.read_new()
    dirty, exact_s = await _wait_exact(crowd, wanted)
    spent = _Pair(SPENT, count_writes(traffic, "actors/status"), BUDGET_PER_S * (pace.seconds + 1))
    exact = _Pair(EXACT, exact_s, QUIET_S + dirty / BUDGET_PER_S)
    events = _Pair(EVENTS, count_writes(traffic, "events"), sum(wanted))
    return [spent, exact, events, await _watch_idle(audit, IDLE_S * max(scale.size, 0.02))]


async def _settle(audit: Audit) -> None:
    """Wait until nothing is written any more: Events of ten thousand placements take their time."""
    deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
    audit.read_new()
    while time.monotonic() < deadline_s:
        await asyncio.sleep(SETTLE_S)
        if not count_other_writes(audit.read_new(), "leases"):
            return
    raise BenchFailed(f"the cluster still writes {SETTLE_TIMEOUT_S:g} s after all actors were ready")


async def _wait_exact(crowd: Crowd, wanted: list[int]) -> tuple[int, float]:
    """Return how many versions are not exact yet, and the seconds until all are."""

    def find_dirty() -> list[int]:
        return [number for number, version in enumerate(wanted) if crowd.watch.get(f"a{number}").version != version]

    began_s, dirty = time.perf_counter(), find_dirty()
    count = len(dirty)

    def is_exact() -> bool:
        # Only what was dirty is looked at again: nothing is sent any more.
        dirty[:] = [number for number in dirty if crowd.watch.get(f"a{number}").version != wanted[number]]
        return not dirty

    await crowd.watch.wait(is_exact, timeout_s=QUIET_S + PATIENCE * (QUIET_S + count / BUDGET_PER_S), what="not every version became exact")
    return count, time.perf_counter() - began_s


async def _watch_idle(audit: Audit, seconds: float) -> _Pair:
    await _settle(audit)
    await asyncio.sleep(seconds)
    calls = audit.read_new()
    return _Pair(IDLE, count_other_writes(calls, "leases"), count_writes(calls, "leases"))
