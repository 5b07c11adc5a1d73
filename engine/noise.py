"""Random numbers that depend on nothing but (seed, choice, output index, token id).

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
with the seed as key and (token id, output index, choice, 0) as counter gives 52 bits b per token;
u = (2 b + 1) / 2^53 lies strictly within (0, 1) and is exact; the noise is -log(-log(u)), standard
Gumbel. The logarithm (of FreeBSD's msun, e_log.c, below 1 ulp) and `boltzmann_weights` use only
operations that IEEE 754 rounds exactly, in a written order, so that a batch, a thread count, a
library of maths or another device cannot change a bit. Each function has a torch form, which is
the specification and runs on any device, and a compiled form for the CPU with equal bits.
"""

import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba
import numpy as np
import torch
from numpy.typing import NDArray

P = ParamSpec("P")
R = TypeVar("R")
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]
Words = tuple[np.uint64, np.uint64, np.uint64, np.uint64]

WEIGHT_BITS = 43
"""A weight of 1.0 is 2^43, so that sums over a million tokens stay below 2^63."""

MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
BLOCK_TOKENS = 2048  # their intermediate numbers stay in the first-level cache
ROUNDS = tuple(range(10))
MASK_32 = 0xFFFFFFFF

SQRT_HALF_BITS = 0x3FE6A09E667F3BCD
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
LOG2_E = 1.44269504088896338700
LG1, LG2, LG3, LG4, LG5, LG6, LG7 = (
    6.666666666666735130e-01,
    3.999999999940941908e-01,
    2.857142874366239149e-01,
    2.222219843214978396e-01,
    1.818357216161805012e-01,
    1.531383769920937332e-01,
    1.479819860511658591e-01,
)
# Taylor of exp, 1 / 13! first: on [-0.35, 0.35] its remainder is below 1e-17.
EXP_TERMS = tuple(1.0 / math.factorial(degree) for degree in range(13, -1, -1))
WEIGHT_CUTOFF = -30.0  # exp(-30) is below 2^-43


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Typed `numba.njit`: no fused or reordered arithmetic (numba's default), releases the GIL."""
    return cast(Callable[P, R], numba.njit(cache=True, nogil=True)(function))


def gumbel_reference(
    seed: torch.Tensor, choice: torch.Tensor, index: torch.Tensor, token_ids: torch.Tensor
) -> torch.Tensor:
    """Gumbel noise, float64, of the broadcast shape of four int64 tensors.

    `seed` holds the 64 bits of an unsigned seed as a signed number.
    """
    bits = uniform_bits_reference(seed, choice, index, token_ids)
    uniform = (2 * bits + 1).double() * 2.0**-53
    return -log_reference(-log_reference(uniform))


def uniform_bits_reference(
    seed: torch.Tensor, choice: torch.Tensor, index: torch.Tensor, token_ids: torch.Tensor
) -> torch.Tensor:
    """52 random bits, int64, of the broadcast shape."""
    counter = (token_ids, index, choice, torch.zeros_like(seed))
    words = philox_reference(counter, (seed & MASK_32, (seed >> 32) & MASK_32))
    return (words[0] << 20) | (words[1] >> 12)


def philox_reference(
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    key: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Philox4x32-10: four words of counter, two of key, four of output; 32 bits each in int64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in ROUNDS:
        # Products of 32-bit words wrap in int64; masks take the exact unsigned halves.
        product_0, product_1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1
        high_0, high_1 = (product_0 >> 32) & MASK_32, (product_1 >> 32) & MASK_32
        c0, c1, c2, c3 = (
            high_1 ^ c1 ^ k0,
            product_1 & MASK_32,
            high_0 ^ c3 ^ k1,
            product_0 & MASK_32,
        )
        k0, k1 = (k0 + WEYL_0) & MASK_32, (k1 + WEYL_1) & MASK_32
    return c0, c1, c2, c3


def log_reference(x: torch.Tensor) -> torch.Tensor:
    """Natural logarithm of positive normal float64 numbers: x = 2^k m, m in [sqrt 1/2, sqrt 2)."""
    bits = x.view(torch.int64)
    exponent = (bits - SQRT_HALF_BITS) >> 52
    f = (bits - (exponent << 52)).view(torch.float64) - 1.0
    k = exponent.double()
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    odd = z * (LG1 + w * (LG3 + w * (LG5 + w * LG7)))
    even = w * (LG2 + w * (LG4 + w * LG6))
    half_square = 0.5 * f * f
    return k * LN2_HIGH - ((half_square - (s * (half_square + (odd + even)) + k * LN2_LOW)) - f)


def boltzmann_weights_reference(x: torch.Tensor) -> torch.Tensor:
    """floor(2^43 exp(x)) as int64 for float64 x <= 0 (minus infinity gives 0).

    Integers, so that sums of them are exact in any order.
    """
    clamped = x.clamp_min(WEIGHT_CUTOFF)
    halvings = torch.floor(0.5 - clamped * LOG2_E)
    r = (clamped + halvings * LN2_HIGH) + halvings * LN2_LOW
    y = torch.full_like(r, EXP_TERMS[0])
    for term in EXP_TERMS[1:]:
        y = y * r + term
    weights = (y * 2.0**WEIGHT_BITS).long() >> halvings.long()
    return torch.where(x < WEIGHT_CUTOFF, 0, weights)


@compiled
def gumbel(seed: np.uint64, choice: int, index: int, token_ids: Int64Array) -> Float64Array:
    """Compiled `gumbel_reference` of one row: `seed` unsigned, `token_ids` [N]; float64 [N]."""
    noise = np.empty(token_ids.size, np.float64)
    for start in range(0, token_ids.size, BLOCK_TOKENS):
        block = noise[start : start + BLOCK_TOKENS]
        bits = _uniform_bits(seed, choice, index, token_ids[start : start + BLOCK_TOKENS])
        for i in range(block.size):
            block[i] = np.float64(2 * bits[i] + 1) * 2.0**-53
        _negated_log(block)
        _negated_log(block)
    return noise


@compiled
def boltzmann_weights(x: Float64Array) -> Int64Array:
    """Compiled `boltzmann_weights_reference`: float64 [N] to int64 [N]."""
    weights = np.zeros(x.size, np.int64)
    for i in range(x.size):
        if x[i] >= WEIGHT_CUTOFF:
            halvings = np.floor(0.5 - x[i] * LOG2_E)
            r = (x[i] + halvings * LN2_HIGH) + halvings * LN2_LOW
            y = EXP_TERMS[0]
            for term in EXP_TERMS[1:]:
                y = y * r + term
            weights[i] = np.int64(y * 2.0**WEIGHT_BITS) >> np.int64(halvings)
    return weights


@compiled
def _uniform_bits(seed: np.uint64, choice: int, index: int, token_ids: Int64Array) -> Int64Array:
    mask, half = np.uint64(MASK_32), np.uint64(32)
    bits = np.empty(token_ids.size, np.int64)
    for i in range(token_ids.size):
        words = (
            np.uint64(token_ids[i]) & mask,
            np.uint64(index) & mask,
            np.uint64(choice) & mask,
            np.uint64(0),
        )
        k0, k1 = np.uint64(seed) & mask, np.uint64(seed) >> half
        # Unrolled, so that the compiler turns the loop over tokens into SIMD: 3 times faster.
        for _ in numba.literal_unroll(ROUNDS):
            words = _philox_round(words, k0, k1)
            k0, k1 = (k0 + np.uint64(WEYL_0)) & mask, (k1 + np.uint64(WEYL_1)) & mask
        bits[i] = np.int64((words[0] << np.uint64(20)) | (words[1] >> np.uint64(12)))
    return bits


@compiled
def _philox_round(words: Words, k0: np.uint64, k1: np.uint64) -> Words:
    mask, half = np.uint64(MASK_32), np.uint64(32)
    product_0, product_1 = words[0] * np.uint64(MULTIPLIER_0), words[2] * np.uint64(MULTIPLIER_1)
    return (
        (product_1 >> half) ^ words[1] ^ k0,
        product_1 & mask,
        (product_0 >> half) ^ words[3] ^ k1,
        product_0 & mask,
    )


@compiled
def _negated_log(x: Float64Array) -> None:
    """-log of every number, in place; the arithmetic of `log_reference` operation by operation."""
    bits = x.view(np.int64)
    for i in range(x.size):
        exponent = (bits[i] - SQRT_HALF_BITS) >> 52
        bits[i] -= exponent << 52
        f = x[i] - 1.0
        k = np.float64(exponent)
        s = f / (2.0 + f)
        z = s * s
        w = z * z
        odd = z * (LG1 + w * (LG3 + w * (LG5 + w * LG7)))
        even = w * (LG2 + w * (LG4 + w * LG6))
        half_square = 0.5 * f * f
        log = k * LN2_HIGH - ((half_square - (s * (half_square + (odd + even)) + k * LN2_LOW)) - f)
        x[i] = -log
