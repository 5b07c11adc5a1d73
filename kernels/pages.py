"""Copies of KV pages, or of a range of layers and heads of each, to or from a staging buffer.

    gather:  staging[i] = pool[page_ids[i], layers, :, heads]
    scatter: pool[page_ids[i], layers, :, heads] = staging[i]

pool [P, L, 2, Hkv, N, D], page_ids int32 [n], staging [n, elements of the ranges] of the pool's
dtype. A page is one contiguous run (2 MiB for 16 tokens of an 8B model in bf16), and so is a range
of its layers; a range of heads is one run per layer of K and of V: what one of several prefill
processes, each with its own heads, has to send. The pool may be the mapped memory of another
process or GPU. Page ids of one scatter must differ from each other.
"""

import torch
import triton
import triton.language as tl

Range = tuple[int, int]  # first and end


def gather_pages_reference(
    pool: torch.Tensor,
    page_ids: torch.Tensor,
    layers: Range | None = None,
    heads: Range | None = None,
) -> torch.Tensor:
    """The specification of `gather_pages`: staging on the pool's device."""
    chosen = slice(*(layers or (None,))), slice(None), slice(*(heads or (None,)))
    return pool[page_ids.long()][:, *chosen].flatten(1)


def scatter_pages_reference(
    staging: torch.Tensor,
    pool: torch.Tensor,
    page_ids: torch.Tensor,
    layers: Range | None = None,
    heads: Range | None = None,
) -> None:
    """The specification of `scatter_pages`: overwrites the ranges of the pages in place."""
    chosen = slice(*(layers or (None,))), slice(None), slice(*(heads or (None,)))
    pages = pool[page_ids.long()]
    part = pages[:, *chosen]
    part.copy_(staging.view(part.shape))
    pool[page_ids.long()] = pages


@triton.jit
def _copy_pages_kernel(
    pool_ptr: tl.tensor,
    staging_ptr: tl.tensor,
    page_ids_ptr: tl.tensor,
    first_word: tl.tensor,
    num_runs: tl.tensor,
    PAGE_WORDS: tl.constexpr,
    RUN_STRIDE: tl.constexpr,
    RUN_WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
    GATHER: tl.constexpr,
):
    """One program per page, run and block of 32-bit words; a thread moves 16 bytes at a time.

    first_word is specialised on its divisibility: the compiler must know that 16 bytes align.
    """
    BLOCKS: tl.constexpr = (RUN_WORDS + BLOCK - 1) // BLOCK
    index = tl.program_id(0).to(tl.int64)
    run = (tl.program_id(1) // BLOCKS).to(tl.int64)
    words = tl.program_id(1) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    inside = words < RUN_WORDS
    page_id = tl.load(page_ids_ptr + index).to(tl.int64)
    pool_run = pool_ptr + page_id * PAGE_WORDS + first_word + run * RUN_STRIDE
    staging_run = staging_ptr + (index * num_runs + run) * RUN_WORDS
    if GATHER:
        tl.store(staging_run + words, tl.load(pool_run + words, mask=inside), mask=inside)
    else:
        tl.store(pool_run + words, tl.load(staging_run + words, mask=inside), mask=inside)


def gather_pages(
    pool: torch.Tensor,
    page_ids: torch.Tensor,
    layers: Range | None = None,
    heads: Range | None = None,
) -> torch.Tensor:
    """staging [n, elements] of a contiguous pool whose heads' slices are multiples of 4 bytes."""
    layers, heads = layers or (0, pool.shape[1]), heads or (0, pool.shape[3])
    elements = 2 * (layers[1] - layers[0]) * (heads[1] - heads[0]) * pool[0, 0, 0, 0].numel()
    staging = pool.new_empty((page_ids.shape[0], elements))
    _copy_pages(pool, staging, page_ids, layers, heads, gather=True)
    return staging


def scatter_pages(
    staging: torch.Tensor,
    pool: torch.Tensor,
    page_ids: torch.Tensor,
    layers: Range | None = None,
    heads: Range | None = None,
) -> None:
    """Overwrites pages of a contiguous pool, whose heads' slices are multiples of 4 bytes."""
    layers, heads = layers or (0, pool.shape[1]), heads or (0, pool.shape[3])
    _copy_pages(pool, staging, page_ids, layers, heads, gather=False)


def _copy_pages(
    pool: torch.Tensor,
    staging: torch.Tensor,
    page_ids: torch.Tensor,
    layers: Range,
    heads: Range,
    gather: bool,
) -> None:
    """Launches the copy over words, so that the dtype of the pool does not matter."""
    assert all(x.is_contiguous() for x in (pool, staging, page_ids))
    assert staging.dtype == pool.dtype
    _, num_layers, _, num_heads, page_size, head_dim = pool.shape
    assert 0 <= layers[0] < layers[1] <= num_layers
    assert 0 <= heads[0] < heads[1] <= num_heads
    if page_ids.shape[0] == 0:
        return
    pool_words = pool.view(pool.shape[0], -1).view(torch.int32)
    head_words = page_size * head_dim * pool.itemsize // 4
    run_stride = num_heads * head_words
    num_runs, run_words = 2 * (layers[1] - layers[0]), (heads[1] - heads[0]) * head_words
    if run_words == run_stride:
        num_runs, run_words = 1, num_runs * run_words
    assert staging.numel() * staging.itemsize == page_ids.shape[0] * num_runs * run_words * 4
    block = min(4096, triton.next_power_of_2(run_words))
    _copy_pages_kernel[(page_ids.shape[0], num_runs * triton.cdiv(run_words, block))](
        pool_words,
        staging.view(torch.int32),
        page_ids,
        layers[0] * 2 * run_stride + heads[0] * head_words,
        num_runs,
        PAGE_WORDS=pool_words.shape[1],
        RUN_STRIDE=run_stride,
        RUN_WORDS=run_words,
        BLOCK=block,
        GATHER=gather,
        enable_fp_fusion=True,
        num_warps=4,
    )
