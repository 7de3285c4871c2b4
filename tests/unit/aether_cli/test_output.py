"""A command whose output cannot be written: quiet where nobody reads it any more, one line otherwise, and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

HELP = [("--help",), ("--version",), ("send", "--help")]
"""What prints without a server; the last is printed by argparse."""


def run_aether(arguments: Sequence[str], output: int, preexec_fn: Callable[[], None] | None = None) -> tuple[int, str]:
    """Run `aether` with an output that is held back, as for a pipe or a file, and return exit code and errors."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "aether_cli.main", *arguments]
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, env=environment, preexec_fn=preexec_fn, timeout=60, check=False)
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize("arguments", HELP)
def test_where_nobody_reads_the_output_a_command_ends_quietly(arguments: Sequence[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run_aether(arguments, writer) == (141, "")
    finally:
        os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has a disk that is always full")
@pytest.mark.parametrize("arguments", HELP)
def test_a_full_disk_is_told(arguments: Sequence[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        assert run_aether(arguments, full.fileno()) == (1, "aether: standard output cannot be written: No space left on device\n")


@pytest.mark.parametrize("arguments", HELP)
def test_a_closed_output_is_told(arguments: Sequence[str]) -> None:
    assert run_aether(arguments, subprocess.DEVNULL, lambda: os.close(1)) == (1, "aether: standard output cannot be written: Bad file descriptor\n")


def test_with_its_errors_closed_a_command_prints_them_nowhere(tmp_path: Path) -> None:
    with (tmp_path / "output").open("w+b") as output:
        assert run_aether(["sned"], output.fileno(), lambda: os.close(2)) == (2, "")
        assert (tmp_path / "output").read_bytes() == b""
