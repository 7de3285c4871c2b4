"""The benches of many Actors at once: how soon they are ready, and what each costs the operator.

`apply-to-ready` compares with the least that anybody could do: the same client creates as many objects and patches their status once,
with nobody looking at them. Ours makes one write more for each Actor (the operator says where it is, the pod how it is), starts it,
and everybody watches everything. Actors are not deleted between the rounds, so the last round is one with all of them there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from aether_kube.documents import JsonObject
from aether_kube.kinds import ACTORS
from bench.at_once import run_at_once
from bench.errors import PeerMissing
from bench.kube_stage import AT_ONCE, WAIT_S, ActorWatch, Stage, make_namespace, start_stage
from bench.processes import read_cpu_s, read_memory_mb
from bench.results import Comparison, Line, Sample, build_limit_line, build_line, build_missing_line
from bench.rounds import interleave
from bench.scale import Scale
from bench.stand_in import StandIn, start_stand_in

ACTORS_IN_ALL: Final = 10_000
ROUNDS: Final = 4
PODS: Final = 3

KB_LIMIT: Final = 8.0
"""Kilobytes of the operator's memory for each Actor."""

READY_PER_S: Final = 10.0
"""Actors a second below which a run is given up."""

STATUS: Final[JsonObject] = {
    "phase": "Ready",
    "version": 0,
    "conditions": [
        {"type": type_, "status": "True", "reason": "Ready", "message": "replayed 0 events", "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for type_ in ("Ready", "Replayed")
    ],
}
"""What a pod reports of a new Actor."""

APPLY: Final = Comparison("apply-to-ready", "s", "create and status patch of as many objects, one client", 2.0, at_most=True)
MEMORY: Final = Comparison("operator-memory", "KB/actor", "limit of 8 KB", 1.0, at_most=True)
CPU: Final = Comparison("operator-memory", "CPU ms/actor", "API server and etcd", None, at_most=True)


@dataclass(slots=True)
class Crowd:
    """A cluster that is filled round by round."""

    stage: Stage
    watch: ActorWatch
    pods: StandIn
    count: int
    begun: int = 0
    namespaces: list[str] = field(default_factory=list[str])

    async def warm_up(self) -> None:
        """Let one Actor go all the way."""
        await self._fill(1)

    async def fill(self) -> Sample:
        """Create the next Actors and wait until all of them are placed and ready."""
        return await self._fill(self.count)

    async def _fill(self, count: int) -> Sample:
        names = [f"a{number}" for number in range(self.begun, self.begun + count)]
        self.begun += count
        began_s = time.perf_counter()
        await self.stage.create_actors(names)
        await self.watch.wait(self._is_full, timeout_s=WAIT_S + count / READY_PER_S, what="not all actors became ready")
        return Sample(time.perf_counter() - began_s)

    async def fill_bare(self) -> Sample:
        """Create as many objects that nobody looks at, and patch the status of each once."""
        namespace = f"bare-{len(self.namespaces)}"
        self.namespaces.append(namespace)
        await make_namespace(self.stage.client, namespace)
        began_s = time.perf_counter()
        await run_at_once([partial(self._write_bare, namespace, f"a{number}") for number in range(self.count)], AT_ONCE)
        return Sample(time.perf_counter() - began_s)

    async def _write_bare(self, namespace: str, name: str) -> None:
        client = self.stage.client
        await client.create(ACTORS.path(namespace), {**ACTORS.document(namespace, name), "spec": {"model": "account"}})
        await client.patch_merge(ACTORS.path(namespace, name, "status"), {"status": STATUS})

    def _is_full(self) -> bool:
        return self.watch.ready >= self.begun and self.watch.placed >= self.begun


async def run_apply_to_ready(scale: Scale) -> AsyncGenerator[Line, None]:
    """Fill a cluster in rounds, each beside a round of bare writes."""
    rounds = min(scale.rounds, ROUNDS)
    try:
        async with AsyncExitStack() as stack:
            crowd, _ = await start_crowd(stack, scale, scale.of(ACTORS_IN_ALL, at_least=10 * rounds) // rounds)
            samples = await interleave(rounds, {"bare": crowd.fill_bare, "ours": crowd.fill}, warm_up=False)
    except PeerMissing as exc:
        yield build_missing_line(APPLY, str(exc))
    else:
        yield build_line(APPLY, samples["ours"], samples["bare"])


async def run_operator_memory(scale: Scale) -> AsyncGenerator[Line, None]:
    """Measure the operator before and after it got all of its Actors."""
    try:
        async with AsyncExitStack() as stack:
            crowd, operator = await start_crowd(stack, scale, scale.of(ACTORS_IN_ALL, at_least=10))
            servers = crowd.stage.plane.process_ids
            memory_mb, cpu_s, servers_s = read_memory_mb(operator.pid), read_cpu_s(operator.pid), _read_all(servers)
            await crowd.fill()
            grown_kb = (read_memory_mb(operator.pid) - memory_mb) * 1024
            ours, theirs = (1000 * spent_s / crowd.count for spent_s in (read_cpu_s(operator.pid) - cpu_s, _read_all(servers) - servers_s))
    except PeerMissing as exc:
        for comparison in (MEMORY, CPU):
            yield build_missing_line(comparison, str(exc))
    else:
        yield build_limit_line(MEMORY, [Sample(grown_kb / crowd.count)], KB_LIMIT)
        yield build_line(CPU, [Sample(ours)], [Sample(theirs)])


async def start_crowd(stack: AsyncExitStack, scale: Scale, count: int, *, pods: int = PODS, audit: bool = False) -> tuple[Crowd, asyncio.subprocess.Process]:
    """Start a cluster whose pods are ready, and return it with the process of its operator."""
    stage = await stack.enter_async_context(start_stage(scale, audit=audit))
    operator = await stack.enter_async_context(stage.start_operator())
    stand_in = await stack.enter_async_context(start_stand_in(stage))
    watch = await stack.enter_async_context(stage.watch_actors())
    await stand_in.add_pods(pods)
    crowd = Crowd(stage, watch, stand_in, count)
    await crowd.warm_up()
    return crowd, operator


def _read_all(process_ids: Sequence[int]) -> float:
    return sum(read_cpu_s(process_id) for process_id in process_ids)
