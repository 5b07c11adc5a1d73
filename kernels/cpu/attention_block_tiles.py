"""Register tiles of attention for 8 rows at once, over transposed queries and keys.

They compute one lane of the order in `attention_tiles` after the other, so that registers run over
keys and rows share what is loaded. All weights of a tile are found together as well.
"""

import math

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu.attention_tiles import PASS, TILE_COLUMNS, TILE_ROWS
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
    call_math,
    constant,
    element,
    exp_of,
    load,
    loop,
    splat,
    store,
    vector,
)


@intrinsic
def transpose_8(
    typing_context: Context,
    x: Type,
    x_at: Type,
    num_rows: Type,
    row_size: Type,
    out: Type,
    out_at: Type,
    out_stride: Type,
) -> Codegen:
    """8 rows of `row_size` elements, widened, to columns of out, all of one lane side by side.

    out[lane * row_size / 8 + i, r] = x[r, 8 i + lane]; where there are fewer than 8 rows the last
    stands for the missing ones.
    """
    signature = types.void(x, *(types.intp,) * 3, out, *(types.intp,) * 2)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        first = at(context, builder, x, args[0], args[1])
        last = builder.sub(args[2], I64(1))
        rows = []
        for r in range(LANES):
            row = builder.select(builder.icmp_signed("<", I64(r), last), I64(r), last)
            rows.append(builder.gep(first, [builder.mul(row, args[3])]))
        out_first = at(context, builder, out, args[4], args[5])
        per_lane = builder.sdiv(args[3], I64(LANES))

        def step(k: Value, _values: list[Value]) -> list[Value]:
            parts = [load(builder, builder.gep(row, [k])) for row in rows]
            for lane, column in enumerate(_transposed(builder, parts)):
                index = builder.add(builder.mul(I64(lane), per_lane), builder.sdiv(k, I64(LANES)))
                offset = builder.mul(index, args[6])
                store(builder, column, builder.gep(out_first, [offset]))
            return []

        loop(builder, args[3], LANES, [], step)
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


@intrinsic
def score_tile(
    typing_context: Context,
    x: Type,
    x_at: Type,
    y: Type,
    y_at: Type,
    y_stride: Type,
    per_lane: Type,
    out: Type,
    out_at: Type,
    out_stride: Type,
) -> Codegen:
    """out[r, c] = scores of 8 rows with 32 keys, both transposed by `transpose_8`.

    x [8 per_lane, 8] and y [8 per_lane, y_stride] of the computing type; per_lane is positive.
    """
    integer = types.intp
    signature = types.void(x, integer, y, *(integer,) * 3, out, *(integer,) * 2)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        x_first = at(context, builder, x, args[0], args[1])
        y_first = at(context, builder, y, args[2], args[3])
        out_first = at(context, builder, out, args[6], args[7])
        num_rows, num_vectors, lanes = PASS
        zero = constant(vector(element(x), lanes), 0.0)

        def lane_chain(lane: Value, row: int, column: int) -> list[Value]:
            base = builder.mul(lane, args[5])
            x_lane = builder.gep(x_first, [builder.mul(base, I64(TILE_ROWS))])
            y_lane = builder.gep(y_first, [builder.mul(base, args[4])])

            def step(i: Value, sums: list[Value]) -> list[Value]:
                x_row = builder.gep(x_lane, [builder.mul(i, I64(TILE_ROWS))])
                y_row = builder.gep(y_lane, [builder.mul(i, args[4])])
                parts = [
                    load(builder, builder.gep(y_row, [I64(column + v * lanes)]), lanes)
                    for v in range(num_vectors)
                ]
                results = []
                for r in range(num_rows):
                    factor = builder.load(builder.gep(x_row, [I64(row + r)]))
                    many = splat(builder, factor, lanes)
                    for v in range(num_vectors):
                        total = sums[r * num_vectors + v]
                        results.append(call_math(builder, "fma", many, parts[v], total))
                return results

            return loop(builder, args[5], 1, [zero] * (num_rows * num_vectors), step)

        # -0.0 + x is x; and loops keep the code small.
        nothing = [constant(vector(element(x), lanes), -0.0)] * (num_rows * num_vectors)

        def add(a: list[Value], b: list[Value]) -> list[Value]:
            return [builder.fadd(x, y) for x, y in zip(a, b, strict=True)]

        def tree(row: int, column: int) -> list[Value]:
            def half(i: Value, total: list[Value]) -> list[Value]:
                def quarter(j: Value, part: list[Value]) -> list[Value]:
                    lane = builder.mul(builder.add(builder.mul(i, I64(2)), j), I64(2))
                    first = lane_chain(lane, row, column)
                    second = lane_chain(builder.add(lane, I64(1)), row, column)
                    return add(part, add(first, second))

                return add(total, loop(builder, I64(2), 1, nothing, quarter))

            return loop(builder, I64(2), 1, nothing, half)

        for row in range(0, TILE_ROWS, num_rows):
            for column in range(0, TILE_COLUMNS, num_vectors * lanes):
                scores = tree(row, column)
                for r in range(num_rows):
                    out_row = builder.gep(out_first, [builder.mul(args[8], I64(row + r))])
                    for v in range(num_vectors):
                        pointer = builder.gep(out_row, [I64(column + v * lanes)])
                        store(builder, scores[r * num_vectors + v], pointer)
        return context.get_dummy_value()

    return signature, codegen


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
) -> Codegen:
    """Scores of 8 rows to weights, in place, with their running maxima and totals.

    count, a positive multiple of 8, is that of a row's scores; the factors [8] bring earlier sums
    to the new maxima. Returns whether one of them is not 1. Every row has the bits of `row_max`,
    `exp_and_sum` and `exp`; where it has seen no key yet, weights and factor are 0.
    """
    integer = types.intp
    signature = types.boolean(x, *(integer,) * 3, maxima, totals, integer, factors)

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
            lanes = ir.Constant(vector(I32, LANES), [r] * LANES)
            shifts.append(builder.shuffle_vector(shift, shift, lanes))

        def weigh(i: Value, sums: list[Value]) -> list[Value]:
            results = []
            for row, row_shift, total in zip(rows, shifts, sums, strict=True):
                pointer = builder.gep(row, [i])
                score = load(builder, pointer)
                weight = exp_of(builder, builder.fsub(score, row_shift))
                store(builder, weight, pointer)
                results.append(builder.fadd(total, weight))
            return results

        added = add_lanes(builder, loop(builder, args[3], LANES, [zero] * LANES, weigh))
        factor = exp_of(builder, builder.fsub(before, shift))
        store(builder, factor, at(context, builder, factors, args[7], I64(0)))
        total = builder.fadd(builder.fmul(load(builder, total_at), factor), added)
        store(builder, total, total_at)
        changed = builder.fcmp_unordered("!=", now, before)
        return builder.icmp_unsigned(
            "!=", builder.bitcast(changed, ir.IntType(8)), ir.IntType(8)(0)
        )

    return signature, codegen
