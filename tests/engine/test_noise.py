"""Noise: Philox's published answers, equal bits of both forms, statistics, independence."""

import itertools
import math

import numpy as np
import pytest
import torch

from engine.noise import (
    WEIGHT_BITS,
    boltzmann_weights,
    boltzmann_weights_reference,
    gumbel,
    gumbel_reference,
    log_reference,
    philox_reference,
    uniform_bits_reference,
)

NUM_TOKENS = 100_000
TOKEN_IDS = np.arange(NUM_TOKENS)


def as_row(value: int) -> torch.Tensor:
    return torch.tensor([[value]])


def row_of_bits(seed: int, choice: int, index: int) -> np.ndarray:
    tokens = torch.arange(NUM_TOKENS).unsqueeze(0)
    return uniform_bits_reference(as_row(seed), as_row(choice), as_row(index), tokens)[0].numpy()


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # kat_vectors of the Random123 distribution, philox4x32 10
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    words = philox_reference((c0, c1, c2, c3), (torch.tensor(key[0]), torch.tensor(key[1])))
    assert tuple(int(word) for word in words) == expected


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1, 0x0123456789ABCDEF])
@pytest.mark.parametrize(("choice", "index"), [(0, 0), (3, 77), (0, 2**31 - 1)])
def test_compiled_and_reference_noise_have_equal_bits(seed: int, choice: int, index: int) -> None:
    signed = seed - 2**64 if seed >= 2**63 else seed
    tokens = torch.arange(5000).unsqueeze(0)
    theirs = gumbel_reference(as_row(signed), as_row(choice), as_row(index), tokens)[0].numpy()
    ours = gumbel(np.uint64(seed), choice, index, np.arange(5000))
    assert np.array_equal(ours.view(np.int64), theirs.view(np.int64))


def test_noise_of_a_token_depends_on_nothing_else_in_the_call() -> None:
    whole = gumbel(np.uint64(7), 0, 5, TOKEN_IDS)
    some = np.array([99_999, 3, 3, 1234])
    assert np.array_equal(gumbel(np.uint64(7), 0, 5, some), whole[some])
    one_by_one = [gumbel(np.uint64(7), 0, 5, some[i : i + 1])[0] for i in range(4)]
    assert np.array_equal(one_by_one, whole[some])
    rows = gumbel_reference(
        torch.tensor([[1], [7], [9]]),
        torch.zeros(3, 1, dtype=torch.int64),
        torch.tensor([[2], [5], [5]]),
        torch.from_numpy(some).unsqueeze(0),
    )
    assert np.array_equal(rows[1].numpy(), whole[some])


def test_logarithm_is_within_one_ulp_of_mathematics() -> None:
    x = torch.cat([torch.logspace(-16, 2, 20_000), torch.linspace(0.5, 1.5, 20_000)]).double()
    x = x[x != 1.0]
    expected = torch.tensor([math.log(value) for value in x.tolist()], dtype=torch.float64)
    error = (log_reference(x) - expected).abs() / expected.abs()
    assert error.max() < 2.3e-16
    assert log_reference(torch.ones(1, dtype=torch.float64)).item() == 0.0


def test_weights_are_scaled_exponentials_with_equal_bits_in_both_forms() -> None:
    x = np.concatenate([-np.logspace(-12, 2, 5000), -np.linspace(0, 31, 5000), [0.0, -np.inf]])
    weights = boltzmann_weights(x)
    assert np.array_equal(weights, boltzmann_weights_reference(torch.from_numpy(x)).numpy())
    assert np.abs(weights - np.exp(x) * 2.0**WEIGHT_BITS).max() <= 1.0
    assert weights[-2:].tolist() == [2**WEIGHT_BITS, 0]


def chi_square(counts: np.ndarray) -> float:
    """Standardised distance of counts from uniform: about N(0, 1) where they are."""
    expected, freedom = counts.sum() / counts.size, counts.size - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_bits_are_uniform(seed: int) -> None:
    bits = row_of_bits(seed, 0, 0)
    assert bits.min() >= 0
    assert bits.max() < 2**52
    for shift in (0, 12, 28, 44):
        assert abs(chi_square(np.bincount((bits >> shift) & 255, minlength=256))) < 4
    ones = np.array([((bits >> bit) & 1).mean() for bit in range(52)])
    assert np.abs(ones - 0.5).max() < 4 * 0.5 / math.sqrt(NUM_TOKENS)


def test_streams_that_differ_in_any_part_of_the_key_are_independent() -> None:
    keys = [(1, 0, 0), (2, 0, 0), (1 + 2**32, 0, 0), (1, 1, 0), (1, 0, 1), (1, 0, 2), (1, 2, 1)]
    streams = [row_of_bits(*key) for key in keys]
    limit = 4 / math.sqrt(NUM_TOKENS)
    for a, b in itertools.combinations(streams, 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < limit
        pairs = (a >> 48) * 16 + (b >> 48)
        assert abs(chi_square(np.bincount(pairs, minlength=256))) < 4
    for stream in streams:
        assert abs(np.corrcoef(stream[1:], stream[:-1])[0, 1]) < limit
        lagged = (stream[1:] >> 48) * 16 + (stream[:-1] >> 48)
        assert abs(chi_square(np.bincount(lagged, minlength=256))) < 4


def test_one_token_over_consecutive_indices_is_uniform() -> None:
    index = torch.arange(NUM_TOKENS).unsqueeze(1)
    zero = torch.zeros(1, 1, dtype=torch.int64)
    bits = uniform_bits_reference(as_row(42), zero, index, as_row(17))[:, 0].numpy()
    assert abs(chi_square(np.bincount(bits >> 44, minlength=256))) < 4
    assert abs(np.corrcoef(bits[1:], bits[:-1])[0, 1]) < 4 / math.sqrt(NUM_TOKENS)


def test_noise_is_standard_gumbel() -> None:
    noise = np.sort(gumbel(np.uint64(5), 0, 0, TOKEN_IDS))
    exact = np.exp(-np.exp(-noise))
    empirical = (np.arange(NUM_TOKENS) + 0.5) / NUM_TOKENS
    assert np.abs(exact - empirical).max() < 1.63 / math.sqrt(NUM_TOKENS)  # Kolmogorov, 1 %
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.02)
    assert np.isfinite(noise).all()
