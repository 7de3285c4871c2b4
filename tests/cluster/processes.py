"""Runs other programs and says on stderr what is under way.

Long steps write their output into a log file and show a line of life every few seconds, because a build of ten silent
minutes looks like one that hangs. Short questions return their output. Every failure is a `ClusterError` that holds the
end of the output: whoever reads it is a person at a terminal or the log of a CI job.

A program that is interrupted (Ctrl-C, SIGTERM of a CI job, a failing sibling) is ended before the exception goes on, and where
the system can (Linux) it ends with us even if we are killed outright, so that nothing keeps writing behind the back of the
next run: a kind that lived on made nodes while the next run was deleting them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final, Literal

LIFE_SIGN_S: Final = 20.0
"""Seconds between two lines of life: often enough to trust, rare enough for the log of a CI job."""

TAIL_LINES: Final = 25
"""Lines of output in an error: a Go compiler's or kubeadm's message fits, a page of noise does not."""

END_S: Final = 20.0
"""Seconds that an interrupted program gets between SIGTERM and SIGKILL: debootstrap and kind tidy up meanwhile."""

QUESTION_S: Final = 120.0
"""Seconds for a program that only answers a question; a loaded 2-core machine answers within 10."""


class ClusterError(Exception):
    """A cluster, an image or a tool that could not be had; the message says what to do."""


def say(message: str) -> None:
    """Write one line of progress with the time of day."""
    print(f"{time.strftime('%H:%M:%S')}  {message}", file=sys.stderr, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say that a step begins, and when it succeeded, how long it took."""
    say(f"{what} ...")
    begun_s = time.monotonic()
    yield
    say(f"{what}: done in {time.monotonic() - begun_s:.0f} s")


def ask(*command: str | Path, stdin: str | None = None, environment: Mapping[str, str] | None = None, timeout_s: float = QUESTION_S) -> str:
    """Return what a program prints on stdout, stripped.

    Raises:
        ClusterError: the program is missing, failed, or ran out of time.
    """
    result = attempt(*command, stdin=stdin, environment=environment, timeout_s=timeout_s)
    if result.returncode != 0:
        raise ClusterError(f"{_shown(command)} failed ({result.returncode}):\n{_last_lines(result.stderr or result.stdout)}")
    return result.stdout.strip()


def attempt(*command: str | Path, stdin: str | None = None, environment: Mapping[str, str] | None = None, timeout_s: float = QUESTION_S) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return all about it; a missing program is code 127, one that ran out of time 124."""
    words = [str(word) for word in command]
    try:
        return subprocess.run(
            words,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=_merged(environment),
            check=False,
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(words, 127, "", f"{words[0]}: not found")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 124, "", f"no answer within {timeout_s:.0f} s")


def work(
    *command: str | Path,
    log: Path,
    stdin: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> None:
    """Run a long step; its output goes to `log`, whose last line is shown from time to time.

    Raises:
        ClusterError: with the end of the output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    if shutil.which(command[0]) is None:
        raise ClusterError(f"{command[0]} is not installed")
    with log.open("wb") as output:
        process = subprocess.Popen(ending_with_us(command), stdin=stdin or subprocess.DEVNULL, stdout=output, stderr=output, env=_merged(environment), cwd=folder)
        with ended(process):
            code = _watch(process, log)
    if code != 0:
        raise ClusterError(f"{_shown(command)} failed ({code}), all of it is in {log}:\n{_last_lines(_read(log))}")


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the process when the block is left before it ended itself, and close our end of its output."""
    try:
        yield
    finally:
        if process.stdout is not None:
            process.stdout.close()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def end_process(process: asyncio.subprocess.Process, *, within_s: float) -> None:
    """End a process that a coroutine started, by force if it takes longer; harmless if it has ended."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(within_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def find_free_ports(count: int) -> list[int]:
    """Return TCP ports of 127.0.0.1 that were free a moment ago; all are held until the last one is found, so they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def ending_with_us(command: Sequence[str | Path], how: Literal["TERM", "KILL"] = "TERM") -> list[str]:
    """Return a command whose process ends with ours, however that ends, where the system can do it (with the thread that starts it, to be exact)."""
    wrapper = ["setpriv", "--pdeathsig", how, "--"] if sys.platform == "linux" and shutil.which("setpriv") else []
    return [*wrapper, *(str(word) for word in command)]


def _watch(process: subprocess.Popen[bytes], log: Path) -> int:
    begun_s = time.monotonic()
    while True:
        try:
            return process.wait(LIFE_SIGN_S)
        except subprocess.TimeoutExpired:
            say(f"  {time.monotonic() - begun_s:4.0f} s  {_last_lines(_read(log), count=1)[:100]}")


def _read(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _last_lines(text: str, count: int = TAIL_LINES) -> str:
    return "\n".join(text.strip().splitlines()[-count:])


def _shown(command: Sequence[str | Path]) -> str:
    return " ".join(str(word) for word in command)[:200]


def _merged(environment: Mapping[str, str] | None) -> dict[str, str] | None:
    return None if environment is None else {**os.environ, **environment}
