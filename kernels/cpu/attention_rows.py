"""Attention of few rows per sequence: each row against the pages as they lie in memory.

A block's keys are read page by page with all heads, as they lie, then its values; while a page's
are read, the next page's are fetched into the second cache. Reading is what it costs: on one Zen 4
core 4 KiB of a page and head, 170 ns if they are in the third cache, take 320 to 340 ns from
memory, where one KV head after the other, which jumps every 2 KiB, took 380 to 450. Fetching two
pages ahead (360 to 420) or half a page (470) is worse, and so are tiles of more keys that read
them less in order.
"""

import math
from typing import NamedTuple

import numpy as np

from kernels.cpu.arrays import Array
from kernels.cpu.attention_tiles import (
    BOTH,
    FIRST,
    SECOND,
    add_values_1_by_8,
    add_values_1_by_64,
    add_values_2_by_8,
    add_values_2_by_64,
    scores_1_by_8,
    scores_2_by_8,
    store_sums_8,
    store_sums_64,
)
from kernels.cpu.attention_words import copy_words
from kernels.cpu.jit import compiled, inlined
from kernels.cpu.simd import LANES, exp
from kernels.cpu.tiles import exp_and_sum, row_max


class Shape(NamedTuple):
    """Sizes of one call: a block is `pages` pages of `padded` slots each, page_size up to LANES.

    per_word: elements of a word, 2 of bfloat16.
    """

    layer: int
    num_layers: int
    num_kv_heads: int
    group: int
    head_dim: int
    page_size: int
    padded: int
    pages: int
    window: int
    per_word: int


class Rows(NamedTuple):
    """Few rows, all flat. Per KV head, row and head of the group: queries [.., words], sums
    [.., head_dim], totals, maxima [..]; weights [.., pages * padded]: scores, then words, which
    take the first half of their row if they are of bfloat16.
    """

    queries: Array
    sums: Array
    totals: Array
    maxima: Array
    weights: Array


@compiled
def rows_for(shape: Shape, num_rows: int, scale: Array) -> Rows:
    """Space for `num_rows` rows, of the type of `scale`."""
    num_states = num_rows * shape.num_kv_heads * shape.group
    return Rows(
        np.empty(num_states * shape.head_dim, scale.dtype),
        np.empty(num_states * shape.head_dim, scale.dtype),
        np.empty(num_states, scale.dtype),
        np.empty(num_states, scale.dtype),
        np.empty(num_states * shape.pages * shape.padded, scale.dtype),
    )


