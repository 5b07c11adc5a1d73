"""How attention keeps and takes words: bfloat16 in pairs of neighbours, other numbers one by one.

Words are kept in arrays of the computing type, whatever their bits mean; `like`, an array of the
elements that queries, keys and values have, says which it is.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu.simd import (
    I16,
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
    at,
    constant,
    load_bits,
    vector,
    word_type,
)

QUAD = 4  # words of a key that are taken at once: 8 bfloat16, the least that head_dim is made of
LINE_BYTES = 64


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

    One instruction each, where `zipped` takes four; `store_sums_64` puts the columns in order.
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


def prefetch(builder: Builder, pointer: Value, num_elements: int, size_bytes: int) -> None:
    """Fetch the lines of so many elements of `size_bytes` for reading into the second cache."""
    for offset in range(0, num_elements * size_bytes, LINE_BYTES):
        _prefetch(builder, builder.gep(pointer, [I64(offset // size_bytes)]))


def item_bytes(kind: Type) -> int:
    """Of an element of an array."""
    return int(kind.dtype.bitwidth) // 8
