"""The operator as the process that the chart runs, kopf included: what kopf does not survive, it does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from aether_api.errors import SettingsInvalid
from aether_api.v1alpha1.meta import GROUP, VERSION
from aether_kube.documents import JsonObject, JsonValue
from aether_kube.kinds import ACTOR_MODELS, ACTOR_POOLS
from aether_kube.store import ObjectKey
from aether_nats.embedded import EmbeddedServer
from aether_operator.handlers.health import serving_health
from aether_operator.handlers.shell import END_TIMEOUT_S, RESTART_FIRST_S, Hooks, keep_kopf
from aether_operator.settings import OperatorSettings
from tests.cluster.processes import find_free_ports
from tests.fake_apiserver.kubeconfig import write_kubeconfig
from tests.fake_apiserver.server import FakeApiServer, Fault
from tests.integration.operator_stage import NAMESPACE, Stage, staged

pytestmark = pytest.mark.slow

WAIT_S: Final = 30.0
"""Seconds after which a test that waits has failed: kopf takes five to end, and two to begin."""

UNAVAILABLE: Final[JsonObject] = {"kind": "Status", "status": "Failure", "code": 500, "reason": "InternalError", "message": "etcdserver: no leader"}


@dataclass
class Operator:
    """The process, and where it answers probes."""

    process: asyncio.subprocess.Process
    url: str

    async def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        async with asyncio.timeout(WAIT_S):
            return await self.process.wait()


@asynccontextmanager
async def running(stage: Stage, nats: EmbeddedServer, folder: Path) -> AsyncGenerator[Operator, None]:
    """Run `aether operator` against the stage."""
    describe_kinds(stage.api)
    (port,) = find_free_ports(1)
    environment = {
        "KUBECONFIG": str(write_kubeconfig(folder, server=stage.api.url)),
        "AETHER_NATS_URL": nats.url,
        "AETHER_WATCH_NAMESPACES": NAMESPACE,
        "AETHER_HEALTH_PORT": str(port),
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "aether_operator", env={**os.environ, **environment})
    try:
        yield Operator(process, f"http://127.0.0.1:{port}/healthz")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def describe_kinds(api: FakeApiServer) -> None:
    """Say which kinds there are, which kopf asks first."""

    def kind(plural: str, name: str) -> JsonObject:
        return {"name": plural, "kind": name, "singularName": name.lower(), "namespaced": plural != "namespaces", "verbs": ["get", "list", "watch", "patch"]}

    group: JsonValue = {"name": GROUP, "versions": [{"version": VERSION}], "preferredVersion": {"version": VERSION}}
    api.documents.objects |= {
        "/api": {"versions": ["v1"]},
        "/api/v1": {"resources": [kind("namespaces", "Namespace")]},
        "/apis": {"groups": [group]},
        f"/apis/{GROUP}/{VERSION}": {"resources": [kind("actormodels", "ActorModel"), kind("actorpools", "ActorPool")]},
    }


def count_watches_of_kopf(api: FakeApiServer, path: str) -> int:
    return sum(1 for request in api.requests if request.path == path and "watch" in request.query and request.headers["User-Agent"].startswith("kopf/"))


async def until(stage: Stage, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        await stage.api.until(condition)


def leads(stage: Stage) -> bool:
    return stage.lease.holder != ""


async def test_a_watch_that_ends_with_an_error_ends_kopf_and_not_the_operator(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    paths = [kind.path(NAMESPACE) for kind in (ACTOR_MODELS, ACTOR_POOLS)]
    async with staged(nats_server, operator=False) as stage, running(stage, nats_server, tmp_path) as operator:
        await until(stage, lambda: leads(stage) and all(count_watches_of_kopf(stage.api, path) == 1 for path in paths))
        leader = stage.lease.holder, stage.lease.term

        await stage.api.send_event("ERROR", UNAVAILABLE)
        assert await asyncio.to_thread(ask, operator.url) == (200, '{"sickness": []}')
        await until(stage, lambda: all(count_watches_of_kopf(stage.api, path) == 2 for path in paths))
        await stage.add_pod("a")
        await stage.add_actor("alice")
        await until(stage, lambda: stage.pod_of("alice") == "a")

        assert (stage.lease.holder, stage.lease.term) == leader
        assert await operator.end(signal.SIGTERM) == 0
        assert not leads(stage), "the lease was given back"


@asynccontextmanager
async def kopf_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[tuple[FakeApiServer, list[tuple[str, ObjectKey]]], None]:
    """Run kopf in this process, and give what it talks to and what it tells."""
    told: list[tuple[str, ObjectKey]] = []
    hooks = Hooks(check_model=lambda key: told.append(("model", key)), check_pool=lambda key: told.append(("pool", key)))
    async with FakeApiServer() as api, asyncio.TaskGroup() as tasks:
        describe_kinds(api)
        kubeconfig = write_kubeconfig(folder, server=api.url)
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))  # read from the environment at its import
        for kind in (ACTOR_MODELS, ACTOR_POOLS):
            await api.put(kind.path(NAMESPACE, "first"), {"metadata": {"namespace": NAMESPACE, "name": "first"}, "spec": {}})
        keeping = tasks.create_task(keep_kopf(OperatorSettings(watch_namespaces=(NAMESPACE,)), hooks))
        try:
            async with asyncio.timeout(WAIT_S):
                await api.until(lambda: count_watches_of_kopf(api, ACTOR_POOLS.path(NAMESPACE)) == 1)
            yield api, told
        finally:
            keeping.cancel()


async def test_kopf_tells_of_models_and_pools_and_ends_within_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kopf_alone(tmp_path, monkeypatch) as (_, told), asyncio.timeout(WAIT_S):
        while len(told) < 2:
            await asyncio.sleep(0.01)  # they come from kopf's queues, of which nothing tells

    assert {*told} == {("model", ObjectKey(NAMESPACE, "first")), ("pool", ObjectKey(NAMESPACE, "first"))}
    for thread in threading.enumerate():
        if thread.name == "kopf":
            thread.join(1)  # it has told its end, and has that behind it in a moment
            assert not thread.is_alive()


@pytest.mark.parametrize("refusals", [1, 2])
async def test_kopf_starts_again_after_a_refused_login_though_it_may_hang_in_its_end(refusals: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with kopf_alone(tmp_path, monkeypatch) as (api, _), asyncio.timeout(END_TIMEOUT_S + RESTART_FIRST_S + WAIT_S):
        api.faults.append(Fault(lambda request: "watch" in request.query, 401, times=refusals))
        await api.end_watches()
        await api.until(lambda: not api.faults and sum(request.path == "/apis" for request in api.requests) == 2)
        await api.until(lambda: api.open_watches >= 2)


async def test_the_probe_tells_what_is_wrong_and_its_port_is_free_again_at_the_end() -> None:
    (port,), sickness = find_free_ports(1), list[str]()
    for _ in range(2):
        async with serving_health(port, lambda: sickness):
            assert await asyncio.to_thread(ask, f"http://127.0.0.1:{port}/healthz") == (200, '{"sickness": []}')
            sickness.append("the informer of Actors hangs")
            assert await asyncio.to_thread(ask, f"http://127.0.0.1:{port}/healthz") == (503, '{"sickness": ["the informer of Actors hangs"]}')
            with pytest.raises(SettingsInvalid, match="AETHER_HEALTH_PORT"):
                async with serving_health(port, list):
                    pass
            sickness.clear()


def ask(url: str) -> tuple[int, str]:
    """Ask from another thread."""
    try:
        with urlopen(url, timeout=WAIT_S) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as refusal:
        return refusal.code, refusal.read().decode()
