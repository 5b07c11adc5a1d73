"""Attention of few rows per sequence: each row against the pages as they lie in memory.

A KV head's pages of a block are read in turn, keys before values. While keys of a page are read its
values are fetched into the second cache, and while those are read the keys of the next head: four
runs of a page and head (4 KiB each at D = 64 in float32) ahead. Reading nothing but in this order
reaches 25 GB/s on one Zen 4 core, without fetching ahead 21, page by page with all heads 20.
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
    copy_words,
    scores_1_by_8,
    scores_1_by_16,
    scores_1_by_32,
    scores_2_by_8,
    scores_2_by_16,
    scores_2_by_32,
    store_sums_8,
    store_sums_64,
)
from kernels.cpu.jit import compiled, inlined
from kernels.cpu.simd import LANES, exp
from kernels.cpu.tiles import exp_and_sum, row_max

RUN = 16  # keys of a page that a tile takes with those of another page


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
    [.., head_dim], totals, maxima [..]; weights [row, head of the group, pages * padded] of the KV
    head at hand: scores, then words in the first half of their row, if they are of bfloat16.
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
        np.empty(num_rows * shape.group * shape.pages * shape.padded, scale.dtype),
    )


@compiled
def attend_rows(
    shape: Shape,
    rows: Rows,
    q: Array,
    pool: Array,
    table: Array,
    next_page_id: int,
    row: int,
    count: int,
    position: int,
    scale: float,
    out: Array,
) -> None:
    """Rows `row` to `row + count` of q, the first at `position`, to the same rows of out.

    `next_page_id` is the page that the next call begins with, to be fetched ahead.
    """
    _load_rows(shape, rows, q, row, count)
    first = max(0, position - shape.window + 1) // shape.page_size
    last = (position + count - 1) // shape.page_size
    head_size = shape.page_size * shape.head_dim
    to_values = shape.num_kv_heads * head_size
    for begin in range(first // shape.pages * shape.pages, last + 1, shape.pages):
        low, high = max(first, begin), min(last + 1, begin + shape.pages)
        for h in range(shape.num_kv_heads):
            if high - low < shape.pages:
                fill(rows.weights, 0, len(rows.weights), -math.inf)
            page = low
            while page < high:
                at = keys_at(shape, table[page], h)
                if shape.page_size == RUN and page + 1 < high:
                    second = keys_at(shape, table[page + 1], h)
                    _score_two(
                        shape, rows, at, second, pool, h, page - begin, count, scale, to_values
                    )
                    _hide(shape, rows, page, page - begin, position, count)
                    _hide(shape, rows, page + 1, page + 1 - begin, position, count)
                    page += 2
                    continue
                _score_page(
                    shape,
                    rows,
                    pool,
                    at,
                    at + to_values,
                    h,
                    page,
                    page - begin,
                    position,
                    count,
                    scale,
                )
                _hide(shape, rows, page, page - begin, position, count)
                page += 1
            _update_softmax(shape, rows, h, count, q)
            for page in range(low, high):
                at = keys_at(shape, table[page], h)
                ahead_at = at + head_size
                if h + 1 == shape.num_kv_heads:
                    ahead = page + shape.pages
                    ahead_at = keys_at(shape, table[ahead] if ahead <= last else next_page_id, 0)
                _add_page(
                    shape,
                    rows,
                    pool,
                    at + to_values,
                    ahead_at,
                    h,
                    page,
                    page - begin,
                    position,
                    count,
                )
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
    h: int,
    page: int,
    p: int,
    position: int,
    count: int,
    scale: float,
) -> None:
    """Scores of page p of a block: products with the keys that a row sees, and some others."""
    group, size = shape.group, shape.pages * shape.padded
    num_words = shape.head_dim // shape.per_word
    for r in range(count):
        low, high = keys_seen(shape, page, position + r)
        query_at = (h * count + r) * group * num_words
        weight_at = r * group * size + p * shape.padded
        j = low // LANES * LANES
        while j < high:
            wide = j + LANES < high
            at, ahead = key_at + j * shape.head_dim, ahead_at + j * shape.head_dim
            _score_keys(
                shape, rows, pool, at, shape.page_size - j, wide, query_at, weight_at + j, scale,
                ahead,
            )  # fmt: skip
            j += 2 * LANES if wide else LANES


@inlined
def _score_two(
    shape: Shape,
    rows: Rows,
    at: int,
    second: int,
    pool: Array,
    h: int,
    p: int,
    count: int,
    scale: float,
    to_values: int,
) -> None:
    """Scores of pages p and p + 1 of a block, of 16 keys each, seen or not."""
    group, size = shape.group, shape.pages * shape.padded
    words = shape.head_dim // shape.per_word
    x, out = rows.queries, rows.weights
    for r in range(count):
        g = 0
        while g < group:
            x_at = ((h * count + r) * group + g) * words
            to = (r * group + g) * size + p * shape.padded
            if g + 2 <= group:
                scores_2_by_32(
                    x, x_at, pool, at, second, words, scale, out, to, to + shape.padded, size,
                    at + to_values, second + to_values,
                )  # fmt: skip
                g += 2
            else:
                scores_1_by_32(
                    x, x_at, pool, at, second, words, scale, out, to, to + shape.padded, size,
                    at + to_values, second + to_values,
                )  # fmt: skip
                g += 1


@inlined
def _hide(shape: Shape, rows: Rows, page: int, p: int, position: int, count: int) -> None:
    """-inf for the slots of page p of a block that a row does not see."""
    for r in range(count):
        low, high = keys_seen(shape, page, position + r)
        if low > 0 or high < shape.padded:
            for g in range(shape.group):
                at = ((r * shape.group + g) * shape.pages + p) * shape.padded
                fill(rows.weights, at, at + min(low, high), -math.inf)
                fill(rows.weights, at + high, at + shape.padded, -math.inf)


@inlined
def _score_keys(
    shape: Shape,
    rows: Rows,
    pool: Array,
    at: int,
    num_keys: int,
    wide: bool,
    query_at: int,
    out_at: int,
    scale: float,
    ahead: int,
) -> None:
    """Scores of all heads of a group with 8 keys, with 16 if wide."""
    group, size = shape.group, shape.pages * shape.padded
    words = shape.head_dim // shape.per_word
    x, out = rows.queries, rows.weights
    g = 0
    while g < group:
        x_at, to = query_at + g * words, out_at + g * size
        if wide and g + 2 <= group:
            scores_2_by_16(x, x_at, pool, at, num_keys, words, scale, out, to, size, ahead)
            g += 2
        elif wide:
            scores_1_by_16(x, x_at, pool, at, num_keys, words, scale, out, to, size, ahead)
            g += 1
        elif g + 2 <= group:
            scores_2_by_8(x, x_at, pool, at, num_keys, words, scale, out, to, size, ahead)
            g += 2
        else:
            scores_1_by_8(x, x_at, pool, at, num_keys, words, scale, out, to, size, ahead)
            g += 1


@inlined
def _update_softmax(shape: Shape, rows: Rows, h: int, count: int, like: Array) -> None:
    """Scores of a block to weights, and the running maximum, total and sums that go with them."""
    size, dim = shape.pages * shape.padded, shape.head_dim
    for i in range(count * shape.group):
        state = h * count * shape.group + i
        before = rows.maxima[state]
        now = max(before, row_max(rows.weights, i * size, size))
        if now == -math.inf:  # the window of a later row may begin behind this block
            continue
        added = exp_and_sum(rows.weights, i * size, size, now, like)
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
    h: int,
    page: int,
    p: int,
    position: int,
    count: int,
) -> None:
    """sums += weights @ values of page p of a block; words of which half is seen by themselves."""
    per_word = shape.per_word
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
                _add_words(
                    shape, rows, pool, value_at, ahead_at, h, p, r, count, begin, until, seen
                )


@inlined
def _add_words(
    shape: Shape,
    rows: Rows,
    pool: Array,
    value_at: int,
    ahead_at: int,
    h: int,
    p: int,
    r: int,
    count: int,
    first: int,
    end: int,
    seen: int,
) -> None:
    """One row's sums += weights @ values for some words of slots of page p of a block."""
    dim, group, size = shape.head_dim, shape.group, shape.pages * shape.padded
    weights, sums, depth = rows.weights, rows.sums, end - first
    stride = dim * shape.per_word
    # What is not seen has a weight of 0; the other half stands for it, since NaN * 0 is NaN.
    second = dim if seen == BOTH else 0
    at, ahead = value_at + first * stride, ahead_at + first * stride
    if seen == SECOND:
        at += dim
    for g in range(0, group, 2):
        x_at = (r * group + g) * size + p * shape.padded // shape.per_word + first
        out_at = ((h * count + r) * group + g) * dim
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
