"""Where a test's streams lie: on one real server, on three that keep three copies of everything, or on the simulated one.

What any replica may answer (Direct Get) can be behind what another one has acknowledged, so a test that runs in both places
waits for such an answer (`until_equal`) where it does not ask the leader.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import pytest

from aether_api.errors import JetStreamError, StreamUnavailable, WrongLastSequence
from aether_api.headers import EXPECTED_SEQUENCE, encode_headers
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.jetstream import JetStream
from aether_nats.settings import NatsSettings
from aether_nats.streams import StreamPlan, delete_streams, ensure_streams
from tests.simulation.sockets import SocketServer

PLACES: Final = ("one server", "three servers", "simulated server")

CATCH_UP_S: Final = 20.0
"""Seconds after which a replica has caught up or a test has failed: milliseconds on a quiet machine."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place of streams; `replicas` is the number of copies that it can keep."""

    settings: NatsSettings
    replicas: int

    def plan(self, partitions: int = 1) -> StreamPlan:
        """Return how streams are made here."""
        return StreamPlan(partitions, self.replicas)

    @asynccontextmanager
    async def with_streams(self, namespace: str = "default", partitions: int = 1) -> AsyncIterator[NatsConnection]:
        """Connect to the streams of a namespace for the length of a `with` block; they are deleted behind it."""
        connection = await NatsConnection.open(self.settings)
        try:
            await ensure_streams(connection, namespace, self.plan(partitions))
            if self.replicas > 1:
                await await_interest(connection, namespace, partitions)
            yield connection
            await delete_streams(connection, namespace)
        finally:
            await connection.close()


async def await_interest(connection: NatsConnection, namespace: str, partitions: int) -> None:
    """Wait until our server knows who takes what is published: of several servers it hears of a stream that was just made a moment later than we do."""
    js, impossible = JetStream(connection), encode_headers({EXPECTED_SEQUENCE: "4294967296"})
    for subject in ("snap.probe.probe.x", "inbox.probe.probe", *(f"evt.{partition}.probe.probe" for partition in range(partitions))):
        async with asyncio.timeout(CATCH_UP_S):
            while True:
                try:
                    await js.publish(f"aether.{namespace}.{subject}", b"", impossible)
                    pytest.fail(f"what cannot be expected was stored at {subject}")
                except StreamUnavailable:
                    await asyncio.sleep(0.01)
                except (WrongLastSequence, JetStreamError):
                    break


@asynccontextmanager
async def open_place(kind: str, request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """Yield one of `PLACES`; the three servers are those of the whole run of tests."""
    if kind == "one server":
        async with EmbeddedServer.start() as server:
            yield Place(NatsSettings((server.url,)), 1)
        return
    if kind == "simulated server":
        async with SocketServer.start() as simulated:
            yield Place(NatsSettings((simulated.url,)), 1)
        return
    cluster = request.getfixturevalue("nats_cluster")
    yield Place(cluster.settings(cluster.open_account()), 3)


async def until_equal(read: Callable[[], Awaitable[object]], expected: object) -> None:
    """Wait until a read that any replica may answer gives what is expected."""
    found = await read()
    try:
        async with asyncio.timeout(CATCH_UP_S):
            while found != expected:
                await asyncio.sleep(0.01)
                found = await read()
    except TimeoutError:
        assert found == expected
