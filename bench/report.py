"""Writes saved lines as the tables of docs/performance.md: `python -m bench.report LINES.jsonl [DOCUMENT]`.

Only what lies between the two marks is replaced, and of the tables there only the rows of the benches that were measured. Of several
lines of one comparison the last counts, so a bench may be measured again and appended.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Final

import msgspec

from aether_nats.embedded import find_program
from bench.errors import BenchFailed
from bench.processes import PROJECT
from bench.results import Line

BEGIN: Final = "<!-- measured: written by `make bench-docs` -->"
REPORTED: Final = "Without a target:"
END: Final = "<!-- end of measured -->"
DOCUMENT: Final = PROJECT / "docs" / "performance.md"

Row = tuple[str, str]
"""A bench and one of its rows."""


def read_lines(path: Path) -> list[Line]:
    """Return the last line of each comparison, in order of their first."""
    found: dict[tuple[str, str, str], Line] = {}
    for text in path.read_bytes().splitlines():
        line = msgspec.json.decode(text, type=Line)
        found[line.bench, line.unit, line.against] = line
    return list(found.values())


def build_tables(lines: Sequence[Line], machine: str, old: str = "") -> str:
    """Return both tables: comparisons with a target, and those that are only reported.

    Args:
        old: the tables so far; their rows of other benches stay.
    """
    old_judged, _, old_reported = old.partition(REPORTED)
    judged = [(line.bench, f"{_build_row(line)} {'at most' if line.at_most else 'at least'} {line.target:g} | {_say_holds(line)} |") for line in lines if line.target is not None]
    reported = [(line.bench, _build_row(line)) for line in lines if line.target is None]
    measured = {line.bench for line in lines}
    judged, reported = _merge(_read_rows(old_judged), judged, measured), _merge(_read_rows(old_reported), reported, measured)
    parts = [machine, "", "| bench | ours | against | theirs | ratio (least to greatest) | target | holds |", "| --- | ---: | --- | ---: | ---: | ---: | --- |"]
    parts += [row for _, row in judged]
    if reported:
        parts += ["", REPORTED, "", "| bench | ours | against | theirs | ratio (least to greatest) |", "| --- | ---: | --- | ---: | ---: |"]
        parts += [row for _, row in reported]
    return "\n".join(parts)


def read_tables(document: str) -> str:
    """Return what lies between the marks of a document."""
    return document.partition(BEGIN)[2].partition(END)[0]


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


def _read_rows(table: str) -> list[Row]:
    rows = [row for row in table.splitlines() if row.startswith("| ")]
    return [(row.split("|")[1].strip(), row) for row in rows if not row.startswith(("| bench |", "| ---"))]


def _merge(old: Sequence[Row], new: Sequence[Row], measured: Set[str]) -> list[Row]:
    """Return the old rows with the new ones where the first of their bench stood, or at the end."""
    merged: list[Row] = []
    for bench, row in old:
        if bench not in measured:
            merged.append((bench, row))
        elif all(bench != placed for placed, _ in merged):
            merged += [found for found in new if found[0] == bench]
    placed = {bench for bench, _ in merged}
    return merged + [found for found in new if found[0] not in placed]


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
    text = document.read_text()
    tables = build_tables(read_lines(Path(arguments[0])), describe_machine(), read_tables(text))
    document.write_text(replace_tables(text, tables))


if __name__ == "__main__":
    main(sys.argv[1:])
