"""The kernel's tokens, and the bits of its noise, are those of the sampler."""

import pytest
import torch

from engine.noise import gumbel_reference
from engine.sampler_reference import draw_unfiltered_reference
from kernels.gumbel_argmax import gumbel_argmax

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def keys(num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Seeds with high bits set, choices, indices."""
    generator = torch.Generator().manual_seed(5)
    seed = torch.randint(-(2**63), 2**63 - 1, (num_rows,), generator=generator)
    rows = torch.arange(num_rows)
    return seed.to(DEVICE), (rows % 3).to(DEVICE), (7 * rows).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tokens_equal_the_reference(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(12, 2500, generator=generator).mul_(3).to(DEVICE, dtype)
    temperature = torch.tensor([0.1, 0.5, 1.0, 2.0] * 3, dtype=torch.float64, device=DEVICE)
    expected = draw_unfiltered_reference(logits, temperature, *keys(12))
    assert torch.equal(gumbel_argmax(logits, logits.amax(-1), temperature, *keys(12)), expected)
    assert len(set(expected.tolist())) > 8


def test_no_bit_of_the_noise_is_lost() -> None:
    """Each token leads by its noise alone, or falls behind by one unit in the last place."""
    seed, choice, index = keys(8)
    tokens = torch.arange(40, device=DEVICE)
    noise = gumbel_reference(seed.unsqueeze(1), choice.unsqueeze(1), index.unsqueeze(1), tokens)
    logits = (noise.amax(-1, keepdim=True) - noise).float()
    ones = torch.ones(8, dtype=torch.float64, device=DEVICE)
    expected = draw_unfiltered_reference(logits, ones, seed, choice, index)
    drawn = gumbel_argmax(logits, logits.amax(-1), ones, seed, choice, index)
    assert torch.equal(drawn, expected)


def test_the_lowest_of_equals_wins_and_banned_tokens_never_do() -> None:
    logits = torch.full((2, 3000), -torch.inf, device=DEVICE)
    logits[:, [1500, 2900]] = 1.0
    cold = torch.full((2,), 1e300, dtype=torch.float64, device=DEVICE)
    drawn = gumbel_argmax(logits, logits.amax(-1), cold, *keys(2))
    assert set(drawn.tolist()) <= {1500, 2900}


def test_rows_without_temperature_take_the_largest_and_keys_may_have_a_stride() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 1500, generator=generator).to(DEVICE)
    state = torch.stack((torch.zeros(6, dtype=torch.int64, device=DEVICE), *keys(6)), 1)
    temperature = state[:, 0].view(torch.float64)
    temperature[::2] = 1.5
    columns = (temperature, *state[:, 1:].unbind(1))
    drawn = gumbel_argmax(logits, logits.amax(-1), *columns)
    assert torch.equal(drawn, draw_unfiltered_reference(logits, *columns))
    assert torch.equal(drawn[1::2], logits[1::2].argmax(-1))
    assert not torch.equal(drawn[::2], logits[::2].argmax(-1))
