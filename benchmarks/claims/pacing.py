"""Sarathi's chunks and SLAI's held rows, in the performance simulator."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.options import Options
from benchmarks.report import Report, Table, say
from benchmarks.simulated import (
    Variant,
    capacity,
    finished,
    percentile,
    run_variant,
    scenario,
    totals,
    trace_of,
    ttfts,
)
from benchmarks.traces import describe_source
from simulator.performance.results import Result
from simulator.performance.scenario import Scenario

BUDGETS = (128, 256, 512, 1024, 2048)
ITL_TARGET_S = 0.1
NUM_BISECTIONS = 5
STRICT_EVERY = 20
SLAI_CLASSES = ("strict:2000:100:0.9", "relaxed:2000:500:0.9")
MEDIAN_TTFT_S = 0.5


def sarathi(options: Options) -> Report:
    """Chunk sizes at one load, and the load that keeps P99 of token gaps within 100 ms."""
    seeds = range(options.seed, options.seed + (1 if options.quick else 2))
    trace = trace_of("sharegpt", options.traces)
    base = scenario(trace, 60 if options.quick else 200, 1.0)
    whole = Variant("orca, whole prompts", "orca")
    variants = [whole] + [
        Variant(f"sarathi {budget}", "sarathi", batch_options={"token_budget": str(budget)})
        for budget in ((512,) if options.quick else BUDGETS)
    ]
    rate = 0.7 * capacity(Variant("fifo", "fifo"), base, seeds[:1])
    # Room for a whole prompt in one step; sarathi's budget is its own.
    wide = replace(base, max_num_batched_tokens=8192)
    rows: list[dict[str, Any]] = []
    for variant in variants:
        say(variant.name)
        runs = run_variant(variant, replace(wide, load=replace(wide.load, rate=rate)), seeds)
        trials = 3 if options.quick else NUM_BISECTIONS
        rows.append(
            {
                "policy": variant.name,
                "ttft_p50_s": round(percentile(ttfts(runs), 50), 3),
                "ttft_p99_s": round(percentile(ttfts(runs), 99), 3),
                "itl_p99_ms": round(_itl_p99_ms(runs), 1),
                "e2e_mean_s": round(sum(totals(runs)) / max(1, len(totals(runs))), 2),
                "capacity_per_s": round(_bisect(variant, wide, seeds[:1], 2.5 * rate, trials), 3),
            }
        )
    first = rows[0]["capacity_per_s"]
    cells = [
        [
            r["policy"],
            f"{r['ttft_p50_s']:.2f}",
            f"{r['ttft_p99_s']:.2f}",
            f"{r['itl_p99_ms']:.0f}",
            f"{r['e2e_mean_s']:.1f}",
            f"{r['capacity_per_s']:.2f}",
            f"{r['capacity_per_s'] / first:.2f}" if first else "-",
        ]
        for r in rows
    ]
    header = ("policy", "TTFT P50 s", "P99", "ITL P99 ms", "E2E mean s", "capacity/s", "x")
    target = f"{ITL_TARGET_S * 1e3:.0f} ms"
    return Report(
        [Table(f"at {rate:.2f}/s; capacity keeps P99 ITL within {target}", header, cells)],
        (describe_source("sharegpt", options.traces) + f", {len(seeds)} seeds, one mixed node",),
        {"rate_per_s": round(rate, 3), "itl_target_s": ITL_TARGET_S, "rows": rows},
    )


def _itl_p99_ms(runs: Sequence[Result]) -> float:
    return max(float(run.summary()["itl_ms"]["p99"]) for run in runs)


def _bisect(
    variant: Variant, base: Scenario, seeds: Sequence[int], most: float, trials: int
) -> float:
    """The highest rate whose P99 gap is within the target; 0 where none that was tried is."""
    low, high = 0.0, most
    for _ in range(trials):
        rate = (low + high) / 2
        runs = run_variant(variant, replace(base, load=replace(base.load, rate=rate)), seeds)
        is_kept = _itl_p99_ms(runs) <= ITL_TARGET_S * 1e3 and percentile(ttfts(runs), 50) <= 10.0
        low, high = (rate, high) if is_kept else (low, rate)
    return low


def class_of(index: int) -> str:
    """One request in twenty pays for quick tokens."""
    return "strict" if index % STRICT_EVERY == 0 else "relaxed"


def slai(options: Options) -> Report:
    """Against Sarathi in order of arrival and with shortest prompts first, by load."""
    seeds = range(options.seed, options.seed + (1 if options.quick else 3))
    trace = trace_of("sharegpt", options.traces)
    base = replace(
        scenario(trace, 60 if options.quick else 200, 1.0),
        sla=SLAI_CLASSES,
        sla_class="relaxed",
        class_of=class_of,
        max_num_batched_tokens=512,
        max_num_seqs=128,
    )
    plain = Variant("sarathi", "sarathi", batch_options={"token_budget": "512"})
    shortest = replace(plain, name="sarathi, spf", prefill="spf")
    variants = (plain, shortest, Variant("slai", "slai", "spf"))
    most = capacity(plain, base, seeds[:1])
    rows: list[dict[str, Any]] = []
    for factor in (0.9,) if options.quick else (0.7, 0.8, 0.9, 1.1):
        say(f"{factor} x capacity")
        load = replace(base.load, rate=factor * most)
        for variant in variants:
            runs = run_variant(variant, replace(base, load=load), seeds)
            rows.append(_slai_row(factor, variant.name, runs, rows))
    cells = [
        [
            f"{r['factor']} {r['policy']}",
            f"{r['ttft_p50_s']:.2f}",
            f"{r['p50_change']:+.0%}",
            f"{r['ttft_p99_s']:.2f}",
            f"{r['p99_change']:+.0%}",
            f"{r['strict_tpot_p99_ms']:.0f}",
            f"{r['relaxed_tpot_p99_ms']:.0f}",
            f"{r['e2e_mean_s']:.1f}",
        ]
        for r in rows
    ]
    header = (
        "load, policy", "TTFT P50 s", "change", "P99", "change", "TPOT P99 strict", "relaxed",
        "E2E mean s",
    )  # fmt: skip
    within = {
        v.name: max(
            (r["factor"] for r in rows
             if r["policy"] == v.name and r["ttft_p50_s"] < MEDIAN_TTFT_S),
            default=0.0,
        )
        for v in variants
    }  # fmt: skip
    best = ", ".join(f"{name} {factor}" for name, factor in within.items())
    return Report(
        [Table(f"capacity of sarathi {most:.2f}/s; change: against sarathi", header, cells)],
        (
            describe_source("sharegpt", options.traces) + f", {len(seeds)} seeds; 5 % strict "
            "(TPOT 100 ms), 95 % relaxed (500 ms); budget 512, 128 rows",
            f"highest load tried with a median TTFT below {MEDIAN_TTFT_S} s: {best}",
        ),
        {"capacity_per_s": round(most, 3), "rows": rows, "within_median_ttft": within},
    )


def _slai_row(
    factor: float, name: str, runs: Sequence[Result], rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    base = [r for r in rows if r["factor"] == factor and r["policy"] == "sarathi"]
    p50, p99 = percentile(ttfts(runs), 50), percentile(ttfts(runs), 99)
    tpots = {
        kind: [r.tpot * 1e3 for r in finished(runs) if r.sla_class == kind and r.tpot is not None]
        for kind in ("strict", "relaxed")
    }
    return {
        "factor": factor,
        "policy": name,
        "ttft_p50_s": round(p50, 3),
        "ttft_p99_s": round(p99, 3),
        "p50_change": round(p50 / base[0]["ttft_p50_s"] - 1, 3) if base else 0.0,
        "p99_change": round(p99 / base[0]["ttft_p99_s"] - 1, 3) if base else 0.0,
        "strict_tpot_p99_ms": round(percentile(tpots["strict"], 99), 1),
        "relaxed_tpot_p99_ms": round(percentile(tpots["relaxed"], 99), 1),
        "e2e_mean_s": round(sum(totals(runs)) / max(1, len(totals(runs))), 2),
    }
