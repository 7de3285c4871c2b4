"""What a second signal does to a process that is leaving."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Final

import pytest

from aether_runtime import process as process_module

PROGRAM: Final = """
import os, signal, time
from aether_runtime.process import _end_at_once
signal.signal(signal.SIGTERM, _end_at_once)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(30)
"""


def test_it_ends_the_process_by_that_signal() -> None:
    assert subprocess.run([sys.executable, "-c", PROGRAM], timeout=20, check=False).returncode == -signal.SIGTERM


def test_it_ends_the_first_process_of_a_container_too_from_which_the_kernel_keeps_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> None:
        raise SystemExit(code)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(os, "kill", lambda pid, number: None)
    monkeypatch.setattr(os, "_exit", end)
    try:
        with pytest.raises(SystemExit) as ended:
            process_module._end_at_once(signal.SIGTERM, None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 128 + signal.SIGTERM