@compiled
def attend_rows(
    shape: Shape,
    rows: Rows,
    q: Array,
    pool: Array,
    table: Array,
    after: int,
    row: int,
    count: int,
    position: int,
    scale: float,
    out: Array,
) -> None:
    """Rows `row` to `row + count` of q, the first at `position`, to the same rows of out.

    `after` is the page that the next call begins with, to be fetched ahead.
    """
    _load_rows(shape, rows, q, row, count)
    first = max(0, position - shape.window + 1) // shape.page_size
    last = (position + count - 1) // shape.page_size
    to_values = shape.num_kv_heads * shape.page_size * shape.head_dim
    for begin in range(first // shape.pages * shape.pages, last + 1, shape.pages):
        low, high = max(first, begin), min(last + 1, begin + shape.pages)
        if high - low < shape.pages:
            fill(rows.weights, 0, len(rows.weights), -math.inf)
        for page in range(low, high):
            at, p = keys_at(shape, table[page], 0), page - begin
            ahead = keys_at(shape, table[page + 1 if page + 1 < high else low], 0)
            if page + 1 == high:
                ahead += to_values
            _score_page(shape, rows, pool, at, ahead, page, p, position, count, scale)
            _hide(shape, rows, page, p, position, count)
        _update_softmax(shape, rows, count, q)
        for page in range(low, high):
            at = keys_at(shape, table[page], 0) + to_values
            next_page_id = table[page + 1] if page < last else after
            ahead = keys_at(shape, next_page_id, 0)
            if page + 1 < high:
                ahead += to_values
            _add_page(shape, rows, pool, at, ahead, page, page - begin, position, count)
    _store_rows(shape, rows, row, count, out)


@inlined
def fill(x: Array, begin: int, end: int, value: float) -> None:
    """x[begin:end] = value; numba takes seconds to compile that."""
    for i in range(begin, end):
        x[i] = value


@inlined
def keys_at(shape: Shape, page_id: int, h: int) -> int:
    """Where the keys of a page and KV head begin in the pool."""
    row = (page_id * shape.num_layers + shape.layer) * 2 * shape.num_kv_heads + h
    return row * shape.page_size * shape.head_dim


@compiled
def _load_rows(shape: Shape, rows: Rows, q: Array, row: int, count: int) -> None:
    """Queries of `count` rows, and an empty softmax for each."""
    dim, num_words = shape.head_dim, shape.head_dim // shape.per_word
    states = count * shape.num_kv_heads * shape.group
    fill(rows.maxima, 0, states, -math.inf)
    fill(rows.totals, 0, states, 0.0)
    fill(rows.sums, 0, states * dim, 0.0)
    for h in range(shape.num_kv_heads):
        for r in range(count):
            state = (h * count + r) * shape.group
            source = ((row + r) * shape.num_kv_heads + h) * shape.group * dim
            copy_words(q, source, shape.group * num_words, rows.queries, state * num_words)


@compiled
def _store_rows(shape: Shape, rows: Rows, row: int, count: int, out: Array) -> None:
    dim, flat = shape.head_dim, out.reshape(-1)
    for h in range(shape.num_kv_heads):
        for r in range(count):
            for g in range(shape.group):
                state = (h * count + r) * shape.group + g
                head = ((row + r) * shape.num_kv_heads + h) * shape.group + g
                total, d = rows.totals[state], 0
                while d + 64 <= dim:
                    store_sums_64(rows.sums, state * dim + d, total, flat, head * dim + d)
                    d += 64
                while d < dim:
                    store_sums_8(rows.sums, state * dim + d, total, flat, head * dim + d)
                    d += LANES


@inlined
def keys_seen(shape: Shape, page: int, position: int) -> tuple[int, int]:
    """Slots of a page (from, until) that a row at `position` sees; empty if until <= from."""
    first_key = page * shape.page_size
    low = min(shape.page_size, max(0, position - shape.window + 1 - first_key))
    return low, max(0, min(shape.page_size, position + 1 - first_key))


@inlined
def _score_page(
    shape: Shape,
    rows: Rows,
    pool: Array,
    key_at: int,
    ahead_at: int,
    page: int,
    p: int,
    position: int,
    count: int,
    scale: float,
) -> None:
    """Scores of page p of a block: products with the keys that a row sees, and some others."""
    group, size, dim = shape.group, shape.pages * shape.padded, shape.head_dim
    x, out, words = rows.queries, rows.weights, shape.head_dim // shape.per_word
    for h in range(shape.num_kv_heads):
        head_at = h * shape.page_size * dim
        for r in range(count):
            low, high = keys_seen(shape, page, position + r)
            for j in range(low // LANES * LANES, high, LANES):
                at, ahead = key_at + head_at + j * dim, ahead_at + head_at + j * dim
                num_keys = shape.page_size - j
                g = 0
                while g < group:
                    state = (h * count + r) * group + g
                    x_at, to = state * words, state * size + p * shape.padded + j
                    if g + 2 <= group:
                        scores_2_by_8(
                            x, x_at, pool, at, num_keys, words, scale, out, to, size, ahead
                        )
                        g += 2
                    else:
                        scores_1_by_8(
                            x, x_at, pool, at, num_keys, words, scale, out, to, size, ahead
                        )
                        g += 1


@inlined
def _hide(shape: Shape, rows: Rows, page: int, p: int, position: int, count: int) -> None:
    """-inf for the slots of page p of a block that a row does not see."""
    for r in range(count):
        low, high = keys_seen(shape, page, position + r)
        if low > 0 or high < shape.padded:
            for h in range(shape.num_kv_heads):
                for g in range(shape.group):
                    state = (h * count + r) * shape.group + g
                    at = (state * shape.pages + p) * shape.padded
                    fill(rows.weights, at, at + min(low, high), -math.inf)
                    fill(rows.weights, at + high, at + shape.padded, -math.inf)


@inlined
def _update_softmax(shape: Shape, rows: Rows, count: int, like: Array) -> None:
    """Scores of a block to weights, and the running maximum, total and sums that go with them."""
    size, dim = shape.pages * shape.padded, shape.head_dim
    for state in range(shape.num_kv_heads * count * shape.group):
        before = rows.maxima[state]
        now = max(before, row_max(rows.weights, state * size, size))
        if now == -math.inf:  # the window of a later row may begin behind this block
            continue
        added = exp_and_sum(rows.weights, state * size, size, now, like)
        if now == before:
            rows.totals[state] += added
        else:
            factor = exp(before - now)
            rows.maxima[state] = now
            rows.totals[state] = rows.totals[state] * factor + added
            sums = rows.sums[state * dim : (state + 1) * dim]
            for d in range(dim):
                sums[d] *= factor


@inlined
def _add_page(
    shape: Shape,
    rows: Rows,
    pool: Array,
    value_at: int,
    ahead_at: int,
    page: int,
    p: int,
    position: int,
    count: int,
) -> None:
    """sums += weights @ values of page p of a block; words of which half is seen by themselves."""
    per_word = shape.per_word
    for h in range(shape.num_kv_heads):
        head_at = h * shape.page_size * shape.head_dim
        for r in range(count):
            low, high = keys_seen(shape, page, position + r)
            first, end = -(-low // per_word), high // per_word
            for part in range(3):
                begin, until, seen = first, end, BOTH
                if part == 0:
                    begin, until, seen = low // per_word, first, SECOND
                elif part == 2:
                    begin, until, seen = end, -(-high // per_word), FIRST
                if begin < until and low < high:
                    state = (h * count + r) * shape.group
                    _add_words(
                        shape, rows, pool, value_at + head_at, ahead_at + head_at, state, p, begin,
                        until, seen,
                    )  # fmt: skip


@inlined
def _add_words(
    shape: Shape,
    rows: Rows,
    pool: Array,
    value_at: int,
    ahead_at: int,
    state: int,
    p: int,
    first: int,
    end: int,
    seen: int,
) -> None:
    """sums += weights @ values for some words of slots of page p, for a group from `state` on."""
    dim, group, size = shape.head_dim, shape.group, shape.pages * shape.padded
    weights, sums, depth = rows.weights, rows.sums, end - first
    stride = dim * shape.per_word
    # What is not seen has a weight of 0; the other half stands for it, since NaN * 0 is NaN.
    second = dim if seen == BOTH else 0
    at, ahead = value_at + first * stride, ahead_at + first * stride
    if seen == SECOND:
        at += dim
    for g in range(0, group, 2):
        x_at = (state + g) * size + p * shape.padded // shape.per_word + first
        out_at = (state + g) * dim
        d = 0
        if g + 2 <= group:
            while d + 64 <= dim:
                add_values_2_by_64(
                    weights, x_at, size, pool, at + d, stride, second, BOTH, sums, out_at + d, dim,
                    depth, ahead + d, pool,
                )  # fmt: skip
                d += 64
            while d < dim:
                add_values_2_by_8(
                    weights, x_at, size, pool, at + d, stride, second, BOTH, sums, out_at + d, dim,
                    depth, ahead + d, pool,
                )  # fmt: skip
                d += LANES
        else:
            while d + 64 <= dim:
                add_values_1_by_64(
                    weights, x_at, size, pool, at + d, stride, second, BOTH, sums, out_at + d, dim,
                    depth, ahead + d, pool,
                )  # fmt: skip
                d += 64
            while d < dim:
                add_values_1_by_8(
                    weights, x_at, size, pool, at + d, stride, second, BOTH, sums, out_at + d, dim,
                    depth, ahead + d, pool,
                )  # fmt: skip
                d += LANES
