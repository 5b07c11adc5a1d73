"""Attention of one query row per sequence over paged keys and values (decode steps), split over the keys.

    out[s, h] = sum_j softmax_j(scale * q[s, h] . K[j, h // G]) V[j, h // G]
    over j in max(0, context_lens[s] - window) .. context_lens[s] - 1,   G = Hq / Hkv

q [S, Hq, D]; context_lens int32 [S] counts the row's own token, whose key and value are already in its page; 0
marks a padding row, whose output is 0. Position j of row s is slot j % N of page block_tables[s, j // N] (int32
[S, max_pages], entries behind the context may be anything); pool [P, L, 2, Hkv, N, D].
"""

import torch


def decode_attention_reference(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """The specification of `decode_attention`: any floating dtype, any device; out [S, Hq, D]."""
    num_kv_heads, page_size, head_dim = pool.shape[3:]
    wide = torch.promote_types(q.dtype, torch.float32)
    slots = torch.arange(block_tables.shape[1] * page_size, device=q.device)
    lengths = context_lens.unsqueeze(1)
    valid = slots < lengths
    if window is not None:
        valid &= slots >= lengths - window
    pages = torch.where(valid.unflatten(1, (-1, page_size)).any(-1), block_tables, 0)
    kv = pool[pages.long(), layer].permute(2, 0, 3, 1, 4, 5)
    key, value = kv.reshape(2, q.shape[0], num_kv_heads, -1, head_dim).to(wide)
    value = value.masked_fill(~valid[:, None, :, None], 0.0)
    grouped = q.unflatten(1, (num_kv_heads, -1)).to(wide)
    masked = ~valid[:, None, None, :]
    scores = ((grouped @ key.mT) * scale).masked_fill(masked, float("-inf"))
    weights = torch.softmax(scores, dim=-1).masked_fill(masked, 0.0)
    return (weights @ value).reshape(q.shape).to(q.dtype)
