"""The tables of docs/performance.md."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bench.catalogue import BENCHES
from bench.errors import BenchFailed
from bench.report import BEGIN, DOCUMENT, END, build_tables, read_lines, replace_tables
from bench.results import Comparison, Line, Sample, build_line, build_missing_line


def test_of_two_lines_of_one_comparison_the_last_counts(tmp_path: Path) -> None:
    comparison = Comparison("b", "x/s", "limit", 0.7)
    lines = [build_line(comparison, [Sample(value)], [Sample(100)]) for value in (10, 80)]
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"\n".join(map(msgspec.json.encode, lines)))

    assert [line.value for line in read_lines(path)] == [80]


def test_comparisons_with_a_target_come_first_and_say_whether_they_hold() -> None:
    lines = [
        build_line(Comparison("a", "x/s", "peer"), [Sample(50)], [Sample(100)]),
        build_line(Comparison("b", "x/s", "limit", 0.7), [Sample(6900), Sample(7200)], [Sample(10000), Sample(10000)]),
        build_missing_line(Comparison("c", "x/s", "peer", 2.0), "there is no java"),
    ]

    assert build_tables(lines, "Measured here.").splitlines() == [
        "Measured here.",
        "",
        "| bench | ours | against | theirs | ratio (least to greatest) | target | holds |",
        "| --- | ---: | --- | ---: | ---: | ---: | --- |",
        "| b | 7,050 x/s | limit | 10,000 x/s | 0.70 (0.69 to 0.72) | at least 0.7 | yes |",
        "| c | | peer | | not measured: there is no java | at least 2 | not measured |",
        "",
        "Without a target:",
        "",
        "| bench | ours | against | theirs | ratio (least to greatest) |",
        "| --- | ---: | --- | ---: | ---: |",
        "| a | 50 x/s | peer | 100 x/s | 0.50 |",
    ]


def test_rows_of_benches_that_were_not_measured_stay_where_they_were() -> None:
    def lines_of(bench: str, value: float) -> list[Line]:
        return [build_line(Comparison(bench, "x/s", peer, target), [Sample(value)], [Sample(100)]) for peer, target in (("limit", 0.7), ("other", 0.5), ("peer", None))]

    old = build_tables([line for bench in ("a", "b", "c") for line in lines_of(bench, 50)], "Measured here.")
    new = [*lines_of("b", 90), *lines_of("d", 90)]
    wanted = [line for bench, value in (("a", 50), ("b", 90), ("c", 50), ("d", 90)) for line in lines_of(bench, value)]
    assert build_tables(new, "Measured there.", old) == build_tables(wanted, "Measured there.")


def test_only_what_lies_between_the_marks_is_replaced() -> None:
    assert replace_tables(f"before\n{BEGIN}\nold\n{END}\nafter\n", "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"


def test_a_document_without_marks_is_left_alone() -> None:
    with pytest.raises(BenchFailed, match="lacks"):
        replace_tables("nothing", "new")


def test_every_bench_has_a_paragraph_and_the_tables_a_place() -> None:
    text = DOCUMENT.read_text()

    assert [name for name in BENCHES if f"### {name}" not in text] == []
    assert replace_tables(text, "new")
