"""Vector building blocks for the numba kernels, written as LLVM IR so that the arithmetic is fixed.

numba without fastmath neither reorders nor contracts floating point, so a scalar loop has one exact
result, vectorised or not; but strict sums do not vectorise. These intrinsics are where lanes and
fused multiply-adds are chosen by hand: the order of additions depends on the operands' length only,
never on how many rows are computed together. Arrays are float32, float64 or uint16 (bfloat16 bits),
addressed by offsets into their flat memory; all arithmetic is float32 (float64 for float64).
"""

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu.host import HAS_BF16_DOT

LANES = 8  # one AVX register of float32; LLVM splits it where registers are shorter
WORD_BITS = 32  # a pair of bfloat16, neighbours in what is added up, or one float32
I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
F32, F64 = ir.FloatType(), ir.DoubleType()

# llvmlite and numba ship no types.
Builder = Any
Value = Any
Values = Any
Type = Any
Context = Any
Signature = Any
Intrinsic = Any
Codegen = tuple[Signature, Callable[[Context, Builder, Signature, Values], Value]]
Body = Callable[[Value, list[Value]], list[Value]]


def element(array_type: Type) -> Type:
    """The type in which elements of an array are computed."""
    return F64 if array_type.dtype == types.float64 else F32


def vector(element: Type, lanes: int = LANES) -> Type:
    return ir.VectorType(element, lanes)


def constant(like: Type, value: float) -> Value:
    """`value` as a scalar, or in every lane, of the type `like`."""
    return ir.Constant(like, [value] * like.count if isinstance(like, ir.VectorType) else value)


def call_math(builder: Builder, name: str, *args: Value) -> Value:
    """An LLVM intrinsic such as `fma` on scalars or vectors of one type."""
    kind = args[0].type
    is_vector = isinstance(kind, ir.VectorType)
    element = kind.element if is_vector else kind
    suffix = (f"v{kind.count}" if is_vector else "") + ("f64" if element == F64 else "f32")
    signature = ir.FunctionType(kind, [kind] * len(args))
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.{suffix}")
    return builder.call(function, args)


def multiply_add(builder: Builder, factor: Value, column: Value, total: Value) -> Value:
    """One link of a chain, in every lane: factor * column + total, fused.

    int32 are pairs of bfloat16: two links, of the second pair first, as `vdpbf16ps` has them.
    """
    if column.type.element != I32:
        return call_math(builder, "fma", factor, column, total)
    lanes = column.type.count
    if HAS_BF16_DOT and lanes in (8, 16):
        signature = ir.FunctionType(total.type, [total.type, factor.type, factor.type])
        name = f"llvm.x86.avx512bf16.dpbf16ps.{lanes * WORD_BITS}"
        function = cgutils.get_or_insert_function(builder.module, signature, name)
        return builder.call(function, [total, factor, column])
    second, half = constant(column.type, -0x10000), constant(column.type, 16)
    for part in (lambda x: builder.and_(x, second), lambda x: builder.shl(x, half)):
        widened = (builder.bitcast(part(x), total.type) for x in (factor, column))
        total = call_math(builder, "fma", *widened, total)
    return total


