"""Register tiles of attention: weighted sums of values, and scores of single rows with keys.

A score is added up in one order everywhere: lane c holds the chain over dimensions c, c + 8, c + 16
and so on of query times key, and the eight lanes are added as a tree. Sums of weighted values are
one chain over keys. Neither order depends on the machine's vector length, nor on the tile.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu.host import HAS_AVX512
from kernels.cpu.simd import (
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
    call_math,
    constant,
    element,
    load,
    loop,
    splat,
    store,
    vector,
)

TILE_ROWS = 8
TILE_COLUMNS = 32
# Rows, vectors and lanes of what one pass keeps in registers: 16 of 32, or 8 of 16.
PASS = (8, 2, 16) if HAS_AVX512 else (4, 2, 8)
LINE_BYTES = 64


def _prefetch(builder: Builder, pointer: Value) -> None:
    """Fetch a line for reading into the second cache."""
    byte = ir.IntType(8).as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0i8")
    builder.call(function, [builder.bitcast(pointer, byte), I32(0), I32(2), I32(1)])


def _item_bytes(kind: Type) -> int:
    return int(kind.dtype.bitwidth) // 8


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
                    load(builder, builder.gep(y_row, [I64(v * lanes)]), lanes)
                    for v in range(num_vectors)
                ]
                if num_rows < TILE_ROWS and row == 0:
                    ahead_row = builder.gep(ahead, [builder.mul(args[5], k)])
                    for offset in range(0, num_vectors * lanes, line):
                        _prefetch(builder, builder.gep(ahead_row, [I64(offset)]))
                results = []
                for r in range(pass_rows):
                    factor = builder.load(builder.gep(x_rows[r], [k]))
                    many = splat(builder, factor, lanes)
                    for v in range(num_vectors):
                        total = sums[r * num_vectors + v]
                        results.append(call_math(builder, "fma", many, parts[v], total))
                return results

            starts = [load(builder, pointer, lanes) for pointer in pointers]
            sums = loop(builder, args[9], 1, starts, step)
            for total, pointer in zip(sums, pointers, strict=True):
                store(builder, total, pointer)

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
                parts = [load(builder, builder.gep(x_row, [k])) for x_row in x_rows]
                results = list(sums)
                for j, y_row in enumerate(y_rows):
                    key = load(builder, builder.gep(y_row, [k]))
                    for h, part in enumerate(parts):
                        at_sum = h * LANES + j
                        results[at_sum] = call_math(builder, "fma", part, key, sums[at_sum])
                return results

            zero = constant(vector(element(x)), 0.0)
            sums = loop(builder, depth, LANES, [zero] * (num_heads * LANES), step)
            for h in range(num_heads):
                scores = add_lanes(builder, sums[h * LANES : (h + 1) * LANES])
                offset = builder.mul(args[8], I64(h))
                store(builder, scores, builder.gep(out_first, [offset]))
            return context.get_dummy_value()

        return signature, codegen

    return tile


scores_1_by_8 = _key_tile(1)
scores_2_by_8 = _key_tile(2)
