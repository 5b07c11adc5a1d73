"""Loops over one row in registers: dot products, maxima, exponentials with their sum.

The order of additions depends on the row's length only. Offsets count elements of an array's flat
memory.
"""

import math

from numba import types
from numba.extending import intrinsic

from kernels.cpu.simd import (
    I16,
    LANES,
    Builder,
    Codegen,
    Context,
    Signature,
    Type,
    Value,
    Values,
    at,
    bfloat16_of_normal,
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
def row_max(typing_context: Context, x: Type, x_at: Type, count: Type) -> Codegen:
    """The largest of `count` numbers of a row, a positive multiple of LANES."""
    signature = x.dtype(x, types.intp, types.intp)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        row = at(context, builder, x, args[0], args[1])

        def larger(a: Value, b: Value) -> Value:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def step(i: Value, values: list[Value]) -> list[Value]:
            return [larger(values[0], load(builder, builder.gep(row, [i])))]

        start = constant(vector(element(x)), -math.inf)
        (lanes,) = loop(builder, args[2], LANES, [start], step)
        return fold(builder, lanes, larger)

    return signature, codegen


def store_weights(builder: Builder, like: Type, weights: Value, row: Value, i: Value) -> None:
    """Weights of a row from i on, over what it held: bfloat16, two to a word, where `like` is.

    A weight is 0 or e^-87 at least.
    """
    if like.dtype == types.uint16:
        row = builder.bitcast(row, I16.as_pointer())
        weights = bfloat16_of_normal(builder, weights)
    store(builder, weights, builder.gep(row, [i]))


@intrinsic
def exp_and_sum(
    typing_context: Context, x: Type, x_at: Type, count: Type, shift: Type, like: Type
) -> Codegen:
    """e^(x[i] - shift) for `count` numbers, a positive multiple of 8; returns their sum.

    They are put in the place of x by `store_weights`; what is added up is not rounded.
    """
    signature = x.dtype(x, types.intp, types.intp, x.dtype, like)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        row = at(context, builder, x, args[0], args[1])
        shifts = splat(builder, args[3])

        def step(i: Value, sums: list[Value]) -> list[Value]:
            part = load(builder, builder.gep(row, [i]))
            result = exp_of(builder, builder.fsub(part, shifts))
            store_weights(builder, like, result, row, i)
            return [builder.fadd(sums[0], result)]

        (lanes,) = loop(builder, args[2], LANES, [constant(shifts.type, 0.0)], step)
        return fold(builder, lanes, builder.fadd)

    return signature, codegen
