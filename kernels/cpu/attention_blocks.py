"""Attention of many rows of a sequence: register tiles over transposed keys.

For a block of rows and a KV head, the keys of a block of pages are transposed once and its values
copied, both as words. Tiles of 8 rows (pairs of a row and a head of the group) by 32 keys have the
bits of `attention_rows`: see `attention_tiles`.
"""

import math
from typing import NamedTuple

import numpy as np

from kernels.cpu.arrays import Array
from kernels.cpu.attention_block_tiles import (
    load_values,
    score_tile,
    softmax_tile,
    transpose_8,
)
from kernels.cpu.attention_rows import Shape, fill, keys_at
from kernels.cpu.attention_tiles import (
    BOTH,
    FIRST,
    SECOND,
    TILE_COLUMNS,
    TILE_ROWS,
    add_values_1_by_32,
    add_values_8_by_32,
)
from kernels.cpu.attention_words import copy_words
from kernels.cpu.jit import compiled, inlined
from kernels.cpu.simd import LANES, narrow


class Block(NamedTuple):
    """A KV head's block of rows and block of keys, flat; sizes are rounded up to whole tiles.

    queries [tile, word of head_dim, 8]; sums [row, dim]; totals, maxima [row]; weights [row, slot],
    scores, then words; keys [word of head_dim, slot]; values [word of slots, dim];
    head [8, words of head_dim] is scratch; seen [2, 8] holds the slots that each row of a tile sees
    (from, until), factors [8] those of its sums.
    """

    queries: Array
    sums: Array
    totals: Array
    maxima: Array
    weights: Array
    keys: Array
    values: Array
    head: Array
    seen: Array
    factors: Array


@inlined
def _whole_tiles(count: int, size: int) -> int:
    return (count + size - 1) // size * size


@compiled
def block_for(shape: Shape, num_rows: int, scale: Array) -> Block:
    """Space for `num_rows` rows, of the type of `scale`; holes between pages hold zeros."""
    rows = _whole_tiles(num_rows * shape.group, TILE_ROWS)
    slots = _whole_tiles(shape.pages * shape.padded, TILE_COLUMNS)
    dim = _whole_tiles(shape.head_dim, TILE_COLUMNS)
    return Block(
        np.empty(rows * shape.head_dim, scale.dtype),
        np.empty(rows * dim, scale.dtype),
        np.empty(rows, scale.dtype),
        np.empty(rows, scale.dtype),
        np.empty(rows * slots, scale.dtype),
        np.zeros(shape.head_dim * slots, scale.dtype),
        np.zeros(slots * dim, scale.dtype),
        np.zeros(TILE_ROWS * shape.head_dim, scale.dtype),
        np.empty(2 * TILE_ROWS, np.int64),
        np.empty(TILE_ROWS, scale.dtype),
    )


