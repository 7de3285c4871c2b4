"""The sides of the command benches: our runtime as its users start it, and the bare loops, on streams of equal configuration."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.settings import NatsSettings
from aether_nats.streams import StreamPlan, ensure_streams
from bench.load import Load, LoadResult
from bench.processes import PROJECT, read_cpu_s, run_python, start_python
from bench.scale import Scale

MANIFESTS: Final = PROJECT / "bench" / "manifests" / "python"
MANIFESTS_CEL: Final = PROJECT / "bench" / "manifests" / "cel"
"""The account as a Python model, and in CEL."""


@dataclass(slots=True)
class Side:
    """Something that answers commands in a namespace of its own on the server of the bench.

    Attributes:
        awake: how many actors are live already.
    """

    port: int
    namespace: str
    process_id: int
    awake: int = 0

    async def load(self, *, clients: int, actors: int, seconds: float) -> tuple[LoadResult, float]:
        """Load it, and return what came back and the microseconds of CPU it spent on one command."""
        load = Load(self.port, self.namespace, clients, actors, seconds, wake=actors > self.awake)
        self.awake = max(actors, self.awake)
        before_s = read_cpu_s(self.process_id)
        result = msgspec.json.decode(await run_python("-m", "bench.load", msgspec.json.encode(load).decode()), type=LoadResult)
        return result, (read_cpu_s(self.process_id) - before_s) * 1e6 / result.replies


@asynccontextmanager
async def start_ours(server: EmbeddedServer, namespace: str, plan: StreamPlan, scale: Scale, *, name: str, manifests: Path = MANIFESTS) -> AsyncGenerator[Side, None]:
    """Run our runtime as a user without Kubernetes does, on streams made by `plan`."""
    await make_streams(server, namespace, plan)
    arguments = ("--folder", str(manifests), "--nats", server.url, "--namespace", namespace, "--http-port", "0")
    module = ("-m", "aether_runtime") if scale.profile is None else ("-m", "bench.profiled", str(profile_path(scale.profile, name)))
    async with start_python(*module, *arguments, environment={"AETHER_LOG_LEVEL": "ERROR", "AETHER_SYNC_ALWAYS": str(server.sync_always)}) as process:
        yield Side(server.port, namespace, process.pid)


@asynccontextmanager
async def start_bare(server: EmbeddedServer, namespace: str, plan: StreamPlan, kind: Literal["single", "group"]) -> AsyncGenerator[Side, None]:
    """Run a bare loop on streams made by `plan`."""
    await make_streams(server, namespace, plan)
    async with start_python("-m", "bench.bare_commands", kind, str(server.port), namespace, str(plan.partitions), ready=b"ready") as process:
        yield Side(server.port, namespace, process.pid)


async def make_streams(server: EmbeddedServer, namespace: str, plan: StreamPlan) -> None:
    """Make the streams of a namespace."""
    connection = await NatsConnection.open(NatsSettings((server.url,), "bench"))
    try:
        await ensure_streams(connection, namespace, plan)
    finally:
        await connection.close()


def profile_path(folder: Path, name: str) -> Path:
    """Return where the profile of one side goes, and say so."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / f"{name}.prof"
    print(f"profile of {name}: {path}", file=sys.stderr)
    return path
