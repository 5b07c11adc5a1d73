"""Attention of one query row per sequence over paged keys and values, split over the keys (decode).

    out[s, h] = sum_j softmax_j(scale * q[s, h] . K[j, h // G]) V[j, h // G]
    over j in max(0, context_lens[s] - window) .. context_lens[s] - 1,   G = Hq / Hkv

q [S, Hq, D]; context_lens int32 [S] counts the row's own token, whose key and value are already in
its page; 0 marks a padding row, whose output is 0. Position j of row s is slot j % N of page
block_tables[s, j // N] (int32 [S, max_pages], entries behind the context may be anything); pool
[P, L, 2, Hkv, N, D].

The keys of a row are cut into items (`decode_plan.py`), each a softmax with its log2-sum (split-KV,
as in Flash-Decoding); the program that ends last of a row's merges them, in order, so that no
second launch is needed and the bits do not depend on who was last.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.decode_plan import DecodePlan, plan_decode

_LOG2_E = 1.4426950408889634
_MERGE_ELEMENTS = 8192  # of partial results that a merging program holds: 64 registers a thread


@dataclass(frozen=True, slots=True)
class DecodeTuning:
    """How a program is built; `tile` keys at a time, a power of two up to 64.

    3 stages of 64 keys of 128 half-precision dims are 64 KiB in flight, and two programs share a
    multiprocessor: 128 KiB, where hiding 0.7 us at 4.3 TB/s takes 23.
    """

    tile: int
    num_warps: int = 4
    num_stages: int = 3


HALF_TUNING = DecodeTuning(tile=64)
WIDE_TUNING = DecodeTuning(tile=16)


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


@triton.jit(do_not_specialize=["layer", "table_stride", "num_rows"])
def _decode_kernel(
    q_ptr: tl.tensor,
    pool_ptr: tl.tensor,
    layer: tl.tensor,
    tables_ptr: tl.tensor,
    table_stride: tl.tensor,
    items_ptr: tl.tensor,
    starts_ptr: tl.tensor,
    num_rows: tl.tensor,
    log2_scale: tl.tensor,
    out_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    arrivals_ptr: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    ITEMS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """One program per item and kv head, heads fastest: theirs lie side by side in a page.

    Every visited tile has a key that counts, so a maximum is never -inf.
    """
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
    KV_STRIDE: tl.constexpr = NUM_KV_HEADS * PAGE_SIZE * HEAD_DIM
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    item = tl.program_id(0) // NUM_KV_HEADS
    if item >= tl.load(starts_ptr + num_rows):
        return
    sequence = tl.load(items_ptr + item * 4).to(tl.int64)
    begin = tl.load(items_ptr + item * 4 + 1)
    end = tl.load(items_ptr + item * 4 + 2)
    first = tl.load(items_ptr + item * 4 + 3)
    group = tl.arange(0, BLOCK_GROUP)
    dims = tl.arange(0, BLOCK_DIM)
    head = kv_head * GROUP + group
    head_inside = (group < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    rows_of_q = (sequence * NUM_HEADS + head)[:, None] * HEAD_DIM + dims[None, :]
    q = tl.load(q_ptr + rows_of_q, mask=head_inside, other=0.0)
    maximum = tl.full((BLOCK_GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_GROUP,), tl.float32)
    acc = tl.zeros((BLOCK_GROUP, BLOCK_DIM), tl.float32)
    keys = pool_ptr + layer * (2 * KV_STRIDE) + kv_head * (PAGE_SIZE * HEAD_DIM) + dims[None, :]
    table = tables_ptr + sequence * table_stride
    start = tl.maximum(begin, first // TILE * TILE)
    slots = start + tl.arange(0, TILE)
    page = tl.load(table + slots // PAGE_SIZE, mask=slots < end, other=0)
    # The last tile is masked with the others: peeled, its loads would wait for the loop to end, and
    # masks of 16 rows cost nothing beside the memory.
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
        scores = tl.dot(q, tl.trans(key), input_precision="ieee")
        scores = tl.where(counts[None, :], scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
        rescale = tl.exp2((maximum - new_maximum) * log2_scale)
        weights = tl.exp2(scores * log2_scale - (new_maximum * log2_scale)[:, None])
        total = total * rescale + tl.sum(weights, axis=1)
        acc = acc * rescale[:, None]
        acc = tl.dot(weights.to(value.dtype), value, acc, input_precision="ieee")
        maximum = new_maximum
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    first_item, num_items = 0, 1
    if IS_SPLIT:
        first_item = tl.load(starts_ptr + sequence)
        num_items = tl.load(starts_ptr + sequence + 1) - first_item
    if num_items == 1:
        tl.store(out_ptr + rows_of_q, acc.to(out_ptr.dtype.element_ty), mask=head_inside)
    else:
        own = item.to(tl.int64) * NUM_HEADS + head
        own_rows = partial_ptr + own[:, None] * HEAD_DIM + dims[None, :]
        tl.store(own_rows, acc, mask=head_inside)
        tl.store(lse_ptr + own, maximum * log2_scale + tl.log2(total), mask=group < GROUP)
        # All threads' stores, then one release: whoever arrives last sees every item's.
        tl.debug_barrier()
        arrival = arrivals_ptr + sequence * NUM_KV_HEADS + kv_head
        if tl.atomic_add(arrival, 1, sem="acq_rel") == num_items - 1:
            tl.store(arrival, 0)
            _merge(
                partial_ptr, lse_ptr, out_ptr, sequence, first_item, num_items, kv_head,
                NUM_HEADS, GROUP, HEAD_DIM, HEADS, ITEMS, BLOCK_DIM,
            )  # fmt: skip


@triton.jit
def _merge(
    partial_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    out_ptr: tl.tensor,
    sequence: tl.tensor,
    first_item: tl.tensor,
    num_items: tl.tensor,
    kv_head: tl.tensor,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HEADS: tl.constexpr,
    ITEMS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """The mean of a row's items, weighted by 2 ** lse: ITEMS of all heads of the group at a time.

    Loads go past the L1 cache of this multiprocessor: other ones wrote what they read.
    """
    index = tl.arange(0, HEADS)
    head = kv_head * GROUP + index
    dims = tl.arange(0, BLOCK_DIM)
    maximum = tl.full((HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    acc = tl.zeros((HEADS, BLOCK_DIM), tl.float32)
    for start in tl.range(0, num_items, ITEMS):
        item = start + tl.arange(0, ITEMS)
        live = (index < GROUP)[:, None] & (item < num_items)[None, :]
        rows = (first_item + item).to(tl.int64)[None, :] * NUM_HEADS + head[:, None]
        lse = tl.load(lse_ptr + rows, mask=live, other=float("-inf"), cache_modifier=".cg")
        lse = tl.where((index < GROUP)[:, None], lse, 0.0)  # -inf - -inf of no head at all
        inside = live[:, :, None] & (dims < HEAD_DIM)[None, None, :]
        addresses = partial_ptr + rows[:, :, None] * HEAD_DIM + dims[None, None, :]
        partial = tl.load(addresses, mask=inside, other=0.0, cache_modifier=".cg")
        new_maximum = tl.maximum(maximum, tl.max(lse, axis=1))
        rescale = tl.exp2(maximum - new_maximum)
        weights = tl.exp2(lse - new_maximum[:, None])
        total = total * rescale + tl.sum(weights, axis=1)
        acc = acc * rescale[:, None] + tl.sum(partial * weights[:, :, None], axis=1)
        maximum = new_maximum
    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    out_rows = out_ptr + (sequence * NUM_HEADS + head)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(out_rows, out, mask=(index < GROUP)[:, None] & (dims < HEAD_DIM)[None, :])


def decode_attention(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float,
    window: int | None = None,
    *,
    by_load: bool = False,
    plan: DecodePlan | None = None,
    tuning: DecodeTuning | None = None,
) -> torch.Tensor:
    """out [S, Hq, D] of contiguous fp32, fp16 or bf16 tensors, without a host synchronisation.

    by_load False: keys are cut at multiples of 256 tokens, so a row's bits depend on that row alone
    (invariant numerics). True: as the load of the device asks for, which is faster. `plan` is that
    of these lengths and this window, made once for all layers of a step; None makes one here. No
    shape depends on the lengths: a CUDA graph may hold it, and follows what they are at replay.
    """
    assert q.dtype == pool.dtype != torch.float64
    assert all(x.is_contiguous() for x in (q, pool, context_lens))
    assert block_tables.stride(1) == 1
    assert scale > 0
    _, _, _, num_kv_heads, page_size, head_dim = pool.shape
    num_rows, num_heads, _ = q.shape
    out = torch.empty_like(q)
    if num_rows == 0:
        return out
    if plan is None:
        shape = (block_tables.shape[1] * page_size, num_heads, num_kv_heads, head_dim)
        plan = plan_decode(context_lens, *shape, window, by_load=by_load)
    if tuning is None:
        tuning = WIDE_TUNING if q.dtype == torch.float32 else HALF_TUNING
    block_dim = max(16, triton.next_power_of_2(head_dim))
    group = num_heads // num_kv_heads
    heads = triton.next_power_of_2(group)
    _decode_kernel[(plan.items.shape[0] * num_kv_heads,)](
        q,
        pool,
        layer,
        block_tables,
        block_tables.stride(0),
        plan.items,
        plan.starts,
        num_rows,
        scale * _LOG2_E,
        out,
        plan.partial,
        plan.lse,
        plan.arrivals,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        PAGE_SIZE=page_size,
        PAGE_STRIDE=pool.stride(0),
        IS_SPLIT=plan.items.shape[0] > num_rows,
        TILE=tuning.tile,
        BLOCK_GROUP=max(16, heads),
        HEADS=heads,
        # 64 items of one head spill as Triton 3.6 compiles them: 32 at most.
        ITEMS=max(2, _MERGE_ELEMENTS // (max(2, heads) * block_dim)),
        BLOCK_DIM=block_dim,
        enable_fp_fusion=True,
        num_warps=tuning.num_warps,
        num_stages=tuning.num_stages,
    )
    return out
