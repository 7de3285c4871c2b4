"""Whole clusters under a virtual clock: every seed keeps every promise, and every seed gives the same run again.

A failing seed is printed with the command that runs it again, and its trace is kept under build/simulation. Once its cause is mended it
goes into failing_seeds.txt. Many seeds: `make simulate SEEDS=1-1000`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from functools import cache
from typing import Final

import pytest

from tests.simulation.faults import UNRULY
from tests.simulation.runs import PROJECT, read_failing_seeds, run_seed
from tests.simulation.world import Outcome

pytestmark = pytest.mark.slow

SEEDS: Final = range(101, 119)

UNRULY_SEEDS: Final = range(201, 209)

SAMPLE: Final = 104
"""A seed that runs again in a process of its own."""


@cache
def run_once(seed: int) -> Outcome:
    return run_seed(seed)


@cache
def run_unruly(seed: int) -> Outcome:
    return run_seed(seed, worse=UNRULY)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cluster_in_a_storm_keeps_its_promises(seed: int) -> None:
    run_once(seed)


@pytest.mark.parametrize("seed", UNRULY_SEEDS)
def test_a_cluster_that_changes_while_it_storms_keeps_its_promises(seed: int) -> None:
    run_unruly(seed)


@pytest.mark.parametrize("seed", [pytest.param(seed, id=f"{seed}-{number}") for number, seed in enumerate(read_failing_seeds())])
def test_a_seed_that_once_failed_keeps_its_promises(seed: int) -> None:
    run_once(seed)


def test_a_seed_gives_the_same_run_in_every_process_whatever_python_hashes() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--seeds", str(SAMPLE)]
    done = subprocess.run(command, cwd=PROJECT, env={**os.environ, "PYTHONHASHSEED": "4711"}, capture_output=True, text=True, check=False)
    assert done.stdout.split()[2] == run_once(SAMPLE).digest, done.stdout + done.stderr


def test_storms_are_eventful() -> None:
    """The runs above prove something only if what they are about does happen in them."""
    counts = sum((Counter(run_once(seed).counts) for seed in SEEDS), Counter[str]())
    for what in ("reset", "silence", "slow", "partition", "pause", "kill", "kill_client", "kill_reader", "server", "election", "move", "purge"):
        assert counts[what] >= 3, f"there was no {what} worth the name: {counts}"
    least = {"accepted": 400, "commits": 800, "repeats": 400, "rejected": 200, "noop": 15, "OutcomeUnknown": 100, "conflicts": 25, "fenced": 10, "lives": 3, "batched": 50}
    assert {what: counts[what] for what, count in least.items() if counts[what] < count} == {}


def test_what_changes_in_storms_changes_often() -> None:
    counts = sum((Counter(run_unruly(seed).counts) for seed in UNRULY_SEEDS), Counter[str]())
    least = {"model": 20, "clock": 20, "leave": 5, "saved": 50, "refused": 50, "dry runs": 50}
    assert {what: counts[what] for what, count in least.items() if counts[what] < count} == {}
