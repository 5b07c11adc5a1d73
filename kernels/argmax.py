"""Greedy sampling: the largest logit of each row, and the lowest token that has it.

    largest[b] = max_v logits[b, v], NaN where one of them is NaN
    tokens[b]  = the lowest v with logits[b, v] = largest[b], any v of a row with a NaN

logits [B, V] of any floating dtype; tokens int64 [B], ready to be a batch's token ids; largest [B].
Two launches: each block of a row gives its best, then one program per row takes the best of those
(the lowest token on both levels), so that one row of 128k logits keeps many multiprocessors busy.
"""

import torch
import triton
import triton.language as tl

_BLOCK = 4096


def argmax_rows_reference(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The specification of `argmax_rows`; torch's argmax may take any of several maxima."""
    largest = logits.amax(dim=-1)
    best = logits == largest.unsqueeze(-1)
    return best.to(torch.uint8).argmax(dim=-1), largest


@triton.jit
def _argmax_blocks_kernel(
    logits_ptr: tl.tensor,
    row_stride: tl.tensor,
    vocab: tl.tensor,
    best_ptr: tl.tensor,
    token_ptr: tl.tensor,
    BLOCK: tl.constexpr,
):
    """One program per row and block of columns.

    row_stride and vocab are specialised on divisibility, else no load would be of 16 bytes.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + row * row_stride + columns, mask=columns < vocab, other=float("-inf"))
    x = x.to(tl.float32)
    numbers = tl.where(x == x, x, float("-inf"))
    best, index = tl.max(numbers, axis=0, return_indices=True, return_indices_tie_break_left=True)
    has_nan = tl.max((x != x).to(tl.int32), axis=0) > 0
    best = tl.where(has_nan, float("nan"), best)
    out = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(best_ptr + out, best)
    tl.store(token_ptr + out, tl.program_id(1) * BLOCK + index)


@triton.jit(do_not_specialize=["num_blocks"])
def _argmax_rows_kernel(
    best_ptr: tl.tensor,
    token_ptr: tl.tensor,
    num_blocks: tl.tensor,
    out_ptr: tl.tensor,
    largest_ptr: tl.tensor,
    BLOCK: tl.constexpr,
):
    """One program per row over the best of its blocks."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCK)
    inside = block < num_blocks
    best = tl.load(best_ptr + row * num_blocks + block, mask=inside, other=float("-inf"))
    numbers = tl.where(best == best, best, float("-inf"))
    largest, index = tl.max(
        numbers, axis=0, return_indices=True, return_indices_tie_break_left=True
    )
    has_nan = tl.max((best != best).to(tl.int32), axis=0) > 0
    token = tl.load(token_ptr + row * num_blocks + index)
    tl.store(out_ptr + row, token.to(tl.int64))
    tl.store(largest_ptr + row, tl.where(has_nan, float("nan"), largest))


def argmax_rows(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens int64 [B], largest float32 [B]) of fp32, fp16 or bf16 logits [B, V]."""
    assert logits.dtype != torch.float64
    assert logits.stride(1) == 1
    num_rows, vocab = logits.shape
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    largest = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    if num_rows == 0:
        return out, largest
    num_blocks = triton.cdiv(vocab, _BLOCK)
    best = torch.empty((num_rows, num_blocks), dtype=torch.float32, device=logits.device)
    tokens = torch.empty((num_rows, num_blocks), dtype=torch.int32, device=logits.device)
    _argmax_blocks_kernel[(num_rows, num_blocks)](
        logits,
        logits.stride(0),
        vocab,
        best,
        tokens,
        BLOCK=_BLOCK,
        enable_fp_fusion=True,
        num_warps=4,
    )
    _argmax_rows_kernel[(num_rows,)](
        best,
        tokens,
        num_blocks,
        out,
        largest,
        BLOCK=max(2, triton.next_power_of_2(num_blocks)),
        enable_fp_fusion=True,
        num_warps=1,
    )
    return out, largest
