"""Results as a table for people; `Result.summary` is what programs read. Pure."""

from collections.abc import Sequence
from typing import Any

from simulator.performance.results import Result, interval

LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms", "normalized_ms")
POINTS = ("mean", "p50", "p90", "p99")
MEANS = (
    "goodput_per_s",
    "attainment",
    "tokens_per_s",
    "busy_share",
    "cached_share",
)


def format_result(summary: dict[str, Any]) -> str:
    """One run as a table."""
    lines = [
        f"requests    {summary['num_requests']} measured, {summary['num_finished']} finished, "
        f"{summary['num_refused']} refused, {summary['num_unfinished']} unfinished, "
        f"{summary['num_preemptions']} preemptions",
        f"load        {summary['offered_per_s']:.3f} requests/s for {summary['duration_s']:.1f} s",
        f"goodput     {summary['goodput_per_s']:.3f} requests/s, "
        f"{summary['attainment']:.1%} kept both targets",
        f"throughput  {summary['tokens_per_s']:.1f} output tokens/s",
        f"nodes       busy {summary['busy_share']:.1%}, rows wasted "
        f"{summary['wasted_row_share']:.1%}, {summary['cached_share']:.1%} of prompts cached, "
        f"{summary['shipped_gib']:.1f} GiB shipped",
        "",
        f"{'ms':<12}" + "".join(f"{point:>11}" for point in POINTS),
    ]
    for name in LATENCIES:
        cells = (summary[name].get(point) for point in POINTS)
        texts = "".join(f"{'-' if cell is None else f'{cell:.2f}':>11}" for cell in cells)
        lines.append(f"{name.removesuffix('_ms').upper():<12}{texts}")
    return "\n".join(lines)


def intervals(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Mean and 95 % confidence of the main figures over seeds."""
    summaries = [result.summary() for result in results]
    series = {name: [float(s[name]) for s in summaries] for name in MEANS}
    for name in ("ttft_ms", "tpot_ms", "itl_ms"):
        for point in ("p50", "p99"):
            series[f"{name}_{point}"] = [float(s[name].get(point, 0.0)) for s in summaries]
    found = {name: interval(values) for name, values in series.items()}
    return {k: {"mean": v.mean, "plus_minus": v.plus_minus} for k, v in found.items()}


def format_intervals(found: dict[str, dict[str, float]], num_seeds: int) -> str:
    """The intervals as a table."""
    lines = [f"over {num_seeds} seeds, mean and 95 % confidence:"]
    for name, each in found.items():
        lines.append(f"  {name:<16}{each['mean']:>14.4g} ± {each['plus_minus']:.2g}")
    return "\n".join(lines)
