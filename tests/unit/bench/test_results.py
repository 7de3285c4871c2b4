"""The arithmetic of comparisons."""

from __future__ import annotations

from bench.results import Comparison, Sample, build_limit_line, build_line, build_missing_line


def samples(*values: float) -> list[Sample]:
    return [Sample(value) for value in values]


def test_the_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    line = build_line(Comparison("b", "x/s", "limit", 0.7), samples(80, 40, 9), samples(100, 50, 10))

    assert line.ratio == 0.8
    assert line.ratio_range == (0.8, 0.9)
    assert (line.value, line.against_value, line.rounds) == (40, 50, 3)


def test_a_rate_holds_at_its_target_and_above() -> None:
    assert build_line(Comparison("b", "x/s", "limit", 0.7), samples(70), samples(100)).holds is True
    assert build_line(Comparison("b", "x/s", "limit", 0.7), samples(69), samples(100)).holds is False


def test_a_time_holds_at_its_target_and_below() -> None:
    comparison = Comparison("b", "ms", "limit", 2.0, at_most=True)

    assert build_line(comparison, samples(2), samples(1)).holds is True
    assert build_line(comparison, samples(2.1), samples(1)).holds is False


def test_a_figure_without_a_target_is_only_reported() -> None:
    assert build_line(Comparison("b", "x/s", "peer"), samples(1), samples(2)).holds is None


def test_a_budget_is_compared_as_if_it_had_been_measured_each_round() -> None:
    line = build_limit_line(Comparison("b", "MB", "budget", 1.0, at_most=True), samples(20, 30, 40), 50)

    assert (line.value, line.against_value, line.ratio, line.holds) == (30, 50, 0.6, True)


def test_a_missing_peer_gives_a_line_that_neither_holds_nor_fails() -> None:
    line = build_missing_line(Comparison("b", "x/s", "peer", 2.0), "it is not installed")

    assert (line.value, line.holds, line.reason) == (None, None, "it is not installed")
