"""Register tiles of attention for 8 rows at once, over transposed queries and keys.

Registers run over keys, and rows share what is loaded. All weights of a tile are found together as
well. The order of additions, and what a word is, are those of `attention_tiles`.
"""

import math
from collections.abc import Sequence

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu.attention_tiles import PASS, TILE_COLUMNS, TILE_ROWS
from kernels.cpu.attention_words import QUAD, columns_of_8, rows_of_8, words_at, zipped
from kernels.cpu.simd import (
    I32,
    I64,
    LANES,
    Builder,
    Codegen,
    Context,
    Signature,
    Type,
    Value,
    Values,
    add_lanes,
    at,
    constant,
    element,
    exp_of,
    load,
    load_bits,
    loop,
    multiply_add,
    splat,
    store,
    vector,
    word_type,
)
from kernels.cpu.tiles import store_weights


@intrinsic
def transpose_8(
    typing_context: Context,
    x: Type,
    x_at: Type,
    num_rows: Type,
    row_words: Type,
    out: Type,
    out_at: Type,
    out_stride: Type,
) -> Codegen:
    """8 rows of `row_words` words to columns: out[k, r] = word k of row r.

    x has elements, or keeps words; where there are fewer than 8 rows the last stands for the
    missing ones. row_words is a multiple of QUAD.
    """
    signature = types.void(x, *(types.intp,) * 3, out, *(types.intp,) * 2)
    word = word_type(x)
    per_word = 2 if word == I32 else 1

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        first = at(context, builder, x, args[0], args[1])
        rows = rows_of_8(builder, first, args[2], builder.mul(args[3], I64(per_word)))
        out_first = words_at(context, builder, out, args[4], args[5], word)

        def step(k: Value, _values: list[Value]) -> list[Value]:
            offset = builder.mul(k, I64(per_word))
            columns = columns_of_8(builder, [builder.gep(row, [offset]) for row in rows], word)
            for i, column in enumerate(columns):
                place = builder.mul(builder.add(k, I64(i)), args[6])
                store(builder, column, builder.gep(out_first, [place]))
            return []

        loop(builder, args[3], QUAD, [], step)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def load_values(
    typing_context: Context,
    y: Type,
    y_at: Type,
    second: Type,
    count: Type,
    out: Type,
    out_at: Type,
) -> Codegen:
    """A row of words of two rows of values, the other one `second` elements on; floats as they are.

    count: of columns, a positive multiple of 8.
    """
    index = types.intp
    signature = types.void(y, index, index, index, out, index)
    word = word_type(y)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        first = at(context, builder, y, args[0], args[1])
        out_first = words_at(context, builder, out, args[4], args[5], word)

        def step(d: Value, _values: list[Value]) -> list[Value]:
            row = builder.gep(first, [d])
            if word == I32:
                found = zipped(builder, row, builder.gep(row, [args[2]]), LANES)
            else:
                found = load_bits(builder, row, word, LANES)
            store(builder, found, builder.gep(out_first, [d]))
            return []

        loop(builder, args[3], LANES, [], step)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def score_tile(
    typing_context: Context,
    x: Type,
    x_at: Type,
    y: Type,
    y_at: Type,
    y_stride: Type,
    depth: Type,
    scale: Type,
    out: Type,
    out_at: Type,
    out_stride: Type,
    like: Type,
) -> Codegen:
    """out[r, c] = scores of 8 rows with 32 keys, both transposed by `transpose_8`.

    x [depth, 8] and y [depth, y_stride] keep words; depth is positive.
    """
    index = types.intp
    signature = types.void(x, index, y, *(index,) * 3, out.dtype, out, *(index,) * 2, like)
    word = word_type(like)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        x_first = words_at(context, builder, x, args[0], args[1], word)
        y_first = words_at(context, builder, y, args[2], args[3], word)
        out_first = at(context, builder, out, args[7], args[8])
        num_rows, num_vectors, lanes = PASS
        zero = constant(vector(element(out), lanes), 0.0)
        scales = splat(builder, args[6], lanes)

        def one_pass(row: int, column: int) -> list[Value]:
            def step(k: Value, sums: list[Value]) -> list[Value]:
                x_row = builder.gep(x_first, [builder.mul(k, I64(TILE_ROWS))])
                y_row = builder.gep(y_first, [builder.mul(k, args[4])])
                parts = [
                    load_bits(builder, builder.gep(y_row, [I64(column + v * lanes)]), word, lanes)
                    for v in range(num_vectors)
                ]
                results = []
                for r in range(num_rows):
                    factor = builder.load(builder.gep(x_row, [I64(row + r)]))
                    many = splat(builder, factor, lanes)
                    for v in range(num_vectors):
                        total = sums[r * num_vectors + v]
                        results.append(multiply_add(builder, many, parts[v], total))
                return results

            return loop(builder, args[5], 1, [zero] * (num_rows * num_vectors), step)

        for row in range(0, TILE_ROWS, num_rows):
            for column in range(0, TILE_COLUMNS, num_vectors * lanes):
                scores = one_pass(row, column)
                for r in range(num_rows):
                    out_row = builder.gep(out_first, [builder.mul(args[9], I64(row + r))])
                    for v in range(num_vectors):
                        pointer = builder.gep(out_row, [I64(column + v * lanes)])
                        scaled = builder.fmul(scores[r * num_vectors + v], scales)
                        store(builder, scaled, pointer)
        return context.get_dummy_value()

    return signature, codegen


