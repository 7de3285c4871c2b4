"""The bench of events from other nodes: from the append in one process to the delivery in another, against a bare publish."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import msgspec

from aether_nats.embedded import EmbeddedServer
from aether_nats.streams import StreamPlan
from bench.emitter import Emission
from bench.errors import BenchFailed
from bench.listener import Delivered
from bench.processes import ask, start_python
from bench.results import Comparison, Line, Sample, build_line
from bench.rounds import interleave
from bench.scale import Scale
from bench.sides import make_streams

RATE: Final = 1000.0
"""Events a second: far below what either side can do, so that no queue is measured."""

ACTORS: Final = 64
"""Actors whose events are sent in turns."""

P99_FACTOR: Final = 2.0
"""Greatest multiple of the bare publish's 99th percentile."""

SETTLE_S: Final = 0.2
"""Seconds for the last events to arrive: a hundred times their usual way."""


@dataclass(frozen=True, slots=True)
class _Way:
    """A sender and a subscriber in processes of their own."""

    emitter: asyncio.subprocess.Process
    listener: asyncio.subprocess.Process

    async def measure(self, scale: Scale) -> Delivered:
        """Send for a while and return how it arrived."""
        sent = int(await ask(self.emitter, timeout_s=60 + 10 * scale.seconds))
        await asyncio.sleep(SETTLE_S)
        delivered = msgspec.json.decode(await ask(self.listener), type=Delivered)
        if delivered.count != sent:
            raise BenchFailed(f"{sent} events were sent and {delivered.count} delivered")
        return delivered


async def run_broadcast(scale: Scale) -> AsyncGenerator[Line, None]:
    """Compare the way of a stored event with that of a bare publish, at the 99th percentile and at the median."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer.start())
        ways = {kind: await _open(stack, server, kind, scale) for kind in ("ours", "bare")}
        medians: dict[str, list[Sample]] = {kind: [] for kind in ways}

        async def measure(kind: str) -> Sample:
            delivered = await ways[kind].measure(scale)
            medians[kind].append(Sample(delivered.p50_ms))
            return Sample(delivered.p99_ms)

        samples = await interleave(scale.rounds, {kind: partial(measure, kind) for kind in ways})
    yield build_line(Comparison("broadcast", "ms", "bare publish, p99", P99_FACTOR, at_most=True), samples["ours"], samples["bare"])
    yield build_line(Comparison("broadcast", "ms", "bare publish, p50", at_most=True), medians["ours"][1:], medians["bare"][1:])


async def _open(stack: AsyncExitStack, server: EmbeddedServer, kind: Literal["ours", "bare"], scale: Scale) -> _Way:
    plan = StreamPlan()
    if kind == "ours":
        await make_streams(server, kind, plan)
    emission = Emission(server.port, kind, plan.partitions, ACTORS, RATE, scale.seconds, append=kind == "ours")
    listener = await stack.enter_async_context(start_python("-m", "bench.listener", kind, server.url, kind, ready=b"ready"))
    return _Way(await stack.enter_async_context(start_python("-m", "bench.emitter", msgspec.json.encode(emission).decode(), ready=b"ready")), listener)
