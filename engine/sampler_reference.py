"""Sampling in plain torch, all rows at once, on any device: the specification of the CPU path.

Every operation is elementwise, a sort, or a sum of integers, so that a row's result is the same
bits in any batch and on any device.
"""

from dataclasses import dataclass

import torch

from engine.noise import boltzmann_weights_reference, gumbel_reference


@dataclass(frozen=True, slots=True)
class Draws:
    """Parameters of R rows, each [R, 1]; off is: top_k the vocabulary's size, top_p 1, min_p -inf.

    float64 but for top_k, seed (64 bits as a signed number), choice and index: int64.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    log_min_p: torch.Tensor
    seed: torch.Tensor
    choice: torch.Tensor
    index: torch.Tensor


def draw_reference(scores: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Token ids [R] drawn from adjusted scores [R, V] float64: temperature, filters, Gumbel-max."""
    scaled = (scores - scores.amax(-1, keepdim=True)) / draws.temperature
    values, token_ids = torch.sort(scaled, dim=-1, descending=True, stable=True)
    kept = filters_reference(values, draws)
    noise = gumbel_reference(draws.seed, draws.choice, draws.index, token_ids)
    noisy = torch.where(kept, values + noise, -torch.inf)
    best = noisy == noisy.amax(-1, keepdim=True)
    return torch.where(best, token_ids, scores.shape[-1]).amin(-1)


def draw_unfiltered_reference(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    seed: torch.Tensor,
    choice: torch.Tensor,
    index: torch.Tensor,
) -> torch.Tensor:
    """The tokens of `draw_reference` with all filters off, from logits [R, V], without a sort.

    temperature float64 [R], 0 for the largest logit without noise; the others int64 [R].
    """
    scores = logits.double()
    is_noisy = temperature.unsqueeze(1) > 0
    divisor = torch.where(is_noisy, temperature.unsqueeze(1), 1.0)
    scaled = (scores - scores.amax(-1, keepdim=True)) / divisor
    token_ids = torch.arange(scores.shape[-1], device=scores.device)
    seed, choice, index = (column.unsqueeze(1) for column in (seed, choice, index))
    noise = gumbel_reference(seed, choice, index, token_ids)
    return torch.where(is_noisy, scaled + noise, scaled).argmax(-1)


def filters_reference(values: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Which tokens remain [R, V], of scaled scores sorted descending, the first of each row 0.

    top-k keeps ties with its last token; top-p counts the weight that top-k left and keeps a token
    where less than top_p of it lies before; min-p compares with the most likely token.
    """
    kept = values > -torch.inf
    last = (draws.top_k - 1).clamp_max(values.shape[-1] - 1)
    kept &= values >= values.gather(-1, last)
    weights = torch.where(kept, boltzmann_weights_reference(values), 0)
    before = weights.cumsum(-1) - weights
    limit = draws.top_p * weights.sum(-1, keepdim=True).double()
    kept &= (before.double() < limit) | (draws.top_p >= 1.0)
    return kept & (values >= draws.log_min_p)


def adjust_reference(
    scores: torch.Tensor,
    biases: dict[int, float],
    banned_ids: torch.Tensor,
    prompt_ids: torch.Tensor,
    output_ids: torch.Tensor,
    repetition: float,
    presence: float,
    frequency: float,
) -> torch.Tensor:
    """Bias, bans, then penalties on one row of scores [V] float64; ids int64; a new tensor."""
    scores = scores.clone()
    for token_id, bias in biases.items():
        scores[token_id] += bias
    scores[banned_ids] = -torch.inf
    num_output = torch.bincount(output_ids, minlength=scores.numel())
    seen = (torch.bincount(prompt_ids, minlength=scores.numel()) + num_output) > 0
    penalised = torch.where(scores > 0, scores / repetition, scores * repetition)
    scores = torch.where(seen, penalised, scores)
    punished = scores - frequency * num_output.double() - presence
    return torch.where(num_output > 0, punished, scores)
