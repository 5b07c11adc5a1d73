"""Register tiles of the attention kernels, for rows of a chunk and for single decode rows.

Both add up a score in one order: lane c holds the chain over dimensions c, c + 8, c + 16, ... of
query times key, and the eight lanes are added as a tree. A decode row keeps the lanes in one
register, as memory has them; a block of rows has transposed keys and computes one lane after the
other, so that registers run over keys and rows share what is loaded. Sums of weighted values are
one chain over keys. Neither order depends on the machine's vector length.
"""

import math

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu.simd import (
    I16,
    I32,
    I64,
    LANES,
    Builder,
    Codegen,
    Context,
    Intrinsic,
    Signature,
    Type,
    Value,
    Values,
    add_lanes,
    at,
    constant,
    element,
    exp_of,
    fold,
    loop,
    splat,
    vector,
)
from kernels.cpu.simd import load as load_lanes
from kernels.cpu.simd import store as store_lanes

HAS_AVX512 = bool(binding.get_host_cpu_features().get("avx512f", False))

TILE_ROWS = 8
TILE_COLUMNS = 32
# Rows, vectors and lanes of what one pass keeps in registers: 16 of 32, or 8 of 16.
PASS = (8, 2, 16) if HAS_AVX512 else (4, 2, 8)
LINE_BYTES = 64


def _vector(kind: Type, lanes: int) -> Type:
    return ir.VectorType(kind, lanes)


def _constant(kind: Type, lanes: int, value: float) -> Value:
    return ir.Constant(_vector(kind, lanes), [value] * lanes)


def _load(builder: Builder, pointer: Value, lanes: int) -> Value:
    """`lanes` consecutive elements, widened."""
    kind = pointer.type.pointee
    typed = builder.bitcast(pointer, _vector(kind, lanes).as_pointer())
    if kind != I16:
        return builder.load(typed, align=8 if kind == ir.DoubleType() else 4)
    bits = builder.zext(builder.load(typed, align=2), _vector(I32, lanes))
    return builder.bitcast(
        builder.shl(bits, _constant(I32, lanes, 16)), _vector(ir.FloatType(), lanes)
    )


def _store(builder: Builder, value: Value, pointer: Value) -> None:
    typed = builder.bitcast(pointer, value.type.as_pointer())
    builder.store(value, typed, align=8 if value.type.element == ir.DoubleType() else 4)


def _splat(builder: Builder, value: Value, lanes: int) -> Value:
    undefined = ir.Constant(_vector(value.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_vector(I32, lanes), None))


def _fma(builder: Builder, a: Value, b: Value, c: Value) -> Value:
    suffix = f"v{a.type.count}" + ("f64" if a.type.element == ir.DoubleType() else "f32")
    signature = ir.FunctionType(a.type, [a.type] * 3)
    name = f"llvm.fma.{suffix}"
    function = builder.module.globals.get(name) or ir.Function(builder.module, signature, name)
    return builder.call(function, [a, b, c])


def _prefetch(builder: Builder, pointer: Value) -> None:
    byte = ir.IntType(8).as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
    name = "llvm.prefetch.p0i8"
    function = builder.module.globals.get(name) or ir.Function(builder.module, signature, name)
    builder.call(function, [builder.bitcast(pointer, byte), I32(0), I32(2), I32(1)])


def _item_bytes(kind: Type) -> int:
    return int(kind.dtype.bitwidth) // 8


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
            parts = [load_lanes(builder, builder.gep(row, [k])) for row in rows]
            for lane, column in enumerate(_transposed(builder, parts)):
                index = builder.add(builder.mul(I64(lane), per_lane), builder.sdiv(k, I64(LANES)))
                offset = builder.mul(index, args[6])
                store_lanes(builder, column, builder.gep(out_first, [offset]))
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
        return builder.shuffle_vector(a, b, ir.Constant(_vector(I32, LANES), lanes))

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
        zero = _constant(element(x), lanes, 0.0)

        def lane_chain(lane: Value, row: int, column: int) -> list[Value]:
            base = builder.mul(lane, args[5])
            x_lane = builder.gep(x_first, [builder.mul(base, I64(TILE_ROWS))])
            y_lane = builder.gep(y_first, [builder.mul(base, args[4])])

            def step(i: Value, sums: list[Value]) -> list[Value]:
                x_row = builder.gep(x_lane, [builder.mul(i, I64(TILE_ROWS))])
                y_row = builder.gep(y_lane, [builder.mul(i, args[4])])
                parts = [
                    _load(builder, builder.gep(y_row, [I64(column + v * lanes)]), lanes)
                    for v in range(num_vectors)
                ]
                results = []
                for r in range(num_rows):
                    factor = builder.load(builder.gep(x_row, [I64(row + r)]))
                    many = _splat(builder, factor, lanes)
                    for v in range(num_vectors):
                        total = sums[r * num_vectors + v]
                        results.append(_fma(builder, many, parts[v], total))
                return results

            return loop(builder, args[5], 1, [zero] * (num_rows * num_vectors), step)

        # -0.0 + x is x. Loops keep the code small: unrolled, it takes four times as long to compile.
        nothing = [_constant(element(x), lanes, -0.0)] * (num_rows * num_vectors)

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
                        _store(builder, scores[r * num_vectors + v], pointer)
        return context.get_dummy_value()

    return signature, codegen


