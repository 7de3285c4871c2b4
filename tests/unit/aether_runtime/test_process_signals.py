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


LEAVING: Final = """
import asyncio, os, signal, sys
from types import SimpleNamespace
import uvloop
from aether_runtime.process import STOP_SIGNALS, _on_signal

async def leave():
    loop, first = asyncio.get_running_loop(), asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, _on_signal, loop, SimpleNamespace(request_stop=first.set))
    os.kill(os.getpid(), int(sys.argv[1]))
    await first.wait()
    os.kill(os.getpid(), int(sys.argv[2]))
    await asyncio.sleep(30)

uvloop.run(leave())
"""


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
def test_it_ends_a_process_that_leaves_whichever_of_both_came_first(first: signal.Signals, second: signal.Signals) -> None:
    program = [sys.executable, "-c", LEAVING, str(int(first)), str(int(second))]
    assert subprocess.run(program, timeout=20, check=False).returncode == -second


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
