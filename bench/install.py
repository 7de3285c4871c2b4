"""`python -m bench.install`: installs every peer into the user's cache, so that no bench has to."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Final

from bench.actor_peers import find_eventsourcing, find_pekko
from bench.errors import PeerMissing
from bench.go_peer import find_go_reader, find_nats_cli
from bench.postgres import start_postgres
from tests.cluster.control_plane import build_programs
from tests.cluster.folders import find_folders
from tests.cluster.processes import ClusterError
from tests.cluster.tools import ensure_tools


async def check_postgres() -> None:
    """Start and stop a cluster."""
    async with start_postgres():
        pass


async def build_kube() -> None:
    """Build etcd and kube-apiserver for the benches of the operator, and find or build helm.

    Raises:
        PeerMissing: Go is missing or a build failed.
    """
    try:
        await asyncio.to_thread(build_programs, find_folders())
        await asyncio.to_thread(ensure_tools, find_folders())
    except ClusterError as exc:
        raise PeerMissing(str(exc)) from exc


STEPS: Final[dict[str, Callable[[], Awaitable[object]]]] = {
    "the Go reader": find_go_reader,
    "nats bench": find_nats_cli,
    "Apache Pekko": find_pekko,
    "eventsourcing": find_eventsourcing,
    "PostgreSQL": check_postgres,
    "etcd and kube-apiserver": build_kube,
}


async def main() -> int:
    """Install what is not there and say what is missing; returns the exit code."""
    missing = 0
    for name, step in STEPS.items():
        try:
            await step()
            print(f"{name}: there")
        except PeerMissing as exc:
            missing += 1
            print(f"{name}: {exc}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
