"""Register tiles of attention: weighted sums of values, and scores of single rows with keys.

A score is one chain of multiply-adds over the dimensions, times the scale; a weighted sum is one
chain over keys. bfloat16 is multiplied in words, pairs of neighbours (dimensions of a key, slots of
values), of which the second is added first: see `simd.multiply_add`. Neither order depends on the
machine's vector length, nor on the tile.

Words are kept in arrays of the computing type, whatever their bits mean; `like`, an array of the
elements that queries, keys and values have, says which it is.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu.host import HAS_AVX512
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
LINE_BYTES = 64
QUAD = 4  # words of a key that are taken at once: 8 bfloat16, the least that head_dim is made of
BOTH, FIRST, SECOND = 0, 1, 2  # what of a word of values is seen


def words_at(
    context: Context, builder: Builder, kind: Type, array: Value, offset: Value, word: Type
) -> Value:
    """Pointer to word `offset` of an array that keeps words."""
    return builder.bitcast(at(context, builder, kind, array, offset), word.as_pointer())


def zipped(builder: Builder, first: Value, second: Value, lanes: int) -> Value:
    """Words of the elements of two rows, one below the other."""
    whole = vector(I32, lanes)
    low = builder.zext(load_bits(builder, first, I16, lanes), whole)
    high = builder.zext(load_bits(builder, second, I16, lanes), whole)
    return builder.or_(low, builder.shl(high, constant(whole, 16)))


def interleaved(builder: Builder, first: Value, second: Value, lanes: int) -> list[Value]:
    """Two vectors of words of the elements of two rows: four columns of every eight in each.

    One instruction each, where `zipped` takes four; `store_sums` puts the columns in order.
    """
    rows = [load_bits(builder, row, I16, 2 * lanes) for row in (first, second)]
    found = []
    for half in (0, 4):
        places = [
            2 * lanes * row + 8 * i + half + j
            for i in range(lanes // 4)
            for j in range(4)
            for row in (0, 1)
        ]
        mask = ir.Constant(vector(I32, 2 * lanes), places)
        words = builder.shuffle_vector(*rows, mask)
        found.append(builder.bitcast(words, vector(I32, lanes)))
    return found


def columns_of_8(builder: Builder, rows: list[Value], kind: Type) -> list[Value]:
    """The next QUAD words of 8 rows as QUAD vectors with a lane for each row."""

    def mix(a: Value, b: Value, lanes: list[int]) -> Value:
        return builder.shuffle_vector(a, b, ir.Constant(vector(I32, len(lanes)), lanes))

    quads = [load_bits(builder, row, kind, QUAD) for row in rows]
    sides = [mix(quads[i], quads[i + QUAD], list(range(8))) for i in range(QUAD)]
    low, high = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
    pairs = [mix(sides[i], sides[i + 1], lanes) for lanes in (low, high) for i in (0, 2)]
    first, second = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
    return [mix(pairs[i], pairs[i + 1], lanes) for i in (0, 2) for lanes in (first, second)]


def rows_of_8(builder: Builder, first: Value, num_rows: Value, row_size: Value) -> list[Value]:
    """Pointers to 8 rows; where there are fewer, the last stands for the missing ones."""
    last = builder.sub(num_rows, I64(1))
    rows = []
    for r in range(LANES):
        row = builder.select(builder.icmp_signed("<", I64(r), last), I64(r), last)
        rows.append(builder.gep(first, [builder.mul(row, row_size)]))
    return rows


@intrinsic
def copy_words(
    typing_context: Context, x: Type, x_at: Type, num_words: Type, out: Type, out_at: Type
) -> Codegen:
    """Elements of x, as many as make `num_words` words, to an array that keeps words."""
    signature = types.void(x, types.intp, types.intp, out, types.intp)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        source = words_at(context, builder, x, args[0], args[1], word_type(x))
        target = words_at(context, builder, out, args[3], args[4], word_type(x))
        cgutils.raw_memcpy(builder, target, source, args[2], int(out.dtype.bitwidth) // 8)
        return context.get_dummy_value()

    return signature, codegen


def _prefetch(builder: Builder, pointer: Value) -> None:
    """Fetch a line for reading into the second cache."""
    byte = ir.IntType(8).as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0i8")
    builder.call(function, [builder.bitcast(pointer, byte), I32(0), I32(2), I32(1)])


def _prefetch_all(builder: Builder, pointer: Value, num_elements: int, item_bytes: int) -> None:
    for offset in range(0, num_elements * item_bytes, LINE_BYTES):
        _prefetch(builder, builder.gep(pointer, [I64(offset // item_bytes)]))


def _item_bytes(kind: Type) -> int:
    return int(kind.dtype.bitwidth) // 8


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
                        _prefetch_all(builder, ahead_row, num_vectors * lanes, _item_bytes(y))
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


@intrinsic
def store_sums(
    typing_context: Context,
    sums: Type,
    sums_at: Type,
    total: Type,
    out: Type,
    out_at: Type,
    is_interleaved: Type,
) -> Codegen:
    """out[c] = sums[c] / total, rounded, for 8 columns, or for the 64 of a wide tile of values.

    is_interleaved: the type of a number (of 64 columns) or of None (of 8).
    """
    index = types.intp
    signature = types.void(sums, index, sums.dtype, out, index, is_interleaved)
    is_wide = not isinstance(is_interleaved, types.NoneType)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        first = at(context, builder, sums, args[0], args[1])
        out_first = at(context, builder, out, args[3], args[4])
        kind, lanes = element(sums), PASS[2] if is_wide else LANES
        totals = splat(builder, args[2], lanes)

        def write(quotient: Value, column: int) -> None:
            result = bfloat16_of(builder, quotient) if word_type(out) == I32 else quotient
            store(builder, result, builder.gep(out_first, [I64(column)]))

        columns = range(0, 64 if is_wide else LANES, lanes)
        parts = [load_bits(builder, builder.gep(first, [I64(c)]), kind, lanes) for c in columns]
        parts = [builder.fdiv(part, totals) for part in parts]
        if is_wide and word_type(out) == I32:
            parts = [
                part
                for i in range(0, len(parts), 2)
                for part in _in_order(builder, *parts[i : i + 2])
            ]
        for column, part in zip(columns, parts, strict=True):
            write(part, column)
        return context.get_dummy_value()

    return signature, codegen


def _in_order(builder: Builder, low: Value, high: Value) -> list[Value]:
    """What `interleaved` has taken apart."""
    lanes = low.type.count
    places = [
        half * lanes + 4 * i + j for i in range(lanes // 4) for half in (0, 1) for j in range(4)
    ]
    masks = [ir.Constant(vector(I32, lanes), places[n : n + lanes]) for n in (0, lanes)]
    return [builder.shuffle_vector(low, high, mask) for mask in masks]


def _key_tile(num_heads: int, num_groups: int) -> Intrinsic:
    """An intrinsic for the scores of `num_heads` queries with 8 keys, or with more groups of 8.

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
        word, item_bytes = word_type(y), _item_bytes(y)
        per_word = 2 if word == I32 else 1

        def codegen(
            context: Context, builder: Builder, signature: Signature, args: Values
        ) -> Value:
            x_first = words_at(context, builder, x, args[0], args[1], word)
            y_first = at(context, builder, y, args[2], args[3])
            out_first = at(context, builder, out, args[7], args[8])
            ahead = at(context, builder, y, args[2], args[10])
            x_rows = [
                builder.gep(x_first, [builder.mul(args[5], I64(h))]) for h in range(num_heads)
            ]
            row_size = builder.mul(args[5], I64(per_word))
            groups = []
            for group in range(num_groups):
                first = builder.gep(y_first, [builder.mul(row_size, I64(group * LANES))])
                left = builder.sub(args[4], I64(group * LANES))
                groups.append(rows_of_8(builder, first, left, row_size))
            num_ahead = num_groups * LANES * QUAD * per_word

            def step(k: Value, sums: list[Value]) -> list[Value]:
                offset = builder.mul(k, I64(per_word))
                line = builder.gep(ahead, [builder.mul(offset, I64(num_groups * LANES))])
                _prefetch_all(builder, line, num_ahead, item_bytes)
                groups_columns = [
                    columns_of_8(builder, [builder.gep(row, [offset]) for row in rows], word)
                    for rows in groups
                ]
                results = list(sums)
                for w in range(QUAD):
                    for h, x_row in enumerate(x_rows):
                        factor = builder.load(builder.gep(x_row, [builder.add(k, I64(w))]))
                        many = splat(builder, factor)
                        for g, columns in enumerate(groups_columns):
                            i = h * num_groups + g
                            results[i] = multiply_add(builder, many, columns[w], results[i])
                return results

            kind = element(out)
            zeros = [constant(vector(kind), 0.0)] * (num_heads * num_groups)
            sums = loop(builder, args[5], QUAD, zeros, step)
            scales = splat(builder, args[6])
            for i, total in enumerate(sums):
                h, g = divmod(i, num_groups)
                offset = builder.add(builder.mul(args[9], I64(h)), I64(g * LANES))
                store(builder, builder.fmul(total, scales), builder.gep(out_first, [offset]))
            return context.get_dummy_value()

        return signature, codegen

    return tile


scores_1_by_8 = _key_tile(1, 1)
scores_1_by_16 = _key_tile(1, 2)
scores_2_by_8 = _key_tile(2, 1)
scores_2_by_16 = _key_tile(2, 2)
