"""Decided statuses that the API server refuses: they wait longer each time, and stand until another placement overtakes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from aether_api.identity import Epoch, PodUid
from aether_kube.backoff import Backoff
from aether_kube.client import KubeClient
from aether_kube.connection import anonymous_connection
from aether_kube.documents import text_at
from aether_kube.kinds import ACTORS
from aether_kube.kube_events import KubeEventRecorder, Reporter
from aether_kube.store import ObjectKey
from aether_operator.cluster.overlay import Overlay
from aether_operator.cluster.statuses import REFUSED_RETRY, StatusWriter, is_overtaken
from aether_operator.planning.planner import make_plan
from aether_operator.planning.snapshot import ActorView, Placed
from aether_operator.planning.statuses import DesiredStatus
from tests.fake_apiserver.server import FakeApiServer, Fault
from tests.unit.aether_operator.snapshots import actor, pod, snapshot

ALICE = actor("alice")
PATH = ACTORS.path("shop", "alice")


class Stage:
    """One Actor, its cache, and what was decided about it."""

    def __init__(self, api: FakeApiServer, client: KubeClient, retry: Backoff) -> None:
        self.api = api
        self.cache: dict[ObjectKey, ActorView] = {}
        self.overlay = Overlay()
        self.replans = 0
        recorder = KubeEventRecorder(client, Reporter("test", "test"))
        self.writer = StatusWriter(client, self.overlay, recorder, find=self.cache.get, replan=self.count_replan, refused_retry=retry)

    def count_replan(self) -> None:
        self.replans += 1

    def plan(self) -> list[DesiredStatus]:
        """Plan on the cache with what was decided laid over it, and submit what the plan decides."""
        plan = make_plan(snapshot([self.overlay.apply(item) for item in self.cache.values()], [pod("a")]))
        for change in plan.changes:
            self.overlay.decide(change.actor, change.status)
            self.writer.submit(change.actor, change.status)
        return [change.status for change in plan.changes]

    def tries(self) -> int:
        return sum(request.method == "PATCH" for request in self.api.requests)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def staged(retry: Backoff) -> AsyncGenerator[Stage, None]:
    async with FakeApiServer() as api, KubeClient(anonymous_connection(api.url)) as client, asyncio.TaskGroup() as tasks:
        stage = Stage(api, client, retry)
        stored = await api.put(PATH, {**ACTORS.document("shop", "alice"), "metadata": {"namespace": "shop", "name": "alice", "uid": ALICE.uid}})
        stage.cache[ALICE.key] = replace(ALICE, resource_version=int(text_at(stored, "metadata", "resourceVersion")))
        task = tasks.create_task(stage.writer.queue.run())
        yield stage
        task.cancel()


async def test_a_status_that_is_refused_stands_and_is_written_once_it_is_taken() -> None:
    async with staged(Backoff(first_s=0.01, max_s=0.01)) as stage:
        stage.api.faults.append(Fault(lambda request: request.method == "PATCH", 422, times=2))

        decided = stage.plan()
        await stage.until(lambda: stage.tries() == 2)
        again = stage.plan()
        await stage.until(lambda: text_at(stage.api.documents.objects[PATH], "status", "placement", "pod") == "pod-a")

        assert (len(decided), again, stage.replans) == (1, [], 0)
        await stage.until(lambda: len(stage.writer.queue) == 0)


async def test_a_status_that_is_refused_each_time_is_not_tried_all_the_time(caplog: pytest.LogCaptureFixture) -> None:
    async with staged(Backoff(first_s=100, max_s=1000)) as stage:
        stage.api.faults.append(Fault(lambda request: request.method == "PATCH", 422, times=10))

        stage.plan()
        await stage.until(lambda: len(stage.writer.queue) == 1 and stage.tries() == 1)
        stage.plan()

        assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == ["a status was refused and is tried again later"]
        assert (stage.tries(), stage.replans) == (1, 0)


async def test_a_status_that_another_placement_has_overtaken_is_decided_anew() -> None:
    async with staged(REFUSED_RETRY) as stage:
        stage.api.faults.append(Fault(lambda request: request.method == "PATCH", 422))
        [decided] = stage.plan()
        assert decided.placement is not None

        stage.cache[ALICE.key] = replace(stage.cache[ALICE.key], placement=Placed("pod-b", PodUid("b"), decided.placement.epoch))
        await stage.until(lambda: stage.replans == 1)

        [anew] = stage.plan()
        assert anew.placement is not None
        assert anew.placement.epoch > decided.placement.epoch


def test_only_another_placement_of_no_lower_epoch_overtakes_a_status() -> None:
    [change] = make_plan(snapshot([ALICE], [pod("a")])).changes
    placed, here = change.status, change.new
    unplaced = DesiredStatus(None, placed.phase, 1, ())

    assert not is_overtaken(placed, None)
    assert not is_overtaken(placed, here)
    assert not is_overtaken(placed, Placed("pod-b", PodUid("b"), Epoch(here.epoch - 1)))
    assert is_overtaken(placed, Placed("pod-b", PodUid("b"), here.epoch))
    assert is_overtaken(placed, Placed("pod-a", PodUid("a"), Epoch(here.epoch + 1)))
    assert is_overtaken(unplaced, here)
    assert not is_overtaken(unplaced, None)


def test_refused_writes_wait_longer_each_time_up_to_some_minutes() -> None:
    waits = [REFUSED_RETRY.delay_s(refusals, 0.0) for refusals in range(1, 12)]

    assert waits == sorted(waits)
    assert waits[0] < 1
    assert 60 <= waits[-1] <= 300