def _transposed(builder: Builder, rows: list[Value]) -> list[Value]:
    """8 vectors of 8 lanes to the 8 vectors of their columns: pairs, quarters, halves."""
    low, high = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
    first, second = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
    lower, upper = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]

    def mix(a: Value, b: Value, lanes: list[int]) -> Value:
        return builder.shuffle_vector(a, b, ir.Constant(vector(I32, LANES), lanes))

    pairs = [mix(rows[i], rows[i + 1], m) for i in (0, 2, 4, 6) for m in (low, high)]
    quarters = []
    for i in (0, 4):
        for j in (0, 1):
            quarters += [mix(pairs[i + j], pairs[i + j + 2], m) for m in (first, second)]
    return [mix(quarters[i], quarters[i + 4], m) for m in (lower, upper) for i in range(4)]


def _lanes(numbers: Sequence[int]) -> Value:
    return ir.Constant(vector(I32, len(numbers)), list(numbers))


@intrinsic
def softmax_tile(
    typing_context: Context,
    x: Type,
    x_at: Type,
    x_stride: Type,
    count: Type,
    maxima: Type,
    totals: Type,
    state_at: Type,
    factors: Type,
    like: Type,
) -> Codegen:
    """Scores of 8 rows to weights, words in their place, with their running maxima and totals.

    count, a positive multiple of 16, is that of a row's scores; the factors [8] bring earlier sums
    to the new maxima. Returns whether one of them is not 1. Every row has the bits of `row_max`,
    `exp_and_sum` and `exp`; where it has seen no key yet, weights and factor are 0.
    """
    integer = types.intp
    signature = types.boolean(x, *(integer,) * 3, maxima, totals, integer, factors, like)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        first = at(context, builder, x, args[0], args[1])
        rows = [builder.gep(first, [builder.mul(args[2], I64(r))]) for r in range(LANES)]
        max_at = at(context, builder, maxima, args[4], args[6])
        total_at = at(context, builder, totals, args[5], args[6])
        lowest = constant(vector(element(x)), -math.inf)
        zero = constant(vector(element(x)), 0.0)

        def larger(a: Value, b: Value) -> Value:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def find_maxima(i: Value, values: list[Value]) -> list[Value]:
            parts = [load(builder, builder.gep(row, [i])) for row in rows]
            return [larger(value, part) for value, part in zip(values, parts, strict=True)]

        columns = _transposed(builder, loop(builder, args[3], LANES, [lowest] * LANES, find_maxima))
        while len(columns) > 1:
            columns = [larger(*columns[i : i + 2]) for i in range(0, len(columns), 2)]
        before = load(builder, max_at)
        now = larger(before, columns[0])
        store(builder, now, max_at)
        shift = builder.select(builder.fcmp_ordered("==", now, lowest), zero, now)
        shifts = []
        for r in range(LANES):
            shifts.append(builder.shuffle_vector(shift, shift, _lanes([r] * 2 * LANES)))

        def weigh(i: Value, sums: list[Value]) -> list[Value]:
            results = []
            for row, row_shift, total in zip(rows, shifts, sums, strict=True):
                scores = load(builder, builder.gep(row, [i]), 2 * LANES)
                weights = exp_of(builder, builder.fsub(scores, row_shift))
                store_weights(builder, like, weights, row, i)
                for half in halves:
                    part = builder.shuffle_vector(weights, weights, half)
                    total = builder.fadd(total, part)
                results.append(total)
            return results

        halves = [_lanes(range(first, first + LANES)) for first in (0, LANES)]
        added = add_lanes(builder, loop(builder, args[3], 2 * LANES, [zero] * LANES, weigh))
        factor = exp_of(builder, builder.fsub(before, shift))
        store(builder, factor, at(context, builder, factors, args[7], I64(0)))
        total = builder.fadd(builder.fmul(load(builder, total_at), factor), added)
        store(builder, total, total_at)
        changed = builder.fcmp_unordered("!=", now, before)
        return builder.icmp_unsigned(
            "!=", builder.bitcast(changed, ir.IntType(8)), ir.IntType(8)(0)
        )

    return signature, codegen