@compiled
def attend_block(
    shape: Shape,
    block: Block,
    q: Array,
    pool: Array,
    table: Array,
    row: int,
    count: int,
    position: int,
    scale: float,
    out: Array,
) -> None:
    """Rows `row` to `row + count` of q, the first at `position`, to the same rows of out."""
    first = max(0, position - shape.window + 1) // shape.page_size
    last = (position + count - 1) // shape.page_size
    num_rows = _whole_tiles(count * shape.group, TILE_ROWS)
    size = shape.pages * shape.padded
    for h in range(shape.num_kv_heads):
        _load_queries(shape, block, q, row, count, h)
        for begin in range(first // shape.pages * shape.pages, last + 1, shape.pages):
            for page in range(max(first, begin), min(last + 1, begin + shape.pages)):
                _load_page(shape, block, pool, keys_at(shape, table[page], h), page - begin)
            for tile_row in range(0, num_rows, TILE_ROWS):
                if _sees_all(shape, begin, tile_row, position, count):
                    _score_tile(shape, block, tile_row, size, scale, q)
                    _update_softmax(shape, block, tile_row, size, q)
                    _add_tile(shape, block, tile_row, 0, size, q)
                else:
                    high = _find_seen(shape, block, begin, tile_row, position, count)
                    if high > 0:
                        _score_tile(shape, block, tile_row, high, scale, q)
                        _mask_tile(shape, block, tile_row, high)
                        _update_softmax(shape, block, tile_row, high, q)
                        _add_seen(shape, block, tile_row, q)
        _store_sums(shape, block, row, count, h, out)


@compiled
def _load_queries(shape: Shape, block: Block, q: Array, row: int, count: int, h: int) -> None:
    """Queries of a KV head, transposed tile by tile, and an empty softmax for each."""
    num_words = shape.head_dim // shape.per_word
    fill(block.maxima, 0, len(block.maxima), -math.inf)
    fill(block.totals, 0, len(block.totals), 0.0)
    fill(block.sums, 0, len(block.sums), 0.0)
    num_rows = count * shape.group
    for begin in range(0, num_rows, TILE_ROWS):
        end = min(begin + TILE_ROWS, num_rows)
        for i in range(begin, end):
            head = (row + i // shape.group) * shape.num_kv_heads * shape.group
            head += h * shape.group + i % shape.group
            copy_words(q, head * shape.head_dim, num_words, block.head, (i - begin) * num_words)
        transpose_8(
            block.head, 0, end - begin, num_words, block.queries, begin * num_words, TILE_ROWS
        )


@compiled
def _load_page(shape: Shape, block: Block, pool: Array, key_at: int, p: int) -> None:
    """Keys, transposed, and values of a page to place p of the block."""
    dim, size, per_word = shape.head_dim, shape.page_size, shape.per_word
    slots = _whole_tiles(shape.pages * shape.padded, TILE_COLUMNS)
    for j in range(0, size, LANES):
        slot = p * shape.padded + j
        transpose_8(pool, key_at + j * dim, size - j, dim // per_word, block.keys, slot, slots)
    value_at = key_at + shape.num_kv_heads * size * dim
    wide = _whole_tiles(dim, TILE_COLUMNS)
    for j in range(0, size, per_word):
        second = dim if j + 1 < size else 0
        slot = (p * shape.padded + j) // per_word
        load_values(pool, value_at + j * dim, second, dim, block.values, slot * wide)


@inlined
def _sees_all(shape: Shape, begin: int, tile_row: int, position: int, count: int) -> bool:
    """Whether every row of a tile sees every slot of a block."""
    first_key, num_keys = begin * shape.page_size, shape.pages * shape.page_size
    top, bottom = tile_row // shape.group, (tile_row + TILE_ROWS - 1) // shape.group
    after = position + top + 1 >= first_key + num_keys and bottom < count
    before = position + bottom - shape.window + 1 <= first_key
    return after and before and shape.padded == shape.page_size


@compiled
def _find_seen(
    shape: Shape, block: Block, begin: int, tile_row: int, position: int, count: int
) -> int:
    """The slots that each row of a tile sees; behind the last of them, 0 if there is none."""
    first_key, num_keys = begin * shape.page_size, shape.pages * shape.page_size
    highest = 0
    for i in range(TILE_ROWS):
        row = (tile_row + i) // shape.group
        low = min(num_keys, max(0, position + row - shape.window + 1 - first_key))
        high = max(0, min(num_keys, position + row + 1 - first_key))
        if row >= count or low >= high:
            low, high = 0, 0
        else:
            low = low // shape.page_size * shape.padded + low % shape.page_size
            high -= 1
            high = high // shape.page_size * shape.padded + high % shape.page_size + 1
        block.seen[i], block.seen[TILE_ROWS + i] = low, high
        highest = max(highest, high)
    return highest


@inlined
def _score_tile(
    shape: Shape, block: Block, tile_row: int, high: int, scale: float, like: Array
) -> None:
    """Products of the rows of a tile with the keys of the slots before `high`."""
    num_words = shape.head_dim // shape.per_word
    slots = _whole_tiles(shape.pages * shape.padded, TILE_COLUMNS)
    for slot in range(0, high, TILE_COLUMNS):
        score_tile(
            block.queries, tile_row * num_words, block.keys, slot, slots, num_words, scale,
            block.weights, tile_row * slots + slot, slots, like,
        )  # fmt: skip


@compiled
def _mask_tile(shape: Shape, block: Block, tile_row: int, high: int) -> None:
    """-inf for slots that a row does not see."""
    slots = _whole_tiles(shape.pages * shape.padded, TILE_COLUMNS)
    until = _whole_tiles(high, 2 * LANES)
    for i in range(TILE_ROWS):
        at = (tile_row + i) * slots
        fill(block.weights, at, at + block.seen[i], -math.inf)
        fill(block.weights, at + block.seen[TILE_ROWS + i], at + until, -math.inf)
        if shape.padded > shape.page_size:
            for hole in range(shape.page_size, until, shape.padded):
                end = min(until, hole + shape.padded - shape.page_size)
                fill(block.weights, at + hole, at + end, -math.inf)


@inlined
def _update_softmax(shape: Shape, block: Block, tile_row: int, high: int, like: Array) -> None:
    """Scores to weights, and the running maxima, totals and sums that go with them."""
    slots = _whole_tiles(shape.pages * shape.padded, TILE_COLUMNS)
    if softmax_tile(
        block.weights, tile_row * slots, slots, _whole_tiles(high, 2 * LANES),
        block.maxima, block.totals, tile_row, block.factors, like,
    ):  # fmt: skip
        wide = _whole_tiles(shape.head_dim, TILE_COLUMNS)
        for i in range(TILE_ROWS):
            factor = block.factors[i]
            sums = block.sums[(tile_row + i) * wide : (tile_row + i + 1) * wide]
            for d in range(wide):
                sums[d] *= factor


@inlined
def _add_tile(shape: Shape, block: Block, tile_row: int, low: int, high: int, like: Array) -> None:
    """sums += weights @ values over the slots `low` to `high`, whole words, for a whole tile."""
    slots = _whole_tiles(shape.pages * shape.padded, TILE_COLUMNS)
    wide = _whole_tiles(shape.head_dim, TILE_COLUMNS)
    first, depth = low // shape.per_word, (high - low) // shape.per_word
    for d in range(0, wide, TILE_COLUMNS):
        add_values_8_by_32(
            block.weights, tile_row * slots + first, slots, block.values, first * wide + d, wide,
            0, BOTH, block.sums, tile_row * wide + d, wide, depth, 0, like,
        )  # fmt: skip


@compiled
def _add_seen(shape: Shape, block: Block, tile_row: int, like: Array) -> None:
    """sums += weights @ values: what all rows of the tile see at once, the rest row by row.

    A row's keys come in order in any case, and no row reads a value that it may not see.
    """
    seen, per_word = block.seen, shape.per_word
    low = -(-seen[TILE_ROWS - 1] // per_word) * per_word
    high = seen[TILE_ROWS] // per_word * per_word
    if seen[2 * TILE_ROWS - 1] == 0 or low >= high:
        low, high = 0, 0
    for i in range(TILE_ROWS):
        until = min(low, seen[TILE_ROWS + i]) if high > 0 else seen[TILE_ROWS + i]
        _add_row(shape, block, tile_row + i, seen[i], until, like)
    if high > 0:
        _add_tile(shape, block, tile_row, low, high, like)
        for i in range(TILE_ROWS):
            _add_row(shape, block, tile_row + i, high, seen[TILE_ROWS + i], like)


@compiled
def _add_row(shape: Shape, block: Block, row: int, low: int, high: int, like: Array) -> None:
    """One row's sums += weights @ values over the slots `low` to `high`."""
    if low >= high:
        return
    first, end = low // shape.per_word, high // shape.per_word
    if low % shape.per_word:
        _add_words(shape, block, row, first, first + 1, SECOND, like)
        first += 1
    if first < end:
        _add_words(shape, block, row, first, end, BOTH, like)
    if high % shape.per_word:
        _add_words(shape, block, row, end, end + 1, FIRST, like)


@inlined
def _add_words(
    shape: Shape, block: Block, row: int, first: int, end: int, seen: int, like: Array
) -> None:
    """One row's sums += weights @ values over some words of slots."""
    slots = _whole_tiles(shape.pages * shape.padded, TILE_COLUMNS)
    wide = _whole_tiles(shape.head_dim, TILE_COLUMNS)
    for d in range(0, wide, TILE_COLUMNS):
        add_values_1_by_32(
            block.weights, row * slots + first, slots, block.values, first * wide + d, wide, 0,
            seen, block.sums, row * wide + d, wide, end - first, first * wide + d, like,
        )  # fmt: skip


@compiled
def _store_sums(shape: Shape, block: Block, row: int, count: int, h: int, out: Array) -> None:
    dim, wide = shape.head_dim, _whole_tiles(shape.head_dim, TILE_COLUMNS)
    for i in range(count * shape.group):
        total = block.totals[i]
        source = block.sums[i * wide : i * wide + dim]
        target = out[row + i // shape.group, h * shape.group + i % shape.group]
        for d in range(dim):
            target[d] = narrow(source[d] / total, out)
