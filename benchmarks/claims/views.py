"""Views of a node with any number of requests, for timing policies. Pure."""

import random
from dataclasses import replace

from msgspec import structs

from scheduling.views import NodeView, SequenceView
from tandem.messages.common import LengthPrediction

MAX_SEQS = 256
PAGE_SIZE = 16
NUM_TENANTS = 8


def node_view(num_requests: int, seed: int) -> NodeView:
    """A loaded node: a quarter of the requests run (at most 256), the rest wait in equal parts.

    Half of those that wait have their KV, the others are prompts still to be computed.
    """
    rng = random.Random(seed)
    num_running = min(MAX_SEQS, max(1, num_requests // 4))
    sequences = [_sequence(number, rng) for number in range(num_requests)]
    running, rest = sequences[:num_running], sequences[num_running:]
    half = len(rest) // 2
    return NodeView(
        now=100.0,
        max_num_seqs=MAX_SEQS,
        max_num_batched_tokens=2048,
        prefill_weight=1.0,
        decode_weight=1.0,
        prefill=tuple(structs.replace(s, num_computed=0, num_pages=0) for s in rest[half:]),
        waiting=tuple(rest[:half]),
        running=tuple(structs.replace(s, last_token_at=99.9) for s in running),
        page_size=PAGE_SIZE,
        num_pages=num_requests * 80,
        num_free_pages=num_requests * 20,
    )


def advanced(view: NodeView, step_s: float) -> NodeView:
    """The same requests a step later: whoever runs has one token more."""
    now = view.now + step_s
    running = tuple(
        structs.replace(
            s, num_tokens=s.num_tokens + 1, num_computed=s.num_computed + 1, last_token_at=now
        )
        for s in view.running
    )
    return replace(view, now=now, running=running)


def _sequence(number: int, rng: random.Random) -> SequenceView:
    num_prompt, num_output = rng.randint(16, 1024), rng.randint(1, 200)
    num_tokens = num_prompt + num_output
    expected = rng.uniform(10, 400)
    return SequenceView(
        key=(number.to_bytes(16, "big"), 1),
        age=number,
        arrived_at=rng.uniform(0.0, 99.0),
        priority=0,
        tenant=f"tenant-{number % NUM_TENANTS}",
        num_prompt_tokens=num_prompt,
        num_tokens=num_tokens,
        num_computed=num_tokens - 1,
        max_total_tokens=num_prompt + 512,
        num_pages=-(-num_tokens // PAGE_SIZE),
        ttft_s=rng.choice((0.5, 2.0, 30.0)),
        tpot_s=rng.choice((0.05, 0.1, 0.5)),
        prediction=LengthPrediction(score=expected, q50=expected, q90=2 * expected),
    )
