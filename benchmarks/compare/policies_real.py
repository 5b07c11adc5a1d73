"""Batch policies on the real engine, below and above capacity, under the same requests.

The capacity is that of `fifo`, and every policy gets the same arrivals, lengths and targets.
Goodput is as clients saw it. The coordinator refuses nothing early: a queue is left to order.
"""

import asyncio
from typing import Any

import numpy as np

from benchmarks.claims.systems import Deployment
from benchmarks.compare.real import NO_REJECTION, TARGETS_NOTE, capacity_per_s, mix, run_at
from benchmarks.options import Options
from benchmarks.report import Report, Table, say
from loadgen.open_loop import OpenMeasurement
from scheduling.batch.catalogue import BATCH_POLICIES

BASE = "fifo"
POLICIES = ("fifo", "static", "sjf", "sarathi", "slai")
FACTORS = (0.9, 1.1)


def run(options: Options) -> Report:
    """A fresh deployment per policy; the first one also measures the capacity."""
    policies = [name for name in POLICIES if name in BATCH_POLICIES]
    if options.quick:
        policies = policies[:2]
    document = asyncio.run(_measure(options, policies))
    rows = document["runs"]
    header = (
        "policy", "x capacity", "goodput/s", "x fifo", "refused", "unfinished", "TTFT mean",
        "p50", "p99", "TPOT p50", "p99",
    )  # fmt: skip
    cells = [
        [
            row["policy"],
            f"{row['factor']:.1f}",
            f"{row['goodput_per_s']:.2f}",
            f"{row['ratio']:.2f}" if row["ratio"] is not None else "-",
            str(row["num_refused"]),
            str(row["num_unfinished"]),
            *(f"{row[k]:.0f}" for k in ("ttft_mean_ms", "ttft_p50_ms", "ttft_p99_ms")),
            *(f"{row[k]:.1f}" for k in ("tpot_p50_ms", "tpot_p99_ms")),
        ]
        for row in rows
    ]
    return Report(
        [Table(f"capacity of fifo {document['capacity_per_s']:.1f}/s, ms", header, cells)],
        (
            TARGETS_NOTE,
            "one run each: differences below the spread of a policy with itself "
            "(--seed, again) say nothing",
        ),
        document,
    )


async def _measure(options: Options, policies: list[str]) -> dict[str, Any]:
    seconds = 2.0 if options.quick else 8.0
    capacity = 0.0
    runs: list[dict[str, Any]] = []
    for policy in policies:
        say(f"{policy}: starting")
        flags = ("--batch-policy", policy)
        with Deployment(node_args=flags, coordinator_args=NO_REJECTION) as deployment:
            async with deployment.client() as client:
                await client.wait_until_ready(30.0)
                if policy == BASE:
                    count = 64 if options.quick else 256
                    capacity = await capacity_per_s(client, mix(options, count, seed=902))
                for number, factor in enumerate(FACTORS):
                    measured = await run_at(
                        client,
                        options,
                        factor * capacity,
                        seconds,
                        seed=options.seed + number,
                    )
                    runs.append(_row(policy, factor, measured, runs))
                    await asyncio.sleep(1.0)
    return {
        "capacity_per_s": round(capacity, 2),
        "runs": runs,
    }


def _row(
    policy: str, factor: float, measured: OpenMeasurement, runs: list[dict[str, Any]]
) -> dict[str, Any]:
    base = [r for r in runs if r["policy"] == BASE and r["factor"] == factor]
    reference = base[0]["goodput_per_s"] if base else measured.goodput_per_s
    ttfts = [s.ttft_s * 1e3 for s in measured.samples] or [0.0]
    tpots = [s.tpot_s * 1e3 for s in measured.samples if s.tpot_s is not None] or [0.0]
    refused = len(measured.refusals)
    return {
        "policy": policy,
        "factor": factor,
        "num_offered": len(measured.outcomes),
        "goodput_per_s": round(measured.goodput_per_s, 3),
        "ratio": round(measured.goodput_per_s / reference, 3) if reference else None,
        "num_refused": refused,
        "num_unfinished": len(measured.outcomes) - refused - len(measured.samples),
        "ttft_mean_ms": round(float(np.mean(ttfts)), 2),
        "ttft_p50_ms": round(float(np.percentile(ttfts, 50)), 2),
        "ttft_p99_ms": round(float(np.percentile(ttfts, 99)), 2),
        "tpot_p50_ms": round(float(np.percentile(tpots, 50)), 3),
        "tpot_p99_ms": round(float(np.percentile(tpots, 99)), 3),
    }
