"""The same burst of requests under several batch policies on the real system, one after another."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.claims.systems import VOCAB_SIZE, Deployment, decode_load
from benchmarks.options import Options
from benchmarks.report import say
from benchmarks.traces import sample_lengths
from loadgen.checkpoint import Shape
from loadgen.measure import run_workload
from loadgen.policies import check_complete
from loadgen.workload import Workload

PROMPT_LEN = 8
SMALL = Shape(hidden_size=128, num_heads=2, num_kv_heads=1, intermediate_size=256, num_layers=2)


@dataclass(frozen=True, slots=True)
class Burst:
    """What one policy made of a burst; `row_share`: rows with a request among all rows there are.

    `busy_share` of the time the decode node was in a step, 0 where nodes do not tell.
    """

    policy: str
    tokens_per_s: float
    duration_s: float
    num_steps: int
    row_share: float
    busy_share: float


def trace_workload(name: str, options: Options, count: int, clip: int) -> Workload:
    """Answers as long as a trace's, cut at `clip`; prompts so short that decode is all there is."""
    lengths = sample_lengths(name, options.traces, count, options.seed)
    outputs = tuple(min(clip, each.num_output) for each in lengths)
    return Workload(name, (PROMPT_LEN,) * count, outputs)


def run_bursts(
    workload: Workload, policies: Sequence[str], batch_size: int, shape: Shape, seed: int
) -> list[Burst]:
    """All requests at once, for each policy on a fresh deployment."""
    return [asyncio.run(_run(workload, policy, batch_size, shape, seed)) for policy in policies]


async def _run(workload: Workload, policy: str, batch_size: int, shape: Shape, seed: int) -> Burst:
    say(f"{workload.name}, batch {batch_size}, {policy}: starting")
    flags = ("--max-num-seqs", str(batch_size), "--batch-policy", policy)
    with Deployment(node_args=flags, shape=shape) as deployment:
        async with deployment.client() as client:
            await client.wait_until_ready(30.0)
            before = await decode_load(deployment)
            measured = await run_workload(
                client,
                workload,
                vocab_size=VOCAB_SIZE,
                max_in_flight=len(workload.output_lens),
                seed=seed,
            )
            check_complete(measured, workload)
            after = await decode_load(deployment)
    num_steps = max(1, after.num_steps - before.num_steps)
    num_decoded = workload.num_output_tokens - len(workload.output_lens)
    return Burst(
        policy,
        measured.tokens_per_s,
        measured.duration_s,
        num_steps,
        num_decoded / (num_steps * batch_size),
        (after.busy_s - before.busy_s) / measured.duration_s,
    )
