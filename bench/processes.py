"""Starts the processes of a bench and ends them: each side in its own, so that none takes another's time.

A bench's own process only waits. What it starts it ends by the process, never by name.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from bench.errors import BenchFailed
from tests.cluster.processes import end_process

PROJECT: Final = Path(__file__).resolve().parents[1]

STOP_TIMEOUT_S: Final = 60.0
"""Seconds between SIGTERM and SIGKILL: a runtime writes a snapshot of each of its actors at the end."""

START_TIMEOUT_S: Final = 60.0
"""Seconds until a side says that it is ready; a JVM with its libraries takes some of them."""

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def start_python(*arguments: str, environment: Mapping[str, str] | None = None, ready: bytes = b"") -> AsyncGenerator[asyncio.subprocess.Process, None]:
    """Run a Python program for the length of a `with` block; with `ready`, wait for that line first."""
    async with start(sys.executable, *arguments, environment=environment, ready=ready) as process:
        yield process


@asynccontextmanager
async def start(
    *command: str, environment: Mapping[str, str] | None = None, ready: bytes = b"", folder: Path = PROJECT, quiet: bool = False
) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    """Run a program for the length of a `with` block; with `ready`, wait for that line first; `quiet` drops what it says on stderr."""
    errors = asyncio.subprocess.DEVNULL if quiet else None
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=errors,
        process_group=0,
        limit=1 << 20,
    )
    try:
        if ready:
            async with asyncio.timeout(START_TIMEOUT_S):
                await read_line(process, ready)
        yield process
    finally:
        await end_process(process, within_s=STOP_TIMEOUT_S)


async def read_line(process: asyncio.subprocess.Process, prefix: bytes = b"") -> bytes:
    """Return the next line of the process's output that begins with `prefix`.

    Raises:
        BenchFailed: it ended instead.
    """
    if process.stdout is None:
        raise BenchFailed("the process has no output")
    while line := await process.stdout.readline():
        if line.startswith(prefix):
            return line.strip()
    raise BenchFailed(f"process {process.pid} ended with code {await process.wait()} and said nothing that begins with {prefix!r}")


async def ask(process: asyncio.subprocess.Process, line: str = "", *, timeout_s: float = START_TIMEOUT_S) -> bytes:
    """Send a line and return the line that answers it.

    Raises:
        BenchFailed: no answer came.
    """
    if process.stdin is None:
        raise BenchFailed("the process has no input")
    process.stdin.write(line.encode() + b"\n")
    try:
        async with asyncio.timeout(timeout_s):
            return await read_line(process)
    except TimeoutError as exc:
        raise BenchFailed(f"process {process.pid} did not answer within {timeout_s:g} s") from exc


async def run_python(*arguments: str, timeout_s: float = 300.0) -> bytes:
    """Run a Python program to its end and return its last line; raises as `run`."""
    return await run(sys.executable, *arguments, timeout_s=timeout_s)


async def run(*arguments: str, timeout_s: float = 300.0) -> bytes:
    """Run a program to its end and return its last line; raises as `run_whole`."""
    lines = (await run_whole(*arguments, timeout_s=timeout_s)).strip().splitlines()
    if not lines:
        raise BenchFailed(f"{' '.join(arguments)} said nothing")
    return lines[-1].encode()


async def run_whole(*arguments: str, timeout_s: float = 300.0, quiet: bool = False) -> str:
    """Run a program to its end and return what it said.

    Raises:
        BenchFailed: it failed or took too long.
    """
    async with start(*arguments, quiet=quiet) as process:
        try:
            async with asyncio.timeout(timeout_s):
                output, _ = await process.communicate()
        except TimeoutError as exc:
            raise BenchFailed(f"{' '.join(arguments)} did not end within {timeout_s:g} s") from exc
        if process.returncode:
            raise BenchFailed(f"{' '.join(arguments)} ended with code {process.returncode}")
        return output.decode()


def read_cpu_s(process_id: int) -> float:
    """Return the seconds of CPU that a process has spent; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def read_memory_mb(process_id: int) -> float:
    """Return the resident memory of a process in MB; 0 where the system does not say."""
    try:
        lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)
