"""Learning-to-rank and the starvation guard, in the performance simulator."""

from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.options import Options
from benchmarks.report import Report, Table, say
from benchmarks.simulated import (
    BURST_RATE,
    LEARNED_SIGMA,
    Variant,
    capacity,
    finished,
    paired_ratio,
    percentile,
    run_variant,
    scenario,
    totals,
    trace_from,
    trace_of,
)
from benchmarks.traces import Lengths, describe_source
from simulator.performance.results import Result

FIFO = Variant("fifo", "fifo")
WINDOW_S = 60.0
FACTORS = (0.9, 1.1, 1.6, 2.2)
RANKED = (
    FIFO,
    Variant("ltr, tau 0.53", "ltr", "ltr", sigma=LEARNED_SIGMA),
    Variant("ltr, oracle", "ltr", "ltr", sigma=0.0),
)


def ltr(options: Options) -> Report:
    """Requests answered in a window of 60 s, by load; latency per token of a burst."""
    seeds = range(options.seed, options.seed + (2 if options.quick else 5))
    trace = trace_of("sharegpt", options.traces)
    base = scenario(trace, 60 if options.quick else 400, 1.0)
    rate = capacity(FIFO, base, seeds[:1])
    windows = []
    for factor in (1.6,) if options.quick else FACTORS:
        say(f"window at {factor} x capacity")
        count = round(factor * rate * WINDOW_S)
        load = replace(base.load, rate=factor * rate, num_requests=count)
        cut = replace(base, load=load, drain_s=0.0, warmup=0.0)
        by_name = {v.name: run_variant(v, cut, seeds) for v in RANKED}
        windows += [_window(factor, name, runs, by_name["fifo"]) for name, runs in by_name.items()]
    say("burst")
    burst = replace(base, load=replace(base.load, rate=BURST_RATE), warmup=0.0)
    bursts = {v.name: _per_token_s(run_variant(v, burst, seeds[:2])) for v in RANKED}
    first = bursts["fifo"]
    return Report(
        [
            Table(
                f"answered within {WINDOW_S:.0f} s, over fifo (fifo's capacity {rate:.2f}/s)",
                ("load, policy", "requests", "tokens/s", "goodput", "mean E2E s", "P99 E2E s"),
                [_window_cells(row) for row in windows],
            ),
            Table(
                f"burst of {base.load.num_requests} at once: mean latency per output token",
                ("policy", "s/token", "fifo over it"),
                [[n, f"{v:.3f}", f"{first / v:.2f}"] for n, v in bursts.items()],
            ),
        ],
        (
            describe_source("sharegpt", options.traces) + f", {len(seeds)} seeds, 95 % intervals",
            "cut at the end of the window: requests counts finished ones, which favours short "
            "answers; tokens/s counts all tokens; E2E is of finished ones only",
        ),
        {
            "capacity_per_s": round(rate, 3),
            "windows": windows,
            "burst_s_per_token": {name: round(value, 4) for name, value in bursts.items()},
        },
    )


def _window(factor: float, name: str, runs: list[Result], base: list[Result]) -> dict[str, Any]:
    def compared(values: list[float], references: list[float]) -> dict[str, Any]:
        ratio = paired_ratio(values, references)
        return ratio.figures | {"text": str(ratio)}

    return {
        "factor": factor,
        "policy": name,
        "requests": compared(
            [float(len(finished([r]))) for r in runs], [float(len(finished([r]))) for r in base]
        ),
        "tokens": compared(
            [float(r.meters.num_tokens) for r in runs], [float(r.meters.num_tokens) for r in base]
        ),
        "goodput": compared([r.goodput for r in runs], [r.goodput for r in base]),
        "e2e_mean_s": round(float(np.mean(totals(runs))), 3),
        "e2e_p99_s": round(percentile(totals(runs), 99), 3),
    }


def _window_cells(row: dict[str, Any]) -> list[str]:
    ratios = (row["requests"], row["tokens"], row["goodput"])
    return [
        f"{row['factor']} {row['policy']}",
        *(each["text"] for each in ratios),
        f"{row['e2e_mean_s']:.1f}",
        f"{row['e2e_p99_s']:.1f}",
    ]


def _per_token_s(runs: list[Result]) -> float:
    return float(np.mean([(r.e2e or 0.0) / r.num_output for r in finished(runs)]))


SHORT, LONG = Lengths(256, 32), Lengths(1024, 600)
LONG_EVERY = 50
GUARDS = (
    Variant("fifo", "fifo"),
    Variant("sjf, no guard", "sjf", "sjf", sigma=0.0),
    *(
        Variant(
            f"sjf, guard {ms} ms",
            "sjf",
            "sjf",
            {"guard_ms": str(ms)},
            {"guard_ms": str(ms)},
            sigma=0.0,
        )
        for ms in (200, 500, 3000, 10_000)
    ),
)


def starvation(options: Options) -> Report:
    """A stream of short answers above capacity with one long answer in fifty."""
    seeds = range(options.seed, options.seed + (1 if options.quick else 3))
    lengths = [SHORT] * (LONG_EVERY - 1) + [LONG]
    base = replace(
        scenario(trace_from("short", lengths), 300 if options.quick else 2000, 1.0), warmup=0.0
    )
    rate = capacity(GUARDS[0], base, seeds[:1])
    seconds = 8.0 if options.quick else 60.0
    factor = 1.1
    load = replace(base.load, rate=factor * rate, num_requests=round(factor * rate * seconds))
    rows: list[dict[str, Any]] = []
    for variant in GUARDS[:3] if options.quick else GUARDS:
        say(variant.name)
        runs = run_variant(variant, replace(base, load=load), seeds)
        short = [r.ttft or 0.0 for r in finished(runs) if r.num_output < LONG.num_output]
        long = [r.ttft or 0.0 for r in finished(runs) if r.num_output >= LONG.num_output]
        rows.append(
            {
                "policy": variant.name,
                "mean_ttft_s": round(float(np.mean(short + long)), 3),
                "short_p50_s": round(percentile(short, 50), 3),
                "short_p99_s": round(percentile(short, 99), 3),
                "long_p50_s": round(percentile(long, 50), 3),
                "long_worst_s": round(max(long, default=0.0), 3),
            }
        )
    names = ("mean_ttft_s", "short_p50_s", "short_p99_s", "long_p50_s", "long_worst_s")
    return Report(
        [
            Table(
                f"TTFT in s, short {SHORT.num_prompt}+{SHORT.num_output}, one in {LONG_EVERY} "
                f"{LONG.num_prompt}+{LONG.num_output}, {factor} x {rate:.1f}/s for {seconds:.0f} s",
                ("policy", "mean", "short P50", "P99", "long P50", "worst"),
                [[r["policy"], *(f"{r[name]:.2f}" for name in names)] for r in rows],
            )
        ],
        (
            "oracle predictions, so that order is all that is compared; a guard boosts what has "
            "waited so long in all, within 20 % of the rows and tokens of a step",
        ),
        {"capacity_per_s": round(rate, 3), "rows": rows},
    )
