"""A real API server without nodes that knows our types, for tests of what it makes of statuses."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from aether_kube.client import KubeClient
from aether_kube.documents import JsonObject
from aether_kube.kinds import ACTORS
from tests.cluster.control_plane import ensure_programs, start_control_plane
from tests.cluster.folders import PROJECT, find_folders
from tests.cluster.lifecycle import is_required


@asynccontextmanager
async def bare_plane() -> AsyncGenerator[KubeClient, None]:
    """Run an API server for the length of a `with` block and call it; where it was never built the test is skipped."""
    programs = ensure_programs(find_folders(), required=is_required(os.environ))
    if programs is None:
        pytest.skip("etcd and kube-apiserver were not built; `make bench-peers` does it")
    async with start_control_plane(programs) as plane, await KubeClient.open(str(plane.kubeconfig())) as client:
        plane.kubectl("create", f"--filename={PROJECT / 'crds'}")
        plane.kubectl("wait", "--for=condition=Established", "crd/actors.aether.flowmade.one", "--timeout=60s")
        yield client


async def add_actor(client: KubeClient) -> JsonObject:
    """Create an Actor of the name alice."""
    return await client.create(ACTORS.path("default"), {**ACTORS.document("default", "alice"), "spec": {"model": "account"}})
