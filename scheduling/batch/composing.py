"""What batch policies share: chunks of prompts within a budget, and the order of age. Pure."""

from collections.abc import Iterable

from scheduling.views import RequestKey, SequenceView


def prefill_chunks(
    prompts: Iterable[SequenceView], budget: int
) -> tuple[tuple[RequestKey, int], ...]:
    """Chunks in this order until `budget` tokens are spent."""
    chunks = []
    for sequence in prompts:
        if budget <= 0:
            break
        num_tokens = min(sequence.num_left, budget)
        chunks.append((sequence.key, num_tokens))
        budget -= num_tokens
    return tuple(chunks)


def oldest_first(sequences: Iterable[SequenceView]) -> list[SequenceView]:
    """Higher priority first, then placement order."""
    return sorted(sequences, key=lambda s: (-s.priority, s.age))
