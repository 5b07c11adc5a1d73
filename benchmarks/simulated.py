"""Runs of the performance simulator for claims and comparisons: one node of published speed.

Steps take what Niyama's authors fitted for Llama-3-8B on an A100 (`a100-llama3-8b`), with chunked
prefill beside decode on one mixed node, as the papers' engines do it. Nothing is refused for a full
queue, and requests reserve exactly what they will need, the best case for reservation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from benchmarks.traces import SOURCES, Lengths, load_lengths
from loadgen.traces import Trace, TraceRequest, read_trace
from simulator.performance.arrivals import Load
from simulator.performance.profiles import load_profile
from simulator.performance.requests import SimRequest
from simulator.performance.results import Result, interval
from simulator.performance.scenario import Scenario, parse_layout, simulate

PROFILE = "a100-llama3-8b"
UNLIMITED = 10**9
BURST_RATE = 1e4
# Of the log of a predicted length: Kendall's tau 0.53 on ShareGPT's answers, as learning-to-rank
# reports for its predictor there (0.52).
LEARNED_SIGMA = 0.7
SLA = "standard:2000:100:0.9"


@dataclass(frozen=True, slots=True)
class Variant:
    """Policies of a node. `sigma` of predicted lengths: 0 is an oracle, None predicts nothing."""

    name: str
    batch: str
    prefill: str = "fifo"
    batch_options: Mapping[str, str] = field(default_factory=dict)
    prefill_options: Mapping[str, str] = field(default_factory=dict)
    sigma: float | None = None
    max_num_seqs: int | None = None


def trace_of(name: str, folder: Path | None) -> Trace:
    """A trace with its times and prefixes; drawn lengths without either where there is none."""
    if folder is not None:
        return read_trace(folder / SOURCES[name].file)
    return trace_from(name, load_lengths(name, None))


def trace_from(name: str, lengths: Sequence[Lengths]) -> Trace:
    """Lengths without times."""
    requests = tuple(TraceRequest(0.0, each.num_prompt, each.num_output) for each in lengths)
    return Trace(name, requests, has_times=False)


def scenario(trace: Trace, num_requests: int, rate: float, *, layout: str = "1m") -> Scenario:
    """Poisson arrivals of a trace's requests."""
    return Scenario(
        profile=load_profile(PROFILE),
        layout=parse_layout(layout),
        load=Load(trace=trace, num_requests=num_requests, rate=rate),
        max_queued_tokens_per_node=UNLIMITED,
        max_queued_requests_per_node=UNLIMITED,
        sla=(SLA,),
        sla_class="standard",
    )


def run_variant(variant: Variant, base: Scenario, seeds: Sequence[int]) -> list[Result]:
    """The scenario under these policies, once per seed: the same requests for every variant."""
    chosen = replace(
        base,
        batch_policy=variant.batch,
        prefill_policy=variant.prefill,
        batch_options=variant.batch_options,
        prefill_options=variant.prefill_options,
        predictor_sigma=variant.sigma,
        max_num_seqs=variant.max_num_seqs or base.max_num_seqs,
    )
    return [simulate(replace(chosen, seed=seed)) for seed in seeds]


def capacity(variant: Variant, base: Scenario, seeds: Sequence[int]) -> float:
    """Requests per second of a node that always has a queue: the middle 60 % of a burst's ends.

    The burst must be several batches long, or they end in lumps.
    """
    burst = replace(base, load=replace(base.load, rate=BURST_RATE), warmup=0.0)
    rates = []
    for result in run_variant(variant, burst, seeds):
        ends = sorted(r.finished_at for r in result.requests if r.finished_at is not None)
        first, last = len(ends) // 5, len(ends) - len(ends) // 5 - 1
        rates.append((last - first) / (ends[last] - ends[first]))
    return float(np.mean(rates))


def finished(results: Sequence[Result]) -> list[SimRequest]:
    """Measured requests that ended, of all runs."""
    return [r for result in results for r in result.measured if r.finished_at is not None]


def percentile(values: Sequence[float], percent: float) -> float:
    """0 where there are none."""
    return float(np.percentile(values, percent)) if len(values) else 0.0


def ttfts(results: Sequence[Result]) -> list[float]:
    """Seconds to the first token of all measured requests that had one."""
    return [r.ttft for result in results for r in result.measured if r.ttft is not None]


def totals(results: Sequence[Result]) -> list[float]:
    """Seconds to the last token of all measured requests that ended."""
    return [r.e2e for r in finished(results) if r.e2e is not None]


@dataclass(frozen=True, slots=True)
class Ratio:
    """Of paired runs over seeds, and how far the true one may be (95 %); None: nobody knows."""

    mean: float
    plus_minus: float | None

    @property
    def figures(self) -> dict[str, float | None]:
        """For JSON."""
        known = None if self.plus_minus is None else round(self.plus_minus, 4)
        return {"ratio": round(self.mean, 4), "plus_minus": known}

    def __str__(self) -> str:
        known = "?" if self.plus_minus is None else f"{self.plus_minus:.2f}"
        return f"{self.mean:.2f}±{known}"


def paired_ratio(values: Sequence[float], references: Sequence[float]) -> Ratio:
    """Sum over sum, with the jackknife's interval: seeds are left out in turn, both of a pair.

    A mean of ratios would be ruled by the seed whose reference is nearly 0. Where all are, 0;
    where all but one are, nothing is known of its spread.
    """
    total, base = sum(values), sum(references)
    count = len(values)
    if base == 0:
        return Ratio(0.0, None)
    pairs = zip(values, references, strict=True)
    left = [(total - value) / (base - one) for value, one in pairs if base > one]
    if count < 2 or len(left) < count:
        return Ratio(total / base, None)
    # Pseudo-values, whose interval is that of a mean.
    pseudo = [count * total / base - (count - 1) * each for each in left]
    return Ratio(total / base, interval(pseudo).plus_minus)
