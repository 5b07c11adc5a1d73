"""What a scheduler costs per step: `plan` of every policy, and all of a node beside its device.

Plans are timed in this process over views of a loaded node, each a step later than the last. The
node's overhead is the time between steps of a decode node whose device computes nothing, under a
full batch: everything that a step costs besides the model, planning and emission included.
"""

import asyncio
import math
import statistics
import time
from typing import Any

from benchmarks.claims.systems import Deployment, decode_load
from benchmarks.claims.views import advanced, node_view
from benchmarks.options import Options
from benchmarks.report import Report, Table, say
from loadgen.measure import run_workload
from loadgen.workload import Workload
from scheduling.batch.catalogue import BATCH_POLICIES, make_batch_policy
from scheduling.views import Services
from tandem.messages.common import NodeCosts

SIZES = (10, 100, 1000)
STEP_S = 0.02
# Of an accelerator's step; policies with a cost model need plausible numbers, not these.
COSTS = NodeCosts(
    step_s=0.015,
    prefill_token_s=8e-5,
    prefill_context_s=1e-9,
    decode_row_s=4e-5,
    decode_context_s=2e-7,
    num_steps=1000,
)


def plan_times_ms(policy_name: str, num_requests: int, num_plans: int, seed: int) -> list[float]:
    """Milliseconds of each plan, after one that is not counted."""
    policy = make_batch_policy(policy_name)
    services = Services(COSTS)
    view = node_view(num_requests, seed)
    times = []
    for _ in range(num_plans + 1):
        began = time.perf_counter()
        policy.plan(view, services)
        times.append((time.perf_counter() - began) * 1e3)
        view = advanced(view, STEP_S)
    return times[1:]


def run(options: Options) -> Report:
    """Every policy at three sizes, then the node."""
    num_plans = 5 if options.quick else 100
    rows, figures = [], {}
    for name in sorted(BATCH_POLICIES):
        cells, of_policy = [], {}
        for size in SIZES:
            times = plan_times_ms(name, size, num_plans, options.seed)
            median = statistics.median(times)
            worst = sorted(times)[math.ceil(0.99 * len(times)) - 1]
            of_policy[str(size)] = {"median_ms": round(median, 4), "p99_ms": round(worst, 4)}
            cells += [f"{median:.3f}", f"{worst:.3f}"]
        rows.append([name, *cells])
        figures[name] = of_policy
    header = ["policy", *(f"{kind} {size}" for size in SIZES for kind in ("median", "p99"))]
    node = asyncio.run(_node_overhead(options))
    node_rows = [
        [str(each["num_rows"]), f"{each['step_ms']:.2f}", f"{each['device_ms']:.2f}",
         f"{each['overhead_ms']:.2f}"]
        for each in node
    ]  # fmt: skip
    return Report(
        [
            Table(f"ms of one plan over so many requests, {num_plans} plans", header, rows),
            Table(
                "ms of a step of a decode node whose device computes nothing",
                ("rows", "step", "device", "the rest"),
                node_rows,
            ),
        ],
        (
            "in Python, one thread; the views' construction is the node's and counts in the rest",
            "device: what the fake device itself takes (hashes of histories), where the node "
            "reports it; the rest is plan, composition, bookkeeping, emission and waiting for the "
            "interpreter's lock beside the I/O thread",
        ),
        {"plans": figures, "node": node},
    )


async def _node_overhead(options: Options) -> list[dict[str, Any]]:
    sizes = (4,) if options.quick else (1, 16, 64)
    output_len = 40 if options.quick else 300
    measured = []
    flags = ("--device", "fake", "--num-pages", "8192", "--max-num-seqs", "64")
    with Deployment(node_args=flags) as deployment:
        async with deployment.client() as client:
            for num_rows in sizes:
                say(f"node with {num_rows} rows")
                workload = Workload("rows", (16,) * num_rows, (output_len,) * num_rows)
                before = await decode_load(deployment)
                result = await run_workload(
                    client, workload, vocab_size=4096, max_in_flight=num_rows, seed=options.seed
                )
                after = await decode_load(deployment)
                num_steps = max(1, after.num_steps - before.num_steps)
                step_ms = result.duration_s / num_steps * 1e3
                device_ms = (after.busy_s - before.busy_s) / num_steps * 1e3
                measured.append(
                    {
                        "num_rows": num_rows,
                        "num_steps": num_steps,
                        "step_ms": round(step_ms, 3),
                        "device_ms": round(device_ms, 3),
                        "overhead_ms": round(step_ms - device_ms, 3),
                    }
                )
    return measured
