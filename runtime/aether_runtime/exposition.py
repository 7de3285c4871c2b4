"""Gives a runtime's metrics to Prometheus.

Only a process that serves HTTP imports this module, so that one without it does not load prometheus-client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from aether_runtime.metrics import METRICS, MetricRow, MetricSources, TimingRow
from aether_runtime.tally import Tally


class RuntimeCollector(Collector):
    """Reads a runtime whenever its registry is asked."""

    def __init__(self, sources: MetricSources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """Read everything now."""
        for row in METRICS:
            yield _read_timing(row, self._sources.tally) if isinstance(row, TimingRow) else _read_row(row, self._sources)

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering reads nothing."""
        return ()


def build_registry(sources: MetricSources) -> CollectorRegistry:
    """Return a registry with a runtime's metrics and those of its process."""
    registry = CollectorRegistry()
    registry.register(RuntimeCollector(sources))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def build_renderer(registry: CollectorRegistry) -> Callable[[str], tuple[bytes, str]]:
    """Return the function that turns an `Accept` header into a page and its content type."""

    def render(accept: str) -> tuple[bytes, str]:
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    return render


def _read_row(row: MetricRow, sources: MetricSources) -> Metric:
    family = (CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily)(row.name, row.meaning, labels=row.labels)
    for labels, value in row.read(sources):
        family.add_metric(labels, value)
    return family


def _read_timing(row: TimingRow, tally: Tally) -> Metric:
    family = HistogramMetricFamily(row.name, row.meaning, labels=row.labels)
    for name, model in tally.models.items():
        timing = row.read(model)
        bounds = [*(str(bound_s) for bound_s in timing.bounds_s), "+Inf"]
        family.add_metric((name,), list(zip(bounds, accumulate(timing.counts), strict=True)), timing.sum_s)
    return family
