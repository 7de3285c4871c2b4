"""Runs the operator under cProfile: `python -m bench.profiled_operator OUT`; as `bench.profiled` does for the runtime."""

from __future__ import annotations

import cProfile
import sys
from pathlib import Path

from aether_operator.__main__ import run
from bench.profiled import write_profile


def main(output: Path) -> int:
    """Run the operator until it is told to stop, then write the profile."""
    profile = cProfile.Profile()
    code = profile.runcall(run, [])
    write_profile(profile, output)
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
