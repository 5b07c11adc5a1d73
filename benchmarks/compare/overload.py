"""The real system far above its capacity: what it still answers in time, and how fast it says no.

Offered loads are multiples of the measured capacity. Goodput counts requests answered within their
targets, as clients saw them; attainment is the share of good ones among those that were answered or
were still running at the end, that is of all that were not refused.
"""

import asyncio
import statistics
from typing import Any

from benchmarks.claims.systems import Deployment
from benchmarks.compare.calibration import NODE_ARGS, PACED_FLAGS
from benchmarks.compare.real import TARGETS_NOTE, capacity_per_s, mix, run_at
from benchmarks.options import Options
from benchmarks.report import Report, Table
from loadgen.open_loop import OpenMeasurement
from tandem.async_client import AsyncClient

FACTORS = (0.7, 0.9, 1.0, 2.0, 5.0, 10.0)
QUICK_FACTORS = (0.9, 5.0)


def run(options: Options) -> Report:
    """One deployment, one load after another."""
    return _report(asyncio.run(_measure(options, ())))


def run_paced(options: Options) -> Report:
    """The same with a device that sleeps: clients and refusals take nothing from its steps."""
    return _report(asyncio.run(_measure(options, (*NODE_ARGS, *PACED_FLAGS))))


def _report(document: dict[str, Any]) -> Report:
    rows = document["loads"]
    cells = [
        [
            f"{row['factor']:.1f}",
            f"{row['offered_per_s']:.1f}",
            f"{row['goodput_per_s']:.2f}",
            f"{row['of_peak']:.0%}",
            f"{row['attainment']:.0%}",
            str(row["num_refused"]),
            str(row["num_unfinished"]),
            _ms(row["refusal_median_ms"]),
            _ms(row["refusal_worst_ms"]),
            _ms(row["ttft_p99_ms"]),
            f"{row['late_worst_ms']:.0f}",
        ]
        for row in rows
    ]
    header = (
        "x capacity", "offered/s", "goodput/s", "of peak", "attained", "refused", "unfinished",
        "refusal ms", "worst", "TTFT p99", "sender late",
    )  # fmt: skip
    return Report(
        [Table(f"capacity {document['capacity_per_s']:.1f} requests/s", header, cells)],
        (
            TARGETS_NOTE,
            "peak: the highest goodput among these loads; refusals count from when a request was "
            "due; clients share the machine's cores with the system",
        ),
        document,
    )


async def _measure(options: Options, node_args: tuple[str, ...]) -> dict[str, Any]:
    seconds = 2.0 if options.quick else 8.0
    with Deployment(node_args=node_args) as deployment:
        async with deployment.client() as client:
            await client.wait_until_ready(30.0)
            count = 64 if options.quick else 256
            capacity = await capacity_per_s(client, mix(options, count, seed=902))
            loads = []
            for number, factor in enumerate(QUICK_FACTORS if options.quick else FACTORS):
                measured = await run_at(
                    client,
                    options,
                    factor * capacity,
                    seconds,
                    seed=options.seed + number,
                )
                loads.append(_load(factor, measured))
                await _settle(client)
    peak = max(load["goodput_per_s"] for load in loads)
    for load in loads:
        load["of_peak"] = round(load["goodput_per_s"] / peak, 3) if peak else 0.0
    return {"capacity_per_s": round(capacity, 2), "loads": loads}


async def _settle(client: AsyncClient) -> None:
    """Let what was cancelled leave the nodes, so that the next load starts on an idle system."""
    await asyncio.sleep(1.0)
    await client.wait_until_ready(10.0)


def _load(factor: float, measured: OpenMeasurement) -> dict[str, Any]:
    refusals = sorted(o.error_after_s * 1e3 for o in measured.refusals)
    num_good = sum(o.is_good for o in measured.outcomes)
    num_admitted = len(measured.outcomes) - len(refusals)
    ttfts = sorted(s.ttft_s * 1e3 for s in measured.samples)
    return {
        "factor": factor,
        "num_offered": len(measured.outcomes),
        "offered_per_s": round(len(measured.outcomes) / measured.span_s, 2),
        "goodput_per_s": round(measured.goodput_per_s, 3),
        "attainment": round(num_good / num_admitted, 4) if num_admitted else 0.0,
        "num_refused": len(refusals),
        "num_unfinished": num_admitted - len(measured.samples),
        "refusal_median_ms": round(statistics.median(refusals), 1) if refusals else None,
        "refusal_worst_ms": round(refusals[-1], 1) if refusals else None,
        "ttft_p99_ms": round(ttfts[int(0.99 * (len(ttfts) - 1))], 1) if ttfts else None,
        "late_worst_ms": round(max(o.late_s for o in measured.outcomes) * 1e3, 1),
    }


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
