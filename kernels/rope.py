"""Rotary position embedding of queries and keys, fused with the write of keys and values into KV pages.

    q, k = norm(q), norm(k)                                 (per head RMSNorm; only where weights are given)
    out  = [x1 * cos - x2 * sin, x2 * cos + x1 * sin]       with x1, x2 the halves of a head's D values
    pool[page_ids[t], layer, 0, :, offsets[t]] = rotated k[t];   the same with 1 for v[t], unrotated

qkv [T, (Hq + 2 Hkv) D] holds q, k, v side by side; cos_sin [max_pos, D] fp32, cosines of the D/2 angles then
sines; positions, page_ids, offsets int32 [T]; pool [P, L, 2, Hkv, N, D]. Rows that pad a batch point at the
pool's scratch page, where several rows may write the same slot.
"""

import torch


def rope_write_reference(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    page_ids: torch.Tensor,
    offsets: torch.Tensor,
    num_heads: int,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """The specification of `rope_write`: any floating dtype, any device; returns rotated q [T, Hq, D]."""
    num_kv_heads, head_dim = pool.shape[3], pool.shape[5]
    heads = qkv.unflatten(-1, (num_heads + 2 * num_kv_heads, head_dim))
    query, key, value = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    angles = cos_sin[positions.long()].to(torch.promote_types(qkv.dtype, torch.float32))
    cos, sin = angles.unsqueeze(1).chunk(2, dim=-1)
    query = _rotate(_head_norm(query, q_norm, eps), cos, sin)
    key = _rotate(_head_norm(key, k_norm, eps), cos, sin)
    slots = (page_ids.long(), slice(None), offsets.long())
    pool[:, layer, 0][slots] = key
    pool[:, layer, 1][slots] = value
    return query


def _head_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """RMSNorm over the last dimension, rounded like `rms_norm`; x itself where there is no weight."""
    if weight is None:
        return x
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the halves of the last dimension of x [T, H, D] by angles [T, 1, D / 2]; keeps x's dtype."""
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x.dtype)
