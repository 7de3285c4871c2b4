"""Fixtures that several suites share: a real NATS server, and a real Kubernetes cluster."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Final

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


TEST_S: Final = 900.0
"""Seconds after which a test that hangs is ended, so that the others run: longer than what any test waits for by itself, on a real cluster as well."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Watch every test that runs in a loop."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.fixturenames.insert(0, "no_socket_left")
            item.obj = bound(item.obj)


def bound(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Coroutine[Any, Any, None]]:
    """Return a test that ends in time."""

    @functools.wraps(test)
    async def end_in_time(*arguments: object, **fixtures: object) -> None:
        async with asyncio.timeout(TEST_S):
            await test(*arguments, **fixtures)

    return end_in_time


@pytest.fixture
async def no_socket_left() -> AsyncIterator[None]:
    """Fail the test that leaves a connection open; else the one that runs when Python collects it would fail, whichever that is."""
    yield
    loop = asyncio.get_running_loop()
    assert isinstance(loop, asyncio.SelectorEventLoop)
    await asyncio.sleep(0)  # what was just closed ends in the next round
    left = [transport for transport in loop._transports.values() if transport.get_extra_info("socket").fileno() >= 0]  # type: ignore[attr-defined]  # no public list of them
    assert not left, "\n".join(f"left open: {transport!r} {transport.get_extra_info('socket')!r}" for transport in left)


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
