"""`kernels/prefill_attention.py` on the CPU, for prefill chunks and decode rows alike.

Online softmax over blocks of 64 keys (or a page, if larger) whose borders are absolute positions.
For a row and a block: scores by `dot`, their maximum, exponentials, their sum and the weighted
values, in an order that neither other rows nor the chunk's borders change, so that a decode step
has the bits of the same row inside a prefill chunk. Keys run outside and rows inside: a page, one
contiguous run, is read from memory once per block of rows. Slots that a row may not see are never
read into a sum, so what they hold (even NaN) has no effect.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from kernels.cpu.arrays import WIDE, Array, array_of
from kernels.cpu.jit import compiled, inlined
from kernels.cpu.simd import LANES, exp, narrow, widen
from kernels.cpu.tiles import (
    add_product_1_by_1,
    add_product_1_by_2,
    add_product_1_by_8,
    add_product_4_by_1,
    add_product_4_by_2,
    dot,
    dot_8,
    exp_row,
    row_max,
    row_sum,
)

BLOCK_ROWS = 16
BLOCK_KEYS = 64
NO_WINDOW = 1 << 30


class Shape(NamedTuple):
    """Sizes of one call: `rows` is allocated per block, `padded` a page's keys up to LANES."""

    layer: int
    num_layers: int
    num_kv_heads: int
    group: int
    head_dim: int
    page_size: int
    padded: int
    pages: int
    rows: int
    window: int


