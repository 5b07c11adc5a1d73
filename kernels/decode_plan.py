"""The work of decode attention as a list of items of about equal length, made on the device.

    first_s = max(0, context_lens[s] - window)          the first key that row s sees
    chunk   = CHUNK                                      invariant: a row's cuts depend on it alone
            = max(min_chunk, sum_s(keys of s) / target)  by load: about `target` items in all
    items   = (s, begin, end, first_s) for each chunk of row s, rows in order

By load, the keys of a row are cut into as few items as `chunk` allows, all of one length. A row
without keys (padding) has one empty item. Lengths are read on the device alone and no shape depends
on them, so that a CUDA graph may hold both the plan and what follows it. One plan serves all layers
of a step that share a window.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

CHUNK = 256  # keys per item where a row's bits must not depend on its batch
TILE = 64  # keys; items begin at multiples of it


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """items int32 [I, 4]; starts int32 [S + 1] are the rows' first items, the last one their sum.

    partial [I, Hq, D] and lse [I, Hq] (fp32) are where items of one row wait for each other,
    arrivals int32 [S * Hkv] counts them: all zero before and after each use.
    """

    items: torch.Tensor
    starts: torch.Tensor
    partial: torch.Tensor
    lse: torch.Tensor
    arrivals: torch.Tensor


def plan_items_reference(
    context_lens: torch.Tensor,
    window: int | None,
    target: int | None,
    min_chunk: int = CHUNK,
) -> list[list[tuple[int, int, int, int]]]:
    """The specification: the items of each row; `target` None is the invariant plan."""
    lengths = context_lens.tolist()
    firsts = [0 if window is None else max(0, length - window) for length in lengths]
    aligned = [first // TILE * TILE for first in firsts]
    chunk = CHUNK
    if target is not None:
        total = sum(n - first for n, first in zip(lengths, aligned, strict=True))
        chunk = max(min_chunk, _whole_tiles(triton.cdiv(total, target)))
    rows = []
    for row, (length, first, begin) in enumerate(zip(lengths, firsts, aligned, strict=True)):
        origin = begin // CHUNK * CHUNK if target is None else begin
        count = max(1, -(-(length - origin) // chunk))
        even = _whole_tiles(triton.cdiv(length - origin, count))
        own = chunk if target is None else even
        cuts = [(origin + i * own, origin + (i + 1) * own) for i in range(count)]
        rows.append([(row, max(begin, low), min(length, high), first) for low, high in cuts])
    return rows


def _whole_tiles(num_keys: int) -> int:
    return int(triton.cdiv(num_keys, TILE)) * TILE


@triton.jit(do_not_specialize=["num_rows", "target"])
def _plan_kernel(
    lengths_ptr: tl.tensor,
    items_ptr: tl.tensor,
    starts_ptr: tl.tensor,
    num_rows: tl.tensor,
    target: tl.tensor,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    BY_LOAD: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """One program; CHUNK is the smallest chunk where they go by load."""
    row = tl.arange(0, BLOCK_ROWS)
    inside = row < num_rows
    length = tl.load(lengths_ptr + row, mask=inside, other=0)
    first = tl.maximum(length - WINDOW, 0) if WINDOW > 0 else tl.zeros_like(length)
    begin = first // TILE * TILE
    if BY_LOAD:
        total = tl.sum(length - begin, axis=0)
        chunk = tl.maximum(tl.cdiv(tl.cdiv(total, target), TILE) * TILE, CHUNK)
        origin = begin
    else:
        chunk = CHUNK
        origin = begin // CHUNK * CHUNK
    count = tl.where(inside, tl.maximum(tl.cdiv(length - origin, chunk), 1), 0)
    own = chunk
    if BY_LOAD:
        own = tl.cdiv(tl.cdiv(length - origin, tl.maximum(count, 1)), TILE) * TILE
    ends = tl.cumsum(count, axis=0)
    start = ends - count
    tl.store(starts_ptr + row, start, mask=inside)
    tl.store(starts_ptr + num_rows, tl.sum(count, axis=0))
    for index in tl.range(0, tl.max(count, axis=0)):
        cut = origin + index * own
        item = items_ptr + (start + index) * 4
        mask = index < count
        tl.store(item, row, mask=mask)
        tl.store(item + 1, tl.maximum(cut, begin), mask=mask)
        tl.store(item + 2, tl.minimum(cut + own, length), mask=mask)
        tl.store(item + 3, first, mask=mask)


def num_items(num_rows: int, max_context: int, target: int | None, min_chunk: int = CHUNK) -> int:
    """The most items that `num_rows` rows of up to `max_context` keys can have: the static grid.

    By load, the cuts of a row round up once: no more than `target` items and one more per row.
    """
    most = num_rows * max(1, triton.cdiv(max_context, CHUNK if target is None else min_chunk))
    return int(most if target is None else min(most, num_rows + target))


def plan_decode(
    context_lens: torch.Tensor,
    max_context: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    window: int | None = None,
    *,
    by_load: bool,
    ctas_per_sm: int = 4,
    min_chunk: int = CHUNK,
) -> DecodePlan:
    """The plan for rows of context_lens (int32 [S], contiguous), none longer than `max_context`.

    by_load: as many items as keep the device busy (`ctas_per_sm` programs each); else cuts at
    multiples of CHUNK tokens. Launches, but never waits for the device.
    """
    assert context_lens.is_contiguous()
    assert min_chunk % TILE == 0
    device, num_rows = context_lens.device, context_lens.shape[0]
    target = max(1, ctas_per_sm * _num_sms(device) // num_kv_heads) if by_load else None
    most = num_items(num_rows, max_context, target, min_chunk)
    is_split, wide = most > num_rows, torch.float32
    integers = torch.empty(4 * most + num_rows + 1, dtype=torch.int32, device=device)
    plan = DecodePlan(
        items=integers[: 4 * most].view(most, 4),
        starts=integers[4 * most :],
        partial=torch.empty((most * is_split, num_heads, head_dim), dtype=wide, device=device),
        lse=torch.empty((most * is_split, num_heads), dtype=wide, device=device),
        arrivals=torch.zeros(num_rows * num_kv_heads, dtype=torch.int32, device=device),
    )
    _plan_kernel[(1,)](
        context_lens,
        plan.items,
        plan.starts,
        num_rows,
        target or 0,
        WINDOW=window or 0,
        CHUNK=min_chunk if by_load else CHUNK,
        BY_LOAD=by_load,
        TILE=TILE,
        BLOCK_ROWS=max(2, triton.next_power_of_2(num_rows)),
        enable_fp_fusion=True,
        num_warps=4 if num_rows <= 1024 else 16,
    )
    return plan


def _num_sms(device: torch.device) -> int:
    """Of the device; the interpreter has one."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
