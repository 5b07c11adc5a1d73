"""Causal attention of many query rows per sequence over paged keys and values (prefill chunks).

    out[t, h] = sum_j softmax_j(scale * q[t, h] . K[j, h // G]) V[j, h // G]
    over j in max(0, positions[t] - window + 1) .. positions[t],   G = Hq / Hkv

q [T, Hq, D]; sequence s owns rows query_starts[s] : query_starts[s + 1] (int32 [S + 1], 0 to T;
empty ones allowed), their positions int32 [T]; position j of sequence s is slot j % N of page
block_tables[s, j // N] (int32 [S, max_pages], entries behind the last position may be anything);
pool [P, L, 2, Hkv, N, D]. Keys and values of the rows themselves are already in their pages.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import triton
import triton.language as tl

_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class PrefillTuning:
    """How a program is built: `rows` (query, head) pairs against `tile` keys at a time."""

    rows: int
    tile: int
    num_warps: int = 8
    num_stages: int = 3


HALF_TUNING = PrefillTuning(rows=128, tile=64)
# In fp32 the products run outside the tensor cores: larger tiles spill registers.
WIDE_TUNING = PrefillTuning(rows=32, tile=16)


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
    out: torch.Tensor = (weights @ value).permute(2, 0, 1, 3).reshape(q.shape)
    return out.to(q.dtype)


@triton.jit(
    do_not_specialize=["layer", "table_stride", "num_sequences"],
    # Behind decode rows these begin anywhere, and a kernel for each way would be compiled in the
    # midst of serving; they are read a word at a time.
    do_not_specialize_on_alignment=["tables_ptr", "positions_ptr"],
)
def _prefill_kernel(
    q_ptr: tl.tensor,
    pool_ptr: tl.tensor,
    layer: tl.tensor,
    tables_ptr: tl.tensor,
    table_stride: tl.tensor,
    starts_ptr: tl.tensor,
    num_sequences: tl.tensor,
    positions_ptr: tl.tensor,
    log2_scale: tl.tensor,
    out_ptr: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """One program per block of queries of one sequence and kv head, the latest queries first.

    The ROWS of a block are (query, head of the group) pairs: the heads of a group share their keys.
    Tiles start at multiples of TILE: however a prompt was cut, a row adds up in the same order.
    Tiles that all rows see come first, without masks.
    """
    QUERIES: tl.constexpr = ROWS // GROUP
    NUM_HEADS: tl.constexpr = NUM_KV_HEADS * GROUP
    KV_STRIDE: tl.constexpr = NUM_KV_HEADS * PAGE_SIZE * HEAD_DIM
    kv_head = tl.program_id(1)
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    sequence = _find_sequence(starts_ptr, num_sequences, program, QUERIES)
    begin = tl.load(starts_ptr + sequence)
    query_end = tl.load(starts_ptr + sequence + 1)
    block = program - (begin // QUERIES + sequence)
    if begin + block * QUERIES >= query_end:
        return

    row = tl.arange(0, ROWS)
    query = begin + block * QUERIES + row // GROUP
    row_inside = (row < QUERIES * GROUP) & (query < query_end)
    position = tl.load(positions_ptr + query, mask=row_inside, other=-1)
    end = tl.max(position, axis=0) + 1
    lowest = tl.min(tl.where(row_inside, position, end), axis=0)
    first = tl.maximum(lowest - WINDOW + 1, 0) if WINDOW > 0 else 0
    dims = tl.arange(0, BLOCK_DIM)
    inside = row_inside[:, None] & (dims < HEAD_DIM)[None, :]
    head = query.to(tl.int64) * NUM_HEADS + kv_head * GROUP + row % GROUP
    q_offsets = head[:, None] * HEAD_DIM + dims[None, :]
    q = tl.load(q_ptr + q_offsets, mask=inside, other=0.0)
    maximum = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, BLOCK_DIM), tl.float32)
    keys = pool_ptr + layer * (2 * KV_STRIDE) + kv_head * (PAGE_SIZE * HEAD_DIM)
    table = tables_ptr + sequence.to(tl.int64) * table_stride
    start = first // TILE * TILE
    masked_from = start
    if WINDOW == 0:
        masked_from = (lowest + 1) // TILE * TILE
        maximum, total, acc = _attend_keys(
            q, maximum, total, acc, keys, keys + KV_STRIDE, table, start, masked_from, first,
            position, log2_scale, HEAD_DIM, PAGE_SIZE, PAGE_STRIDE, WINDOW, TILE, False,
        )  # fmt: skip
    maximum, total, acc = _attend_keys(
        q, maximum, total, acc, keys, keys + KV_STRIDE, table, masked_from, end, first,
        position, log2_scale, HEAD_DIM, PAGE_SIZE, PAGE_STRIDE, WINDOW, TILE, True,
    )  # fmt: skip
    out = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(out_ptr + q_offsets, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _attend_keys(
    q: tl.tensor,
    maximum: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    table: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    first: tl.tensor,
    position: tl.tensor,
    log2_scale: tl.tensor,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The running softmax of the rows after the keys at positions start .. end - 1.

    Not MASKED: whole tiles that every row sees.
    """
    dims = tl.arange(0, acc.shape[1])
    slots = start + tl.arange(0, TILE)
    page = tl.load(table + slots // PAGE_SIZE, mask=slots < end, other=0)
    for _ in tl.range(start, end, TILE):
        used = (slots >= first) & (slots < end)
        distance = position[:, None] - slots[None, :]
        rows = page.to(tl.int64) * PAGE_STRIDE + slots % PAGE_SIZE * HEAD_DIM
        slots += TILE
        # The table is read one tile ahead: with this load right before its use the compiler keeps
        # one buffer of keys only, whatever num_stages says.
        page = tl.load(table + slots // PAGE_SIZE, mask=slots < end, other=0)
        offsets = rows[:, None] + dims[None, :]
        kv_inside = (dims < HEAD_DIM)[None, :]
        if MASKED:
            kv_inside = used[:, None] & kv_inside
        key = tl.load(keys + offsets, mask=kv_inside, other=0.0)
        value = tl.load(values + offsets, mask=kv_inside, other=0.0)
        scores = tl.dot(q, tl.trans(key), input_precision="ieee")
        if MASKED:
            counts = (distance >= 0) & used[None, :]
            if WINDOW > 0:
                counts = counts & (distance < WINDOW)
            scores = tl.where(counts, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
        shift = new_maximum * log2_scale
        if MASKED:  # a row may have no key in this tile and none before it
            shift = tl.where(new_maximum == float("-inf"), 0.0, shift)
        rescale = tl.exp2(maximum * log2_scale - shift)
        weights = tl.exp2(scores * log2_scale - shift[:, None])
        total = total * rescale + tl.sum(weights, axis=1)
        acc = acc * rescale[:, None]
        acc = tl.dot(weights.to(value.dtype), value, acc, input_precision="ieee")
        maximum = new_maximum
    return maximum, total, acc


@triton.jit
def _find_sequence(
    starts_ptr: tl.tensor, num_sequences: tl.tensor, block: tl.tensor, QUERIES: tl.constexpr
):
    """The sequence that owns a block, where sequence s begins at block starts[s] // QUERIES + s."""
    low = 0
    high = num_sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(starts_ptr + middle) // QUERIES + middle <= block:
            low = middle + 1
        else:
            high = middle
    return low - 1


def prefill_attention(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    block_tables: torch.Tensor,
    query_starts: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    window: int | None = None,
    *,
    tuning: PrefillTuning | None = None,
) -> torch.Tensor:
    """out [T, Hq, D] of contiguous fp32, fp16 or bf16 tensors, without a host synchronisation."""
    assert q.dtype == pool.dtype != torch.float64
    assert all(x.is_contiguous() for x in (q, pool, query_starts, positions))
    assert block_tables.stride(1) == 1
    assert scale > 0
    _, _, _, num_kv_heads, page_size, head_dim = pool.shape
    num_rows, num_heads, _ = q.shape
    out = torch.empty_like(q)
    if num_rows == 0:
        return out
    if tuning is None:
        tuning = WIDE_TUNING if q.dtype == torch.float32 else HALF_TUNING
    group = num_heads // num_kv_heads
    rows = max(tuning.rows, triton.next_power_of_2(group))
    num_sequences = query_starts.shape[0] - 1
    num_blocks = num_rows // (rows // group) + num_sequences
    _prefill_kernel[(num_blocks, num_kv_heads)](
        q,
        pool,
        layer,
        block_tables,
        block_tables.stride(0),
        query_starts,
        num_sequences,
        positions,
        scale * _LOG2_E,
        out,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        PAGE_SIZE=page_size,
        PAGE_STRIDE=pool.stride(0),
        WINDOW=window or 0,
        ROWS=rows,
        TILE=tuning.tile,
        BLOCK_DIM=max(16, triton.next_power_of_2(head_dim)),
        enable_fp_fusion=True,
        num_warps=tuning.num_warps,
        num_stages=tuning.num_stages,
    )
    return out
