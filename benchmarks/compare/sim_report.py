"""The simulator's figures beside the real system's: errors, what may be told apart, the order.

Five real runs differ among themselves. An error counts where it is beyond 10 % and beyond twice the
standard deviation of those runs; two policies differ where the real system sets them as far apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.compare.calibration import Calibration
from benchmarks.report import Report, Table
from loadgen.open_loop import OpenMeasurement
from simulator.performance.results import Result

FIGURES = ("ttft_p50_ms", "ttft_p90_ms", "tpot_p50_ms", "tpot_p90_ms", "e2e_mean_ms")
LEAST_BOUND = 0.1
NUM_SPREADS = 2.0
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Beside:
    """One figure: of each real run, and the simulator's mean over the same requests."""

    reals: Sequence[float]
    simulated: float

    @property
    def real(self) -> float:
        """Mean of the runs."""
        return float(np.mean(self.reals))

    @property
    def spread(self) -> float:
        """Standard deviation of the runs, relative to their mean."""
        return float(np.std(self.reals, ddof=1)) / self.real if len(self.reals) > 1 else 0.0

    @property
    def error(self) -> float:
        """Of the simulator, relative."""
        return self.simulated / self.real - 1

    @property
    def bound(self) -> float:
        """Errors below it say nothing."""
        return max(LEAST_BOUND, NUM_SPREADS * self.spread)

    @property
    def holds(self) -> bool:
        """Whether the simulator is as near as can be told."""
        return abs(self.error) <= self.bound

    def document(self) -> dict[str, Any]:
        """For the JSON line."""
        return {
            "real": round(self.real, 3),
            "real_least": round(min(self.reals), 3),
            "real_most": round(max(self.reals), 3),
            "simulated": round(self.simulated, 3),
            "error": round(self.error, 4),
            "spread": round(self.spread, 4),
            "holds": self.holds,
        }


@dataclass(frozen=True, slots=True)
class Compared:
    """Of one load or one policy, by the names of FIGURES."""

    name: str
    figures: dict[str, Beside]

    def document(self) -> dict[str, Any]:
        """For the JSON line."""
        return {"name": self.name, **{k: v.document() for k, v in self.figures.items()}}


def compared(name: str, real: Sequence[Figures], simulated: Sequence[Figures]) -> Compared:
    """Figures of real runs, and of the simulator for each of them."""
    return Compared(
        name,
        {
            key: Beside([each[key] for each in real], float(np.mean([s[key] for s in simulated])))
            for key in FIGURES
        },
    )


def real_figures(measured: OpenMeasurement) -> dict[str, float]:
    """Percentiles of a real run, in ms; those that were refused or cut off are left out."""
    samples = measured.samples
    return _figures(
        [s.ttft_s for s in samples],
        [s.tpot_s for s in samples if s.tpot_s is not None],
        [s.end_s for s in samples],
    )


def simulated_figures(result: Result) -> dict[str, float]:
    """The same of a simulated one."""
    done = [r for r in result.requests if r.finished_at is not None]
    return _figures(
        [r.ttft for r in done if r.ttft is not None],
        [r.tpot for r in done if r.tpot is not None],
        [r.e2e for r in done if r.e2e is not None],
    )


def _figures(
    ttfts: Sequence[float], tpots: Sequence[float], totals: Sequence[float]
) -> dict[str, float]:
    if not (ttfts and tpots):
        raise ValueError("no request was answered: nothing to compare")
    values = (
        np.percentile(ttfts, 50),
        np.percentile(ttfts, 90),
        np.percentile(tpots, 50),
        np.percentile(tpots, 90),
        np.mean(totals),
    )
    return {name: float(value) * 1e3 for name, value in zip(FIGURES, values, strict=True)}


def num_swapped_pairs(ranking: Sequence[Compared], tie: float) -> tuple[int, int]:
    """Pairs of policies that the two order differently by mean latency, and pairs that differ.

    A pair that the real system tells apart by less than `tie`, relative, is not counted.
    """
    swapped = told = 0
    latencies = [each.figures["e2e_mean_ms"] for each in ranking]
    for index, first in enumerate(latencies):
        for second in latencies[index + 1 :]:
            real, simulated = second.real / first.real, second.simulated / first.simulated
            if max(real, 1 / real) < 1 + tie:
                continue
            told += 1
            swapped += (real > 1) != (simulated > 1)
    return swapped, told


def report(
    calibration: Calibration, loads: Sequence[Compared], ranking: Sequence[Compared], title: str
) -> Report:
    """Both tables; the last load is that under which the policies ran."""
    rows = [
        [
            f"{load.name} {name}",
            f"{each.real:.2f}",
            f"{min(each.reals):.2f}-{max(each.reals):.2f}",
            f"{each.simulated:.2f}",
            f"{each.error:+.0%}",
            f"{each.bound:.0%}",
            "yes" if each.holds else "NO",
        ]
        for load in loads
        for name, each in load.figures.items()
    ]
    ranks = [
        [each.name, f"{latency.real:.1f}", f"{latency.simulated:.1f}", f"{latency.error:+.0%}"]
        for each in ranking
        for latency in (each.figures["e2e_mean_ms"],)
    ]
    tie = loads[-1].figures["e2e_mean_ms"].bound
    swapped, told = num_swapped_pairs(ranking, tie)
    header = ("load, figure", "real", "least-most", "simulated", "error", "bound", "within")
    latency_title = f"mean latency in ms at {loads[-1].name}"
    errors = {"prefill": calibration.prefill.error, "decode": calibration.decode.error}
    return Report(
        [
            Table(title, header, rows),
            Table(latency_title, ("policy", "real", "simulated", "error"), ranks),
        ],
        (
            f"median error of a predicted step: {errors['prefill']:.1%} on the node that prefills, "
            f"{errors['decode']:.1%} on the one that decodes; {calibration.gap_s * 1e3:.2f} ms "
            f"between steps; {calibration.profile.control_s * 1e3:.2f} ms per message",
            f"bound: {LEAST_BOUND:.0%} or {NUM_SPREADS:.0f} standard deviations of the real runs, "
            "the larger one",
            f"{swapped} of {told} pairs of policies that really differ by {tie:.0%} or more are "
            "ordered otherwise in the simulator",
        ),
        {
            "loads": [each.document() for each in loads],
            "ranking": [each.document() for each in ranking],
            "num_swapped_pairs": swapped,
            "num_told_pairs": told,
            "step_error": errors,
            "gap_ms": round(calibration.gap_s * 1e3, 3),
            "control_ms": round(calibration.profile.control_s * 1e3, 3),
        },
    )
