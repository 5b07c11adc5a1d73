"""A 64-bit digest of KV pages, computed where they lie.

A page is n 32-bit words w[i]. With mix the finaliser of MurmurHash3 (a bijection of 32-bit words)
and all sums modulo 2^32:

    a[i]  = mix(w[i] xor mix(i + 1))
    low   = sum_i a[i]
    high  = sum_i mix(a[i] + 0x9E3779B9)
    digest = low + 2^32 high

A changed word always changes `low`; several changed, moved or swapped words go unseen with a
probability of about 2^-64. Sums do not depend on order, so blocks may be added as they finish. It
finds faults, not attackers. pages [num_pages, words] of 32-bit integers; digests int64 [k].
"""

import torch
import triton
import triton.language as tl

MASK = 0xFFFFFFFF
BLOCK = 4096


def mix_reference(x: torch.Tensor) -> torch.Tensor:
    """MurmurHash3's 32-bit finaliser of values in [0, 2^32) held as int64."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK
    return x ^ (x >> 16)


def page_digests_reference(pages: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """The specification of `page_digests`."""
    words = pages[indices.long()].to(torch.int64) & MASK
    positions = torch.arange(1, words.shape[1] + 1, device=words.device)
    mixed = mix_reference(words ^ mix_reference(positions))
    low = mixed.sum(dim=1) & MASK
    high = mix_reference((mixed + 0x9E3779B9) & MASK).sum(dim=1) & MASK
    return low | (high << 32)


@triton.jit
def _mix(x: tl.tensor):
    x = (x ^ (x >> 16)) * tl.full((), 0x85EBCA6B, tl.uint32)
    x = (x ^ (x >> 13)) * tl.full((), 0xC2B2AE35, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def _page_digest_kernel(
    pages_ptr: tl.tensor,
    indices_ptr: tl.tensor,
    halves_ptr: tl.tensor,
    num_words: tl.tensor,
    BLOCK: tl.constexpr,
):
    """One program per page and block of words; adds to halves [k, 2] (low, high)."""
    row = tl.program_id(0)
    page = tl.load(indices_ptr + row).to(tl.int64)
    positions = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = positions < num_words
    words = tl.load(pages_ptr + page * num_words + positions, mask=inside, other=0)
    mixed = _mix(words.to(tl.uint32, bitcast=True) ^ _mix((positions + 1).to(tl.uint32)))
    second = _mix(mixed + tl.full((), 0x9E3779B9, tl.uint32))
    zero = tl.zeros((BLOCK,), tl.uint32)
    low = tl.sum(tl.where(inside, mixed, zero).to(tl.int32, bitcast=True), axis=0)
    high = tl.sum(tl.where(inside, second, zero).to(tl.int32, bitcast=True), axis=0)
    tl.atomic_add(halves_ptr + 2 * row, low)
    tl.atomic_add(halves_ptr + 2 * row + 1, high)


def page_digests(pages: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Digests, int64 [k], of pages[indices]; contiguous int32 pages [num_pages, words]."""
    assert pages.dtype == torch.int32
    assert pages.is_contiguous()
    num_pages, num_words = len(indices), pages.shape[1]
    halves = torch.zeros((num_pages, 2), dtype=torch.int32, device=pages.device)
    if num_pages:
        grid = (num_pages, triton.cdiv(num_words, BLOCK))
        _page_digest_kernel[grid](
            pages, indices, halves, num_words, BLOCK=BLOCK, enable_fp_fusion=True, num_warps=4
        )
    low, high = (halves.to(torch.int64) & MASK).unbind(1)
    return low | (high << 32)
