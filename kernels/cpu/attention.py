"""`kernels/prefill_attention.py` on the CPU, for prefill chunks and decode rows alike.

Online softmax over the pages of a sequence, page by page from the first one that a row sees. For a
row and a page: scores by `dot`, their maximum, exponentials, their sum and the weighted values, all
in one order that neither the other rows nor the chunk's borders change, so that a decode step has
the bits of the same row inside a prefill chunk. The loops run over pages outside and over blocks of
rows inside: a page is one contiguous run for all KV heads and is read from memory once per block.
"""

import math

import numpy as np
import torch

from kernels.cpu.arrays import WIDE, Array, array_of
from kernels.cpu.jit import compiled
from kernels.cpu.simd import LANES, exp, narrow, widen
from kernels.cpu.tiles import (
    add_product_1,
    add_product_4,
    add_wide_product_1,
    add_wide_product_4,
    dot,
    dot_8,
    exp_row,
    row_max,
    row_sum,
)

BLOCK_ROWS = 16
NO_WINDOW = 1 << 30


def paged_attention(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    block_tables: torch.Tensor,
    query_starts: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """q [T, Hq, D] -> out [T, Hq, D]; D a multiple of 8; see `prefill_attention_reference`."""
    out = torch.empty_like(q)
    paged_attention_rows(
        array_of(q),
        array_of(pool),
        layer,
        array_of(block_tables),
        array_of(query_starts),
        array_of(positions),
        torch.full((1,), scale, dtype=WIDE[q.dtype]).numpy(),
        NO_WINDOW if window is None else window,
        array_of(out),
    )
    return out


@compiled
def paged_attention_rows(
    q: Array,
    pool: Array,
    layer: int,
    block_tables: Array,
    query_starts: Array,
    positions: Array,
    scale: Array,
    window: int,
    out: Array,
) -> None:
    """`paged_attention` on arrays; `scale` [1] is of the computing type."""
    num_heads, head_dim = q.shape[1], q.shape[2]
    num_kv_heads, page_size = pool.shape[3], pool.shape[4]
    group = num_heads // num_kv_heads
    padded = -(-page_size // LANES) * LANES
    most = 1
    for s in range(len(query_starts) - 1):
        most = max(most, min(BLOCK_ROWS, query_starts[s + 1] - query_starts[s]))
    # A block's state, rows of one KV head side by side: [kv head, row, head of the group, ...].
    queries = np.empty((num_kv_heads, most, group, head_dim), scale.dtype)
    sums = np.empty((num_kv_heads, most, group, head_dim), scale.dtype)
    totals = np.empty((num_kv_heads, most, group), scale.dtype)
    maxima = np.empty((num_kv_heads, most, group), scale.dtype)
    weights = np.empty((most, group, padded), scale.dtype)
    for s in range(len(query_starts) - 1):
        end = query_starts[s + 1]
        for row in range(query_starts[s], end, BLOCK_ROWS):
            count = min(BLOCK_ROWS, end - row)
            _load_block(q, row, count, scale[0], queries, sums, totals, maxima)
            first = max(0, positions[row] - window + 1) // page_size
            for page in range(first, positions[row + count - 1] // page_size + 1):
                _attend_page(
                    pool, layer, block_tables[s, page], page * page_size, positions[row], count,
                    window, queries, sums, totals, maxima, weights,
                )  # fmt: skip
            _store_block(sums, totals, row, count, out)


@compiled
def _load_block(
    q: Array,
    row: int,
    count: int,
    scale: float,
    queries: Array,
    sums: Array,
    totals: Array,
    maxima: Array,
) -> None:
    """Scaled queries of `count` rows, and an empty softmax for each."""
    num_kv_heads, _, group, head_dim = queries.shape
    for h in range(num_kv_heads):
        for r in range(count):
            for g in range(group):
                maxima[h, r, g] = -math.inf
                totals[h, r, g] = 0.0
                for d in range(head_dim):
                    queries[h, r, g, d] = widen(q[row + r, h * group + g, d]) * scale
                    sums[h, r, g, d] = 0.0


@compiled
def _store_block(sums: Array, totals: Array, row: int, count: int, out: Array) -> None:
    num_kv_heads, _, group, head_dim = sums.shape
    for h in range(num_kv_heads):
        for r in range(count):
            for g in range(group):
                total = totals[h, r, g]
                for d in range(head_dim):
                    out[row + r, h * group + g, d] = narrow(sums[h, r, g, d] / total, out)


@compiled
def _attend_page(
    pool: Array,
    layer: int,
    page_id: int,
    first_key: int,
    first_position: int,
    count: int,
    window: int,
    queries: Array,
    sums: Array,
    totals: Array,
    maxima: Array,
    weights: Array,
) -> None:
    """One page, whose first key has the position `first_key`, for rows at consecutive positions."""
    num_kv_heads, rows_allocated, group, head_dim = queries.shape
    num_layers, page_size = pool.shape[1], pool.shape[4]
    head_size = page_size * head_dim
    # Rows before `begin` see nothing of the page, nor do rows from `end` on; whole pages are seen
    # by rows from `whole` to `whole_end`.
    begin = max(0, first_key - first_position)
    end = min(count, first_key + page_size - 1 + window - first_position)
    whole = min(end, max(begin, first_key + page_size - 1 - first_position))
    whole_end = max(whole, min(end, first_key + window - first_position))
    for h in range(num_kv_heads):
        key_at = (((page_id * num_layers + layer) * 2) * num_kv_heads + h) * head_size
        value_at = key_at + num_kv_heads * head_size
        for r in range(begin, end):
            position = first_position + r
            low = max(0, position - window + 1 - first_key)
            high = min(page_size, position + 1 - first_key)
            for g in range(group):
                query_at = ((h * rows_allocated + r) * group + g) * head_dim
                _weigh(
                    pool, key_at, page_size, head_dim, low, high, queries, query_at,
                    weights, (r * group + g) * weights.shape[2], sums, totals, maxima,
                    (h * rows_allocated + r) * group + g,
                )  # fmt: skip
            if r < whole or r >= whole_end:
                at = (h * rows_allocated + r) * group
                _add_values(
                    pool, value_at + low * head_dim, head_dim, high - low, weights,
                    r * group * weights.shape[2] + low, sums, at * head_dim, group,
                )  # fmt: skip
        if whole < whole_end:
            at = (h * rows_allocated + whole) * group
            _add_values(
                pool, value_at, head_dim, page_size, weights, whole * group * weights.shape[2],
                sums, at * head_dim, (whole_end - whole) * group,
            )  # fmt: skip


@compiled
def _weigh(
    pool: Array,
    key_at: int,
    page_size: int,
    head_dim: int,
    low: int,
    high: int,
    queries: Array,
    query_at: int,
    weights: Array,
    weight_at: int,
    sums: Array,
    totals: Array,
    maxima: Array,
    state_at: int,
) -> None:
    """Softmax weights of one query over keys `low` to `high` of a page, and the running softmax."""
    padded = weights.shape[2]
    row, total, maximum = weights.reshape(-1), totals.reshape(-1), maxima.reshape(-1)
    eights = page_size // LANES * LANES
    for j in range(0, eights, LANES):
        dot_8(
            queries, query_at, pool, key_at + j * head_dim, head_dim, head_dim, row, weight_at + j
        )
    for j in range(eights, page_size):
        row[weight_at + j] = dot(queries, query_at, pool, key_at + j * head_dim, head_dim)
    for j in range(low):
        row[weight_at + j] = -math.inf
    for j in range(high, padded):
        row[weight_at + j] = -math.inf
    before = maximum[state_at]
    now = max(before, row_max(weights, weight_at, padded))
    exp_row(weights, weight_at, padded, now)
    added = row_sum(weights, weight_at, padded)
    if now == before:
        total[state_at] += added
        return
    maximum[state_at] = now
    factor = exp(before - now)
    total[state_at] = total[state_at] * factor + added
    flat = sums.reshape(-1)
    for d in range(query_at, query_at + head_dim):
        flat[d] *= factor


@compiled
def _add_values(
    pool: Array,
    value_at: int,
    head_dim: int,
    num_keys: int,
    weights: Array,
    weight_at: int,
    sums: Array,
    sum_at: int,
    num_rows: int,
) -> None:
    """sums[i] += weights[i] @ values for `num_rows` rows, over keys in order."""
    stride = weights.shape[2]
    wide = head_dim // (2 * LANES) * (2 * LANES)
    for i in range(0, num_rows - num_rows % 4, 4):
        x_at, out_at = weight_at + i * stride, sum_at + i * head_dim
        for d in range(0, wide, 2 * LANES):
            add_wide_product_4(
                weights, x_at, stride, pool, value_at + d, head_dim, sums, out_at + d, head_dim,
                num_keys,
            )  # fmt: skip
        for d in range(wide, head_dim, LANES):
            add_product_4(
                weights, x_at, stride, pool, value_at + d, head_dim, sums, out_at + d, head_dim,
                num_keys,
            )  # fmt: skip
    for i in range(num_rows - num_rows % 4, num_rows):
        x_at, out_at = weight_at + i * stride, sum_at + i * head_dim
        for d in range(0, wide, 2 * LANES):
            add_wide_product_1(
                weights, x_at, stride, pool, value_at + d, head_dim, sums, out_at + d, head_dim,
                num_keys,
            )  # fmt: skip
        for d in range(wide, head_dim, LANES):
            add_product_1(
                weights, x_at, stride, pool, value_at + d, head_dim, sums, out_at + d, head_dim,
                num_keys,
            )  # fmt: skip
