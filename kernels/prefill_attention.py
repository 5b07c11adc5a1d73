"""Causal attention of many query rows per sequence over paged keys and values (prefill chunks).

    out[t, h] = sum_j softmax_j(scale * q[t, h] . K[j, h // G]) V[j, h // G]
    over j in max(0, positions[t] - window + 1) .. positions[t],   G = Hq / Hkv

q [T, Hq, D]; sequence s owns rows query_starts[s] : query_starts[s + 1] (int32 [S + 1], from 0 to T, empty
ranges allowed), their positions int32 [T]; position j of sequence s is slot j % N of page
block_tables[s, j // N] (int32 [S, max_pages], entries behind the last position may be anything); pool
[P, L, 2, Hkv, N, D]. Keys and values of the rows themselves are already in their pages.
"""

from itertools import pairwise

import torch


def prefill_attention_reference(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    block_tables: torch.Tensor,
    query_starts: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """The specification of `prefill_attention`: any floating dtype, any device; out [T, Hq, D]."""
    out = torch.empty_like(q)
    for sequence, (begin, end) in enumerate(pairwise(query_starts.tolist())):
        if begin < end:
            rows = slice(begin, end)
            out[rows] = _attend(
                q[rows], pool, layer, block_tables[sequence], positions[rows], scale, window
            )
    return out


def _attend(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    block_table: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """Attention of one sequence's rows q [n, Hq, D], computed in fp32 (fp64 for fp64)."""
    num_kv_heads, page_size, head_dim = pool.shape[3:]
    wide = torch.promote_types(q.dtype, torch.float32)
    num_keys = int(positions.max()) + 1
    pages = block_table[: -(-num_keys // page_size)].long()
    kv = pool[pages, layer].permute(1, 2, 0, 3, 4).reshape(2, num_kv_heads, 1, -1, head_dim)
    key, value = kv[:, :, :, :num_keys].to(wide)
    grouped = q.unflatten(1, (num_kv_heads, -1)).permute(1, 2, 0, 3).to(wide)
    scores = (grouped @ key.mT) * scale
    distance = positions.unsqueeze(1) - torch.arange(num_keys, device=q.device)
    masked = distance < 0 if window is None else (distance < 0) | (distance >= window)
    weights = torch.softmax(scores.masked_fill(masked, float("-inf")), dim=-1)
    return (weights @ value).permute(2, 0, 1, 3).reshape(q.shape).to(q.dtype)