def _value_tile(num_rows: int, num_columns: int, passes: tuple[int, int, int]) -> Intrinsic:
    """An intrinsic for out[r, c] += sum over k of x[r, k] * y[k, c], k in order, fused.

    While it runs, it fetches as many elements as it reads from `ahead_at` on of y into the second
    cache. Arguments: each array with its offset and row stride, the positive depth, `ahead_at`.
    """
    pass_rows, num_vectors, lanes = passes

    @intrinsic
    def tile(
        typing_context: Context,
        x: Type,
        x_at: Type,
        x_stride: Type,
        y: Type,
        y_at: Type,
        y_stride: Type,
        out: Type,
        out_at: Type,
        out_stride: Type,
        depth: Type,
        ahead_at: Type,
    ) -> Codegen:
        integers = (types.intp, types.intp)
        signature = types.void(x, *integers, y, *integers, out, *integers, *integers)

        def codegen(
            context: Context, builder: Builder, signature: Signature, args: Values
        ) -> Value:
            for row in range(0, num_rows, pass_rows):
                for column in range(0, num_columns, num_vectors * lanes):
                    one_pass(context, builder, args, row, column)
            return context.get_dummy_value()

        def one_pass(
            context: Context, builder: Builder, args: Values, row: int, column: int
        ) -> None:
            x_first = at(context, builder, x, args[0], args[1])
            y_first = builder.gep(at(context, builder, y, args[3], args[4]), [I64(column)])
            ahead = builder.gep(at(context, builder, y, args[3], args[10]), [I64(column)])
            out_first = builder.gep(at(context, builder, out, args[6], args[7]), [I64(column)])
            rows = range(row, row + pass_rows)
            x_rows = [builder.gep(x_first, [builder.mul(args[2], I64(r))]) for r in rows]
            pointers = [
                builder.gep(out_first, [builder.add(builder.mul(args[8], I64(r)), I64(v * lanes))])
                for r in rows
                for v in range(num_vectors)
            ]
            line = LINE_BYTES // _item_bytes(y)

            def step(k: Value, sums: list[Value]) -> list[Value]:
                y_row = builder.gep(y_first, [builder.mul(args[5], k)])
                parts = [
                    _load(builder, builder.gep(y_row, [I64(v * lanes)]), lanes)
                    for v in range(num_vectors)
                ]
                if num_rows < TILE_ROWS and row == 0:
                    ahead_row = builder.gep(ahead, [builder.mul(args[5], k)])
                    for offset in range(0, num_vectors * lanes, line):
                        _prefetch(builder, builder.gep(ahead_row, [I64(offset)]))
                results = []
                for r in range(pass_rows):
                    factor = builder.load(builder.gep(x_rows[r], [k]))
                    many = _splat(builder, factor, lanes)
                    for v in range(num_vectors):
                        total = sums[r * num_vectors + v]
                        results.append(_fma(builder, many, parts[v], total))
                return results

            starts = [_load(builder, pointer, lanes) for pointer in pointers]
            sums = loop(builder, args[9], 1, starts, step)
            for total, pointer in zip(sums, pointers, strict=True):
                _store(builder, total, pointer)

        return signature, codegen

    return tile


