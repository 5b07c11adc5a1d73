"""Copies of whole KV pages between a pool and a contiguous staging buffer.

    gather:  staging[i] = pool[page_ids[i]]          scatter:  pool[page_ids[i]] = staging[i]

pool [P, L, 2, Hkv, N, D], page_ids int32 [n], staging [n, page_elems] with page_elems = L * 2 * Hkv * N * D, of
the pool's dtype. A page is one contiguous run, so both are row copies of about 2 MiB (16 tokens of an 8B model).
Page ids of one scatter must differ from each other.
"""

import torch


def gather_pages_reference(pool: torch.Tensor, page_ids: torch.Tensor) -> torch.Tensor:
    """The specification of `gather_pages`: staging [n, page_elems] on the pool's device."""
    return pool[page_ids.long()].flatten(1)


def scatter_pages_reference(
    staging: torch.Tensor, pool: torch.Tensor, page_ids: torch.Tensor
) -> None:
    """The specification of `scatter_pages`: overwrites the pages of the pool in place."""
    pool[page_ids.long()] = staging.view(-1, *pool.shape[1:])
