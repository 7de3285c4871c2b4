"""The benches of commands: closed loops of clients against our runtime, the bare loops and the peers.

Ours and the bare loops are asked over NATS by the same generator; the peers are asked inside their own process.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, Protocol

from aether_nats.embedded import EmbeddedServer
from aether_nats.streams import StreamPlan
from bench.actor_peers import LABELS, PeerName, start_peer
from bench.errors import PeerMissing
from bench.go_peer import NatsBench, find_nats_cli
from bench.load import LoadResult
from bench.results import Comparison, Line, Sample, build_line, build_missing_line
from bench.rounds import Measure, interleave
from bench.scale import Scale
from bench.sides import MANIFESTS_CEL, make_streams, start_bare, start_ours

ACTORS: Final = 1000
"""Actors of the closed loops, but for the hot one."""

CEL_CLIENTS: Final = 64
"""The workload in which a model in YAML with CEL is compared with the same one in Python."""

WARM_UP: Final = 3
"""Measurements that a peer runs beforehand: a JIT needs some seconds of the real work."""


class Loaded(Protocol):
    """A side that a closed loop can be run against."""

    def load(self, *, clients: int, actors: int, seconds: float) -> Awaitable[tuple[LoadResult, float]]:
        """Load it, and return what came back and the microseconds of CPU of one command."""
        ...


@dataclass(frozen=True, slots=True)
class Workload:
    """A closed loop and how it is judged.

    Attributes:
        bare: which bare loop is the limit, and `bare_target` the ratio to it that is asked for.
        peers: the ratio to each peer that is asked for, None where it is only reported.
        value: what is compared: replies a second, or the median time of one.
        sync_always: let the server fsync before each ack.
    """

    clients: int
    actors: int
    bare: Literal["single", "group"]
    bare_target: float | None
    peers: tuple[tuple[PeerName, float | None], ...] = ()
    value: Literal["rate", "p50"] = "rate"
    sync_always: bool = False

    def compare(self, name: str, against: str, target: float | None) -> Comparison:
        """Return how this workload is compared with something."""
        if self.value == "p50":
            return Comparison(name, "ms", against, target, at_most=True)
        return Comparison(name, "commands/s", against, target)


async def run_commands(name: str, workload: Workload, scale: Scale) -> AsyncGenerator[Line, None]:
    """Compare our runtime with its limit and its peers, on streams with broadcast (the default), then with the limit without broadcast."""
    async for line in _compare(name, workload, scale, broadcast=True):
        yield line
    async for line in _compare(name, workload, scale, broadcast=False):
        yield line


async def _compare(name: str, workload: Workload, scale: Scale, *, broadcast: bool) -> AsyncGenerator[Line, None]:
    plan, suffix = StreamPlan(broadcast=broadcast), "" if broadcast else ", broadcast off"
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer.start(sync_always=workload.sync_always))
        ours = await stack.enter_async_context(start_ours(server, "ours", plan, scale, name=f"{name}{suffix.replace(', ', '-').replace(' ', '-')}"))
        bare = await stack.enter_async_context(start_bare(server, "bare", plan, workload.bare))
        sides: dict[str, Loaded] = {"ours": ours, f"bare {workload.bare} loop{suffix}": bare}
        targets = {f"bare {workload.bare} loop{suffix}": workload.bare_target}
        missing: list[Line] = []
        for label, target, starting in _list_others(stack, server, workload, scale) if broadcast else ():
            try:
                sides[label] = await starting()
                targets[label] = target
            except PeerMissing as exc:
                missing.append(build_missing_line(workload.compare(name, label, target), str(exc)))
        samples = await interleave(scale.rounds, {label: _measure_later(side, workload, scale) for label, side in sides.items()})
    for label, target in targets.items():
        yield build_line(workload.compare(name, label, target), samples["ours"], samples[label])
    for line in missing:
        yield line


def _list_others(stack: AsyncExitStack, server: EmbeddedServer, workload: Workload, scale: Scale) -> list[tuple[str, float | None, Callable[[], Awaitable[Loaded]]]]:
    """Return what else ours is compared with: label, target, and what starts it."""
    others: list[tuple[str, float | None, Callable[[], Awaitable[Loaded]]]] = []
    if workload.clients == CEL_CLIENTS:
        others.append(("ours, CEL model", None, partial(_start_cel, stack, server, scale)))
    if workload.actors > 1:
        others.append((f"nats bench, {workload.clients} in flight", None, partial(_start_nats_bench, server, scale)))
    for name, target in workload.peers:
        others.append((LABELS[name], target, partial(_start_warm, stack, name, workload, scale)))
    return others


async def _start_cel(stack: AsyncExitStack, server: EmbeddedServer, scale: Scale) -> Loaded:
    return await stack.enter_async_context(start_ours(server, "cel", StreamPlan(), scale, name="commands-cel", manifests=MANIFESTS_CEL))


async def _start_nats_bench(server: EmbeddedServer, scale: Scale) -> Loaded:
    scale.check_peers()
    await make_streams(server, "limit", StreamPlan())
    return NatsBench(await find_nats_cli(), server.url, "limit")


async def _start_warm(stack: AsyncExitStack, name: PeerName, workload: Workload, scale: Scale) -> Loaded:
    scale.check_peers()
    print(f"warming up: {LABELS[name]}", file=sys.stderr)
    peer = await stack.enter_async_context(start_peer(name))
    await peer.load(clients=workload.clients, actors=_count_actors(workload, scale), seconds=WARM_UP * scale.seconds)
    return peer


def _measure_later(side: Loaded, workload: Workload, scale: Scale) -> Measure:
    return partial(_measure, side, workload, scale)


async def _measure(side: Loaded, workload: Workload, scale: Scale) -> Sample:
    result, cpu_us = await side.load(clients=workload.clients, actors=_count_actors(workload, scale), seconds=scale.seconds)
    return Sample(result.rate if workload.value == "rate" else result.p50_ms, cpu_us)


def _count_actors(workload: Workload, scale: Scale) -> int:
    return 1 if workload.actors == 1 else scale.of(workload.actors, at_least=workload.clients)
