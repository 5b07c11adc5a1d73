"""An agent's second call: the same long system prompt again, through the prefix cache.

The claim is of a 10,000-token system prompt and answers of 200 tokens: with the prefix cached the
next call computes its own few new tokens only and is at once in decode. Measured is the TTFT of the
first call and of later ones, and how many tokens of their prompts were computed.
"""

import asyncio
import statistics
from typing import Any

import numpy as np

from benchmarks.claims.systems import VOCAB_SIZE, Deployment
from benchmarks.options import Options
from benchmarks.report import Report, Table, say
from loadgen.checkpoint import Shape
from loadgen.measure import RequestSample, measure_request
from tandem.async_client import AsyncClient

# The demo model's sizes, with a context that holds the claim's prompt.
AGENT = Shape(
    hidden_size=256,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=704,
    max_position_embeddings=16_384,
)
USER_TOKENS = 40


def run(options: Options) -> Report:
    """Cold and warm calls of several agents, each with a system prompt of its own."""
    system, answer, num_agents = (512, 8, 1) if options.quick else (10_000, 200, 3)
    calls = asyncio.run(_drive(options, system, answer, num_agents))
    rows = [_summary(kind, samples, system + USER_TOKENS) for kind, samples in calls.items()]
    cold, warm = rows
    cells = [
        [
            row["call"],
            f"{row['ttft_ms']:.1f}",
            f"{row['total_ms']:.0f}",
            str(row["num_computed"]),
            f"{row['num_pages_shipped_bytes'] / 1024:.0f}",
        ]
        for row in rows
    ]
    title = f"{system} tokens of system prompt, {USER_TOKENS} of the user, {answer} of the answer"
    return Report(
        [Table(title, ("call", "TTFT ms", "total ms", "computed", "KiB shipped"), cells)],
        (
            f"medians of {num_agents} agents; the demo model's sizes with random weights and a "
            "longer context; prefill and decode node on one host, one request at a time",
            "the user's tokens are new in every call; at least the last page of a prompt is always "
            "computed, so a warm call is a short prefill and a hand-off, not only decode steps",
        ),
        {
            "calls": rows,
            "ttft_ratio": round(cold["ttft_ms"] / warm["ttft_ms"], 1),
            "total_ratio": round(cold["total_ms"] / warm["total_ms"], 2),
            "computed_ratio": round(cold["num_computed"] / max(1, warm["num_computed"]), 1),
        },
    )


async def _drive(
    options: Options, system: int, answer: int, num_agents: int
) -> dict[str, list[RequestSample]]:
    rng = np.random.default_rng(options.seed)
    calls: dict[str, list[RequestSample]] = {"first": [], "later": []}
    pages = 2 * (num_agents + 1) * (system + answer) // 16
    flags = ("--num-pages", str(pages), "--max-model-len", str(system + answer + 1024))
    with Deployment(node_args=flags, shape=AGENT) as deployment:
        async with deployment.client() as client:
            await client.wait_until_ready(30.0)
            await _call(client, rng, [], answer)  # opens the links between the nodes
            for number in range(num_agents):
                prefix = rng.integers(3, VOCAB_SIZE, system).tolist()
                for kind in ("first", "later", "later"):
                    say(f"agent {number}, {kind} call")
                    calls[kind].append(await _call(client, rng, prefix, answer))
    return calls


async def _call(
    client: AsyncClient, rng: np.random.Generator, prefix: list[int], answer: int
) -> RequestSample:
    user = rng.integers(3, VOCAB_SIZE, USER_TOKENS).tolist()
    return await measure_request(client, [*prefix, *user], answer)


def _summary(kind: str, samples: list[RequestSample], num_prompt: int) -> dict[str, Any]:
    return {
        "call": kind,
        "ttft_ms": round(statistics.median(s.ttft_s for s in samples) * 1e3, 2),
        "total_ms": round(statistics.median(s.end_s for s in samples) * 1e3, 2),
        "num_computed": num_prompt - round(statistics.median(s.num_cached_tokens for s in samples)),
        "num_pages_shipped_bytes": round(
            statistics.median(s.timeline.transfer_bytes for s in samples)
        ),
    }