def splat(builder: Builder, value: Value, lanes: int = LANES) -> Value:
    undefined = ir.Constant(vector(value.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(vector(I32, lanes), None))


def load(builder: Builder, pointer: Value, lanes: int = LANES) -> Value:
    """Consecutive elements, widened; memory needs no more alignment than one element."""
    kind = pointer.type.pointee
    typed = builder.bitcast(pointer, vector(kind, lanes).as_pointer())
    if kind != I16:
        return builder.load(typed, align=8 if kind == F64 else 4)
    bits = builder.zext(builder.load(typed, align=2), vector(I32, lanes))
    bits = builder.shl(bits, constant(vector(I32, lanes), 16))
    return builder.bitcast(bits, vector(F32, lanes))


def load_bits(builder: Builder, pointer: Value, kind: Type, lanes: int) -> Value:
    """`lanes` of `kind` from memory that has what a pointer points to, as they are."""
    typed = builder.bitcast(pointer, vector(kind, lanes).as_pointer())
    return builder.load(typed, align={I16: 2, I32: 4, F32: 4, F64: 8}[pointer.type.pointee])


def store(builder: Builder, vector: Value, pointer: Value) -> None:
    """A vector to memory; what the memory is declared to hold only says how it is aligned."""
    typed = builder.bitcast(pointer, vector.type.as_pointer())
    builder.store(vector, typed, align={I16: 2, I32: 4, F32: 4, F64: 8}[pointer.type.pointee])


def word_type(array_type: Type) -> Type:
    """What elements of an array are multiplied as: bfloat16 in pairs, others one by one."""
    return I32 if array_type.dtype == types.uint16 else element(array_type)


def at(context: Context, builder: Builder, kind: Type, array: Value, offset: Value) -> Value:
    """Pointer to element `offset` of an array's flat memory."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [offset])


def _shuffle(builder: Builder, a: Value, b: Value, lanes: list[int]) -> Value:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def _add_neighbours(builder: Builder, a: Value, b: Value) -> Value:
    """Sums of neighbouring lanes of a and b, in the lane order of x86's horizontal addition."""
    even = _shuffle(builder, a, b, [0, 2, 8, 10, 4, 6, 12, 14])
    odd = _shuffle(builder, a, b, [1, 3, 9, 11, 5, 7, 13, 15])
    return builder.fadd(even, odd)


def add_lanes(builder: Builder, vectors: list[Value]) -> Value:
    """Eight vectors to the vector of their eight lane sums, each a tree: 1 + 1, 2 + 2, 4 + 4."""
    pairs = [_add_neighbours(builder, vectors[i], vectors[i + 1]) for i in (0, 2, 4, 6)]
    low = _add_neighbours(builder, pairs[0], pairs[1])
    high = _add_neighbours(builder, pairs[2], pairs[3])
    firsts = _shuffle(builder, low, high, [0, 1, 2, 3, 8, 9, 10, 11])
    seconds = _shuffle(builder, low, high, [4, 5, 6, 7, 12, 13, 14, 15])
    return builder.fadd(firsts, seconds)


def fold(builder: Builder, vector: Value, combine: Callable[[Value, Value], Value]) -> Value:
    """The lanes of one vector combined by the tree of `add_lanes`."""
    lanes = [builder.extract_element(vector, I32(i)) for i in range(LANES)]
    while len(lanes) > 1:
        lanes = [combine(lanes[i], lanes[i + 1]) for i in range(0, len(lanes), 2)]
    return lanes[0]


def exp_of(builder: Builder, x: Value) -> Value:
    """e^x within 2 units in the last place; 0 below the smallest normal result, NaN for NaN.

    x = n ln 2 + r; a Taylor polynomial in r, whose degree makes its error smaller than rounding
    (|r| <= 0.35), times 2^n, which is n shifted into the exponent.
    """
    kind = x.type
    is_double = (kind.element if isinstance(kind, ir.VectorType) else kind) == F64
    lowest, highest, degree = (-708.0, 709.0, 13) if is_double else (-87.0, 88.0, 7)
    mantissa = 52 if is_double else 23
    # ln 2 in two parts, of which the second has the bits that the first lacks.
    ln2_high = float.fromhex("0x1.62e42fee00000p-1" if is_double else "0x1.62e400p-1")
    ln2_low = 1.90821492927058770002e-10 if is_double else math.log(2) - ln2_high
    whole = I64 if is_double else I32
    integer = vector(whole, kind.count) if isinstance(kind, ir.VectorType) else whole
    too_low = builder.fcmp_ordered("<", x, constant(kind, lowest))
    limit = constant(kind, highest)
    x = builder.select(builder.fcmp_ordered(">", x, limit), limit, x)
    # Adding 1.5 * 2^mantissa rounds to an integer and leaves it in the low bits.
    magic = constant(kind, 1.5 * 2.0**mantissa)
    shifted = call_math(builder, "fma", x, constant(kind, 1 / math.log(2)), magic)
    n = builder.fsub(shifted, magic)
    r = call_math(builder, "fma", n, constant(kind, -ln2_high), x)
    r = call_math(builder, "fma", n, constant(kind, -ln2_low), r)
    result = constant(kind, 1 / math.factorial(degree))
    for power in range(degree - 1, -1, -1):
        result = call_math(builder, "fma", result, r, constant(kind, 1 / math.factorial(power)))
    exponent = builder.shl(builder.bitcast(shifted, integer), constant(integer, mantissa))
    one = constant(integer, (1023 << 52) if is_double else (127 << 23))
    scale = builder.bitcast(builder.add(exponent, one), kind)
    return builder.select(too_low, constant(kind, 0.0), builder.fmul(result, scale))


def bfloat16_of(builder: Builder, x: Value) -> Value:
    """A float32 or a vector of them as bfloat16 bits, to nearest, ties to even."""
    lanes = x.type.count if isinstance(x.type, ir.VectorType) else 0
    whole, half = (vector(I32, lanes), vector(I16, lanes)) if lanes else (I32, I16)
    bits = builder.bitcast(x, whole)
    lowest_kept = builder.and_(builder.lshr(bits, constant(whole, 16)), constant(whole, 1))
    rounded = builder.add(builder.add(bits, constant(whole, 0x7FFF)), lowest_kept)
    is_nan = builder.fcmp_unordered("uno", x, x)
    rounded = builder.select(is_nan, constant(whole, 0x7FC00000), rounded)
    return builder.trunc(builder.lshr(rounded, constant(whole, 16)), half)


def bfloat16_of_normal(builder: Builder, x: Value) -> Value:
    """`bfloat16_of` for vectors of numbers that are 0 or above 1.2e-38: one instruction, if any."""
    lanes = x.type.count
    if not HAS_BF16_DOT or lanes not in (8, 16):
        return bfloat16_of(builder, x)
    signature = ir.FunctionType(vector(I16, lanes), [x.type])
    name = f"llvm.x86.avx512bf16.cvtneps2bf16.{lanes * WORD_BITS}"
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    return builder.call(function, [x])


@intrinsic
def exp(typing_context: Context, x: Type) -> Codegen:
    """e^x of one float."""
    return x(x), lambda _context, builder, _signature, args: exp_of(builder, args[0])


@intrinsic
def widen(typing_context: Context, x: Type) -> Codegen:
    """A float as it is, bfloat16 bits as float32."""

    def codegen(_context: Context, builder: Builder, _signature: Signature, args: Values) -> Value:
        if x != types.uint16:
            return args[0]
        return builder.bitcast(builder.shl(builder.zext(args[0], I32), I32(16)), F32)

    return (types.float32 if x == types.uint16 else x)(x), codegen


@intrinsic
def narrow(typing_context: Context, x: Type, like: Type) -> Codegen:
    """x as an element of the array `like`: bfloat16 is rounded to nearest, ties to even."""

    def codegen(_context: Context, builder: Builder, _signature: Signature, args: Values) -> Value:
        return args[0] if like.dtype != types.uint16 else bfloat16_of(builder, args[0])

    return like.dtype(x, like), codegen


def loop(builder: Builder, count: Value, step: int, starts: list[Value], body: Body) -> list[Value]:
    """for i in range(0, count, step): values = body(i, values); count is positive."""
    before, block, after = builder.block, *(builder.append_basic_block(n) for n in ("loop", "end"))
    builder.branch(block)
    builder.position_at_end(block)
    index = builder.phi(I64)
    index.add_incoming(I64(0), before)
    values = [builder.phi(start.type) for start in starts]
    for value, start in zip(values, starts, strict=True):
        value.add_incoming(start, before)
    results = body(index, values)
    next_index = builder.add(index, I64(step))
    index.add_incoming(next_index, builder.block)
    for value, result in zip(values, results, strict=True):
        value.add_incoming(result, builder.block)
    builder.cbranch(builder.icmp_signed("<", next_index, count), block, after)
    builder.position_at_end(after)
    return list(results)
