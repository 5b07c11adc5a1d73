"""Register tiles of attention and norms: products, dot products, row maxima, sums and exps.

Each result element is one chain of operations that does not depend on how many rows or columns are
computed beside it, so callers may tile as they like without changing a bit. Offsets and strides
count elements of an array's flat memory.
"""

import math

from numba import types
from numba.extending import intrinsic

from kernels.cpu.simd import (
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
    call_math,
    constant,
    element,
    exp_of,
    fold,
    load,
    loop,
    splat,
    store,
    vector,
)


def _product_tile(num_rows: int, num_vectors: int) -> Intrinsic:
    """An intrinsic for out[r, c] += sum over k of x[r, k] * y[k, c], k in order, fused.

    r below `num_rows`, c below `num_vectors` * LANES. x and out are of the computing type, y may be
    bfloat16 bits. Arguments: each array with its offset and row stride, then the positive depth.
    """

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
    ) -> Codegen:
        integers = (types.intp, types.intp)
        signature = types.void(x, *integers, y, *integers, out, *integers, types.intp)

        def codegen(
            context: Context, builder: Builder, signature: Signature, args: Values
        ) -> Value:
            x_first = at(context, builder, x, args[0], args[1])
            y_first = at(context, builder, y, args[3], args[4])
            out_first = at(context, builder, out, args[6], args[7])
            vectors = range(num_vectors)
            x_rows = [builder.gep(x_first, [builder.mul(args[2], I64(r))]) for r in range(num_rows)]
            out_tile = []
            for r in range(num_rows):
                row = builder.gep(out_first, [builder.mul(args[8], I64(r))])
                out_tile += [builder.gep(row, [I64(v * LANES)]) for v in vectors]
            starts = [load(builder, p) for p in out_tile]

            def step(k: Value, sums: list[Value]) -> list[Value]:
                y_row = builder.gep(y_first, [builder.mul(args[5], k)])
                y_part = [load(builder, builder.gep(y_row, [I64(v * LANES)])) for v in vectors]
                results = []
                for r in range(num_rows):
                    factor = splat(builder, builder.load(builder.gep(x_rows[r], [k])))
                    row = sums[r * num_vectors : (r + 1) * num_vectors]
                    results += [
                        call_math(builder, "fma", factor, y_part[v], row[v]) for v in vectors
                    ]
                return results

            for pointer, total in zip(
                out_tile, loop(builder, args[9], 1, starts, step), strict=True
            ):
                store(builder, total, pointer)
            return context.get_dummy_value()

        return signature, codegen

    return tile


add_product_1_by_1 = _product_tile(1, 1)
add_product_1_by_2 = _product_tile(1, 2)
add_product_1_by_8 = _product_tile(1, 8)
add_product_4_by_1 = _product_tile(4, 1)
add_product_4_by_2 = _product_tile(4, 2)


def _products(builder: Builder, x_row: Value, y_rows: list[Value], depth: Value) -> list[Value]:
    """Lane sums of x * y for several rows y over a depth that is a multiple of LANES."""

    def step(k: Value, sums: list[Value]) -> list[Value]:
        part = load(builder, builder.gep(x_row, [k]))
        return [
            call_math(builder, "fma", part, load(builder, builder.gep(y_row, [k])), total)
            for y_row, total in zip(y_rows, sums, strict=True)
        ]

    first = load(builder, x_row)
    zeros = [constant(first.type, 0.0) for _ in y_rows]
    return loop(builder, depth, LANES, zeros, step)


@intrinsic
def dot(typing_context: Context, x: Type, x_at: Type, y: Type, y_at: Type, depth: Type) -> Codegen:
    """sum over k of x[k] * y[k]: lanes over k, then a tree; depth a positive multiple of LANES."""
    wide = types.float64 if x.dtype == types.float64 else types.float32
    signature = wide(x, types.intp, y, types.intp, types.intp)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        x_row = at(context, builder, x, args[0], args[1])
        y_row = at(context, builder, y, args[2], args[3])
        (lanes,) = _products(builder, x_row, [y_row], args[4])
        return fold(builder, lanes, builder.fadd)

    return signature, codegen


@intrinsic
def dot_8(
    typing_context: Context,
    x: Type,
    x_at: Type,
    y: Type,
    y_at: Type,
    y_stride: Type,
    depth: Type,
    out: Type,
    out_at: Type,
) -> Codegen:
    """out[j] = `dot` of x with row j of y for 8 rows, each to the same bits as `dot`."""
    index = types.intp
    signature = types.void(x, index, y, index, index, index, out, index)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        x_row = at(context, builder, x, args[0], args[1])
        y_first = at(context, builder, y, args[2], args[3])
        y_rows = [builder.gep(y_first, [builder.mul(args[4], I64(j))]) for j in range(LANES)]
        sums = add_lanes(builder, _products(builder, x_row, y_rows, args[5]))
        store(builder, sums, at(context, builder, out, args[6], args[7]))
        return context.get_dummy_value()

    return signature, codegen


def _row_reduction(combine_name: str) -> Intrinsic:
    """An intrinsic that folds `count` numbers (a positive multiple of LANES) of a row."""

    @intrinsic
    def reduce(typing_context: Context, x: Type, x_at: Type, count: Type) -> Codegen:
        signature = x.dtype(x, types.intp, types.intp)

        def codegen(
            context: Context, builder: Builder, signature: Signature, args: Values
        ) -> Value:
            def combine(a: Value, b: Value) -> Value:
                if combine_name == "sum":
                    return builder.fadd(a, b)
                return builder.select(builder.fcmp_ordered(">", a, b), a, b)

            row = at(context, builder, x, args[0], args[1])
            start = constant(vector(element(x)), 0.0 if combine_name == "sum" else -math.inf)

            def step(i: Value, values: list[Value]) -> list[Value]:
                return [combine(values[0], load(builder, builder.gep(row, [i])))]

            (lanes,) = loop(builder, args[2], LANES, [start], step)
            return fold(builder, lanes, combine)

        return signature, codegen

    return reduce


row_sum = _row_reduction("sum")
row_max = _row_reduction("max")


@intrinsic
def exp_row(typing_context: Context, x: Type, x_at: Type, count: Type, shift: Type) -> Codegen:
    """x[i] = e^(x[i] - shift) in place for `count` numbers, a positive multiple of LANES."""
    signature = types.void(x, types.intp, types.intp, x.dtype)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        row = at(context, builder, x, args[0], args[1])
        shifts = splat(builder, args[3])

        def step(i: Value, _values: list[Value]) -> list[Value]:
            pointer = builder.gep(row, [i])
            store(builder, exp_of(builder, builder.fsub(load(builder, pointer), shifts)), pointer)
            return []

        loop(builder, args[2], LANES, [], step)
        return context.get_dummy_value()

    return signature, codegen
