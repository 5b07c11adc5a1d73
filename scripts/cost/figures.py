"""From rounds to medians and ratios, and their tables. Pure.

A ratio compares two measurements of one round, so that what changes slowly on the machine cancels;
what is told is the median over the rounds, with the least and the greatest.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from loadgen.report import percentiles_ms
from scripts.cost.control import Condition, Latencies
from scripts.cost.serving import AS_IT_IS, Handoff, Plan, Round
from tandem.tables import format_table

# What a guard may cost; the other figures may be zero or less.
COMPARED = ("single_ms", "single_transfer_ms", "loaded_ms", "loaded_transfer_ms", "tokens_per_s")
Rounds = Sequence[Mapping[str, Sequence[Round]]]


def figures_of(result: Round) -> dict[str, float]:
    """Medians over the requests of one measurement."""
    return {
        **_handoff_figures("single", result.single),
        **_handoff_figures("loaded", result.loaded),
        "tokens_per_s": result.tokens_per_s,
    }


def _handoff_figures(load: str, handoffs: Sequence[Handoff]) -> dict[str, float]:
    return {
        f"{load}_ms": statistics.median(each.total for each in handoffs),
        f"{load}_transfer_ms": statistics.median(each.total - each.waiting for each in handoffs),
        f"{load}_timeline_ms": statistics.median(each.timeline for each in handoffs),
        f"{load}_gap_ms": statistics.median(each.gap for each in handoffs),
    }


def serving_rows(plan: Plan, rounds: Rounds) -> list[dict[str, Any]]:
    """One row per setting: its medians, and how it is with the guards over without them."""
    rows = []
    for setting in plan.settings:
        runs = [[figures_of(each) for each in results[setting.name]] for results in rounds]
        references = [
            _mean([figures_of(each) for each in results[AS_IT_IS.name]]) for results in rounds
        ]
        if setting is AS_IT_IS:  # against itself, for the noise
            pairs = [(first, second) for first, second in runs]
        else:
            pairs = [(whole, run[0]) for whole, run in zip(references, runs, strict=True)]
        rows.append(
            {
                "transport": plan.transport,
                "without": setting.name,
                "kv_bytes": rounds[0][setting.name][0].num_bytes,
                "medians": _medians([_mean(run) for run in runs]),
                "ratios": {
                    name: _spread([whole[name] / other[name] for whole, other in pairs])
                    for name in COMPARED
                },
                "rounds": [{n: round(v, 3) for n, v in _mean(run).items()} for run in runs],
            }
        )
    return rows


def _mean(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(run[name] for run in runs) for name in runs[0]}


def _medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}


def _spread(values: Sequence[float]) -> dict[str, float]:
    points = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, 3) for name, value in points.items()}


def serving_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """For people: values without each guard, and the ratio of with over without."""
    head = (
        *("without", "hand-off ms", "with/without", "loaded ms", "with/without"),
        *("first gap ms", "tokens/s", "with/without"),
    )
    lines = []
    for row in rows:
        medians, ratios = row["medians"], row["ratios"]
        is_whole = row["without"] == AS_IT_IS.name
        name = "(as it is, twice)" if is_whole else row["without"]
        lines.append(
            (
                f"{row['transport']}: {name}",
                *(f"{medians['single_ms']:.2f}", _ratio(ratios["single_ms"])),
                *(f"{medians['loaded_ms']:.2f}", _ratio(ratios["loaded_ms"])),
                f"{medians['loaded_gap_ms']:.2f}",
                *(f"{medians['tokens_per_s']:.0f}", _ratio(ratios["tokens_per_s"])),
            )
        )
    return format_table(head, lines)


def _ratio(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.2f} ({spread['least']:.2f}-{spread['most']:.2f})"


def control_rows(
    rounds: Sequence[Mapping[Condition, Latencies]],
) -> list[dict[str, Any]]:
    """One row per condition, over the pings of all rounds; p99 also of each round."""
    rows = []
    for condition in rounds[0]:
        runs = [results[condition] for results in rounds]
        pooled = [seconds for run in runs for seconds in run.latencies_s]
        p99s = [percentiles_ms(run.latencies_s)["p99"] for run in runs]
        speeds = [run.bytes_per_s / 1e6 for run in runs]
        rows.append(
            {
                "condition": condition.name,
                "idle": condition.idle_name,
                "num_pings": len(pooled),
                "latency_ms": percentiles_ms(pooled),
                "p99_ms": _spread(p99s),
                "mb_per_s": round(statistics.median(speeds), 1),
            }
        )
    return rows


def control_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """For people, with p99 over that of the idle machine."""
    head = ("pages over", "MB/s", "p50 ms", "p99 ms", "p99 of rounds", "p99/idle", "most ms")
    idle = {row["condition"]: row["latency_ms"]["p99"] for row in rows}
    lines = []
    for row in rows:
        latency, p99s = row["latency_ms"], row["p99_ms"]
        lines.append(
            (
                row["condition"],
                f"{row['mb_per_s']:.0f}",
                f"{latency['p50']:.2f}",
                f"{latency['p99']:.2f}",
                f"{p99s['least']:.2f}-{p99s['most']:.2f}",
                f"{latency['p99'] / idle[row['idle']]:.1f}",
                f"{latency['max']:.2f}",
            )
        )
    return format_table(head, lines)
