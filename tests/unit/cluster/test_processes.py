"""Programs that tests start: ended with the block, and nothing of them left open."""

from __future__ import annotations

import subprocess

from tests.cluster.processes import ended


def test_a_program_whose_block_is_left_is_ended_and_its_output_closed() -> None:
    process = subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE)
    with ended(process):
        assert process.poll() is None
    assert process.poll() is not None
    assert process.stdout is not None
    assert process.stdout.closed
