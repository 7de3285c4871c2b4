"""Runs one seed and keeps what is needed to look into a failure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tests.simulation.loop import Hang
from tests.simulation.world import Outcome, World

PROJECT: Final = Path(__file__).parents[2]
FOLDER: Final = PROJECT / "build" / "simulation"
FAILING_SEEDS: Final = Path(__file__).parent / "failing_seeds.txt"

PROBLEMS_SHOWN: Final = 5


class Failure(AssertionError):
    """A run broke a promise; the message says which, and how to run it again."""


def run_seed(seed: int, *, keep_trace: bool = False, worse: Mapping[str, Any] | None = None) -> Outcome:
    """Run one seed.

    Args:
        worse: parts of the climate that are not left to the seed.

    Raises:
        Failure: what is wrong, and where the trace is.
    """
    world = World(seed, keep_trace, worse)
    try:
        outcome = world.run()
    except (AssertionError, Hang) as exc:
        _keep(world)
        problems = str(exc).splitlines()
        more = f"\n... and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        raise Failure("\n".join(problems[:PROBLEMS_SHOWN]) + more + f"\nagain: python -m tests.simulation --seeds {seed} --trace; the trace is {_path_of(seed)}") from None
    if keep_trace:
        _keep(world)
    return outcome


def read_failing_seeds() -> Iterator[int]:
    """Yield the seeds that once failed."""
    for line in FAILING_SEEDS.read_text().splitlines():
        seed, _, _ = line.partition("#")
        if seed.strip():
            yield int(seed)


def _keep(world: World) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    _path_of(world.seed).write_text("\n".join(world.trace) + "\n")


def _path_of(seed: int) -> Path:
    return FOLDER / f"seed-{seed}.txt"