class State(NamedTuple):
    """The pool and what is known of a block of rows, all flat.

    Per KV head, row and head of the group: queries and sums [.., head_dim], totals, maxima [..];
    weights [row, head of the group, page of the block, padded] of the KV head at hand.
    """

    pool: Array
    queries: Array
    sums: Array
    totals: Array
    maxima: Array
    weights: Array


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
    """q [T, Hq, D] -> out [T, Hq, D]; see `prefill_attention_reference`.

    D is a multiple of 8, and the rows of a sequence stand at consecutive positions.
    """
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
    num_kv_heads, page_size, head_dim = pool.shape[3:]
    rows = 1
    for s in range(len(query_starts) - 1):
        rows = max(rows, min(BLOCK_ROWS, query_starts[s + 1] - query_starts[s]))
    group, pages = q.shape[1] // num_kv_heads, max(1, BLOCK_KEYS // page_size)
    padded = -(-page_size // LANES) * LANES
    shape = Shape(
        layer, pool.shape[1], num_kv_heads, group, head_dim, page_size, padded, pages, rows, window
    )
    num_states = num_kv_heads * rows * group
    state = State(
        pool.reshape(-1),
        np.empty(num_states * head_dim, scale.dtype),
        np.empty(num_states * head_dim, scale.dtype),
        np.empty(num_states, scale.dtype),
        np.empty(num_states, scale.dtype),
        np.empty(rows * group * pages * padded, scale.dtype),
    )
    for s in range(len(query_starts) - 1):
        end = query_starts[s + 1]
        for row in range(query_starts[s], end, BLOCK_ROWS):
            count, position = min(BLOCK_ROWS, end - row), positions[row]
            _load_rows(shape, state, q, row, count, scale[0])
            first = max(0, position - window + 1) // page_size // pages
            last = (position + count - 1) // page_size // pages
            for block in range(first, last + 1):
                _attend_block(shape, state, block_tables[s], block * pages, position, count)
            _store_rows(shape, state, row, count, out)


@compiled
def _load_rows(shape: Shape, state: State, q: Array, row: int, count: int, scale: float) -> None:
    """Scaled queries of `count` rows, and an empty softmax for each."""
    at = 0
    for h in range(shape.num_kv_heads):
        for r in range(shape.rows):
            for g in range(shape.group):
                if r < count:
                    state.maxima[at] = -math.inf
                    state.totals[at] = 0.0
                    for d in range(shape.head_dim):
                        value = widen(q[row + r, h * shape.group + g, d])
                        state.queries[at * shape.head_dim + d] = value * scale
                        state.sums[at * shape.head_dim + d] = 0.0
                at += 1


@compiled
def _store_rows(shape: Shape, state: State, row: int, count: int, out: Array) -> None:
    for h in range(shape.num_kv_heads):
        for r in range(count):
            for g in range(shape.group):
                at = (h * shape.rows + r) * shape.group + g
                total = state.totals[at]
                for d in range(shape.head_dim):
                    value = state.sums[at * shape.head_dim + d] / total
                    out[row + r, h * shape.group + g, d] = narrow(value, out)


@compiled
def _attend_block(
    shape: Shape, state: State, table: Array, first_page: int, position: int, count: int
) -> None:
    """The block of pages from `first_page` on, for `count` rows from `position` on."""
    page_size, group = shape.page_size, shape.group
    head_size = page_size * shape.head_dim
    size = shape.pages * shape.padded
    begin, end, _, _ = _rows_seeing(shape, first_page, shape.pages, position, count)
    for h in range(shape.num_kv_heads):
        for r in range(begin, end):
            for p in range(shape.pages):
                low, high = _keys_seen(shape, first_page + p, position + r)
                key_at = 0
                if low < high:
                    page_id = table[first_page + p]
                    page_at = (page_id * shape.num_layers + shape.layer) * 2
                    key_at = (page_at * shape.num_kv_heads + h) * head_size
                for g in range(group):
                    state_at = (h * shape.rows + r) * group + g
                    weight_at = (r * group + g) * size + p * shape.padded
                    _score(shape, state, key_at, low, high, state_at, weight_at)
            for g in range(group):
                state_at = (h * shape.rows + r) * group + g
                _update_softmax(shape, state, state_at, (r * group + g) * size)
        for p in range(shape.pages):
            page = first_page + p
            seen, until, whole, whole_until = _rows_seeing(shape, page, 1, position, count)
            if seen >= until:
                continue
            page_at = (table[page] * shape.num_layers + shape.layer) * 2 + 1
            value_at = (page_at * shape.num_kv_heads + h) * head_size
            for r in range(seen, until):
                if r < whole or r >= whole_until:
                    low, high = _keys_seen(shape, page, position + r)
                    _add_values(shape, state, value_at, low, high, h, r, p, 1)
            if whole < whole_until:
                _add_values(shape, state, value_at, 0, page_size, h, whole, p, whole_until - whole)


@inlined
def _rows_seeing(
    shape: Shape, page: int, num_pages: int, position: int, count: int
) -> tuple[int, int, int, int]:
    """Rows that see some key of the pages (from, until), and those that see all (from, until)."""
    first_key = page * shape.page_size
    last_key = first_key + num_pages * shape.page_size - 1
    begin = max(0, first_key - position)
    end = max(begin, min(count, last_key + shape.window - position))
    whole = min(end, max(begin, last_key - position))
    whole_end = max(whole, min(end, first_key + shape.window - position))
    return begin, end, whole, whole_end


@inlined
def _keys_seen(shape: Shape, page: int, position: int) -> tuple[int, int]:
    """Slots of a page (from, until) that a row at `position` sees; empty if until <= from."""
    first_key = page * shape.page_size
    low = min(shape.page_size, max(0, position - shape.window + 1 - first_key))
    return low, max(0, min(shape.page_size, position + 1 - first_key))


@inlined
def _score(
    shape: Shape, state: State, key_at: int, low: int, high: int, state_at: int, weight_at: int
) -> None:
    """A page's weights: products of a query with the keys `low` to `high`, -inf elsewhere."""
    head_dim, page_size, weights = shape.head_dim, shape.page_size, state.weights
    query_at = state_at * head_dim
    if low < high:
        eights = page_size // LANES * LANES
        for j in range(0, eights, LANES):
            dot_8(
                state.queries, query_at, state.pool, key_at + j * head_dim, head_dim, head_dim,
                weights, weight_at + j,
            )  # fmt: skip
        for j in range(eights, page_size):
            row = key_at + j * head_dim
            weights[weight_at + j] = dot(state.queries, query_at, state.pool, row, head_dim)
    for j in range(low):
        weights[weight_at + j] = -math.inf
    for j in range(high, shape.padded):
        weights[weight_at + j] = -math.inf


@inlined
def _update_softmax(shape: Shape, state: State, state_at: int, weight_at: int) -> None:
    """Scores of a block to weights, and the running maximum, total and sums that go with them."""
    size = shape.pages * shape.padded
    before = state.maxima[state_at]
    now = max(before, row_max(state.weights, weight_at, size))
    exp_row(state.weights, weight_at, size, now)
    added = row_sum(state.weights, weight_at, size)
    if now == before:
        state.totals[state_at] += added
        return
    factor = exp(before - now)
    state.maxima[state_at] = now
    state.totals[state_at] = state.totals[state_at] * factor + added
    for d in range(state_at * shape.head_dim, (state_at + 1) * shape.head_dim):
        state.sums[d] *= factor


@compiled
def _add_values(
    shape: Shape,
    state: State,
    value_at: int,
    low: int,
    high: int,
    h: int,
    r: int,
    p: int,
    num_rows: int,
) -> None:
    """sums += weights @ values over keys `low` to `high` of a page, for rows from `r` on."""
    x, y, out = state.weights, state.pool, state.sums
    dim, depth = shape.head_dim, high - low
    stride = shape.pages * shape.padded
    weight_at = r * shape.group * stride + p * shape.padded + low
    sum_at = (h * shape.rows + r) * shape.group * dim
    y_at = value_at + low * dim
    num = num_rows * shape.group
    fours = num // 4 * 4
    for i in range(0, fours, 4):
        x_at, out_at = weight_at + i * stride, sum_at + i * dim
        d = 0
        while d + 2 * LANES <= dim:
            add_product_4_by_2(x, x_at, stride, y, y_at + d, dim, out, out_at + d, dim, depth)
            d += 2 * LANES
        if d < dim:
            add_product_4_by_1(x, x_at, stride, y, y_at + d, dim, out, out_at + d, dim, depth)
    for i in range(fours, num):
        x_at, out_at = weight_at + i * stride, sum_at + i * dim
        d = 0
        while d + 8 * LANES <= dim:
            add_product_1_by_8(x, x_at, stride, y, y_at + d, dim, out, out_at + d, dim, depth)
            d += 8 * LANES
        while d + 2 * LANES <= dim:
            add_product_1_by_2(x, x_at, stride, y, y_at + d, dim, out, out_at + d, dim, depth)
            d += 2 * LANES
        if d < dim:
            add_product_1_by_1(x, x_at, stride, y, y_at + d, dim, out, out_at + d, dim, depth)
