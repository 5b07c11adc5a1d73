"""Rotary position embedding, fused with the write of keys and values into their pages.

    q, k = norm(q), norm(k)                           per head, where weights are given
    out  = [x1 * cos - x2 * sin, x2 * cos + x1 * sin] with x1, x2 the halves of a head
    pool[page_ids[t], layer, 0, :, offsets[t]] = k[t]       rotated
    pool[page_ids[t], layer, 1, :, offsets[t]] = v[t]       as it is

qkv [T, (Hq + 2 Hkv) D] holds q, k, v side by side; cos_sin [max_pos, D] fp32, cosines of the D / 2
angles then sines; positions, page_ids, offsets int32 [T]; pool [P, L, 2, Hkv, N, D]. Rows that pad
a batch point at the pool's scratch page, where several rows may write the same slot.
"""

import torch
import triton
import triton.language as tl


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
    """The specification of `rope_write`: any floating dtype, any device; rotated q [T, Hq, D]."""
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
    """RMSNorm over the last dimension, rounded like `rms_norm`; x where there is no weight."""
    if weight is None:
        return x
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the halves of x [T, H, D] by angles [T, 1, D / 2]; keeps the dtype of x."""
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x.dtype)


@triton.jit(do_not_specialize=["layer"])
def _rope_write_kernel(
    qkv_ptr: tl.tensor,
    cos_sin_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    pool_ptr: tl.tensor,
    layer: tl.tensor,
    page_ids_ptr: tl.tensor,
    offsets_ptr: tl.tensor,
    q_out_ptr: tl.tensor,
    q_norm_ptr: tl.tensor,
    k_norm_ptr: tl.tensor,
    eps: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    HAS_Q_NORM: tl.constexpr,
    HAS_K_NORM: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    """One program per token and kv head: the head's group of queries, its key and its value."""
    HALF: tl.constexpr = HEAD_DIM // 2
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
    KV_STRIDE: tl.constexpr = NUM_KV_HEADS * PAGE_SIZE * HEAD_DIM
    token = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    half = tl.arange(0, BLOCK_HALF)[None, :]
    inside = half < HALF
    angles = cos_sin_ptr + tl.load(positions_ptr + token).to(tl.int64) * HEAD_DIM
    cos = tl.load(angles + half, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(angles + HALF + half, mask=inside, other=0.0).to(tl.float32)

    group = tl.arange(0, BLOCK_GROUP)[:, None]
    q_columns = (kv_head * GROUP + group) * HEAD_DIM + half
    q_inside = (group < GROUP) & inside
    qkv_row = qkv_ptr + token * ((NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM)
    first, second = _load_rotated(
        qkv_row + q_columns, q_norm_ptr, half, q_inside, cos, sin, eps, HALF, HAS_Q_NORM
    )
    q_row = q_out_ptr + token * (NUM_HEADS * HEAD_DIM) + q_columns
    tl.store(q_row, first, mask=q_inside)
    tl.store(q_row + HALF, second, mask=q_inside)

    key_row = qkv_row + (NUM_HEADS + kv_head) * HEAD_DIM + half
    first, second = _load_rotated(
        key_row, k_norm_ptr, half, inside, cos, sin, eps, HALF, HAS_K_NORM
    )
    page = tl.load(page_ids_ptr + token).to(tl.int64) * PAGE_STRIDE + layer * (2 * KV_STRIDE)
    slot = (kv_head * PAGE_SIZE + tl.load(offsets_ptr + token)) * HEAD_DIM + half
    key_slot = pool_ptr + page + slot
    tl.store(key_slot, first, mask=inside)
    tl.store(key_slot + HALF, second, mask=inside)
    value_row = key_row + NUM_KV_HEADS * HEAD_DIM
    tl.store(key_slot + KV_STRIDE, tl.load(value_row, mask=inside), mask=inside)
    tl.store(key_slot + KV_STRIDE + HALF, tl.load(value_row + HALF, mask=inside), mask=inside)


@triton.jit
def _load_rotated(
    x_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    half: tl.tensor,
    inside: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    eps: tl.tensor,
    HALF: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """Both halves [heads, BLOCK_HALF] of the heads at x_ptr, normed where asked, then rotated."""
    dtype = x_ptr.dtype.element_ty
    first = tl.load(x_ptr, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + HALF, mask=inside, other=0.0).to(tl.float32)
    if HAS_NORM:
        squares = tl.sum(first * first + second * second, axis=1, keep_dims=True)
        inverse_rms = tl.rsqrt(squares / (2 * HALF) + eps)
        weights = norm_ptr + half
        first_weight = tl.load(weights, mask=half < HALF, other=0.0).to(tl.float32)
        second_weight = tl.load(weights + HALF, mask=half < HALF, other=0.0).to(tl.float32)
        first = (first * inverse_rms).to(dtype).to(tl.float32) * first_weight
        second = (second * inverse_rms).to(dtype).to(tl.float32) * second_weight
        first = first.to(dtype).to(tl.float32)
        second = second.to(dtype).to(tl.float32)
    rotated_first = (first * cos - second * sin).to(dtype)
    rotated_second = (second * cos + first * sin).to(dtype)
    return rotated_first, rotated_second


def rope_write(
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
    """Rotated q [T, Hq, D]; fills the tokens' slots. Contiguous fp32, fp16 or bf16 tensors.

    The pool may be the memory of another process or GPU: only its base address matters.
    """
    assert qkv.dtype == pool.dtype != torch.float64
    assert all(x.is_contiguous() for x in (qkv, cos_sin, positions, pool, page_ids, offsets))
    _, _, _, num_kv_heads, page_size, head_dim = pool.shape
    num_tokens, group = qkv.shape[0], num_heads // num_kv_heads
    q_out = qkv.new_empty((num_tokens, num_heads, head_dim))
    if num_tokens == 0:
        return q_out
    _rope_write_kernel[(num_tokens, num_kv_heads)](
        qkv,
        cos_sin,
        positions,
        pool,
        layer,
        page_ids,
        offsets,
        q_out,
        qkv if q_norm is None else q_norm,
        qkv if k_norm is None else k_norm,
        eps,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        PAGE_SIZE=page_size,
        PAGE_STRIDE=pool.stride(0),
        HAS_Q_NORM=q_norm is not None,
        HAS_K_NORM=k_norm is not None,
        BLOCK_GROUP=triton.next_power_of_2(group),
        BLOCK_HALF=triton.next_power_of_2(head_dim // 2),
        enable_fp_fusion=True,
        num_warps=1 if group * head_dim <= 512 else 4,
    )
    return q_out
