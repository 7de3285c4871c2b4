"""Status on a budget: what is written next, and what is never written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from aether_api.errors import KubeInvalid, KubeUnavailable
from aether_api.identity import ActorId, Epoch, parse_actor_id
from aether_api.v1alpha1 import ActorPhase
from aether_runtime.ports import ActorReport, DesiredActor, ShownStatus
from aether_runtime.reporter import HELD_S, OVERDUE_S, QUIET_S, TURNS_SHARE, WRITES_AT_ONCE, Budget, Reporter, ReportQueue


def build_report(name: str = "alice", version: int = 0, phase: ActorPhase = ActorPhase.READY, epoch: int = 1) -> ActorReport:
    return ActorReport(DesiredActor(parse_actor_id("default", "account", name), name, "u", Epoch(epoch)), phase, version, 0, "account@x", "Ready")


def show(report: ActorReport, revision: int) -> ShownStatus:
    """Return a status that tells what a report says."""
    return ShownStatus(
        revision, report.phase, report.version, report.snapshot_version, report.told_epoch, report.model_version, report.desired.generation, frozenset(report.conditions)
    )


def drain(queue: ReportQueue, now_s: float) -> list[ActorReport]:
    taken = []
    while (report := queue.take_turn() or queue.take_version(now_s)) is not None:
        taken.append(report)
        queue.note_written(report)
    return taken


def test_the_first_report_and_every_change_of_phase_are_due_at_once() -> None:
    queue = ReportQueue()
    queue.put(build_report(phase=ActorPhase.REPLAYING), 0.0)
    assert [report.phase for report in drain(queue, 0.0)] == [ActorPhase.REPLAYING]
    queue.put(build_report(), 0.1)
    assert [report.phase for report in drain(queue, 0.1)] == [ActorPhase.READY]


def test_a_version_is_due_when_it_has_been_quiet() -> None:
    queue = ReportQueue()
    queue.put(build_report(), 0.0)
    drain(queue, 0.0)
    queue.put(build_report(version=1), 1.0)
    queue.put(build_report(version=2), 1.5)
    assert drain(queue, 1.4 + QUIET_S) == []
    assert [report.version for report in drain(queue, 1.5 + QUIET_S)] == [2]


def test_a_version_that_never_rests_is_written_all_the_same() -> None:
    queue = ReportQueue()
    queue.put(build_report(), 0.0)
    drain(queue, 0.0)
    written = []
    for tick in range(1, 201):
        queue.put(build_report(version=tick), tick / 10)
        written += drain(queue, tick / 10)
    assert [report.version for report in written] == pytest.approx([1 + OVERDUE_S * 10 * n + n - 1 for n in (1, 2, 3)], abs=3)


def test_phases_go_before_versions_and_the_longest_waiting_version_first() -> None:
    queue = ReportQueue()
    for name in ("a", "b", "c"):
        queue.put(build_report(name), 0.0)
    drain(queue, 0.0)
    queue.put(build_report("b", version=1), 1.0)
    queue.put(build_report("a", version=1), 1.1)
    queue.put(build_report("c", phase=ActorPhase.QUARANTINED), 1.2)
    assert [report.desired.actor.id for report in drain(queue, 10.0)] == ["c", "b", "a"]


def test_an_equal_report_is_not_written_again_and_takes_the_one_that_waits_with_it() -> None:
    queue = ReportQueue()
    queue.put(build_report(), 0.0)
    drain(queue, 0.0)
    queue.put(build_report(), 1.0)
    assert len(queue) == 0
    queue.put(build_report(version=1), 1.0)
    queue.put(build_report(), 1.1)
    assert (len(queue), drain(queue, 100.0)) == (0, [])


def test_a_new_placement_is_due_at_once() -> None:
    queue = ReportQueue()
    queue.put(build_report(), 0.0)
    drain(queue, 0.0)
    queue.put(build_report(epoch=2), 0.1)
    assert [report.desired.epoch for report in drain(queue, 0.1)] == [2]


def test_only_the_newest_report_of_an_actor_waits() -> None:
    queue = ReportQueue()
    for version in range(5):
        queue.put(build_report(version=version), 0.0)
    assert [report.version for report in drain(queue, 0.0)] == [4]


def test_nothing_is_written_about_an_actor_that_was_given_away() -> None:
    queue = ReportQueue()
    queue.put(build_report(), 0.0)
    queue.forget(build_report().desired.actor)
    assert (len(queue), drain(queue, 10.0)) == (0, [])


def test_what_is_held_is_written_when_it_is_shown_and_only_its_newest_state() -> None:
    queue, actor = ReportQueue(), build_report().desired.actor
    queue.put(build_report(phase=ActorPhase.REPLAYING), 0.0)
    queue.hold(actor, 0.0)
    queue.put(build_report(), 0.5)
    queue.repeat(actor)
    assert (drain(queue, 1.0), queue.has(actor)) == ([], True)

    queue.show(actor, 1.0)

    assert drain(queue, 1.0) == [build_report()]


def test_what_is_held_for_too_long_is_overdue_once_in_that_time_and_held_on() -> None:
    queue = ReportQueue()
    for number in range(3):
        queue.hold(build_report(f"a{number}").desired.actor, float(number))
        queue.put(build_report(f"a{number}"), float(number))

    overdue = [[actor.id for actor in queue.take_overdue(now_s)] for now_s in (HELD_S - 0.5, HELD_S + 1, HELD_S + 1.5, HELD_S + 2, 2 * HELD_S + 1)]

    assert overdue == [[], ["a0", "a1"], [], ["a2"], ["a0", "a1"]]
    assert (drain(queue, 2 * HELD_S + 1), len(queue)) == ([], 3)


class Sink:
    """A sink whose writes fail as told, and then wait for `go`."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.tried: list[ActorReport] = []
        self.written: list[ActorReport] = []
        self.said: list[ActorReport] = []
        self.forgotten: list[ActorId] = []
        self.go = asyncio.Event()
        self.go.set()

    async def write(self, report: ActorReport) -> int:
        self.tried.append(report)
        await self.go.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.written.append(report)
        return len(self.tried)

    def say(self, report: ActorReport) -> None:
        self.said.append(report)

    def forget(self, actor: ActorId) -> None:
        self.forgotten.append(actor)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def turn(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_failed_write_is_tried_again() -> None:
    sink = Sink(KubeUnavailable("away", retry_after_s=0.0))
    reporter = Reporter(sink, budget_per_s=lambda: 1000.0)
    reporter.report(build_report())
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        await until(lambda: sink.written)
        running.cancel()
    assert len(sink.tried) == 2


async def test_writes_that_wait_to_be_tried_again_leave_room_for_others() -> None:
    sink = Sink(*(KubeUnavailable("away", retry_after_s=3600.0) for _ in range(WRITES_AT_ONCE)))
    reporter = Reporter(sink, budget_per_s=lambda: 1000.0)
    for number in range(WRITES_AT_ONCE):
        reporter.report(build_report(f"a{number}"))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        await until(lambda: reporter.retried == WRITES_AT_ONCE)
        reporter.report(build_report("a0", version=9))
        reporter.report(build_report("bob"))
        await until(lambda: sink.written)
        running.cancel()
    assert [report.desired.actor.id for report in sink.written] == ["bob"], "nothing newer of a0 is written before its pause is over"
    assert reporter.dirty == WRITES_AT_ONCE + 1


async def test_a_newer_report_replaces_the_one_whose_write_failed() -> None:
    sink = Sink(KubeUnavailable("away", retry_after_s=0.0))
    sink.go.clear()
    reporter = Reporter(sink, budget_per_s=lambda: 1000.0)
    reporter.report(build_report(version=1))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        await until(lambda: sink.tried)
        reporter.report(build_report(version=2))
        sink.go.set()
        await until(lambda: sink.written)
        running.cancel()
    assert [report.version for report in sink.written] == [2]


async def test_a_write_that_fails_after_the_actor_was_given_away_is_not_repeated() -> None:
    sink = Sink(KubeUnavailable("away", retry_after_s=0.0))
    sink.go.clear()
    reporter = Reporter(sink, budget_per_s=lambda: 1000.0)
    reporter.report(build_report("alice"))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        await until(lambda: sink.tried)
        reporter.forget(build_report("alice").desired.actor)
        reporter.report(build_report("bob"))
        sink.go.set()
        await until(lambda: sink.written)
        await turn()
        running.cancel()
    assert [report.desired.actor.id for report in sink.tried] == ["alice", "bob"]


async def test_a_write_that_ends_after_the_actor_was_given_away_hides_nothing_later() -> None:
    sink = Sink()
    sink.go.clear()
    reporter = Reporter(sink, budget_per_s=lambda: 1000.0)
    reporter.report(build_report())
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        await until(lambda: sink.tried)
        reporter.forget(build_report().desired.actor)
        sink.go.set()
        await turn()
        reporter.report(build_report())
        await until(lambda: len(sink.written) == 2)
        running.cancel()
    assert len(sink.written) == 2
    assert sink.forgotten == [build_report().desired.actor]


async def test_a_state_that_is_back_while_another_one_is_written_is_written_again() -> None:
    """An actor that is woken while its sleep is being reported says what was written before."""
    sink = Sink()
    reporter = Reporter(sink, budget_per_s=lambda: 1000.0)
    reporter.report(build_report())
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        await until(lambda: sink.written)
        sink.go.clear()
        reporter.report(build_report(phase=ActorPhase.PASSIVE))
        await until(lambda: len(sink.tried) == 2)
        reporter.report(build_report())
        sink.go.set()
        await until(lambda: len(sink.written) == 3)
        running.cancel()
    assert [report.phase for report in sink.written] == [ActorPhase.READY, ActorPhase.PASSIVE, ActorPhase.READY]


async def test_nothing_is_written_of_an_actor_that_was_given_away_while_its_report_waited_for_room() -> None:
    sink = Sink()
    sink.go.clear()
    reporter = Reporter(sink, budget_per_s=lambda: 1000.0)
    for number in range(WRITES_AT_ONCE + 1):
        reporter.report(build_report(f"a{number}"))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        await until(lambda: len(sink.tried) == WRITES_AT_ONCE)
        await turn()
        reporter.forget(build_report(f"a{WRITES_AT_ONCE}").desired.actor)
        sink.go.set()
        await until(lambda: reporter.dirty == 0)
        running.cancel()
    assert len(sink.tried) == WRITES_AT_ONCE


@pytest.mark.parametrize("failure", [KubeInvalid("no"), ValueError("no text of the API server's")], ids=["refused", "not made"])
async def test_a_write_that_fails_for_good_harms_no_other_and_is_said_again_when_the_status_was_overwritten(failure: Exception) -> None:
    sink = Sink(failure)
    reporter = Reporter(sink, budget_per_s=lambda: 1000.0)
    reporter.report(build_report("alice"))
    reporter.report(build_report("bob"))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        await until(lambda: sink.written)
        await turn()
        assert ([report.desired.actor.id for report in sink.written], reporter.refused, reporter.dirty) == (["bob"], 1, 0)
        reporter.see(build_report("alice").desired.actor, ShownStatus(2, ActorPhase.SCHEDULED))
        await until(lambda: len(sink.written) == 2)
        running.cancel()
    assert sink.written[-1] == build_report("alice")


async def test_a_status_is_repeated_only_if_it_was_overwritten_after_our_write() -> None:
    sink = Sink()
    reporter = Reporter(sink, budget_per_s=lambda: 1000.0)
    actor = build_report().desired.actor
    reporter.report(build_report())
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        await until(lambda: sink.written)
        reporter.see(actor, ShownStatus(1, ActorPhase.SCHEDULED))
        reporter.see(actor, show(build_report(), 2))
        await turn()
        assert len(sink.written) == 1
        reporter.see(actor, ShownStatus(2, ActorPhase.SCHEDULED))
        await until(lambda: len(sink.written) == 2)
        running.cancel()
    assert sink.written == [build_report(), build_report()]


async def test_a_status_that_was_restored_from_a_backup_is_covered_though_its_revision_is_lower_than_that_of_our_write() -> None:
    sink = Sink()
    reporter = Reporter(sink, budget_per_s=lambda: 1000.0)
    actor = build_report().desired.actor
    reporter.report(build_report(version=6))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        await until(lambda: sink.written)
        reporter.report(build_report(phase=ActorPhase.PASSIVE, version=7))
        await until(lambda: len(sink.written) == 2)
        reporter.see(actor, show(build_report(phase=ActorPhase.PASSIVE, version=7), 2))
        await turn()
        assert len(sink.written) == 2

        reporter.see(actor, show(build_report(version=6), 1))
        await until(lambda: len(sink.written) == 3)
        running.cancel()
    assert sink.written[-1] == build_report(phase=ActorPhase.PASSIVE, version=7)


async def test_an_older_status_of_our_own_that_arrives_late_is_covered_again() -> None:
    """A write that was given up may reach the API server after the newer one, which was sent over another connection."""
    sink = Sink()
    reporter = Reporter(sink, budget_per_s=lambda: 1000.0)
    actor = build_report().desired.actor
    late = show(build_report(version=6), 3)
    reporter.report(build_report(version=7))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        await until(lambda: sink.written)
        sink.go.clear()
        reporter.report(build_report(phase=ActorPhase.PASSIVE, version=7))
        await until(lambda: len(sink.tried) == 2)
        reporter.see(actor, late)
        await turn()
        assert len(sink.written) == 1
        sink.go.set()
        await until(lambda: len(sink.written) == 3)
        running.cancel()
    assert [(report.phase, report.version) for report in sink.written] == [(ActorPhase.READY, 7), (ActorPhase.PASSIVE, 7), (ActorPhase.PASSIVE, 7)]


async def test_the_budget_of_versions_is_never_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aether_runtime.reporter.TICK_S", 0.001)
    monkeypatch.setattr("aether_runtime.reporter.QUIET_S", 0.0)
    sink = Sink()
    budget = 1_000_000.0
    reporter = Reporter(sink, budget_per_s=lambda: budget)
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        for version in (0, 1):
            for number in range(100):
                reporter.report(build_report(f"a{number}", version=version))
            if version == 0:
                await until(lambda: reporter.dirty == 0)
                budget, began_s = 20.0, loop.time()
        while len(sink.written) < 104:
            await asyncio.sleep(0.005)
        running.cancel()
    assert len(sink.written) - 100 <= 20 + (loop.time() - began_s) * 20


def test_a_budget_adds_up_to_one_second_and_no_further() -> None:
    budget = Budget(0.0)
    spent = 0
    while budget.has_room(100.0, 20.0):
        budget.spend()
        spent += 1
    assert spent == 20
    assert not budget.has_room(100.0, 20.0)
    assert budget.has_room(100.1, 20.0)


async def test_changes_of_phase_do_not_wait_for_the_budget_of_versions() -> None:
    sink = Sink()
    budget = 1_000_000.0
    reporter = Reporter(sink, budget_per_s=lambda: budget)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        for number in range(4):
            reporter.report(build_report(f"a{number}"))
        await until(lambda: len(sink.written) == 4)
        budget = 1.0
        for number in range(4):
            reporter.report(build_report(f"a{number}", phase=ActorPhase.QUARANTINED))
        await until(lambda: len(sink.written) >= 4 + TURNS_SHARE)
        running.cancel()
    assert {report.phase for report in sink.written[4:]} == {ActorPhase.QUARANTINED}


async def test_nothing_is_written_about_a_placement_that_the_resource_does_not_show_yet() -> None:
    sink = Sink()
    reporter = Reporter(sink, budget_per_s=lambda: 1000.0)
    actor = build_report().desired.actor
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        reporter.show(actor, Epoch(1))
        reporter.hold(actor, Epoch(2))
        reporter.report(build_report(epoch=2))
        reporter.report(build_report("bob"))
        reporter.show(actor, Epoch(1))
        await until(lambda: sink.written)
        assert sink.written == [build_report("bob")], "an older placement says nothing of the newer one"

        reporter.show(actor, Epoch(2))
        await until(lambda: len(sink.written) == 2)
        reporter.hold(actor, Epoch(2))
        reporter.report(build_report(epoch=2, phase=ActorPhase.QUARANTINED))
        await until(lambda: len(sink.written) == 3)
        running.cancel()
    assert [report.desired.epoch for report in sink.written[1:]] == [2, 2]


async def test_a_first_report_that_all_is_well_is_told_while_it_is_held_and_not_written_where_the_status_tells_it() -> None:
    sink = Sink()
    reporter = Reporter(sink, budget_per_s=lambda: 1000.0)
    actor = build_report().desired.actor
    reporter.hold(actor, Epoch(1))
    reporter.report(build_report(phase=ActorPhase.REPLAYING))
    reporter.report(build_report())
    reporter.report(build_report())
    assert sink.said == [build_report()]
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        reporter.show(actor, Epoch(1))
        reporter.see(actor, show(build_report(), 7))
        await turn()
        assert (sink.tried, reporter.dirty) == ([], 0)
        reporter.see(actor, ShownStatus(8, ActorPhase.SCHEDULED))
        await until(lambda: sink.written)
        running.cancel()
    assert sink.written == [build_report()], "what is overwritten later is said again"


async def test_a_version_that_came_after_the_first_report_is_no_change_of_phase() -> None:
    sink = Sink()
    reporter = Reporter(sink, budget_per_s=lambda: 1000.0)
    actor = build_report().desired.actor
    reporter.hold(actor, Epoch(1))
    reporter.report(build_report())
    reporter.report(build_report(version=3))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        reporter.show(actor, Epoch(1))
        assert sink.said == [build_report()], "one is enough"
        reporter.see(actor, show(build_report(), 7))
        await turn()
        reporter.report(build_report(version=4))
        await turn()
        assert (sink.tried, reporter.dirty) == ([], 1)
        running.cancel()


@pytest.mark.parametrize("shown", [ShownStatus(7, ActorPhase.SCHEDULED), show(build_report(version=9), 7)])
async def test_a_first_report_that_the_status_does_not_tell_is_written(shown: ShownStatus) -> None:
    sink = Sink()
    reporter = Reporter(sink, budget_per_s=lambda: 1000.0)
    actor = build_report().desired.actor
    reporter.hold(actor, Epoch(1))
    reporter.report(build_report())
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        reporter.show(actor, Epoch(1))
        reporter.see(actor, shown)
        await until(lambda: sink.written)
        running.cancel()
    assert sink.written == [build_report()]


async def test_a_first_report_is_never_put_over_what_was_written_later() -> None:
    """The resource may be looked up before the watch shows what the operator wrote of it."""
    sink = Sink()
    reporter = Reporter(sink, budget_per_s=lambda: 1000.0)
    actor = build_report().desired.actor
    quarantined = build_report(phase=ActorPhase.QUARANTINED, version=5)
    reporter.hold(actor, Epoch(1))
    reporter.report(build_report())
    reporter.report(quarantined)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        sink.tried += [build_report()] * 7  # the sink counts revisions: ours is the eighth
        reporter.show(actor, Epoch(1))
        await until(lambda: sink.written)
        reporter.see(actor, show(build_report(), 7))
        reporter.see(actor, show(quarantined, 8))
        await turn()
        running.cancel()
    assert (sink.written, reporter.dirty) == ([quarantined], 0)


@pytest.mark.parametrize("changed", [replace(build_report(), model_version="account@y"), replace(build_report(), desired=replace(build_report().desired, generation=2))])
async def test_a_status_of_the_process_before_is_not_taken_for_a_first_report_of_another_model_or_spec(changed: ActorReport) -> None:
    sink = Sink()
    reporter = Reporter(sink, budget_per_s=lambda: 1000.0)
    actor = build_report().desired.actor
    reporter.hold(actor, Epoch(1))
    reporter.report(changed)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(reporter.run())
        reporter.show(actor, Epoch(1))
        reporter.see(actor, show(build_report(), 7))
        await until(lambda: sink.written)
        running.cancel()
    assert sink.written == [changed]


async def test_what_is_not_held_or_not_well_is_not_told() -> None:
    sink = Sink()
    reporter = Reporter(sink, budget_per_s=lambda: 1000.0)
    actor = build_report().desired.actor
    reporter.report(build_report())
    reporter.hold(actor, Epoch(1))
    for report in (
        build_report(phase=ActorPhase.QUARANTINED),
        build_report(phase=ActorPhase.PASSIVE),
        replace(build_report(), fenced_by=Epoch(9)),
        replace(build_report(), version=None),
    ):
        reporter.report(report)
    assert sink.said == []
