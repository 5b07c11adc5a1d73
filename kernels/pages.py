"""Copies of whole KV pages between a pool and a contiguous staging buffer.

    gather:  staging[i] = pool[page_ids[i]]          scatter:  pool[page_ids[i]] = staging[i]

pool [P, L, 2, Hkv, N, D], page_ids int32 [n], staging [n, L * 2 * Hkv * N * D] of the pool's dtype.
A page is one contiguous run, so both copy whole rows (2 MiB for 16 tokens of an 8B model in bf16).
Page ids of one scatter must differ from each other.
"""

import torch
import triton
import triton.language as tl


def gather_pages_reference(pool: torch.Tensor, page_ids: torch.Tensor) -> torch.Tensor:
    """The specification of `gather_pages`: staging [n, page_elems] on the pool's device."""
    return pool[page_ids.long()].flatten(1)


def scatter_pages_reference(
    staging: torch.Tensor, pool: torch.Tensor, page_ids: torch.Tensor
) -> None:
    """The specification of `scatter_pages`: overwrites the pages of the pool in place."""
    pool[page_ids.long()] = staging.view(-1, *pool.shape[1:])


@triton.jit
def _copy_pages_kernel(
    pool_ptr: tl.tensor,
    staging_ptr: tl.tensor,
    page_ids_ptr: tl.tensor,
    PAGE_WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
    GATHER: tl.constexpr,
):
    """One program per page and block of 32-bit words; a thread moves 16 bytes at a time."""
    index = tl.program_id(0).to(tl.int64)
    page_id = tl.load(page_ids_ptr + index).to(tl.int64)
    words = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = words < PAGE_WORDS
    pool_row = pool_ptr + page_id * PAGE_WORDS
    staging_row = staging_ptr + index * PAGE_WORDS
    if GATHER:
        tl.store(staging_row + words, tl.load(pool_row + words, mask=inside), mask=inside)
    else:
        tl.store(pool_row + words, tl.load(staging_row + words, mask=inside), mask=inside)


def gather_pages(pool: torch.Tensor, page_ids: torch.Tensor) -> torch.Tensor:
    """staging [n, page_elems] of a contiguous pool whose pages are multiples of 4 bytes."""
    staging = pool.new_empty((page_ids.shape[0], pool[0].numel()))
    _copy_pages(pool, staging, page_ids, gather=True)
    return staging


def scatter_pages(staging: torch.Tensor, pool: torch.Tensor, page_ids: torch.Tensor) -> None:
    """Overwrites pages of a contiguous pool, whose pages are multiples of 4 bytes, in place."""
    _copy_pages(pool, staging, page_ids, gather=False)


def _copy_pages(
    pool: torch.Tensor, staging: torch.Tensor, page_ids: torch.Tensor, gather: bool
) -> None:
    """Launches the copy over words, so that the dtype of the pool does not matter."""
    assert all(x.is_contiguous() for x in (pool, staging, page_ids))
    assert staging.dtype == pool.dtype
    if page_ids.shape[0] == 0:
        return
    pool_words = pool.view(pool.shape[0], -1).view(torch.int32)
    page_words = pool_words.shape[1]
    block = min(4096, triton.next_power_of_2(page_words))
    _copy_pages_kernel[(page_ids.shape[0], triton.cdiv(page_words, block))](
        pool_words,
        staging.view(torch.int32),
        page_ids,
        PAGE_WORDS=page_words,
        BLOCK=block,
        GATHER=gather,
        enable_fp_fusion=True,
        num_warps=4,
    )
