"""Every bench runs, small, and prints lines that say all that a line must say; the figures themselves are no test.

Peers are other people's software from the network: they are left out unless AETHER_BENCH_PEERS=1 asks for them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.catalogue import BENCHES

PROJECT = Path(__file__).parents[2]
PEERS = ["--require-peers"] if os.environ.get("AETHER_BENCH_PEERS") == "1" else ["--without-peers"]
FIELDS = {"bench", "value", "unit", "against", "against_value", "ratio", "target", "holds", "rounds"}


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_runs_small_and_prints_its_comparisons(name: str) -> None:
    result = subprocess.run([sys.executable, "-m", "bench", name, "--small", *PEERS], cwd=PROJECT, env=os.environ, capture_output=True, text=True, timeout=300, check=False)

    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines
    for line in lines:
        assert set(line) >= FIELDS
        assert line["bench"] == name
        assert (line["value"] is None) == (line["against_value"] is None) == bool(line.get("reason"))


def test_a_name_that_is_no_bench_is_refused_with_the_names_that_are() -> None:
    result = subprocess.run([sys.executable, "-m", "bench", "nonsense"], cwd=PROJECT, env=os.environ, capture_output=True, text=True, timeout=60, check=False)

    assert result.returncode == 2
    assert "commands-64" in result.stderr
