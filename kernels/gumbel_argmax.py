"""One token per row by the Gumbel-max trick: temperature and noise, no filters, no sort.

    out[r] = argmax_t ((logits[r, t] - largest[r]) / temperature[r] + g(r, t)), or, where the
             temperature is 0, argmax_t logits[r, t]
    g(r, t) = -log(-log((2 b + 1) / 2^53)), b the first 52 bits of Philox4x32-10 with the row's seed
    as key and (t, index, choice, 0) as counter

in float64, the lowest t among equals. logits [R, V] of any floating dtype; temperature float64,
seed (64 bits as a signed number), choice and index int64 [R]. The bits of g are those of the
sampler on every device (`engine/noise.py` says how they come about): the same operations, each
rounded once, in the same order, none fused; its torch reference is `draw_unfiltered_reference` of
`engine/sampler_reference.py`. Two launches: each block of a row gives its best, the first of the
largest wins. The columns of keys may be those of `decode_rows.py`, with a stride.
"""

import torch
import triton
import triton.language as tl

_BLOCK = 1024


@triton.jit(do_not_specialize=["vocab", "key_stride"])
def _gumbel_blocks_kernel(
    logits_ptr: tl.tensor,
    row_stride: tl.tensor,
    vocab: tl.tensor,
    largest_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    seed_ptr: tl.tensor,
    choice_ptr: tl.tensor,
    index_ptr: tl.tensor,
    key_stride: tl.tensor,
    best_ptr: tl.tensor,
    token_ptr: tl.tensor,
    BLOCK: tl.constexpr,
):
    """One program per row and block of tokens."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = token < vocab
    logits = tl.load(logits_ptr + row * row_stride + token, mask=inside, other=float("-inf"))
    key = row * key_stride
    temperature = tl.load(temperature_ptr + key)
    is_noisy = temperature > 0.0
    scaled = logits.to(tl.float64) - tl.load(largest_ptr + row).to(tl.float64)
    scaled = scaled / tl.where(is_noisy, temperature, 1.0)
    seed = tl.load(seed_ptr + key)
    bits = _uniform_bits(
        token.to(tl.uint32),
        tl.load(index_ptr + key).to(tl.uint32),
        tl.load(choice_ptr + key).to(tl.uint32),
        seed.to(tl.uint32),
        (seed >> 32).to(tl.uint32),
    )
    uniform = (2 * bits + 1).to(tl.float64) * 1.1102230246251565e-16  # 2^-53
    noisy = tl.where(is_noisy, scaled - _log(-_log(uniform)), scaled)
    noisy = tl.where(inside, noisy, float("-inf"))
    best, winner = tl.max(noisy, axis=0, return_indices=True, return_indices_tie_break_left=True)
    out = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(best_ptr + out, best)
    tl.store(token_ptr + out, tl.program_id(1).to(tl.int64) * BLOCK + winner)


@triton.jit
def _uniform_bits(
    token: tl.tensor, index: tl.tensor, choice: tl.tensor, key_0: tl.tensor, key_1: tl.tensor
):
    """52 random bits, int64."""
    c0 = token
    c1 = tl.zeros_like(token) + index
    c2 = tl.zeros_like(token) + choice
    c3 = tl.zeros_like(token)
    for _ in tl.static_range(10):
        product_0 = c0.to(tl.uint64) * 0xD2511F53
        product_1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product_1 >> 32).to(tl.uint32) ^ c1 ^ key_0
        c1 = product_1.to(tl.uint32)
        c2 = (product_0 >> 32).to(tl.uint32) ^ c3 ^ key_1
        c3 = product_0.to(tl.uint32)
        key_0 += 0x9E3779B9
        key_1 += 0xBB67AE85
    return (c0.to(tl.int64) << 20) | (c1 >> 12).to(tl.int64)


@triton.jit
def _log(x: tl.tensor):
    """`log_reference` of `engine/noise.py`, operation by operation."""
    bits = x.to(tl.int64, bitcast=True)
    exponent = (bits - 0x3FE6A09E667F3BCD) >> 52
    f = (bits - (exponent << 52)).to(tl.float64, bitcast=True) - 1.0
    k = exponent.to(tl.float64)
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    odd = w * 1.479819860510658591e-01
    odd = w * (1.818357216161805012e-01 + odd)
    odd = w * (2.857142874366239149e-01 + odd)
    odd = z * (6.666666666666735130e-01 + odd)
    even = w * 1.531383769920937332e-01
    even = w * (2.222219843214978396e-01 + even)
    even = w * (3.999999999940941908e-01 + even)
    half_square = 0.5 * f * f
    low = s * (half_square + (odd + even)) + k * 1.90821492927058770002e-10
    return k * 6.93147180369123816490e-01 - ((half_square - low) - f)


@triton.jit(do_not_specialize=["num_blocks"])
def _gumbel_rows_kernel(
    best_ptr: tl.tensor,
    token_ptr: tl.tensor,
    num_blocks: tl.tensor,
    out_ptr: tl.tensor,
    BLOCK: tl.constexpr,
):
    """One program per row over the best of its blocks."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCK)
    inside = block < num_blocks
    best = tl.load(best_ptr + row * num_blocks + block, mask=inside, other=float("-inf"))
    winner = tl.argmax(best, axis=0, tie_break_left=True)
    tl.store(out_ptr + row, tl.load(token_ptr + row * num_blocks + winner))


def gumbel_argmax(
    logits: torch.Tensor,
    largest: torch.Tensor,
    temperature: torch.Tensor,
    seed: torch.Tensor,
    choice: torch.Tensor,
    index: torch.Tensor,
) -> torch.Tensor:
    """int64 [R]; launches, but never waits for the device. A row with a NaN gets some token.

    largest: of each row, of a dtype that holds it exactly, contiguous.
    """
    columns = (temperature, seed, choice, index)
    assert logits.stride(1) == 1 and largest.is_contiguous()
    assert temperature.dtype == torch.float64
    assert len({column.stride(0) for column in columns}) == 1
    num_rows, vocab = logits.shape
    num_blocks = triton.cdiv(vocab, _BLOCK)
    best = torch.empty((num_rows, num_blocks), dtype=torch.float64, device=logits.device)
    tokens = torch.empty((num_rows, num_blocks), dtype=torch.int64, device=logits.device)
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    _gumbel_blocks_kernel[(num_rows, num_blocks)](
        logits,
        logits.stride(0),
        vocab,
        largest,
        *columns,
        temperature.stride(0),
        best,
        tokens,
        BLOCK=_BLOCK,
        enable_fp_fusion=False,
        num_warps=8,
    )
    _gumbel_rows_kernel[(num_rows,)](
        best,
        tokens,
        num_blocks,
        out,
        BLOCK=max(2, triton.next_power_of_2(num_blocks)),
        enable_fp_fusion=False,
        num_warps=1,
    )
    return out
