"""Log-probabilities of raw logits, of a drawn token as of a prompt's.

A row is float64 and handled alone, and its sum is of integers (`engine/noise.py`): the same token
after the same history has the same bits, whether it was drawn or read.
"""

import math

from engine.noise import WEIGHT_BITS, Float64Array, boltzmann_weights
from engine.sampler_cpu import top_tokens

TopLogprobs = tuple[tuple[int, float], ...]


def token_logprobs(token_id: int, logits: Float64Array, num_top: int) -> tuple[float, TopLogprobs]:
    """The log-softmax of logits [V] at a token, and at the `num_top` largest, best first."""
    largest = logits.max()
    total = int(boltzmann_weights(logits - largest).sum())
    log_total = math.log(total) - WEIGHT_BITS * math.log(2.0)
    top_ids = top_tokens(logits, num_top).tolist() if num_top else []
    top = tuple((i, float(logits[i] - largest - log_total)) for i in top_ids)
    return float(logits[token_id] - largest - log_total), top
