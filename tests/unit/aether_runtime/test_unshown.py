"""What becomes of an actor that the operator gave to a process and that its source does not show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from aether_api.errors import KubeUnavailable
from aether_api.identity import ActorId, Epoch, PodUid, parse_actor_id
from aether_runtime import reporter as reporter_module
from aether_runtime import unshown
from aether_runtime.ports import ActorReport, DesiredActor, DesiredListener, Home
from aether_runtime.registry import VMRegistry
from aether_runtime.reporter import Reporter
from aether_runtime.unshown import Finding, UnshownPlacements, judge_placement

HERE, ELSEWHERE, NOWHERE = PodUid("here"), PodUid("elsewhere"), PodUid("")
ALICE = parse_actor_id("shop", "account", "alice")
GIVEN = DesiredActor(ALICE, "alice", "uid-alice", Epoch(5))


@pytest.mark.parametrize(
    ("home", "finding"),
    [
        pytest.param(None, "over", id="the resource is gone"),
        pytest.param(Home(HERE, replace(GIVEN, uid="another")), "over", id="it was made anew"),
        pytest.param(Home(ELSEWHERE, replace(GIVEN, epoch=Epoch(6))), "over", id="it was moved on"),
        pytest.param(Home(NOWHERE, replace(GIVEN, epoch=Epoch(6))), "over", id="it was taken off all pods"),
        pytest.param(Home(NOWHERE, replace(GIVEN, epoch=Epoch(0))), "waits", id="its first placement is not written yet"),
        pytest.param(Home(ELSEWHERE, replace(GIVEN, epoch=Epoch(4))), "waits", id="its next placement is not written yet"),
        pytest.param(Home(HERE, replace(GIVEN, epoch=Epoch(4))), "waits", id="its next placement here is not written yet"),
        pytest.param(Home(HERE, GIVEN), "shown", id="only the watch lags"),
        pytest.param(Home(HERE, replace(GIVEN, epoch=Epoch(6))), "shown", id="and a newer one here"),
    ],
)
def test_a_placement_is_over_when_its_resource_is_gone_or_knows_a_later_one(home: Home | None, finding: Finding) -> None:
    assert judge_placement(GIVEN, home, HERE) == finding


@dataclass
class Shelf:
    """A directory that fails a few times, and a listener that notes what it is told."""

    home: Home | None
    failures: int = 0
    asked: int = 0
    told: list[tuple[str, Epoch]] = field(default_factory=list[tuple[str, Epoch]])

    async def find(self, actor: ActorId) -> Home | None:
        self.asked += 1
        if self.asked <= self.failures:
            raise KubeUnavailable("away")
        return self.home

    def on_adopt(self, desired: DesiredActor) -> None:
        self.told.append(("adopt", desired.epoch))

    def on_release(self, actor: ActorId, epoch: Epoch) -> None:
        self.told.append(("release", epoch))


class NoSink:
    async def write(self, report: ActorReport) -> int:
        raise AssertionError("nothing is written of what is not shown")

    def say(self, report: ActorReport) -> None: ...

    def forget(self, actor: ActorId) -> None: ...


@asynccontextmanager
async def watching(shelf: Shelf, registry: VMRegistry, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Reporter]:
    monkeypatch.setattr(reporter_module, "HELD_S", 0.02)
    monkeypatch.setattr(unshown, "LOOK_EVERY_S", 0.005)
    reporter = Reporter(NoSink(), budget_per_s=lambda: 100.0)
    listener: DesiredListener = shelf  # type: ignore[assignment]  # it is told of actors only
    async with asyncio.TaskGroup() as tasks:
        looks = tasks.create_task(UnshownPlacements(shelf, HERE, registry, reporter, listener).run())
        yield reporter
        looks.cancel()


async def until_told(shelf: Shelf) -> None:
    async with asyncio.timeout(5):
        while not shelf.told:
            await asyncio.sleep(0.005)


async def test_an_actor_whose_resource_is_gone_is_let_go_once_the_api_server_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, registry = Shelf(None, failures=2), VMRegistry()
    registry.want(GIVEN)
    async with watching(shelf, registry, monkeypatch) as reporter:
        reporter.hold(ALICE, GIVEN.epoch)
        await until_told(shelf)

    assert (shelf.told[0], shelf.asked) == (("release", 5), 3)


async def test_a_placement_that_the_watch_does_not_bring_is_adopted_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, registry = Shelf(Home(HERE, replace(GIVEN, epoch=Epoch(6)))), VMRegistry()
    registry.want(GIVEN)
    async with watching(shelf, registry, monkeypatch) as reporter:
        reporter.hold(ALICE, GIVEN.epoch)
        await until_told(shelf)

    assert shelf.told[0] == ("adopt", 6)


async def test_what_is_shown_in_time_or_let_go_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, registry = Shelf(None), VMRegistry()
    async with watching(shelf, registry, monkeypatch) as reporter:
        reporter.hold(ALICE, GIVEN.epoch)
        reporter.show(ALICE, GIVEN.epoch)
        await asyncio.sleep(0.06)
        assert shelf.asked == 0

        reporter.hold(ALICE, Epoch(7))  # of an actor that was let go meanwhile
        async with asyncio.timeout(5):
            while not shelf.asked:
                await asyncio.sleep(0.005)

    assert shelf.told == []
