"""Runs seeds: `python -m tests.simulation --seeds 1-1000`. A failing one is printed, and its trace is kept under build/simulation."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.simulation.faults import UNRULY
from tests.simulation.runs import FOLDER, Failure, run_seed


def parse_seeds(text: str) -> range:
    """Read `17` or `1-1000`."""
    first, dash, last = text.partition("-")
    return range(int(first), (int(last) if dash else int(first)) + 1)


def main() -> int:
    """Run what the command line says; the exit code is 1 if a seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=parse_seeds, default=range(1, 101), help="a seed, or the first and the last: 1-1000")
    parser.add_argument("--trace", action="store_true", help="keep the trace of every seed, with all that the runtime logs")
    parser.add_argument("--unruly", action="store_true", help="models, clocks and pods change meanwhile, programs write to the log, and bytes arrive in pieces")
    arguments = parser.parse_args()
    began_s, failed = time.perf_counter(), list[int]()
    for seed in arguments.seeds:
        try:
            outcome = run_seed(seed, keep_trace=arguments.trace, worse=UNRULY if arguments.unruly else None)
        except Failure as exc:
            failed.append(seed)
            print(f"seed {seed} FAILED: {exc}", flush=True)
        else:
            print(f"seed {seed} {outcome.digest} {' '.join(f'{what}={count}' for what, count in sorted(outcome.counts.items()))}", flush=True)
    print(
        f"{len(arguments.seeds)} seeds in {time.perf_counter() - began_s:.0f} s, {len(failed)} failed{': ' + ', '.join(map(str, failed)) if failed else ''}; traces are in {FOLDER.relative_to(Path.cwd())}"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
