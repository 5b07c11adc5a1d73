"""How much of a device's work serves somebody: time in steps, and rows with a request.

busy      share of the time that the decode node computes
rows      share of a step's rows that have a request (an ended row of a static batch has none)
useful    busy x rows; 1 - useful is what "wasted cycles" can mean here
"""

from dataclasses import asdict
from typing import Any

from benchmarks.claims.bursts import SMALL, Burst, run_bursts, trace_workload
from benchmarks.options import Options
from benchmarks.report import Report, Table
from benchmarks.traces import SOURCES, describe_source, load_lengths
from loadgen.checkpoint import Shape
from loadgen.workload import continuous_steps, decode_steps, static_steps

BATCH_SIZE = 16
POLICIES = ("fifo", "static")


def row_shares(output_lens: list[int], batch_size: int) -> tuple[float, float]:
    """Share of rows with a request under static and under continuous batching, from lengths."""
    steps = decode_steps(output_lens)
    rows = sum(steps) / batch_size
    return (
        rows / static_steps(steps, batch_size),
        rows / continuous_steps(steps, batch_size),
    )


def run(options: Options) -> Report:
    """Exact shares of three traces; one burst of chat answers and one of code on the engine."""
    exact = _exact(options)
    count, clip = (24, 32) if options.quick else (96, 192)
    shape = SMALL if options.quick else Shape()
    real: list[tuple[str, Burst]] = []
    for name in ("azure-code",) if options.quick else ("azure-code", "sharegpt"):
        workload = trace_workload(name, options, count, clip)
        bursts = run_bursts(workload, POLICIES, BATCH_SIZE, shape, options.seed)
        real += [(name, burst) for burst in bursts]
    return Report(
        [
            Table(
                f"rows with a request, from the lengths, batch {BATCH_SIZE}",
                ("answers of", "static", "continuous", "static wastes"),
                [
                    [n, f"{r['static']:.0%}", f"{r['continuous']:.0%}", f"{1 - r['static']:.0%}"]
                    for n, r in exact.items()
                ],
            ),
            Table(
                f"real engine, {count} answers of up to {clip} tokens at once",
                ("answers, policy", "busy", "rows", "useful", "tokens/s"),
                [_row(name, burst) for name, burst in real],
            ),
        ],
        (
            describe_source("sharegpt", options.traces) + " and the other traces alike",
            "a burst keeps the queue full: with less load the busy share falls for every policy, "
            "by as much as the load",
            "time in steps also counts what a step does badly: it says nothing of a device's "
            "arithmetic or bandwidth",
        ),
        {
            "exact": exact,
            "real": [asdict(burst) | {"trace": name} for name, burst in real],
        },
    )


def _row(name: str, burst: Burst) -> list[str]:
    useful = burst.busy_share * burst.row_share
    return [
        f"{name}, {burst.policy}",
        f"{burst.busy_share:.0%}",
        f"{burst.row_share:.0%}",
        f"{useful:.0%}",
        f"{burst.tokens_per_s:.0f}",
    ]


def _exact(options: Options) -> dict[str, dict[str, Any]]:
    limit = 512 if options.quick else 8000
    shares = {}
    for name in SOURCES:
        outputs = [each.num_output for each in load_lengths(name, options.traces)][:limit]
        static, continuous = row_shares(outputs, BATCH_SIZE)
        shares[name] = {"static": round(static, 4), "continuous": round(continuous, 4)}
    return shares
