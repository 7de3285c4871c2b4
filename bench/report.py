"""Writes saved lines as the tables of docs/performance.md: `python -m bench.report LINES.jsonl [DOCUMENT]`.

Only what lies between the two marks is replaced. Of several lines of one comparison the last counts, so a bench may be
measured again and appended.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from aether_nats.embedded import find_program
from bench.errors import BenchFailed
from bench.processes import PROJECT
from bench.results import Line

BEGIN: Final = "<!-- measured: written by `make bench-docs` -->"
END: Final = "<!-- end of measured -->"
DOCUMENT: Final = PROJECT / "docs" / "performance.md"


def read_lines(path: Path) -> list[Line]:
    """Return the last line of each comparison, in order of their first."""
    found: dict[tuple[str, str, str], Line] = {}
    for text in path.read_bytes().splitlines():
        line = msgspec.json.decode(text, type=Line)
        found[line.bench, line.unit, line.against] = line
    return list(found.values())


def build_tables(lines: Sequence[Line], machine: str) -> str:
    """Return both tables: comparisons with a target, and those that are only reported."""
    judged, reported = [line for line in lines if line.target is not None], [line for line in lines if line.target is None]
    parts = [machine, "", "| bench | ours | against | theirs | ratio (least to greatest) | target | holds |", "| --- | ---: | --- | ---: | ---: | ---: | --- |"]
    parts += [f"{_build_row(line)} {'at most' if line.at_most else 'at least'} {line.target:g} | {_say_holds(line)} |" for line in judged]
    if reported:
        parts += ["", "Without a target:", "", "| bench | ours | against | theirs | ratio (least to greatest) |", "| --- | ---: | --- | ---: | ---: |"]
        parts += [_build_row(line) for line in reported]
    return "\n".join(parts)


def replace_tables(document: str, tables: str) -> str:
    """Return the document with other tables.

    Raises:
        BenchFailed: it lacks the marks.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchFailed(f"the document lacks {BEGIN!r} or {END!r}")
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def describe_machine() -> str:
    """Return what the figures depend on."""
    server = subprocess.run([find_program(), "--version"], capture_output=True, text=True, check=True).stdout.split()[-1].removeprefix("v")
    return (
        f"Measured on {os.cpu_count()} cores ({platform.machine()}, {platform.system()}), Python {platform.python_version()}, nats-server {server}, "
        f"uvloop {importlib.metadata.version('uvloop')}."
    )


def _build_row(line: Line) -> str:
    if line.value is None or line.against_value is None or line.ratio is None:
        return f"| {line.bench} | | {line.against} | | not measured: {line.reason} |"
    least, greatest = line.ratio_range or (line.ratio, line.ratio)
    spread = "" if least == greatest else f" ({least:.2f} to {greatest:.2f})"
    return f"| {line.bench} | {_format(line.value)} {line.unit} | {line.against} | {_format(line.against_value)} {line.unit} | {line.ratio:.2f}{spread} |"


def _format(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _say_holds(line: Line) -> str:
    return "not measured" if line.holds is None else "yes" if line.holds else "**no**"


def main(arguments: Sequence[str]) -> None:
    """Replace the tables of a document."""
    document = Path(arguments[1]) if len(arguments) > 1 else DOCUMENT
    tables = build_tables(read_lines(Path(arguments[0])), describe_machine())
    document.write_text(replace_tables(document.read_text(), tables))


if __name__ == "__main__":
    main(sys.argv[1:])