WIDE = 64 // PASS[2]
add_values_8_by_32 = _value_tile(TILE_ROWS, TILE_COLUMNS, PASS)
add_values_1_by_32 = _value_tile(1, TILE_COLUMNS, (1, TILE_COLUMNS // PASS[2], PASS[2]))
add_values_1_by_64 = _value_tile(1, 64, (1, WIDE, PASS[2]))
add_values_2_by_64 = _value_tile(2, 64, (2, WIDE, PASS[2]))
add_values_1_by_8 = _value_tile(1, LANES, (1, 1, LANES))
add_values_2_by_8 = _value_tile(2, LANES, (2, 1, LANES))


def _key_tile(num_heads: int) -> Intrinsic:
    """An intrinsic for the scores of `num_heads` queries with 8 keys.

    Keys stand one after the other; where there are fewer than 8, the last stands for the missing
    ones. While it runs, it fetches as many elements as 8 keys have from `ahead_at` on.
    """

    @intrinsic
    def tile(
        typing_context: Context,
        x: Type,
        x_at: Type,
        y: Type,
        y_at: Type,
        num_keys: Type,
        depth: Type,
        out: Type,
        out_at: Type,
        out_stride: Type,
        ahead_at: Type,
    ) -> Codegen:
        integer = types.intp
        signature = types.void(x, integer, y, *(integer,) * 3, out, *(integer,) * 3)

        def codegen(
            context: Context, builder: Builder, signature: Signature, args: Values
        ) -> Value:
            x_first = at(context, builder, x, args[0], args[1])
            y_first = at(context, builder, y, args[2], args[3])
            out_first = at(context, builder, out, args[6], args[7])
            ahead = at(context, builder, y, args[2], args[9])
            depth, last = args[5], builder.sub(args[4], I64(1))
            x_rows = [builder.gep(x_first, [builder.mul(depth, I64(h))]) for h in range(num_heads)]
            y_rows = []
            for j in range(LANES):
                row = builder.select(builder.icmp_signed("<", I64(j), last), I64(j), last)
                y_rows.append(builder.gep(y_first, [builder.mul(row, depth)]))
            item_bytes = _item_bytes(y)

            def step(k: Value, sums: list[Value]) -> list[Value]:
                # 8 keys have as many lines per 8 dimensions as an element has bytes.
                line = builder.gep(ahead, [builder.mul(k, I64(LANES))])
                for i in range(item_bytes):
                    _prefetch(builder, builder.gep(line, [I64(i * LINE_BYTES // item_bytes)]))
                parts = [load_lanes(builder, builder.gep(x_row, [k])) for x_row in x_rows]
                results = list(sums)
                for j, y_row in enumerate(y_rows):
                    key = load_lanes(builder, builder.gep(y_row, [k]))
                    for h, part in enumerate(parts):
                        at_sum = h * LANES + j
                        results[at_sum] = _fma(builder, part, key, sums[at_sum])
                return results

            zero = constant(vector(element(x)), 0.0)
            sums = loop(builder, depth, LANES, [zero] * (num_heads * LANES), step)
            for h in range(num_heads):
                scores = add_lanes(builder, sums[h * LANES : (h + 1) * LANES])
                offset = builder.mul(args[8], I64(h))
                store_lanes(builder, scores, builder.gep(out_first, [offset]))
            return context.get_dummy_value()

        return signature, codegen

    return tile


scores_1_by_8 = _key_tile(1)
scores_2_by_8 = _key_tile(2)


@intrinsic
def exp_and_sum(typing_context: Context, x: Type, x_at: Type, count: Type, shift: Type) -> Codegen:
    """x[i] = e^(x[i] - shift) in place for `count` numbers, a positive multiple of 8; their sum."""
    signature = x.dtype(x, types.intp, types.intp, x.dtype)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        row = at(context, builder, x, args[0], args[1])
        shifts = splat(builder, args[3])

        def step(i: Value, sums: list[Value]) -> list[Value]:
            pointer = builder.gep(row, [i])
            result = exp_of(builder, builder.fsub(load_lanes(builder, pointer), shifts))
            store_lanes(builder, result, pointer)
            return [builder.fadd(sums[0], result)]

        (lanes,) = loop(builder, args[2], LANES, [constant(shifts.type, 0.0)], step)
        return fold(builder, lanes, builder.fadd)

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
            parts = [load_lanes(builder, builder.gep(row, [i])) for row in rows]
            return [larger(value, part) for value, part in zip(values, parts, strict=True)]

        columns = _transposed(builder, loop(builder, args[3], LANES, [lowest] * LANES, find_maxima))
        while len(columns) > 1:
            columns = [larger(*columns[i : i + 2]) for i in range(0, len(columns), 2)]
        before = load_lanes(builder, max_at)
        now = larger(before, columns[0])
        store_lanes(builder, now, max_at)
        shift = builder.select(builder.fcmp_ordered("==", now, lowest), zero, now)
        shifts = []
        for r in range(LANES):
            lanes = ir.Constant(_vector(I32, LANES), [r] * LANES)
            shifts.append(builder.shuffle_vector(shift, shift, lanes))

        def weigh(i: Value, sums: list[Value]) -> list[Value]:
            results = []
            for row, row_shift, total in zip(rows, shifts, sums, strict=True):
                pointer = builder.gep(row, [i])
                score = load_lanes(builder, pointer)
                weight = exp_of(builder, builder.fsub(score, row_shift))
                store_lanes(builder, weight, pointer)
                results.append(builder.fadd(total, weight))
            return results

        added = add_lanes(builder, loop(builder, args[3], LANES, [zero] * LANES, weigh))
        factor = exp_of(builder, builder.fsub(before, shift))
        store_lanes(builder, factor, at(context, builder, factors, args[7], I64(0)))
        total = builder.fadd(builder.fmul(load_lanes(builder, total_at), factor), added)
        store_lanes(builder, total, total_at)
        changed = builder.fcmp_unordered("!=", now, before)
        return builder.icmp_unsigned(
            "!=", builder.bitcast(changed, ir.IntType(8)), ir.IntType(8)(0)
        )

    return signature, codegen
