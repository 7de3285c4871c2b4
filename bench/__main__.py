"""`python -m bench [NAME ...]`: run benches, print one JSON line for each comparison."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from bench.catalogue import BENCHES
from bench.errors import BenchFailed
from bench.results import Line
from bench.scale import SMALL, Scale

EXIT_INTERRUPTED: Final = 130
"""128 and the number of SIGINT, as shells have it."""


def run(arguments: Sequence[str]) -> int:
    """Run the benches that are named, or all; the exit code is 1 if one gave no figure."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run benches; each comparison is one JSON line.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHES)} (default: all)")
    parser.add_argument("--rounds", type=int, help="pairs of measurements")
    parser.add_argument("--seconds", type=float, help="length of one measurement of a closed loop")
    parser.add_argument("--small", action="store_true", help="run everything small, to see that it works; the figures mean nothing")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="write profiles of our processes; the figures mean nothing")
    parser.add_argument("--require-peers", action="store_true", help="fail where a peer is not installed")
    parser.add_argument("--save", type=Path, metavar="FILE", help="also append the lines to a file")
    parser.add_argument("--without-peers", action="store_true", help="compare with the bare loops alone")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHES]
    if unknown:
        parser.error(f"there is no bench {unknown[0]!r}; there are {', '.join(BENCHES)}")
    try:
        lines = asyncio.run(_run_all(options.names or list(BENCHES), _build_scale(options), options.save))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; everything it started is ended", file=sys.stderr)
        return EXIT_INTERRUPTED
    failed = None in lines or (options.require_peers and any(line is not None and line.reason for line in lines))
    return 1 if failed else 0


def _build_scale(options: argparse.Namespace) -> Scale:
    scale = replace(SMALL if options.small else Scale(), profile=options.profile, peers=not options.without_peers)
    return replace(scale, **{name: value for name in ("rounds", "seconds") if (value := getattr(options, name)) is not None})


async def _run_all(names: Sequence[str], scale: Scale, saved: Path | None) -> list[Line | None]:
    """Run benches one after another, until all are done or a signal comes; None stands for one that broke."""
    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    lines: list[Line | None] = []
    for name in names:
        try:
            async with aclosing(BENCHES[name](scale)) as found:
                async for line in found:
                    _show(msgspec.json.encode(line), saved)
                    lines.append(line)
        except BenchFailed as exc:
            print(f"{name}: {exc}", file=sys.stderr)
            lines.append(None)
    return lines


def _show(line: bytes, saved: Path | None) -> None:
    print(line.decode(), flush=True)
    if saved is not None:
        saved.parent.mkdir(parents=True, exist_ok=True)
        with saved.open("ab") as file:
            file.write(line + b"\n")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
