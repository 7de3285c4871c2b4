"""A watched namespace that refuses us holds up nobody but itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from aiohttp import web

from aether_api.control import Heartbeat
from aether_kube import informer
from aether_kube.client import KubeClient
from aether_kube.connection import anonymous_connection
from aether_kube.documents import JsonObject
from aether_kube.kinds import ACTORS, PODS
from aether_kube.store import ObjectKey
from aether_operator.cluster.heartbeats import Heartbeats
from aether_operator.cluster.observe import Listeners, Memory, Motion, Observer
from aether_operator.handlers.probes import find_sickness
from aether_operator.planning.liveness import Windows
from aether_operator.planning.pace import Limits
from tests.fake_apiserver import FakeApiServer, Fault

DEADLINE_S = 10.0
"""Seconds after which a test that waits for something has failed."""

FOR_EVER = 1_000_000
LOST, SHOP = "lost", "shop"


@pytest.fixture(autouse=True)
def _one_refusal_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer, "REFUSALS_MIN", 1)


def is_of(namespace: str, plural: str = "") -> Callable[[web.Request], bool]:
    return lambda request: f"/namespaces/{namespace}/{plural}" in request.path


@dataclass
class Looking:
    """An observer of two namespaces that runs."""

    server: FakeApiServer
    observer: Observer
    heartbeats: Heartbeats

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.005)  # the state of several informers, which no single event tells

    async def is_synced(self) -> bool:
        try:
            async with asyncio.timeout(0.05):
                await self.observer.wait_synced()
        except TimeoutError:
            return False
        return True

    def refuse(self, namespace: str, plural: str = "") -> None:
        self.server.faults.append(Fault(is_of(namespace, plural), 403, times=FOR_EVER))

    async def lose(self, namespace: str) -> None:
        self.refuse(namespace)
        await self.server.end_watches("cut")
        await self.until(lambda: self.refused() == 6)

    def refused(self) -> int:
        return sum(health.refused for healths in self.observer.health().values() for health in healths)

    def is_linked(self) -> bool:
        return self.observer.links().kube_since_s is not None

    def hear(self, uid: str) -> None:
        self.heartbeats.take(Heartbeat(uid, "boot", uid, "ready", 0))


@asynccontextmanager
async def looking(server: FakeApiServer) -> AsyncGenerator[Looking, None]:
    async with KubeClient(anonymous_connection(server.url)) as client, asyncio.TaskGroup() as tasks:
        windows = Windows(0.0, 0.0)
        heartbeats = Heartbeats(windows, lambda: None)
        observer = Observer(client, (LOST, SHOP), heartbeats, windows, motion=Motion(Limits(), writes_costs=False))
        observer.nats_since_s = lambda: 0.0
        running = tasks.create_task(observer.run(), name="informers")
        try:
            yield Looking(server, observer, heartbeats)
        finally:
            running.cancel()


async def put_pod(server: FakeApiServer, namespace: str, *, ended: bool = False) -> None:
    metadata: JsonObject = {"namespace": namespace, "name": "a", "uid": f"uid-{namespace}", "labels": {"aether.flowmade.one/pool": "default"}}
    state: JsonObject = {"terminated": {}} if ended else {"running": {}}
    status: JsonObject = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [{"name": "runtime", "state": state}]}
    await server.put(PODS.path(namespace, "a"), {"metadata": metadata, "status": status})


async def put_actor(server: FakeApiServer, namespace: str) -> None:
    metadata: JsonObject = {"namespace": namespace, "name": "alice", "uid": "1", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}
    await server.put(ACTORS.path(namespace, "alice"), {"metadata": metadata, "spec": {"model": "account"}})


async def test_nobody_waits_for_a_namespace_that_refuses_us_and_it_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aether_operator")
    async with FakeApiServer() as server:
        server.faults.append(Fault(is_of(LOST), 403, times=FOR_EVER))
        async with looking(server) as here:
            async with asyncio.timeout(DEADLINE_S):
                await here.observer.wait_synced()
            await here.until(lambda: here.refused() == 6)

            assert here.is_linked()
            assert find_sickness(now_s=time.monotonic(), last_plan_s=None, last_vote_s=None, informers=here.observer.health()) == []
            (told,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
            assert (told.levelno, vars(told)["namespace"]) == (logging.ERROR, LOST)
            assert "watchNamespaces" in told.getMessage()

            server.faults.clear()
            await here.until(lambda: here.refused() == 0)
            assert caplog.records[-1].getMessage() == "a namespace that refused us is looked after again"


async def test_a_namespace_that_refuses_us_later_spares_its_own_pods_only() -> None:
    async with FakeApiServer() as server:
        for namespace in (LOST, SHOP):
            await put_pod(server, namespace, ended=True)
        async with looking(server) as here:
            await here.observer.wait_synced()
            for namespace in (LOST, SHOP):
                here.hear(f"uid-{namespace}")
            await here.until(lambda: set(here.observer.verdicts().values()) == {"dead"})

            await here.lose(LOST)
            await here.until(here.is_linked)

            assert here.observer.verdicts() == {"uid-lost": "alive", "uid-shop": "dead"}
            assert [suspect.uid for suspect in here.observer.find_silent()] == ["uid-shop"]


async def test_a_namespace_that_works_again_counts_again() -> None:
    async with FakeApiServer() as server, looking(server) as here:
        await here.observer.wait_synced()
        await here.lose(LOST)
        server.faults.clear()
        await here.until(lambda: here.refused() == 0)

        server.faults.append(Fault(is_of(LOST), 503, times=FOR_EVER))
        await server.end_watches("cut")

        await here.until(lambda: not here.is_linked())


async def test_nothing_is_shown_of_a_namespace_before_all_of_it_was_listed() -> None:
    planned: list[bool] = []
    async with FakeApiServer() as server:
        await put_pod(server, LOST)
        await put_actor(server, LOST)
        server.faults.append(Fault(is_of(LOST, "pods"), 403, times=FOR_EVER))
        async with looking(server) as here:
            await here.observer.wait_synced()
            await here.until(lambda: all(health.synced for health in here.observer.health()["actors"]))
            assert here.observer.snapshot(0).actors == {}
            assert here.observer.actors.get(ObjectKey(LOST, "alice")) is None

            here.observer.begin(Memory(), Listeners(plan=lambda: planned.append(bool(here.observer.snapshot(0).actors))))
            server.faults.clear()
            await here.until(lambda: bool(here.observer.snapshot(0).pods))

            assert list(here.observer.snapshot(0).actors) == [ObjectKey(LOST, "alice")]
            assert planned[-1]


async def test_if_all_namespaces_refuse_us_all_count() -> None:
    async with FakeApiServer() as server:
        server.faults += [Fault(is_of(namespace), 403, times=FOR_EVER) for namespace in (LOST, SHOP)]
        async with looking(server) as here:
            await here.until(lambda: here.refused() == 12)

            assert not await here.is_synced()
            assert not here.is_linked()
