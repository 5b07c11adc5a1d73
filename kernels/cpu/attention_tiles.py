"""Register tiles of attention: weighted sums of values, and scores of single rows with keys.

A score is one chain of multiply-adds over the dimensions, times the scale; a weighted sum is one
chain over keys. bfloat16 is multiplied in words, pairs of neighbours (dimensions of a key, slots of
values), of which the second is added first: see `simd.multiply_add`. Neither order depends on the
machine's vector length, nor on the tile. How words are kept says `attention_words`.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.cpu.attention_words import (
    QUAD,
    columns_of_8,
    interleaved,
    item_bytes,
    prefetch,
    rows_of_8,
    words_at,
    zipped,
)
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
    at,
    bfloat16_of,
    constant,
    element,
    load_bits,
    loop,
    multiply_add,
    splat,
    store,
    vector,
    word_type,
)

TILE_ROWS = 8
TILE_COLUMNS = 32
# Rows, vectors and lanes of what one pass keeps in registers: 16 of 32, or 8 of 16.
PASS = (8, 2, 16) if HAS_AVX512 else (4, 2, 8)
BOTH, FIRST, SECOND = 0, 1, 2  # what of a word of values is seen


def _half(builder: Builder, words: Value, seen: Value) -> Value:
    """Words as they are for BOTH, else with the half that is seen in the place of the other."""
    kind = words.type

    def shift(half: int) -> Value:
        is_seen = builder.icmp_signed("==", seen, I32(half))
        return splat(builder, builder.select(is_seen, I32(16), I32(0)), kind.count)

    low = builder.and_(builder.lshr(words, shift(SECOND)), constant(kind, 0xFFFF))
    high = builder.and_(builder.shl(words, shift(FIRST)), constant(kind, -0x10000))
    return builder.or_(low, high)


def _value_tile(num_rows: int, num_columns: int, passes: tuple[int, int, int]) -> Intrinsic:
    """An intrinsic for out[r, c] += sum over k of x[r, k] * y[k, c], k in order, fused.

    x: words. y: words, or rows of bfloat16, of which two make one of words; then `y_second` is how
    far the second is from the first, and where several vectors are taken their columns are in the
    order of `interleaved`. As much as is read is fetched from `ahead_at` on into the second cache.
    seen: of y's words BOTH, or the half that is taken for both; asked for single rows only.
    Others: each array with offset and row stride, the positive depth.
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
        y_second: Type,
        seen: Type,
        out: Type,
        out_at: Type,
        out_stride: Type,
        depth: Type,
        ahead_at: Type,
        like: Type,
    ) -> Codegen:
        index = types.intp
        signature = types.void(
            x, index, index, y, *(index,) * 3, types.int32, out, *(index,) * 4, like
        )
        word, is_zipped = word_type(like), y.dtype == types.uint16
        is_halved = word == I32 and not is_zipped and num_rows < TILE_ROWS

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
            x_first = words_at(context, builder, x, args[0], args[1], word)
            y_first = builder.gep(at(context, builder, y, args[3], args[4]), [I64(column)])
            ahead = builder.gep(at(context, builder, y, args[3], args[12]), [I64(column)])
            out_first = builder.gep(at(context, builder, out, args[8], args[9]), [I64(column)])
            rows = range(row, row + pass_rows)
            x_rows = [builder.gep(x_first, [builder.mul(args[2], I64(r))]) for r in rows]
            pointers = [
                builder.gep(out_first, [builder.add(builder.mul(args[10], I64(r)), I64(v * lanes))])
                for r in rows
                for v in range(num_vectors)
            ]

            def parts_of(y_row: Value) -> list[Value]:
                places = [builder.gep(y_row, [I64(v * lanes)]) for v in range(num_vectors)]
                if not is_zipped:
                    found = [load_bits(builder, place, word, lanes) for place in places]
                    return [_half(builder, part, args[7]) for part in found] if is_halved else found
                seconds = [builder.gep(place, [args[6]]) for place in places]
                if num_vectors == 1:
                    return [zipped(builder, places[0], seconds[0], lanes)]
                pairs = list(zip(places, seconds, strict=True))[::2]
                return [part for pair in pairs for part in interleaved(builder, *pair, lanes)]

            def step(k: Value, sums: list[Value]) -> list[Value]:
                offset = builder.mul(args[5], k)
                y_row = builder.gep(y_first, [offset])
                parts = parts_of(y_row)
                if num_rows < TILE_ROWS and row == 0:
                    for second in [I64(0), args[6]] if is_zipped else [I64(0)]:
                        ahead_row = builder.gep(ahead, [builder.add(offset, second)])
                        prefetch(builder, ahead_row, num_vectors * lanes, item_bytes(y))
                results = []
                for r in range(pass_rows):
                    factor = builder.load(builder.gep(x_rows[r], [k]))
                    many = splat(builder, factor, lanes)
                    for v in range(num_vectors):
                        total = sums[r * num_vectors + v]
                        results.append(multiply_add(builder, many, parts[v], total))
                return results

            kind = element(out)
            starts = [load_bits(builder, pointer, kind, lanes) for pointer in pointers]
            sums = loop(builder, args[11], 1, starts, step)
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


