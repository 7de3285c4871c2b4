"""The benches by name; docs/performance.md has a paragraph for each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Final

from bench.commands import ACTORS, Workload, run_commands
from bench.replays import run_cold_start, run_replay_million, run_replay_one
from bench.results import Line
from bench.scale import Scale

Bench = Callable[[Scale], AsyncIterator[Line]]


def _commands(name: str, workload: Workload) -> Bench:
    return partial(run_commands, name, workload)


BENCHES: Final[Mapping[str, Bench]] = {
    "commands-64": _commands("commands-64", Workload(64, ACTORS, "single", "rate")),
    "commands-hot": _commands("commands-hot", Workload(512, 1, "group", "rate")),
    "commands-1": _commands("commands-1", Workload(1, ACTORS, "single", "p50")),
    "replay-one": run_replay_one,
    "cold-start": run_cold_start,
    "replay-million": run_replay_million,
}
