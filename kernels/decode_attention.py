"""Attention of one query row per sequence over paged keys and values, split over the keys (decode).

    out[s, h] = sum_j softmax_j(scale * q[s, h] . K[j, h // G]) V[j, h // G]
    over j in max(0, context_lens[s] - window) .. context_lens[s] - 1,   G = Hq / Hkv

q [S, Hq, D]; context_lens int32 [S] counts the row's own token, whose key and value are already in
its page; 0 marks a padding row, whose output is 0. Position j of row s is slot j % N of page
block_tables[s, j // N] (int32 [S, max_pages], entries behind the context may be anything); pool
[P, L, 2, Hkv, N, D].
"""

import torch
import triton
import triton.language as tl

_SPLIT = 256  # keys per split: one reduction order for a row, whatever else is in its batch
_LOG2_E = 1.4426950408889634


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
    out: torch.Tensor = (weights @ value).reshape(q.shape)
    return out.to(q.dtype)


@triton.jit(do_not_specialize=["layer", "table_stride", "num_splits"])
def _decode_split_kernel(
    q_ptr: tl.tensor,
    pool_ptr: tl.tensor,
    layer: tl.tensor,
    tables_ptr: tl.tensor,
    table_stride: tl.tensor,
    lengths_ptr: tl.tensor,
    log2_scale: tl.tensor,
    partial_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    num_splits: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLIT: tl.constexpr,
    DIRECT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """One program per row, kv head and split of SPLIT keys: softmax over them, and its log2-sum.

    Tiles start at multiples of TILE and every visited tile has a key that counts, so a maximum is
    never -inf. DIRECT (one split in all) writes the output itself, and zeros for padding rows.
    """
    KV_STRIDE: tl.constexpr = NUM_KV_HEADS * PAGE_SIZE * HEAD_DIM
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(lengths_ptr + sequence)
    first = tl.maximum(length - WINDOW, 0) if WINDOW > 0 else 0
    start = tl.maximum(split * SPLIT, first // TILE * TILE)
    end = tl.minimum(length, (split + 1) * SPLIT)
    group = tl.arange(0, BLOCK_GROUP)
    dims = tl.arange(0, BLOCK_DIM)
    heads = (sequence * NUM_KV_HEADS + kv_head) * GROUP + group
    head_inside = (group < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    if start >= end and not DIRECT:
        return

    q = tl.load(q_ptr + heads[:, None] * HEAD_DIM + dims[None, :], mask=head_inside, other=0.0)
    maximum = tl.full((BLOCK_GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_GROUP,), tl.float32)
    acc = tl.zeros((BLOCK_GROUP, BLOCK_DIM), tl.float32)
    keys = pool_ptr + layer * (2 * KV_STRIDE) + kv_head * (PAGE_SIZE * HEAD_DIM) + dims[None, :]
    table = tables_ptr + sequence * table_stride
    slots = start + tl.arange(0, TILE)
    page = tl.load(table + slots // PAGE_SIZE, mask=slots < end, other=0)
    for _ in tl.range(start, end, TILE):
        counts = (slots >= first) & (slots < end)
        rows = page.to(tl.int64) * PAGE_STRIDE + slots % PAGE_SIZE * HEAD_DIM
        slots += TILE
        # The table is read one tile ahead: with this load right before its use the compiler keeps
        # one buffer of keys only, whatever num_stages says.
        page = tl.load(table + slots // PAGE_SIZE, mask=slots < end, other=0)
        inside = counts[:, None] & (dims < HEAD_DIM)[None, :]
        key = tl.load(keys + rows[:, None], mask=inside, other=0.0)
        value = tl.load(keys + KV_STRIDE + rows[:, None], mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(key), input_precision="ieee") * log2_scale
        scores = tl.where(counts[None, :], scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
        rescale = tl.exp2(maximum - new_maximum)
        weights = tl.exp2(scores - new_maximum[:, None])
        total = total * rescale + tl.sum(weights, axis=1)
        acc = acc * rescale[:, None]
        acc = tl.dot(weights.to(value.dtype), value, acc, input_precision="ieee")
        maximum = new_maximum
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    partial = partial_ptr + (heads * num_splits + split)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(partial, acc.to(partial_ptr.dtype.element_ty), mask=head_inside)
    if not DIRECT:
        lse = lse_ptr + heads * num_splits + split
        tl.store(lse, maximum + tl.log2(total), mask=group < GROUP)


@triton.jit(do_not_specialize=["num_splits"])
def _decode_merge_kernel(
    partial_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    lengths_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_splits: tl.tensor,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLIT_TILE: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """One program per row and head: the mean of the row's own splits, weighted by 2 ** lse."""
    sequence = tl.program_id(0).to(tl.int64)
    head = sequence * NUM_HEADS + tl.program_id(1)
    length = tl.load(lengths_ptr + sequence)
    first_split = tl.maximum(length - WINDOW, 0) // SPLIT if WINDOW > 0 else 0
    end_split = tl.cdiv(length, SPLIT)
    dims = tl.arange(0, BLOCK_DIM)
    maximum = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    acc = tl.zeros((BLOCK_DIM,), tl.float32)
    for start in tl.range(first_split // SPLIT_TILE * SPLIT_TILE, end_split, SPLIT_TILE):
        splits = start + tl.arange(0, SPLIT_TILE)
        live = (splits >= first_split) & (splits < end_split)
        rows = head * num_splits + splits
        lse = tl.load(lse_ptr + rows, mask=live, other=float("-inf"))
        inside = live[:, None] & (dims < HEAD_DIM)[None, :]
        partial_rows = partial_ptr + rows[:, None] * HEAD_DIM + dims[None, :]
        partial = tl.load(partial_rows, mask=inside, other=0.0)
        new_maximum = tl.maximum(maximum, tl.max(lse, axis=0))
        rescale = tl.exp2(maximum - new_maximum)
        weights = tl.exp2(lse - new_maximum)
        total = total * rescale + tl.sum(weights, axis=0)
        acc = acc * rescale + tl.sum(partial * weights[:, None], axis=0)
        maximum = new_maximum
    out = acc / tl.where(total > 0.0, total, 1.0)
    out_row = out_ptr + head * HEAD_DIM + dims
    tl.store(out_row, out.to(out_ptr.dtype.element_ty), mask=dims < HEAD_DIM)


def decode_attention(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """out [S, Hq, D] of contiguous fp32, fp16 or bf16 tensors, without a host synchronisation.

    The keys are split at multiples of 256 tokens whatever the batch, so a row's bits depend on that
    row alone. The grid covers all columns of block_tables: pass no more than the batch may need.
    """
    assert q.dtype == pool.dtype != torch.float64
    assert all(x.is_contiguous() for x in (q, pool, context_lens))
    assert block_tables.stride(1) == 1
    _, _, _, num_kv_heads, page_size, head_dim = pool.shape
    num_rows, num_heads, _ = q.shape
    out = torch.empty_like(q)
    if num_rows == 0:
        return out
    num_splits = max(1, triton.cdiv(block_tables.shape[1] * page_size, _SPLIT))
    partial, lse = out, out
    if num_splits > 1:
        shape = (num_rows, num_heads, num_splits)
        partial = torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device)
        lse = torch.empty(shape, dtype=torch.float32, device=q.device)
    block_dim = max(16, triton.next_power_of_2(head_dim))
    group = num_heads // num_kv_heads
    common = {"HEAD_DIM": head_dim, "WINDOW": window or 0, "SPLIT": _SPLIT, "BLOCK_DIM": block_dim}
    _decode_split_kernel[(num_rows, num_kv_heads, num_splits)](
        q,
        pool,
        layer,
        block_tables,
        block_tables.stride(0),
        context_lens,
        scale * _LOG2_E,
        partial,
        lse,
        num_splits,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        PAGE_SIZE=page_size,
        PAGE_STRIDE=pool.stride(0),
        DIRECT=num_splits == 1,
        TILE=16 if q.dtype == torch.float32 else 64,
        BLOCK_GROUP=max(16, triton.next_power_of_2(group)),
        enable_fp_fusion=True,
        num_warps=4,
        num_stages=3,
        **common,
    )
    if num_splits > 1:
        _decode_merge_kernel[(num_rows, num_heads)](
            partial,
            lse,
            context_lens,
            out,
            num_splits,
            NUM_HEADS=num_heads,
            SPLIT_TILE=16,
            enable_fp_fusion=True,
            num_warps=4,
            **common,
        )
    return out
