"""Two processes of the operator: one acts, the other takes over when it is killed, stopped, cut off or ended; nobody is moved for it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from aether_kube.documents import integer_at, objects_at, text_at
from aether_kube.kinds import ACTORS, KUBE_EVENTS
from aether_kube.lease import parse_lease
from aether_nats.embedded import EmbeddedServer
from tests.fake_apiserver.server import FakeApiServer
from tests.integration.links import CutLink
from tests.integration.operator_stage import COURTESY, LEASE, NAMESPACE, FakePod, Stage, staged

WAIT_S: Final = 20.0
"""Seconds after which a test that waits has failed; starting two processes on a busy machine takes some."""

TAKEOVER_S: Final = 15.0
"""Seconds within which a standby acts, whatever happened to the leader."""

NAMES: Final = ("alice", "bob", "carol", "dave")
QUICK: Final = {"AETHER_LEASE_S": "3", "AETHER_LEASE_RENEW_BY_S": "2", "AETHER_LEASE_RETRY_S": "0.3", "AETHER_LEASE_ABSENT_AFTER_S": "1.5", "AETHER_LEASE_OUT_OF_SIGHT_S": "1"}
"""A shorter lease, where a test waits for its end."""


@dataclass
class OperatorProcess:
    """One process, whose calls carry its name."""

    name: str
    link: CutLink
    process: asyncio.subprocess.Process

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@dataclass
class Pair:
    """A stage with two operators on it."""

    stage: Stage
    operators: list[OperatorProcess] = field(default_factory=list[OperatorProcess])

    @property
    def api(self) -> FakeApiServer:
        return self.stage.api

    def writes_of(self, operator: OperatorProcess) -> list[str]:
        """Return what a process wrote, but renewals and Events."""
        mine = [request for request in self.api.requests if request.headers.get("Authorization") == f"Bearer {operator.name}"]
        return [f"{request.method} {request.path}" for request in mine if request.method != "GET" and not request.path.startswith(COURTESY)]

    async def wait_for_leader(self, *, above: int = 0) -> tuple[OperatorProcess, OperatorProcess]:
        """Return leader and standby, once the lease is held in a term above one."""
        async with asyncio.timeout(WAIT_S):
            await self.api.until(lambda: self.stage.lease.holder != "" and self.stage.lease.term > above)
        first, second = self.operators
        return (second, first) if self.is_standby(first) else (first, second)

    def is_standby(self, operator: OperatorProcess) -> bool:
        last = next(request for request in reversed(self.api.requests) if request.path.startswith(LEASE.rpartition("/")[0]) and request.method != "GET")
        return last.headers.get("Authorization") != f"Bearer {operator.name}"


@asynccontextmanager
async def two_operators(nats_server: EmbeddedServer, environment: dict[str, str] | None = None) -> AsyncGenerator[Pair, None]:
    """Run two processes beside each other, the second once the first leads."""
    async with staged(nats_server, operator=False) as stage, AsyncExitStack() as stack:
        pair = Pair(stage)
        port = int(stage.api.url.rpartition(":")[2])
        for name in ("first", "second"):
            link = await stack.enter_async_context(CutLink.to(port))
            process = await stack.enter_async_context(
                _running(name, link.http_url, {"AETHER_NATS_URL": nats_server.url, "AETHER_WATCH_NAMESPACES": NAMESPACE, **(environment or {})})
            )
            pair.operators.append(OperatorProcess(name, link, process))
        yield pair


@asynccontextmanager
async def _running(name: str, kube_url: str, environment: dict[str, str]) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    words = (sys.executable, "-m", "tests.histories.operator_process", name, kube_url)
    process = await asyncio.create_subprocess_exec(*words, env={**os.environ, **environment})
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def place(pair: Pair) -> tuple[FakePod, FakePod]:
    """Give the cluster two pods and some actors, and wait until all of it is written."""
    pods = await pair.stage.add_pod("a"), await pair.stage.add_pod("b")
    for name in NAMES:
        await pair.stage.add_actor(name)
    async with asyncio.timeout(WAIT_S):
        await pair.api.until(lambda: all(pair.stage.pod_of(name) for name in NAMES))
    return pods


def placements(pair: Pair) -> dict[str, tuple[str, int]]:
    return {name: (pair.stage.pod_of(name), integer_at(pair.stage.actor(name), "status", "placement", "epoch")) for name in NAMES}


async def until_placed(pair: Pair, name: str, deadline_s: float) -> None:
    async with asyncio.timeout(deadline_s):
        await pair.api.until(lambda: pair.stage.pod_of(name) != "")


async def test_when_the_leader_is_killed_the_standby_acts_and_moves_nobody(nats_server: EmbeddedServer) -> None:
    async with two_operators(nats_server) as pair:
        leader, standby = await pair.wait_for_leader()
        pods = await place(pair)
        before, term = placements(pair), pair.stage.lease.term

        leader.send(signal.SIGKILL)
        await pair.stage.add_actor("erin")
        await until_placed(pair, "erin", TAKEOVER_S)

        assert placements(pair) == before
        assert pair.stage.lease.term > term
        assert {assignment.term for pod in pods for assignment in pod.heard} == {term, pair.stage.lease.term}
        assert pair.writes_of(standby)
        events = [document for path, document in pair.api.documents.objects.items() if path.startswith(KUBE_EVENTS.path("aether-system"))]
        assert {text_at(event, "reason") for event in events} == {"LeaderElection"}


async def test_a_pod_that_dies_with_the_leader_is_found_dead_by_the_standby(nats_server: EmbeddedServer) -> None:
    async with two_operators(nats_server) as pair:
        leader, _ = await pair.wait_for_leader()
        lost, left = await place(pair)
        before = placements(pair)
        kept = {name for name, (pod, _) in before.items() if pod == left.name}

        leader.send(signal.SIGKILL)
        lost.mute = True
        async with asyncio.timeout(TAKEOVER_S):
            await pair.api.until(lambda: {pair.stage.pod_of(name) for name in NAMES} == {left.name})

        assert {name: placed for name, placed in placements(pair).items() if name in kept} == {name: before[name] for name in kept}
        reasons = {name: next(text_at(item, "reason") for item in objects_at(pair.stage.actor(name), "status", "conditions") if item["type"] == "Ready") for name in NAMES}
        assert {name for name, reason in reasons.items() if reason == "PodLost"} == set(NAMES) - kept


async def test_a_leader_that_ends_in_order_hands_over_at_once(nats_server: EmbeddedServer) -> None:
    async with two_operators(nats_server) as pair:
        leader, _ = await pair.wait_for_leader()
        await place(pair)
        before, term = placements(pair), pair.stage.lease.term
        records = [parse_lease(entry.document) for entry in pair.api.documents.history if entry.path == LEASE]

        leader.send(signal.SIGTERM)
        await pair.wait_for_leader(above=term)
        await pair.stage.add_actor("erin")
        await until_placed(pair, "erin", TAKEOVER_S)

        after = [parse_lease(entry.document) for entry in pair.api.documents.history if entry.path == LEASE][len(records) :]
        assert "" in [record.holder for record in after], "it was given back, not waited for"
        assert await leader.process.wait() == 0
        assert placements(pair) == before


async def test_a_leader_that_was_stopped_for_long_does_nothing_in_its_old_term(nats_server: EmbeddedServer) -> None:
    async with two_operators(nats_server, QUICK) as pair:
        leader, standby = await pair.wait_for_leader()
        pods = await place(pair)
        before, term = placements(pair), pair.stage.lease.term
        await pair.stage.add_actor("erin")  # it is in the middle of something

        leader.send(signal.SIGSTOP)
        await pair.wait_for_leader(above=term)
        await pair.stage.add_actor("frank")
        await until_placed(pair, "frank", TAKEOVER_S)
        written, heard = pair.writes_of(leader), [len(pod.heard) for pod in pods]
        for name in ("grace", "heidi"):
            await pair.stage.add_actor(name)
        leader.send(signal.SIGCONT)
        looks = len(pair.api.requests)

        def looked_again() -> bool:
            return any(
                request.method == "GET" and request.path == LEASE and request.headers.get("Authorization") == f"Bearer {leader.name}" for request in pair.api.requests[looks:]
            )

        async with asyncio.timeout(TAKEOVER_S):
            await pair.api.until(looked_again)
        await until_placed(pair, "heidi", TAKEOVER_S)

        assert pair.writes_of(leader) == written
        assert all(assignment.term > term for pod, count in zip(pods, heard, strict=True) for assignment in pod.heard[count:])
        assert placements(pair) == before
        assert pair.is_standby(leader)
        assert pair.writes_of(standby)


async def test_a_leader_whose_api_calls_hang_loses_the_lease_in_time(nats_server: EmbeddedServer) -> None:
    async with two_operators(nats_server, QUICK) as pair:
        leader, _ = await pair.wait_for_leader()
        await place(pair)
        before, term = placements(pair), pair.stage.lease.term

        leader.link.stall()
        await pair.wait_for_leader(above=term)
        await pair.stage.add_actor("erin")
        await until_placed(pair, "erin", TAKEOVER_S)
        written = _writes_to_actors(pair, leader)
        leader.link.mend()
        await pair.stage.add_actor("frank")
        await until_placed(pair, "frank", TAKEOVER_S)

        assert placements(pair) == before
        # What was on its way when the link stalled may still arrive: of a pool's objects each apply is whole, and each status names its resourceVersion.
        assert _writes_to_actors(pair, leader) == written
        assert ACTORS.path(NAMESPACE, "erin") in pair.api.documents.objects


def _writes_to_actors(pair: Pair, operator: OperatorProcess) -> list[str]:
    return [write for write in pair.writes_of(operator) if "/actors/" in write]
