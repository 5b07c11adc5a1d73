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
from tandem.status import query_status

POLICIES = ("fifo", "static", "static-dropping")
HEARTBEAT_WAIT_S = 1.2
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Run:
    """One policy over one workload, once."""

    tokens_per_s: float
    num_steps: int  # of the decode node, from its heartbeats


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
            by_policy = {policy: runs[policy][index] for policy in POLICIES}
            rows.append(_row(workload, batch_size, by_policy))
            say(format_row(rows[-1]))
    return rows


def _measure(
    comparison: Comparison, workloads: Sequence[Workload], policy: str, batch_size: int, say: Say
) -> list[list[Run]]:
    """Runs by workload and repeat."""
    name = f"batch {batch_size}, {policy}"
    say(f"{name}: starting")
    rows = ("--max-num-seqs", str(batch_size), "--batch-policy", policy)
    cluster = LocalCluster(
        model=comparison.model,
        node_args=[*rows, *comparison.node_args],
        coordinator_args=["--early-rejection", "off"],  # all policies serve the same requests
    )
    with cluster:
        return asyncio.run(_run_all(comparison, workloads, cluster, name, say))


async def _run_all(
    comparison: Comparison,
    workloads: Sequence[Workload],
    cluster: LocalCluster,
    name: str,
    say: Say,
) -> list[list[Run]]:
    async with AsyncClient(cluster.gateway_address) as client:
        await client.wait_until_ready(30.0)
        runs = []
        for workload in workloads:
            repeats = []
            for repeat in range(comparison.num_repeats):
                before = await _decode_steps(cluster)
                measured = await run_workload(
                    client,
                    workload,
                    vocab_size=comparison.vocab_size,
                    max_in_flight=len(workload.output_lens),
                    seed=repeat,
                )
                check_complete(measured, workload)
                run = Run(measured.tokens_per_s, await _decode_steps(cluster) - before)
                repeats.append(run)
                say(
                    f"{name}, {workload.name}: {run.tokens_per_s:.1f} tokens/s, "
                    f"{run.num_steps} steps in {measured.duration_s:.1f} s"
                )
            runs.append(repeats)
        return runs


async def _decode_steps(cluster: LocalCluster) -> int:
    """Steps of the decode nodes so far; heartbeats bring them twice per second."""
    await asyncio.sleep(HEARTBEAT_WAIT_S)
    status = await query_status(cluster.coordinator_address)
    return sum(n.load.num_steps for n in status.nodes if n.load and n.weights.decode > 0)


def check_complete(measured: Measurement, workload: Workload) -> None:
    """Raise ValueError unless every token of the workload came back."""
    if measured.num_tokens != workload.num_output_tokens:
        raise ValueError(
            f"{measured.num_tokens} of {workload.num_output_tokens} tokens came back, "
            f"{measured.num_failed} requests failed: {'; '.join(measured.errors)}"
        )


def _row(workload: Workload, batch_size: int, runs: dict[str, list[Run]]) -> dict[str, Any]:
    medians = {
        policy: statistics.median(run.tokens_per_s for run in repeats)
        for policy, repeats in runs.items()
    }
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
        "runs": {p: [round(run.tokens_per_s, 2) for run in rs] for p, rs in runs.items()},
        "num_steps": {p: [run.num_steps for run in rs] for p, rs in runs.items()},
    }


def format_row(row: dict[str, Any]) -> str:
    """A row for people."""
    return (
        f"{row['workload']:<12} batch {row['batch_size']:<3} bound {row['bound']:.2f}  "
        f"fifo/static {row['ratio_static']:.2f} ({row['share_of_bound']:.0%} of the bound)  "
        f"fifo/static-dropping {row['ratio_static_dropping']:.2f}  "
        f"fifo {row['tokens_per_s']['fifo']:.1f} tokens/s"
    )
