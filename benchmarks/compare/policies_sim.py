"""Every batch policy against `fifo` in the simulator, on three traces, below and above capacity.

One mixed node of `a100-llama3-8b`. Per seed all policies get the same requests; ratios leave
seeds out in pairs, so their intervals are of the difference, not of the workload. Policies that
order by length get predictions of tau 0.53; each has the prefill order of its kind.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.options import Options
from benchmarks.report import Report, Table, say
from benchmarks.simulated import (
    LEARNED_SIGMA,
    Variant,
    capacity,
    paired_ratio,
    percentile,
    run_variant,
    scenario,
    totals,
    trace_of,
    ttfts,
)
from benchmarks.traces import describe_source
from loadgen.traces import Trace
from scheduling.batch.catalogue import BATCH_POLICIES
from scheduling.prefill.catalogue import PREFILL_POLICIES
from simulator.performance.results import Result
from simulator.performance.scenario import Scenario

FACTORS = (0.7, 0.9, 1.1, 1.6)
TRACES = ("sharegpt", "azure-code", "mooncake")
BASE = Variant("fifo", "fifo")
# A request that a node of 219,000 tokens holds many of: Mooncake's prompts divided by this.
MOONCAKE_DIVISOR = 8
# Of the prefill queue, where it is not of the same name.
PREFILL_OF = {"srpt": "sjf", "magnus": "hrrn", "magnus-cb": "hrrn", "slai": "spf"}
# After the last arrival: who is not done by then is late by any measure, and slow policies would
# take ten times as long to simulate.
DRAIN_S = 60.0
SECONDS = 30.0  # of arrivals in a run, at the least so many requests:
MIN_REQUESTS, MAX_REQUESTS = 60, 100


def variants(names: Sequence[str]) -> list[Variant]:
    """`fifo` first, then each with the prefill order that belongs to it."""
    made = [BASE]
    for name in names:
        prefill = PREFILL_OF.get(name, name)
        known = prefill if prefill in PREFILL_POLICIES else "fifo"
        if name != BASE.batch:
            made.append(Variant(name, name, known, sigma=LEARNED_SIGMA))
    return made


def run(options: Options) -> Report:
    """A table per trace: goodput over fifo's by load, and latencies at 1.1 x capacity."""
    names = sorted(BATCH_POLICIES)
    chosen = variants([*names[:2], "sjf"] if options.quick else names)
    factors = (1.1,) if options.quick else FACTORS
    seeds = range(options.seed, options.seed + (2 if options.quick else 5))
    tables, figures = [], {}
    for name in TRACES[: 1 if options.quick else 3]:
        rows, rate = _of_trace(name, chosen, factors, seeds, options)
        figures[name] = {"capacity_per_s": round(rate, 3), "rows": rows}
        tables.append(_table(name, rate, rows, factors))
    return Report(
        tables,
        (
            describe_source("sharegpt", options.traces) + " and the other traces alike; Poisson "
            f"arrivals; Mooncake's prompts divided by {MOONCAKE_DIVISOR}, without shared prefixes",
            "good: TTFT within 2 s and TPOT within 100 ms; x: goodput over fifo's, "
            f"{len(seeds)} seeds, 95 % interval; latencies in s, of requests that "
            f"ended within {DRAIN_S:.0f} s of the last arrival, at the last load but one",
        ),
        figures,
    )


def _of_trace(
    name: str,
    chosen: Sequence[Variant],
    factors: Sequence[float],
    seeds: Sequence[int],
    options: Options,
) -> tuple[list[dict[str, Any]], float]:
    base = scenario(_trace(name, options), 80 if options.quick else 300, 1.0)
    rate = capacity(BASE, base, seeds[:1])
    rows = []
    for factor in factors:
        load = at_load(base, factor * rate)
        references: list[Result] = []
        for variant in chosen:
            say(f"{name} {factor}: {variant.name}")
            runs = run_variant(variant, load, seeds)
            references = references or runs
            rows.append(_row(factor, variant.name, runs, references))
    return rows, rate


def at_load(base: Scenario, rate: float) -> Scenario:
    """Some seconds of arrivals at this rate."""
    count = min(MAX_REQUESTS, max(MIN_REQUESTS, round(rate * SECONDS)))
    load = replace(base.load, rate=rate, num_requests=count)
    return replace(base, load=load, drain_s=DRAIN_S)


def _trace(name: str, options: Options) -> Trace:
    trace = trace_of(name, options.traces)
    divisor = MOONCAKE_DIVISOR if name == "mooncake" else 1
    requests = tuple(
        replace(r, num_prompt=-(-r.num_prompt // divisor), blocks=()) for r in trace.requests
    )
    return replace(trace, requests=requests, has_times=False, block_tokens=0)


def _row(
    factor: float, name: str, runs: Sequence[Result], references: Sequence[Result]
) -> dict[str, Any]:
    ratio = paired_ratio([r.goodput for r in runs], [r.goodput for r in references])
    first, total = ttfts(runs), totals(runs)
    return {
        "factor": factor,
        "policy": name,
        "goodput_per_s": round(float(np.mean([r.goodput for r in runs])), 4),
        "goodput_over_fifo": ratio.figures,
        "text": str(ratio),
        "attainment": round(float(np.mean([r.attainment for r in runs])), 4),
        "ttft_mean_s": round(float(np.mean(first)), 4) if first else 0.0,
        "ttft_p99_s": round(percentile(first, 99), 4),
        "e2e_mean_s": round(float(np.mean(total)), 4) if total else 0.0,
        "e2e_p99_s": round(percentile(total, 99), 4),
    }


def _table(
    name: str, rate: float, rows: Sequence[dict[str, Any]], factors: Sequence[float]
) -> Table:
    told = factors[-2] if len(factors) > 1 else factors[0]
    by_policy: dict[str, dict[float, dict[str, Any]]] = {}
    for row in rows:
        by_policy.setdefault(row["policy"], {})[row["factor"]] = row
    cells = []
    for policy, of in by_policy.items():
        last = of[told]
        cells.append(
            [
                policy,
                *(of[f]["text"] for f in factors),
                *(f"{last[key]:.1f}" for key in ("ttft_mean_s", "ttft_p99_s")),
                *(f"{last[key]:.0f}" for key in ("e2e_mean_s", "e2e_p99_s")),
            ]
        )
    header = (
        "policy", *(f"x at {factor}" for factor in factors), "TTFT mean", "P99", "E2E mean", "P99",
    )  # fmt: skip
    return Table(f"{name}, fifo's capacity {rate:.2f}/s", header, cells)
