"""The benches of commands over NATS: closed loops of clients against our runtime and against the bare loops."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from aether_nats.embedded import EmbeddedServer
from aether_nats.streams import StreamPlan
from bench.results import Comparison, Line, Sample, build_line
from bench.rounds import interleave
from bench.scale import Scale
from bench.sides import Side, start_bare, start_ours

ACTORS: Final = 1000
"""Actors of the closed loops, but for the hot one."""

RATE_SHARE: Final = 0.7
"""Least share of the bare loop's rate."""

LATENCY_FACTOR: Final = 2.0
"""Greatest multiple of the bare loop's median time."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A closed loop and how it is judged.

    Attributes:
        bare: which bare loop is the limit.
        value: what is compared: replies a second, or the median time of one.
    """

    clients: int
    actors: int
    bare: Literal["single", "group"]
    value: Literal["rate", "p50"]


async def run_commands(name: str, workload: Workload, scale: Scale) -> AsyncGenerator[Line, None]:
    """Compare our runtime with a bare loop, with the server's broadcast of stored events on (the default) and off."""
    for broadcast in (True, False):
        yield await _compare(name, workload, scale, broadcast=broadcast)


async def _compare(name: str, workload: Workload, scale: Scale, *, broadcast: bool) -> Line:
    plan = StreamPlan(broadcast=broadcast)
    label = f"bare {workload.bare} loop, broadcast {'on' if broadcast else 'off'}"
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer.start())
        ours = await stack.enter_async_context(start_ours(server, "ours", plan, scale, name=f"{name}-broadcast-{'on' if broadcast else 'off'}"))
        bare = await stack.enter_async_context(start_bare(server, "bare", plan, workload.bare))
        samples = await interleave(scale.rounds, {"ours": partial(_measure, ours, workload, scale), "bare": partial(_measure, bare, workload, scale)})
    return build_line(_build_comparison(name, workload, label), samples["ours"], samples["bare"])


async def _measure(side: Side, workload: Workload, scale: Scale) -> Sample:
    actors = workload.actors if workload.actors == 1 else scale.of(workload.actors, at_least=workload.clients)
    result, cpu_us = await side.load(clients=workload.clients, actors=actors, seconds=scale.seconds)
    return Sample(result.rate if workload.value == "rate" else result.p50_ms, cpu_us)


def _build_comparison(name: str, workload: Workload, against: str) -> Comparison:
    if workload.value == "p50":
        return Comparison(name, "ms", against, LATENCY_FACTOR, at_most=True)
    return Comparison(name, "commands/s", against, RATE_SHARE)
