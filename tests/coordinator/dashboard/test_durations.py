"""Quantiles by bins: close to those of the sorted values, and forgotten with time."""

import math

from hypothesis import given
from hypothesis import strategies as st

from coordinator.dashboard.durations import STAGES, Durations, RecentDurations, bins_of

TTFT = STAGES.index("ttft")


def one(stage: int, duration_ms: float) -> tuple[float | None, ...]:
    return tuple(duration_ms if index == stage else None for index in range(len(STAGES)))


@given(st.lists(st.floats(0.02, 1e6), min_size=1, max_size=200))
def test_quantiles_are_within_two_percent(values: list[float]) -> None:
    durations = Durations()
    for value in values:
        durations.add(bins_of(one(TTFT, value)))
    found = durations.quantiles(TTFT)
    assert found is not None
    ordered = sorted(values)
    for share, quantile in ((0.5, found.p50), (0.95, found.p95), (0.99, found.p99)):
        exact = ordered[max(1, math.ceil(share * len(ordered))) - 1]
        assert 0.979 < quantile / exact < 1.021
    assert durations.quantiles(TTFT + 1) is None


def test_extremes_are_counted() -> None:
    durations = Durations()
    for value in (0.0, 1e12):
        durations.add(bins_of(one(TTFT, value)))
    found = durations.quantiles(TTFT)
    assert found is not None and found.p50 == 0.0 and found.p99 > 9e6


def test_five_minutes_are_remembered() -> None:
    recent = RecentDurations()
    recent.add(bins_of(one(TTFT, 10.0)), 1000.0)
    recent.add(bins_of(one(TTFT, 500.0)), 1200.0)
    both = recent.quantiles(1250.0)["ttft"]
    assert both is not None and both.p50 < 11 and both.p99 > 480
    late = recent.quantiles(1310.0)["ttft"]
    assert late is not None and late.p50 > 480
    assert recent.quantiles(1600.0)["ttft"] is None
    assert recent.quantiles(1600.0)["queue"] is None
