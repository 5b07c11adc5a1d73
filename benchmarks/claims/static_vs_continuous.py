"""Continuous over static batching: the bound from the lengths, and the real system.

The bound counts decode steps with a queue that is never empty. It is the most that continuous
batching can win where every step takes as long; equal lengths leave nothing to win.
"""

from dataclasses import asdict
from typing import Any

from benchmarks.claims.bursts import SMALL, run_bursts, trace_workload
from benchmarks.options import Options
from benchmarks.report import Report, Table
from benchmarks.traces import SOURCES, describe_source, load_lengths
from loadgen.checkpoint import Shape
from loadgen.workload import step_bound

BATCH_SIZES = (8, 16, 32, 64)
POLICIES = ("fifo", "static", "static-dropping")


def run(options: Options) -> Report:
    """Bounds over whole traces; one burst of short code answers on the real engine."""
    bounds = _bounds(options)
    count, batch_size = (24, 8) if options.quick else (128, 16)
    workload = trace_workload("azure-code", options, count, 32 if options.quick else 256)
    shape = SMALL if options.quick else Shape()
    bursts = run_bursts(workload, POLICIES, batch_size, shape, options.seed)
    base = bursts[0].tokens_per_s
    real = [asdict(burst) | {"ratio": round(base / burst.tokens_per_s, 2)} for burst in bursts]
    bound = step_bound(workload.output_lens, batch_size)
    bound_rows = [[name, *(f"{v:.2f}" for v in of.values())] for name, of in bounds.items()]
    real_rows = [
        [r["policy"], f"{r['tokens_per_s']:.0f}", str(r["num_steps"]), f"{r['ratio']:.2f}"]
        for r in real
    ]
    return Report(
        [
            Table(
                "static over continuous, in decode steps, by batch size",
                ("answers of", *(str(size) for size in BATCH_SIZES)),
                bound_rows,
            ),
            Table(
                f"real engine, {count} answers of azure-code at once, batch {batch_size}, "
                f"bound of these {bound:.2f}",
                ("policy", "tokens/s", "steps", "fifo over it"),
                real_rows,
            ),
        ],
        (describe_source("azure-code", options.traces),),
        {"bounds": bounds, "real": real, "bound_of_real": round(bound, 3)},
    )


def _bounds(options: Options) -> dict[str, dict[str, Any]]:
    limit = 512 if options.quick else 8000
    lengths = {
        name: [each.num_output for each in load_lengths(name, options.traces)][:limit]
        for name in SOURCES
    }
    lengths["equal, 100"] = [100] * limit
    return {
        name: {str(size): round(step_bound(outputs, size), 3) for size in BATCH_SIZES}
        for name, outputs in lengths.items()
    }
