"""Runs our runtime under cProfile: `python -m bench.profiled OUT ARGUMENTS...`; writes OUT and, beside it, a table as text.

A profile doubles the cost of a Python call, so it says where the time goes and never how much there is.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
from pathlib import Path
from typing import Final

from aether_runtime.__main__ import run

FUNCTIONS: Final = 45
"""Lines of the table: what is below them is under half a percent each."""


def main(output: Path, arguments: list[str]) -> int:
    """Run the runtime until it is told to stop, then write the profile."""
    profile = cProfile.Profile()
    code = profile.runcall(run, arguments)
    write_profile(profile, output)
    return code


def write_profile(profile: cProfile.Profile, output: Path) -> None:
    """Write a profile and its table."""
    profile.dump_stats(output)
    with output.with_suffix(".txt").open("w") as table:
        pstats.Stats(str(output), stream=table).strip_dirs().sort_stats("tottime").print_stats(FUNCTIONS)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
