"""What a simulation measured: latencies, attainment, goodput, and what was lost. Pure.

Measured are requests that arrived after the warm-up; the simulation runs on until all have ended
(or `drain_s` is over: then they are unfinished and count as not attained). Rates are per second of
the time between the first and the last measured arrival, so drained work does not raise them.
Refused and unfinished requests count in attainment, never in latencies.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from scheduling.balance import Change
from scheduling.sla import SlaTable
from simulator.performance.meters import Meters
from simulator.performance.requests import SimRequest

PERCENTILES = (50, 90, 99)
# Two-sided 95 % quantiles of Student's t for 1 to 10 degrees of freedom; the normal's beyond.
_T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


@dataclass(frozen=True, slots=True)
class Result:
    """One run. `requests` are all of them, with their times.

    num_illegal_plans: plans of which the node had to drop something. num_pages_left: pages that
    requests still hold or were promised at the end. role_changes: what the balancer did, and when.
    """

    requests: tuple[SimRequest, ...]
    meters: Meters
    num_nodes: int
    num_illegal_plans: int
    num_pages_left: int
    num_shipped_bytes: int
    num_events: int
    sla: SlaTable
    virtual_s: float
    role_changes: tuple[tuple[float, Change], ...] = ()

    @property
    def measured(self) -> list[SimRequest]:
        """Requests after the warm-up."""
        return [r for r in self.requests if r.arrived_at >= self.meters.begins_at]

    @property
    def duration_s(self) -> float:
        """Between the first and the last measured arrival."""
        return self.meters.ends_at - self.meters.begins_at

    @property
    def attainment(self) -> float:
        """Share of measured requests that kept both targets."""
        measured = self.measured
        return sum(r.is_attained for r in measured) / len(measured)

    @property
    def goodput(self) -> float:
        """Requests per second that kept both targets."""
        kept = sum(r.is_attained for r in self.measured)
        return kept / self.duration_s if self.duration_s > 0 else 0.0

    def summary(self) -> dict[str, Any]:
        """All figures, flat enough for a table and for JSON; latencies in milliseconds."""
        measured, meters = self.measured, self.meters
        duration_s = self.duration_s or math.inf
        finished = [r for r in measured if r.finished_at is not None]
        rows = meters.num_rows + meters.num_padding_rows + meters.num_held_rows
        return {
            "num_requests": len(measured),
            "num_finished": len(finished),
            "num_refused": sum(r.refusal is not None for r in measured),
            "num_unfinished": sum(r.finished_at is None and r.refusal is None for r in measured),
            "num_preemptions": sum(r.num_preemptions for r in measured),
            "duration_s": _rounded(self.duration_s),
            "offered_per_s": _rounded(len(measured) / duration_s),
            "goodput_per_s": _rounded(self.goodput),
            "attainment": _rounded(self.attainment),
            "attainment_by_class": self._attainment_by_class(measured),
            "tokens_per_s": _rounded(meters.num_tokens / duration_s),
            "ttft_ms": _percentiles([r.ttft for r in measured if r.ttft is not None]),
            "tpot_ms": _percentiles([r.tpot for r in finished if r.tpot is not None]),
            "itl_ms": {
                f"p{p}": _rounded(meters.gaps.percentile(p / 100) * 1e3) for p in PERCENTILES
            },
            "e2e_ms": _percentiles([r.e2e for r in finished if r.e2e is not None]),
            "normalized_ms": _percentiles(
                [r.e2e / r.num_output for r in finished if r.e2e is not None]
            ),
            "cached_share": _rounded(
                sum(r.num_cached for r in measured) / sum(r.num_prompt for r in measured)
            ),
            "busy_share": _rounded(meters.busy_s / (duration_s * self.num_nodes)),
            "wasted_row_share": _rounded(1 - meters.num_rows / rows if rows else 0.0),
            "num_wasted_tokens": meters.num_wasted_tokens,
            "num_steps": meters.num_steps,
            "shipped_gib": _rounded(self.num_shipped_bytes / 2**30),
            "num_illegal_plans": self.num_illegal_plans,
            "num_events": self.num_events,
            "num_role_changes": len(self.role_changes),
        }

    def _attainment_by_class(self, measured: Sequence[SimRequest]) -> dict[str, float]:
        shares = {}
        for name in sorted({r.sla_class for r in measured}):
            of_class = [r.is_attained for r in measured if r.sla_class == name]
            shares[name] = _rounded(sum(of_class) / len(of_class))
        return shares


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds; empty where nothing was measured."""
    if not seconds:
        return {}
    points = np.percentile(np.array(seconds), PERCENTILES)
    named = {f"p{p}": _rounded(float(v) * 1e3) for p, v in zip(PERCENTILES, points, strict=True)}
    return {"mean": _rounded(float(np.mean(seconds)) * 1e3), **named}


def _rounded(value: float) -> float:
    """Six significant digits: what is beyond is no information."""
    return float(f"{value:.6g}") if math.isfinite(value) else 0.0


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds, and how far the true one may be from it (95 %, Student's t)."""

    mean: float
    plus_minus: float


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % confidence over independent runs; infinite width for a single one."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Interval(mean, math.inf)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
    quantile = _T95[count - 2] if count - 2 < len(_T95) else NormalDist().inv_cdf(0.975)
    return Interval(mean, quantile * spread / math.sqrt(count))
