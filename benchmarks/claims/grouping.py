"""Magnus and WAIT, which form groups before they run them, in the performance simulator."""

import random
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
    percentile,
    run_variant,
    scenario,
    totals,
    trace_from,
    trace_of,
    ttfts,
)
from benchmarks.traces import Lengths, describe_source
from loadgen.traces import Trace
from simulator.performance.results import Result

SMALL_BATCH, LARGE_BATCH = 8, 36
# Token reads that a batch may waste; 50,000 makes batches of a few requests
# where answers are as long as here.
MAX_WASTE = 5_000_000
MAGNUS_LOAD = 0.9


def _magnus(name: str, sigma: float, max_waste: int) -> Variant:
    options = {"max_waste": str(max_waste)}
    return Variant(name, "magnus", "hrrn", options, sigma=sigma, max_num_seqs=LARGE_BATCH)


MAGNUS_VARIANTS = (
    Variant("static, batch 8", "static", max_num_seqs=SMALL_BATCH),
    Variant("static, batch 36", "static", max_num_seqs=LARGE_BATCH),
    _magnus("magnus, tau 0.53", LEARNED_SIGMA, MAX_WASTE),
    _magnus("magnus, oracle", 0.0, MAX_WASTE),
    _magnus("magnus, oracle, waste 50,000", 0.0, 50_000),
    Variant("magnus-cb, tau 0.53", "magnus-cb", "hrrn", sigma=LEARNED_SIGMA),
    Variant("fifo", "fifo"),
)
WAIT_VARIANTS = (
    Variant("fifo", "fifo"),
    Variant("sarathi", "sarathi", batch_options={"token_budget": "512"}),
    Variant("wait, oracle", "wait", sigma=0.0),
    Variant("wait-nested", "wait-nested"),
)
# WAIT's synthetic types: prompts of 20 tokens, answers of 100, 200, 300 at rates 6 : 4 : 2.
WAIT_TYPES = [Lengths(20, 100)] * 6 + [Lengths(20, 200)] * 4 + [Lengths(20, 300)] * 2


def magnus(options: Options) -> Report:
    """Mean latency on chat, and where answers are about as long as prompts (Magnus' tasks)."""
    seeds = range(options.seed, options.seed + (1 if options.quick else 3))
    count = 40 if options.quick else 160
    workloads = {
        "correlated": _correlated(options.seed),
        "sharegpt": trace_of("sharegpt", options.traces),
    }
    rows = []
    for name, trace in list(workloads.items())[: 1 if options.quick else 2]:
        base = scenario(trace, count, 1.0)
        most = capacity(MAGNUS_VARIANTS[1], base, seeds[:1])
        load = replace(base.load, rate=MAGNUS_LOAD * most)
        for variant in MAGNUS_VARIANTS:
            say(f"{name}: {variant.name}")
            runs = run_variant(variant, replace(base, load=load), seeds)
            rows.append(_row(name, MAGNUS_LOAD, variant.name, runs))
    for row in rows:
        for column, reference in (
            ("vs_small", "static, batch 8"),
            ("vs_large", "static, batch 36"),
        ):
            row[column] = _change(row, reference, rows)
    cells = [
        [
            f"{r['workload']} {r['factor']} {r['policy']}",
            f"{r['e2e_mean_s']:.1f}",
            f"{r['vs_small']:+.0%}",
            f"{r['vs_large']:+.0%}",
            f"{r['e2e_p99_s']:.1f}",
            f"{r['requests_per_s']:.2f}",
        ]
        for r in rows
    ]
    header = ("workload, load, policy", "E2E mean s", "vs 8", "vs 36", "P99 s", "requests/s")
    return Report(
        [Table("load: of static batching's capacity at batch 36", header, cells)],
        (
            describe_source("sharegpt", options.traces) + f"; {len(seeds)} seeds",
            "correlated: prompts of 20 to 600 tokens, answers of 0.7 to 1.3 times as many, as in "
            "translation and correction, the tasks of Magnus' paper",
        ),
        {"rows": rows},
    )


def _correlated(seed: int) -> Trace:
    rng = random.Random(f"correlated {seed}")
    prompts = [rng.randint(20, 600) for _ in range(4000)]
    lengths = [Lengths(n, max(2, round(n * rng.uniform(0.7, 1.3)))) for n in prompts]
    return trace_from("correlated", lengths)


def _row(name: str, factor: float, policy: str, runs: Sequence[Result]) -> dict[str, Any]:
    ends = [max(r.finished_at or 0.0 for r in result.requests) for result in runs]
    counts = [len(result.requests) for result in runs]
    return {
        "workload": name,
        "factor": factor,
        "policy": policy,
        "ttft_p50_s": round(percentile(ttfts(runs), 50), 3),
        "e2e_mean_s": round(float(np.mean(totals(runs))), 3),
        "e2e_p99_s": round(percentile(totals(runs), 99), 3),
        "requests_per_s": round(sum(counts) / sum(ends), 3),
        "num_preemptions": sum(r.num_preemptions for run in runs for r in run.requests),
    }


def _change(row: dict[str, Any], reference: str, rows: Sequence[dict[str, Any]]) -> float:
    base = next(
        r
        for r in rows
        if (r["workload"], r["factor"], r["policy"]) == (row["workload"], row["factor"], reference)
    )
    ratio: float = row["e2e_mean_s"] / base["e2e_mean_s"]
    return round(ratio - 1, 4)


def wait(options: Options) -> Report:
    """Stable range and latency on the authors' three types, from 0.7 to 1.3 of the capacity."""
    seeds = range(options.seed, options.seed + (1 if options.quick else 2))
    count = 120 if options.quick else 600
    base = scenario(trace_from("three types", WAIT_TYPES), count, 1.0)
    full = replace(base, load=replace(base.load, num_requests=2 * count))
    most = capacity(WAIT_VARIANTS[0], full, seeds[:1])
    rows = []
    for factor in (0.9,) if options.quick else (0.7, 0.9, 1.1, 1.3):
        load = replace(base.load, rate=factor * most)
        for variant in WAIT_VARIANTS:
            say(f"{factor}: {variant.name}")
            runs = run_variant(variant, replace(base, load=load), seeds)
            rows.append(_row("three types", factor, variant.name, runs))
    cells = [
        [
            f"{r['factor']} {r['policy']}",
            f"{r['requests_per_s']:.2f}",
            f"{r['ttft_p50_s']:.2f}",
            f"{r['e2e_mean_s']:.2f}",
            f"{r['e2e_p99_s']:.2f}",
            str(r["num_preemptions"]),
        ]
        for r in rows
    ]
    header = ("load, policy", "requests/s", "TTFT P50 s", "E2E mean s", "P99 s", "preempted")
    return Report(
        [Table(f"fifo's capacity {most:.1f}/s, {count} requests", header, cells)],
        (f"prompts of 20, answers of 100, 200, 300 at 6:4:2; {len(seeds)} seeds; nothing dropped",),
        {"capacity_per_s": round(most, 3), "rows": rows},
    )
