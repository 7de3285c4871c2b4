"""Fixtures that several suites share: a real NATS server, and a real Kubernetes cluster."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from aether_nats.embedded import EmbeddedServer
from tests.cluster.cluster import Cluster
from tests.cluster.lifecycle import ensure_cluster, is_required, release_cluster
from tests.cluster.processes import ClusterError
from tests.histories.nats_cluster import NatsCluster
from tests.histories.places import PLACES, Place, open_place
from tests.simulation.sockets import SocketServer

# How long an example takes says more of the machine than of the code.
settings.register_profile("aether", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("aether")


@pytest.fixture
async def nats_server() -> AsyncIterator[EmbeddedServer]:
    """Run a nats-server with a store of its own for one test."""
    async with EmbeddedServer.start() as server:
        yield server


@pytest.fixture(params=["nats-server", "simulated"])
async def any_nats_server(request: pytest.FixtureRequest) -> AsyncIterator[EmbeddedServer | SocketServer]:
    """Run nats-server, and the simulated one that stands in for it in `tests/simulation`: both must pass."""
    async with EmbeddedServer.start() if request.param == "nats-server" else SocketServer.start() as server:
        yield server


@pytest.fixture(scope="session")
def nats_cluster() -> Iterator[NatsCluster]:
    """Run three nats-servers for all tests that ask for them; who kills one starts it again."""
    with NatsCluster.start() as cluster:
        yield cluster


@pytest.fixture(params=PLACES)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """Yield each place in which streams can lie."""
    async with open_place(request.param, request) as found:
        yield found


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Yield the cluster that the user named, or the project's own; see tests/cluster."""
    try:
        found = ensure_cluster()
    except ClusterError as exc:
        if is_required(os.environ):
            raise
        pytest.skip(f"there is no Kubernetes: {exc}")
    yield found
    release_cluster(found)
