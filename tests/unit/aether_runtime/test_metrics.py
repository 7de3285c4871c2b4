"""The list of metrics, its page, and what a scrape says after some commands."""

from __future__ import annotations

import re
from pathlib import Path

from aether_runtime.adapters.memory import MemoryCommitLog
from aether_runtime.metrics import METRICS
from aether_runtime.tally import Timing
from tests.histories.bank import build_command
from tests.histories.faults import Fate, FaultyCommitLog
from tests.histories.world import Pod, run_commands

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_page_lists_every_metric_with_type_labels_and_meaning() -> None:
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in PAGE.read_text().splitlines() if line.startswith("| `aether_")]
    assert [row[:4] for row in rows] == [(f"`{metric.name}`", metric.kind, ", ".join(metric.labels), metric.meaning) for metric in METRICS]


def test_names_follow_the_conventions_of_prometheus() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"aether_[a-z_]+", metric.name)
        assert (metric.kind == "histogram") == metric.name.endswith("_seconds")
        assert not {"actor", "id", "actor_id"} & set(metric.labels)


async def test_what_becomes_of_commands_is_counted_by_outcome() -> None:
    pod = Pod("a", MemoryCommitLog())
    vm = await pod.start()
    await run_commands(pod, vm, build_command("Open", {"owner": "alice"}, id="o"))
    await run_commands(pod, vm, build_command("Deposit", {"amount": 3}, id="d"), build_command("Withdraw", {"amount": 9}, id="w"), build_command("Fly", {}, id="f"))
    await run_commands(pod, vm, build_command("Withdraw", {"amount": 9}, id="w2"))
    tally = pod.tally.of("account")
    assert (tally.accepted, tally.rejected, tally.noop, tally.error) == (2, 3, 0, 0)
    assert (tally.commits, tally.events, tally.conflicts) == (2, 2, 0)
    assert sum(tally.command_times.counts) == 5


async def test_a_command_that_was_decided_again_is_counted_once_and_its_conflict_too() -> None:
    fates = [Fate.STORED, Fate.STORED]
    events = FaultyCommitLog(MemoryCommitLog(), lambda commit: fates.pop(0) if fates else Fate.STORED)
    one, other = Pod("a", events), Pod("b", events)
    first, second = await one.start(), await other.start()
    await run_commands(one, first, build_command("Open", {"owner": "alice"}, id="o"))
    await run_commands(other, second, build_command("Open", {"owner": "alice"}, id="o2"))
    tally = other.tally.of("account")
    assert (tally.accepted, tally.rejected, tally.conflicts, tally.commits) == (0, 1, 1, 0)


async def test_replays_are_counted_with_their_events() -> None:
    events = MemoryCommitLog()
    pod = Pod("a", events)
    await run_commands(pod, await pod.start(), build_command("Open", {"owner": "alice"}, id="o"), build_command("Deposit", {"amount": 3}, id="d"))
    later = Pod("b", events)
    await later.start()
    tally = later.tally.of("account")
    assert (tally.replayed_events, sum(tally.replay_times.counts)) == (2, 1)


def test_a_timing_puts_each_observation_below_its_bound() -> None:
    timing = Timing((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 2.0):
        timing.note(seconds)
    timing.note(0.5, times=3)
    assert (timing.counts, timing.sum_s) == ([2, 4, 1], 0.05 + 0.1 + 0.5 + 2.0 + 1.5)
