"""How far a long replay is: what is said of it, how often, and what becomes of the version meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest

from aether_api.envelope import StoredCommit
from aether_api.errors import Disconnected, PermissionDenied, RequestTimeout
from aether_api.identity import ActorId
from aether_api.v1alpha1 import ActorPhase
from aether_runtime.adapters.memory import MemoryCommitLog, MemorySnapshotStore
from aether_runtime.clock import LoopClock
from aether_runtime.core.group import Now
from aether_runtime.core.snapshot_policy import UNIT_DEFAULT_S
from aether_runtime.core.snapshots import SnapshotBody
from aether_runtime.replays import SHOW_AFTER_S, SHOW_EVERY_S, Replays, ReplayWatch, describe_progress
from tests.histories.bank import build_command
from tests.histories.faults import FaultyCommitLog
from tests.histories.world import Clock, Pod, run_commands

EVENTS = 40


@pytest.mark.parametrize(
    ("done", "total", "took_s", "expected"),
    [
        (0, 12, 0.0, "replayed 0 of 12 events"),
        (12, 12, 3.0, "replayed 12 of 12 events"),
        (120_000, 1_000_000, 1.23, "replayed 120,000 of 1,000,000 events (12 %), about 9 s to go"),
        (1_000, 1_000_000, 1.0, "replayed 1,000 of 1,000,000 events (0 %), about 17 min to go"),
        (999, 1_000, 0.1, "replayed 999 of 1,000 events (99 %), about 1 s to go"),
    ],
)
def test_progress_is_told_with_counts_share_and_time_to_go(done: int, total: int, took_s: float, expected: str) -> None:
    assert describe_progress(done, total, took_s) == expected


def test_a_short_replay_is_shown_once_and_a_long_one_every_few_seconds() -> None:
    elapsed_s, shown = 0.0, []
    watch = ReplayWatch(lambda: Now(0.0, elapsed_s), lambda: shown.append((elapsed_s, watch.describe())))
    watch.begin(100, 1_100)
    watch.move(150)
    assert shown == [(0.0, "replayed 0 of 1,000 events")]
    for tick in range(1, 101):
        elapsed_s = tick / 10
        watch.move(100 + tick)
    assert shown[1:] == [
        (SHOW_AFTER_S, "replayed 10 of 1,000 events (1 %), about 2 min to go"),
        (SHOW_AFTER_S + SHOW_EVERY_S, "replayed 60 of 1,000 events (6 %), about 2 min to go"),
    ]


def test_all_replays_under_way_are_added_up_and_forgotten_at_their_end() -> None:
    elapsed_s, replays = 0.0, Replays()
    first = ReplayWatch(lambda: Now(0.0, elapsed_s), lambda: None)
    elapsed_s = 2.0
    second = ReplayWatch(lambda: Now(0.0, elapsed_s), lambda: None)
    elapsed_s = 5.0
    with replays.following(first), replays.following(second):
        first.begin(0, 10)
        first.move(4)
        second.begin(50, 70)
        assert (replays.to_go, replays.oldest_s) == (26, 5.0)
    assert (replays.to_go, replays.oldest_s) == (0, 0.0)


class SlowCommitLog(FaultyCommitLog):
    """Takes a second for every commit that is read."""

    def __init__(self, inner: MemoryCommitLog, clock: Clock) -> None:
        super().__init__(inner)
        self.clock = clock
        self.link_lost_at: int | None = None

    async def read_commits(self, actor: ActorId, head: StoredCommit, *, from_n: int = 0) -> AsyncGenerator[Sequence[StoredCommit]]:
        async for commits in super().read_commits(actor, head, from_n=from_n):
            self.clock.elapsed_s += 1.0
            if commits[0].n == self.link_lost_at:
                self.link_lost_at = None
                raise Disconnected("the link dropped")
            yield commits


async def fill(events: MemoryCommitLog) -> None:
    pod = Pod("before", events)
    vm = await pod.start()
    await run_commands(pod, vm, build_command("Open", {"owner": "alice"}, id="o"))
    for number in range(EVENTS - 1):
        await run_commands(pod, vm, build_command("Deposit", {"amount": 1}, id=f"d{number}"))


async def test_while_a_long_replay_runs_the_status_tells_how_far_it_is_and_the_version_never_runs_back() -> None:
    inner, clock = MemoryCommitLog(), Clock()
    await fill(inner)
    pod = Pod("a", SlowCommitLog(inner, clock), clock=clock)
    await pod.start()
    replaying = [report for report in pod.reports if report.phase is ActorPhase.REPLAYING]
    assert [report.message for report in replaying] == [
        "replayed 0 of 40 events",
        "replayed 1 of 40 events (2 %), about 39 s to go",
        *(f"replayed {done} of 40 events ({100 * done // 40} %), about {40 - done} s to go" for done in range(6, 40, 5)),
    ]
    assert {report.version for report in pod.reports} == {EVENTS}
    assert (pod.reports[-1].phase, pod.reports[-1].message) == (ActorPhase.READY, "replayed 40 events")


async def test_a_replay_that_waits_for_the_log_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.vm_reading.RETRY_S", 0.0)
    inner, clock = MemoryCommitLog(), Clock()
    await fill(inner)
    events = SlowCommitLog(inner, clock)
    events.link_lost_at = 10
    pod = Pod("a", events, clock=clock)
    await pod.start()
    told = [report.message for report in pod.reports]
    assert "the log cannot be read now, trying again: the link dropped" in told
    assert told[-1] == "replayed 40 events"


async def test_a_replay_whose_log_may_not_be_read_waits_says_why_and_warns_seldom(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    inner, clock = MemoryCommitLog(), Clock()
    await fill(inner)
    events, tries = FaultyCommitLog(inner), 0
    events.read_error = PermissionDenied("$JS.API.STREAM.MSG.GET.X", "publish")

    async def pass_time(delay_s: float) -> None:
        nonlocal tries
        clock.elapsed_s += delay_s
        tries += 1
        if clock.elapsed_s >= 100.0:
            events.read_error = None

    monkeypatch.setattr("aether_runtime.vm_reading.asyncio", SimpleNamespace(sleep=pass_time))
    pod = Pod("a", events, clock=clock)
    await pod.start()
    told = [report.message for report in pod.reports]
    assert any("does not let this user publish" in message for message in told)
    assert told[-1] == "replayed 40 events"
    assert (tries, len([record for record in caplog.records if record.levelname == "WARNING" and record.name == "aether_runtime.vm_reading"])) == (20, 2)


async def test_an_actor_that_waits_for_a_permit_says_so_and_has_no_version() -> None:
    events = MemoryCommitLog()
    await fill(events)
    pod = Pod("a", events)
    vm = pod.build()
    vm.take_model(vm.model)
    vm.take_placement(replace(vm.desired, snapshot_every=7))
    assert [(report.phase, report.version, report.message) for report in pod.reports] == [(ActorPhase.REPLAYING, None, "waits for a permit to replay")] * 2
    await vm.start()
    assert pod.reports[-1].version == EVENTS


class SlowSnapshotStore(MemorySnapshotStore):
    """Takes the time-out of a request for every question, and has no answer."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    async def read_kept(self, actor: ActorId, fold: str) -> AsyncGenerator[SnapshotBody]:
        self.clock.elapsed_s += 5.0
        raise RequestTimeout("no answer in 5 s")
        yield  # type: ignore[unreachable]  # makes it a generator


