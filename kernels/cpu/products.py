"""Register tiles of the packed matrix product, sized for the registers that the host has.

x lies in words, what one step of a chain multiplies: a float64, a float32 (bfloat16 widened), or
where the host has `vdpbf16ps` a pair of bfloat16 that are neighbours in k. The type of the panels
says which of these it is:

    panels    x         a word of x   a step
    float64   float64   float64       fused multiply-add
    float32   float32   float32       fused multiply-add
    uint16    bfloat16  float32       fused multiply-add, panels widened
    int32     bfloat16  int32         pair-dot

Every output is one chain of steps that starts at zero, whatever is computed beside it. The chain of
float32 and float64 goes through k in order. `vdpbf16ps` is two fused multiply-adds, of the second
pair first (Intel's manual says so; equal bits on Zen 4 in 3 million random cases), so that the
chain of bfloat16 goes through k as 1, 0, 3, 2, ... on every host: uint16 panels and the words of x
for them are laid out in that order. Only numbers below 1.2e-38 differ: `vdpbf16ps` takes them as 0.

Arrays that a caller keeps are addressed as integers: making numpy arrays of torch tensors for every
call costs as much as the product of a small layer.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu.host import HAS_AVX512, VECTOR_BYTES
from kernels.cpu.simd import (
    F32,
    F64,
    I16,
    I32,
    I64,
    Builder,
    Codegen,
    Context,
    Signature,
    Type,
    Value,
    Values,
    at,
    bfloat16_of,
    constant,
    load,
    loop,
    multiply_add,
    splat,
    vector,
)

# 12 x 2 vectors of sums, 2 of a panel and a factor in 32 registers; 6 x 2 in the 16 of AVX2.
TILE_ROWS = 12 if HAS_AVX512 else 6
NUM_VECTORS = 2
# Words of a row that lie together: tiles of x are [ceil(depth / BLOCK), rows, BLOCK], so that one
# pointer reaches all rows. A vector, so that packing is copying vectors.
BLOCK = VECTOR_BYTES // 4


def lanes_of(panels: Type) -> int:
    """Columns of one vector of sums."""
    return VECTOR_BYTES // (8 if panels.dtype == types.float64 else 4)


def _sum_type(panels: Type) -> Type:
    return F64 if panels.dtype == types.float64 else F32


def _outer_type(panels: Type) -> Type:
    """Of the elements of x and out."""
    narrow = panels.dtype in (types.uint16, types.int32)
    return I16 if narrow else _sum_type(panels)


def _word_type(panels: Type) -> Type:
    return I32 if panels.dtype == types.int32 else _sum_type(panels)


def _element(builder: Builder, address: Value, kind: Type, offset: Value) -> Value:
    """Pointer to an element of memory that is addressed by an integer."""
    return builder.gep(builder.inttoptr(address, kind.as_pointer()), [offset])


def _sums(
    builder: Builder, panels: Type, num_rows: int, words: Value, panel: Value, depth: Value
) -> list[Value]:
    """The chains of `num_rows` x NUM_VECTORS vectors, row by row."""
    lanes = lanes_of(panels)
    width = NUM_VECTORS * lanes

    def step(k: Value, sums: list[Value]) -> list[Value]:
        columns = []
        for v in range(NUM_VECTORS):
            pointer = builder.gep(panel, [builder.add(builder.mul(k, I64(width)), I64(v * lanes))])
            columns.append(load(builder, pointer, lanes))
        place = builder.and_(k, I64(BLOCK - 1))
        block = builder.mul(builder.sub(k, place), I64(num_rows))
        first = builder.gep(words, [builder.add(block, place)])
        results = []
        for r in range(num_rows):
            word = builder.load(builder.gep(first, [I64(r * BLOCK)]))
            factor = splat(builder, word, lanes)
            for v in range(NUM_VECTORS):
                total = sums[r * NUM_VECTORS + v]
                results.append(multiply_add(builder, factor, columns[v], total))
        return results

    zero = constant(vector(_sum_type(panels), lanes), 0.0)
    return loop(builder, depth, 1, [zero] * (num_rows * NUM_VECTORS), step)


@intrinsic
def product_rows(
    typing_context: Context,
    words: Type,
    words_at: Type,
    panels: Type,
    panel_at: Type,
    bias: Type,
    bias_at: Type,
    out: Type,
    out_at: Type,
    out_stride: Type,
    num_rows: Type,
    depth: Type,
) -> Codegen:
    """out[r, c] = round(chain over k of x[r, k] * panel[k, c] + bias[c]) for a panel's columns.

    words: a tile of x as `pack_row` leaves it, in an array of the type of sums. out: an address.
    num_rows: at most TILE_ROWS. depth: positive, in words.
    """
    index = types.intp
    signature = types.void(
        words, index, panels, index, bias, index, index, index, index, index, index
    )

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        lanes = lanes_of(panels)
        tile = at(context, builder, words, args[0], args[1])
        tile = builder.bitcast(tile, _word_type(panels).as_pointer())
        panel = at(context, builder, panels, args[2], args[3])
        bias_first = at(context, builder, bias, args[4], args[5])
        out_first = _element(builder, args[6], _outer_type(panels), args[7])
        after = builder.append_basic_block("after")
        switch = builder.switch(args[9], after)
        for count in range(1, TILE_ROWS + 1):
            block = builder.append_basic_block(f"rows_{count}")
            switch.add_case(I64(count), block)
            builder.position_at_end(block)
            sums = _sums(builder, panels, count, tile, panel, args[10])
            for i, total in enumerate(sums):
                r, v = divmod(i, NUM_VECTORS)
                addend = load(builder, builder.gep(bias_first, [I64(v * lanes)]), lanes)
                place = builder.add(builder.mul(args[8], I64(r)), I64(v * lanes))
                _store(builder, builder.fadd(total, addend), builder.gep(out_first, [place]))
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return signature, codegen


def _store(builder: Builder, total: Value, pointer: Value) -> None:
    """A vector of sums, rounded where the memory holds bfloat16."""
    kind = pointer.type.pointee
    result = bfloat16_of(builder, total) if kind == I16 else total
    align = {I16: 2, F32: 4, F64: 8}[kind]
    builder.store(result, builder.bitcast(pointer, result.type.as_pointer()), align=align)


def _copy_words(builder: Builder, source: Value, target: Value, count: int) -> None:
    """`count` words of x as one vector; neighbours change places where bfloat16 is widened."""
    kind = target.type.pointee
    if kind == I32:
        source = builder.bitcast(source, vector(I32, count).as_pointer())
        part = builder.load(source, align=2)
    else:
        part = load(builder, source, count)
        if source.type.pointee == I16 and count > 1:
            swapped = ir.Constant(vector(I32, count), [i ^ 1 for i in range(count)])
            part = builder.shuffle_vector(part, part, swapped)
    builder.store(
        part, builder.bitcast(target, part.type.as_pointer()), align=8 if kind == F64 else 4
    )


@intrinsic
def pack_row(
    typing_context: Context,
    x: Type,
    x_at: Type,
    words: Type,
    words_at: Type,
    num_rows: Type,
    panels: Type,
    depth: Type,
) -> Codegen:
    """Copy a row of x (an address) into a tile of `num_rows` rows; depth: positive, in words."""
    index = types.intp
    signature = types.void(index, index, words, index, index, panels, index)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        source = _element(builder, args[0], _outer_type(panels), args[1])
        target = at(context, builder, words, args[2], args[3])
        target = builder.bitcast(target, _word_type(panels).as_pointer())
        per_word = 2 if panels.dtype == types.int32 else 1
        whole = builder.and_(args[6], I64(-BLOCK))
        rest = builder.sub(args[6], whole)

        def copy(k: Value, read_at: Value, count: int) -> list[Value]:
            place = builder.and_(k, I64(BLOCK - 1))
            block = builder.mul(builder.sub(k, place), args[4])
            reader = builder.gep(source, [builder.mul(read_at, I64(per_word))])
            _copy_words(builder, reader, builder.gep(target, [builder.add(block, place)]), count)
            return []

        def copy_one(i: Value, _values: list[Value]) -> list[Value]:
            k = builder.add(whole, i)
            if panels.dtype != types.uint16:
                return copy(k, k, 1)
            neighbour = builder.xor(k, I64(1))
            is_there = builder.icmp_signed("<", neighbour, args[6])
            return copy(k, builder.select(is_there, neighbour, k), 1)

        with builder.if_then(builder.icmp_signed(">", whole, I64(0))):
            loop(builder, whole, BLOCK, [], lambda k, _: copy(k, k, BLOCK))
        with builder.if_then(builder.icmp_signed(">", rest, I64(0))):
            loop(builder, rest, 1, [], copy_one)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def copy_elements(
    typing_context: Context,
    source: Type,
    source_at: Type,
    target: Type,
    target_at: Type,
    count: Type,
    panels: Type,
) -> Codegen:
    """Copy elements of out's type from one address to another."""
    signature = types.void(*(types.intp,) * 5, panels)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        kind = _outer_type(panels)
        size = {I16: 2, F32: 4, F64: 8}[kind]
        reader = _element(builder, args[0], kind, args[1])
        writer = _element(builder, args[2], kind, args[3])
        cgutils.raw_memcpy(builder, writer, reader, args[4], size)
        return context.get_dummy_value()

    return signature, codegen