def _sums_tile(num_columns: int, lanes: int) -> Intrinsic:
    """An intrinsic for out[c] = sums[c] / total, rounded, of what a tile of values has added up."""

    @intrinsic
    def tile(
        typing_context: Context, sums: Type, sums_at: Type, total: Type, out: Type, out_at: Type
    ) -> Codegen:
        index = types.intp
        signature = types.void(sums, index, sums.dtype, out, index)
        is_narrow = out.dtype == types.uint16

        def codegen(
            context: Context, builder: Builder, signature: Signature, args: Values
        ) -> Value:
            first = at(context, builder, sums, args[0], args[1])
            out_first = at(context, builder, out, args[3], args[4])
            totals = splat(builder, args[2], lanes)
            columns = range(0, num_columns, lanes)
            parts = []
            for column in columns:
                pointer = builder.gep(first, [I64(column)])
                part = load_bits(builder, pointer, element(sums), lanes)
                parts.append(builder.fdiv(part, totals))
            if is_narrow and num_columns > lanes:
                pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
                parts = [part for pair in pairs for part in _in_order(builder, *pair)]
            for column, part in zip(columns, parts, strict=True):
                result = bfloat16_of(builder, part) if is_narrow else part
                store(builder, result, builder.gep(out_first, [I64(column)]))
            return context.get_dummy_value()

        return signature, codegen

    return tile


def _in_order(builder: Builder, low: Value, high: Value) -> list[Value]:
    """What `interleaved` has taken apart."""
    lanes = low.type.count
    places = [
        half * lanes + 4 * i + j for i in range(lanes // 4) for half in (0, 1) for j in range(4)
    ]
    masks = [ir.Constant(vector(I32, lanes), places[n : n + lanes]) for n in (0, lanes)]
    return [builder.shuffle_vector(low, high, mask) for mask in masks]


store_sums_64 = _sums_tile(64, PASS[2])
store_sums_8 = _sums_tile(LANES, LANES)


def _key_tile(num_heads: int) -> Intrinsic:
    """An intrinsic for the scores of `num_heads` queries with 8 keys.

    x: words, rows of `depth`; a score is scaled when it is complete. Keys stand one after the
    other; where there are fewer, the last stands for the missing ones. While it runs, it fetches
    as many elements as the keys have from `ahead_at` on.
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
        scale: Type,
        out: Type,
        out_at: Type,
        out_stride: Type,
        ahead_at: Type,
    ) -> Codegen:
        index = types.intp
        signature = types.void(x, index, y, *(index,) * 3, out.dtype, out, *(index,) * 3)
        word = word_type(y)
        per_word = 2 if word == I32 else 1

        def codegen(
            context: Context, builder: Builder, signature: Signature, args: Values
        ) -> Value:
            depth, row_size = args[5], builder.mul(args[5], I64(per_word))
            x_first = words_at(context, builder, x, args[0], args[1], word)
            x_rows = [builder.gep(x_first, [builder.mul(depth, I64(h))]) for h in range(num_heads)]
            y_rows = rows_of_8(
                builder, at(context, builder, y, args[2], args[3]), args[4], row_size
            )
            ahead = at(context, builder, y, args[2], args[10])

            def step(k: Value, sums: list[Value]) -> list[Value]:
                offset = builder.mul(k, I64(per_word))
                line = builder.gep(ahead, [builder.mul(offset, I64(LANES))])
                prefetch(builder, line, LANES * QUAD * per_word, item_bytes(y))
                columns = columns_of_8(
                    builder, [builder.gep(row, [offset]) for row in y_rows], word
                )
                results = list(sums)
                for w, column in enumerate(columns):
                    for h, x_row in enumerate(x_rows):
                        factor = builder.load(builder.gep(x_row, [builder.add(k, I64(w))]))
                        many = splat(builder, factor)
                        results[h] = multiply_add(builder, many, column, results[h])
                return results

            zeros = [constant(vector(element(out)), 0.0)] * num_heads
            scales = splat(builder, args[6])
            out_first = at(context, builder, out, args[7], args[8])
            for h, total in enumerate(loop(builder, depth, QUAD, zeros, step)):
                pointer = builder.gep(out_first, [builder.mul(args[9], I64(h))])
                store(builder, builder.fmul(total, scales), pointer)
            return context.get_dummy_value()

        return signature, codegen

    return tile


scores_1_by_8 = _key_tile(1)
scores_2_by_8 = _key_tile(2)