async def test_time_that_was_spent_on_snapshots_is_none_of_the_rate_of_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.vm_reading.RETRY_S", 0.0)
    events, clock = MemoryCommitLog(), Clock()
    await fill(events)
    monkeypatch.setattr("aether_runtime.replays.time", SimpleNamespace(monotonic=lambda: clock.elapsed_s))
    pod = Pod("a", events, SlowSnapshotStore(clock), clock=clock)
    await pod.start()
    assert (pod.reports[-1].message, clock.elapsed_s) == ("replayed 40 events", 15.0)
    assert pod.snapshotter.rate.unit_s <= UNIT_DEFAULT_S


async def test_a_replay_within_one_iteration_of_the_loop_takes_time() -> None:
    watch = ReplayWatch(LoopClock(asyncio.get_running_loop()).now, lambda: None)
    watch.begin(0, 1)
    time.sleep(0.002)  # applies events
    assert watch.elapsed_s == 0
    assert watch.applying_s >= 0.002


async def test_an_actor_whose_log_cannot_be_read_at_all_has_no_version() -> None:
    clock = Clock()
    watch = ReplayWatch(clock.now, lambda: None)
    assert (watch.target, watch.describe()) == (None, "reading the log")
    watch.wait("no server")
    assert (watch.target, watch.describe()) == (None, "the log cannot be read now, trying again: no server")
