"""From measurements to the JSON line of a comparison: the arithmetic, nothing else.

The ratio is the median of the rounds' own ratios: the two sides of a round ran one after the other, so what disturbs the
machine for longer than a round disturbs both.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec


def find_quantile(ascending: Sequence[float], share: float) -> float:
    """Return the value that this share of a sorted sequence does not exceed; the sequence must not be empty."""
    return ascending[min(len(ascending) - 1, int(len(ascending) * share))]


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of one side.

    Attributes:
        value: in the unit of the comparison.
        cpu_us: microseconds of CPU that the side's process spent on one operation; steadier than a rate. 0 where unknown.
    """

    value: float
    cpu_us: float = 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared with what, and how far apart they may be.

    Attributes:
        target: the ratio that is asked for; None for a figure that is only reported.
        at_most: the ratio must not exceed the target (a time, a size) instead of reaching it (a rate).
    """

    bench: str
    unit: str
    against: str
    target: float | None = None
    at_most: bool = False


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One comparison as it is printed; the `_range` fields hold least and greatest of the rounds."""

    bench: str
    value: float | None
    unit: str
    against: str
    against_value: float | None
    ratio: float | None
    target: float | None
    holds: bool | None
    rounds: int
    at_most: bool = False
    ratio_range: tuple[float, float] | None = None
    value_range: tuple[float, float] | None = None
    against_range: tuple[float, float] | None = None
    cpu_us: float | None = None
    against_cpu_us: float | None = None
    reason: str = ""


def build_line(comparison: Comparison, ours: Sequence[Sample], theirs: Sequence[Sample]) -> Line:
    """Return the line of a comparison whose sides were measured in turns."""
    ratios = [our.value / their.value for our, their in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ratios)
    return Line(
        bench=comparison.bench,
        value=_round(statistics.median(sample.value for sample in ours)),
        unit=comparison.unit,
        against=comparison.against,
        against_value=_round(statistics.median(sample.value for sample in theirs)),
        ratio=_round(ratio),
        target=comparison.target,
        holds=_holds(comparison, ratio),
        rounds=len(ratios),
        at_most=comparison.at_most,
        ratio_range=_range(ratios),
        value_range=_range([sample.value for sample in ours]),
        against_range=_range([sample.value for sample in theirs]),
        cpu_us=_round(statistics.median(sample.cpu_us for sample in ours)) or None,
        against_cpu_us=_round(statistics.median(sample.cpu_us for sample in theirs)) or None,
    )


def build_limit_line(comparison: Comparison, ours: Sequence[Sample], limit: float) -> Line:
    """Return the line of a comparison with a fixed figure, such as a budget of memory."""
    return build_line(comparison, ours, [Sample(limit) for _ in ours])


def build_missing_line(comparison: Comparison, reason: str) -> Line:
    """Return the line of a comparison that could not be made."""
    return Line(
        bench=comparison.bench,
        value=None,
        unit=comparison.unit,
        against=comparison.against,
        against_value=None,
        ratio=None,
        target=comparison.target,
        holds=None,
        rounds=0,
        at_most=comparison.at_most,
        reason=reason,
    )


def _holds(comparison: Comparison, ratio: float) -> bool | None:
    if comparison.target is None:
        return None
    return ratio <= comparison.target if comparison.at_most else ratio >= comparison.target


def _range(values: Sequence[float]) -> tuple[float, float]:
    return _round(min(values)), _round(max(values))


def _round(value: float) -> float:
    """Return four significant digits: more would pretend."""
    return float(f"{value:.4g}")
