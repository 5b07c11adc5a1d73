"""Continuous against static batching on the running system, beside the bound from the lengths.

For each batch size three deployments are started one after the other, alike but for the decode
node's batch policy, and given the same requests at once: `fifo`, `static` (ended rows stay in the
batch as padding, as a tensor of fixed size does) and `static-dropping` (ended rows are left out).
"""

import asyncio
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loadgen.measure import Measurement, run_workload
from loadgen.workload import Workload, step_bound
from tandem.async_client import AsyncClient
from tandem.launch import LocalCluster

POLICIES = ("fifo", "static", "static-dropping")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Settings of a comparison; figures are medians over `num_repeats` runs."""

    model: str
    batch_sizes: tuple[int, ...]
    num_repeats: int
    vocab_size: int
    node_args: tuple[str, ...] = ()


def compare(
    comparison: Comparison, workloads: Sequence[Workload], say: Say
) -> list[dict[str, Any]]:
    """One row per workload and batch size."""
    rows = []
    for batch_size in comparison.batch_sizes:
        runs = {
            policy: _measure(comparison, workloads, policy, batch_size, say) for policy in POLICIES
        }
        for index, workload in enumerate(workloads):
            speeds = {policy: runs[policy][index] for policy in POLICIES}
            rows.append(_row(workload, batch_size, speeds))
            say(format_row(rows[-1]))
    return rows


def _measure(
    comparison: Comparison, workloads: Sequence[Workload], policy: str, batch_size: int, say: Say
) -> list[list[float]]:
    """Tokens per second, by workload and repeat."""
    say(f"batch {batch_size}, {policy}: starting")
    cluster = LocalCluster(
        model=comparison.model,
        node_args=[
            "--max-num-seqs",
            str(batch_size),
            "--batch-policy",
            policy,
            *comparison.node_args,
        ],
    )
    with cluster:
        return asyncio.run(
            _run_all(comparison, workloads, cluster.gateway_address, policy, batch_size, say)
        )


async def _run_all(
    comparison: Comparison,
    workloads: Sequence[Workload],
    gateway: str,
    policy: str,
    batch_size: int,
    say: Say,
) -> list[list[float]]:
    async with AsyncClient(gateway) as client:
        await client.wait_until_ready(30.0)
        speeds = []
        for workload in workloads:
            runs = []
            for repeat in range(comparison.num_repeats):
                measured = await run_workload(
                    client,
                    workload,
                    vocab_size=comparison.vocab_size,
                    max_in_flight=len(workload.output_lens),
                    seed=repeat,
                )
                check_complete(measured, workload)
                runs.append(measured.tokens_per_s)
                say(
                    f"batch {batch_size}, {policy}, {workload.name}: "
                    f"{measured.tokens_per_s:.1f} tokens/s ({measured.duration_s:.1f} s)"
                )
            speeds.append(runs)
        return speeds


def check_complete(measured: Measurement, workload: Workload) -> None:
    """Raise ValueError unless every token of the workload came back."""
    if measured.num_tokens != workload.num_output_tokens:
        raise ValueError(
            f"{measured.num_tokens} of {workload.num_output_tokens} tokens came back, "
            f"{measured.num_failed} requests failed: {'; '.join(measured.errors)}"
        )


def _row(workload: Workload, batch_size: int, speeds: dict[str, list[float]]) -> dict[str, Any]:
    medians = {policy: statistics.median(runs) for policy, runs in speeds.items()}
    bound = step_bound(workload.output_lens, batch_size)
    ratio = medians["fifo"] / medians["static"]
    return {
        "workload": workload.name,
        "batch_size": batch_size,
        "num_requests": len(workload.output_lens),
        "num_output_tokens": workload.num_output_tokens,
        "bound": round(bound, 3),
        "ratio_static": round(ratio, 3),
        "ratio_static_dropping": round(medians["fifo"] / medians["static-dropping"], 3),
        "share_of_bound": round(ratio / bound, 3),
        "tokens_per_s": {policy: round(value, 2) for policy, value in medians.items()},
        "runs": {policy: [round(v, 2) for v in runs] for policy, runs in speeds.items()},
    }


def format_row(row: dict[str, Any]) -> str:
    """A row for people."""
    return (
        f"{row['workload']:<12} batch {row['batch_size']:<3} bound {row['bound']:.2f}  "
        f"fifo/static {row['ratio_static']:.2f} ({row['share_of_bound']:.0%} of the bound)  "
        f"fifo/static-dropping {row['ratio_static_dropping']:.2f}  "
        f"fifo {row['tokens_per_s']['fifo']:.1f} tokens/s"
    )
