"""From numbers to Prometheus text: what a process counts itself, and what is asked at a scrape."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from prometheus_client import ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from tandem.metrics import OTHER, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # what every scraper reads
Labels = tuple[str, ...]
L = TypeVar("L", bound=Labels)


class Capped:
    """Names as label values, `other` beyond the first `limit`: what others choose has no end."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        """The value to use for this name."""
        if name in self._known:
            return name
        if len(self._known) >= self._limit:
            return OTHER
        self._known.add(name)
        return name


class Histogram:
    """Counts of values by bound, as Prometheus wants them but not yet summed up."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, num: int = 1) -> None:
        """Count a value, `num` times."""
        self.counts[bisect_left(self.bounds, value)] += num
        self.total += value * num

    def buckets(self) -> list[tuple[str, float]]:
        """Bounds with the number of values up to each."""
        reached, found = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            reached += count
            found.append(("+Inf" if bound == float("inf") else repr(bound), float(reached)))
        return found


class Tally:
    """Counters and histograms that a process keeps between scrapes.

    `targets_s`: further bounds of every histogram, so that the share below a target is exact.
    """

    def __init__(self, targets_s: Iterable[float] = ()) -> None:
        self._targets_s = frozenset(targets_s)
        self._counts: dict[Metric, dict[Labels, float]] = {}
        self._histograms: dict[Metric, dict[Labels, Histogram]] = {}

    def add(self, metric: Metric, labels: Labels = (), amount: float = 1.0) -> None:
        """Count; with 0 the series exists from the start, as rates of it need."""
        assert metric.kind == "counter" and len(labels) == len(metric.labels), (metric, labels)
        counts = self._counts.setdefault(metric, {})
        counts[labels] = counts.get(labels, 0.0) + amount

    def histogram(self, metric: Metric, labels: Labels = ()) -> Histogram:
        """The histogram of these labels."""
        assert metric.kind == "histogram" and len(labels) == len(metric.labels), (metric, labels)
        found = self._histograms.setdefault(metric, {})
        if labels not in found:
            found[labels] = Histogram(tuple(sorted({*metric.buckets, *self._targets_s})))
        return found[labels]

    def histograms(self, metric: Metric) -> Mapping[Labels, Histogram]:
        """All of a metric, by labels."""
        return self._histograms.get(metric, {})

    def counts(self, metric: Metric) -> Mapping[Labels, float]:
        """All of a metric, by labels."""
        return self._counts.get(metric, {})

    def families(self) -> Iterator[Family]:
        """What was counted."""
        for metric, counts in self._counts.items():
            yield family(metric, counts)
        for metric, histograms in self._histograms.items():
            yield histogram_family(metric, histograms)


def family(metric: Metric, values: Mapping[L, float]) -> Family:
    """A counter or gauge, by label values."""
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    found = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        found.add_metric(labels, value)
    return found


def histogram_family(metric: Metric, histograms: Mapping[Labels, Histogram]) -> Family:
    """A histogram, by label values."""
    found = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, histogram in histograms.items():
        found.add_metric(labels, histogram.buckets(), histogram.total)
    return found


def render(families: Iterable[Family]) -> bytes:
    """The text of a scrape, with the process's own metrics; its type is `CONTENT_TYPE`."""
    of_process = ProcessCollector(registry=None).collect()
    return generate_latest(_Ready([*families, *of_process]))


class _Ready(Collector):
    """A collector of what was collected."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        return self._families
