"""Measures sides in turns: A B A B ..., so that whatever drifts, drifts for both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from bench.results import Sample

Measure = Callable[[], Awaitable[Sample]]


async def interleave(rounds: int, sides: Mapping[str, Measure], *, warm_up: bool = True) -> dict[str, list[Sample]]:
    """Measure each side once a round, in order; with `warm_up`, one more round goes before and does not count."""
    samples: dict[str, list[Sample]] = {name: [] for name in sides}
    for number in range(-1 if warm_up else 0, rounds):
        for name, measure in sides.items():
            sample = await measure()
            if number >= 0:
                samples[name].append(sample)
    return samples
