"""A real API server without nodes that knows our types, for tests of what it makes of statuses."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from aether_kube.client import KubeClient
from aether_kube.documents import JsonObject
from aether_kube.kinds import ACTORS
from tests.cluster.control_plane import ControlPlane, ensure_programs, start_control_plane
from tests.cluster.folders import PROJECT, find_folders
from tests.cluster.lifecycle import is_required
from tests.cluster.processes import ClusterError

ESTABLISHED_S: Final = 60
"""Seconds until the API server serves a new type, and several times what it takes on a busy machine."""


@asynccontextmanager
async def bare_plane() -> AsyncGenerator[KubeClient, None]:
    """Run an API server for the length of a `with` block and call it; where it was never built the test is skipped."""
    programs = ensure_programs(find_folders(), required=is_required(os.environ))
    if programs is None:
        pytest.skip("etcd and kube-apiserver were not built; `make bench-peers` does it")
    async with start_control_plane(programs) as plane, await KubeClient.open(str(plane.kubeconfig())) as client:
        plane.kubectl("create", f"--filename={PROJECT / 'crds'}")
        await wait_established(plane, "crd/actors.aether.flowmade.one")
        yield client


async def wait_established(plane: ControlPlane, name: str) -> None:
    """Wait until the API server serves a type; right after its creation `kubectl wait` fails, since a type has no conditions at all then."""
    async with asyncio.timeout(ESTABLISHED_S):
        while True:
            try:
                plane.kubectl("wait", "--for=condition=Established", name, f"--timeout={ESTABLISHED_S}s")
                return
            except ClusterError as exc:
                if "accessor error" not in str(exc):
                    raise
                await asyncio.sleep(0.1)


async def add_actor(client: KubeClient) -> JsonObject:
    """Create an Actor of the name alice."""
    return await client.create(ACTORS.path("default"), {**ACTORS.document("default", "alice"), "spec": {"model": "account"}})
