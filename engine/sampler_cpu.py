"""Sampling of one row on the CPU; `engine/sampler_reference.py` is its specification.

A row is float64 and handled alone, so it cannot feel its batch. No step sorts the whole
vocabulary: top-k selects, top-p sorts only tokens that can be in its set. Array code is numpy's
(compiling the same with numba took a minute and gained nothing); the noise is compiled.
"""

import numpy as np

from engine.noise import Float64Array, Int64Array, boltzmann_weights, gumbel
from node.runner import Int32Array


def adjust(
    logits: Float64Array,
    biases: dict[int, float],
    banned_ids: list[int],
    prompt_ids: Int32Array,
    output_ids: Int32Array,
    repetition: float,
    presence: float,
    frequency: float,
) -> Float64Array:
    """A copy of logits [V] with bias, bans, then penalties; all ids below V."""
    scores = logits.copy()
    for token_id, bias in biases.items():
        scores[token_id] += bias
    scores[banned_ids] = -np.inf
    num_output = np.bincount(output_ids, minlength=scores.size)
    if repetition != 1.0:
        seen = np.flatnonzero(np.bincount(prompt_ids, minlength=scores.size) + num_output)
        found = scores[seen]
        scores[seen] = np.where(found > 0, found / repetition, found * repetition)
    produced = np.flatnonzero(num_output)
    scores[produced] = scores[produced] - frequency * num_output[produced] - presence
    return scores


def draw(
    scores: Float64Array,
    temperature: float,
    top_k: int,
    top_p: float,
    log_min_p: float,
    seed: int,
    choice: int,
    index: int,
) -> int:
    """Filter scores [V] and return the token whose score plus noise is largest.

    Ties go to the lowest id. `top_k` 0, `top_p` 1 and `log_min_p` minus infinity are off.
    """
    scaled = (scores - scores.max()) / temperature
    # Ascending ids, and so they stay: argmax then gives ties to the lowest.
    kept = np.flatnonzero(scaled > -np.inf)
    if 0 < top_k < kept.size:
        values = scaled[kept]
        kept = kept[values >= np.partition(values, kept.size - top_k)[kept.size - top_k]]
    if top_p < 1.0:
        kept = _nucleus(scaled, kept, top_p)
    if log_min_p > -np.inf:
        kept = kept[scaled[kept] >= log_min_p]
    noisy = scaled[kept] + gumbel(np.uint64(seed), choice, index, kept)
    return int(kept[noisy.argmax()])


def _nucleus(scaled: Float64Array, kept: Int64Array, top_p: float) -> Int64Array:
    """The ids of `kept` before which, by weight then id, less than `top_p` of the weight lies."""
    weights = boltzmann_weights(scaled[kept])
    total = weights.sum()
    # Tokens below this weight hold together less than 1 - top_p: none can be in the set.
    floor = 0.999 * (1.0 - top_p) * float(total) / kept.size
    candidates = np.flatnonzero(weights >= floor)
    order = candidates[np.argsort(-scaled[kept[candidates]], kind="stable")]
    before = weights[order].cumsum() - weights[order]
    return kept[np.sort(order[before < top_p * float(total)])]


def top_tokens(logits: Float64Array, num_top: int) -> Int64Array:
    """Ids of the `num_top` largest of logits [V], largest first, ties by lowest id."""
    num_top = min(num_top, logits.size)
    threshold = np.partition(logits, logits.size - num_top)[logits.size - num_top]
    candidates = np.flatnonzero(logits >= threshold)
    return candidates[np.argsort(-logits[candidates], kind="stable")][:num_top]
