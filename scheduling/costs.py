"""How long prefill, a step and a transfer take: one linear model of a node. Pure.

A step computes prefill chunks and decode rows together. With `n` tokens of a chunk that starts at
context `c`, attention reads about `n * (c + n / 2)` pairs; a decode row reads its whole context.

    step = a + b * sum(n) + c * sum(n * (c + n / 2)) + d * rows + e * sum(contexts)

This is the form of DistServe's and Vidur's profiles (quadratic prefill, decode by rows and
context), with one constant for the mixed batches of chunked prefill.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tandem.messages.common import NodeCosts

# Before anything was measured: a step of 1 ms, as of a model that is tiny or a device that is fast.
UNKNOWN_COSTS = NodeCosts(
    step_s=1e-3,
    prefill_token_s=0.0,
    prefill_context_s=0.0,
    decode_row_s=0.0,
    decode_context_s=0.0,
)


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step computes: prefill tokens, their pairs, decode rows, and tokens of their contexts.

    Pairs are of a prefill token with a token that it attends to.
    """

    num_prefill_tokens: int = 0
    num_prefill_pairs: float = 0.0
    num_decode_rows: int = 0
    num_decode_tokens: int = 0


def num_pairs(num_new: int, num_computed: int) -> float:
    """Pairs of a chunk of `num_new` tokens after `num_computed` others."""
    return num_new * (num_computed + num_new / 2)


def step_shape(chunks: Iterable[tuple[int, int]], contexts: Iterable[int]) -> StepShape:
    """The shape of chunks, each (tokens, tokens before them), and decode rows of these contexts."""
    num_tokens, pairs = 0, 0.0
    for num_new, num_computed in chunks:
        num_tokens += num_new
        pairs += num_pairs(num_new, num_computed)
    lengths = list(contexts)
    return StepShape(num_tokens, pairs, len(lengths), sum(lengths))


def step_s(costs: NodeCosts, shape: StepShape) -> float:
    """Seconds of one step."""
    return (
        costs.step_s
        + costs.prefill_token_s * shape.num_prefill_tokens
        + costs.prefill_context_s * shape.num_prefill_pairs
        + costs.decode_row_s * shape.num_decode_rows
        + costs.decode_context_s * shape.num_decode_tokens
    )


def prefill_s(costs: NodeCosts, num_new: int, num_cached: int, chunk_tokens: int) -> float:
    """Seconds to compute `num_new` tokens after `num_cached`, in chunks, nothing else running."""
    if num_new <= 0:
        return 0.0
    num_steps = -(-num_new // chunk_tokens)
    work = costs.prefill_token_s * num_new + costs.prefill_context_s * num_pairs(
        num_new, num_cached
    )
    return num_steps * costs.step_s + work


def decode_step_s(costs: NodeCosts, num_rows: int, num_tokens: int) -> float:
    """Seconds of a pure decode step over `num_rows` rows with `num_tokens` of context together."""
    return step_s(costs, StepShape(num_decode_rows=num_rows, num_decode_tokens=num_tokens))


def transfer_s(costs: NodeCosts, num_bytes: int) -> float:
    """Seconds until `num_bytes` are at the other node; its constant alone where none is known."""
    if costs.transfer_bytes_per_s <= 0:
        return costs.transfer_s
    return costs.transfer_s + num_bytes / costs.transfer_bytes_per_s
