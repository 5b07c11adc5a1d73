"""One matrix product by several threads: each takes panels of columns until none is left.

For steps of few rows, which reading the weights bounds: cut by rows, every thread would read all of
them. A column's bits do not depend on who computes it.

    state    ticket, done, open, job, each on a cache line of its own, all int64
    leader   writes the job, sets done and then ticket to 0, takes shares like the others, and waits
             until done counts all of them
    helper   while open: ticket += 1; a number below NUM_SHARES is its share; then done += 1

A job is written over only when all of its shares are done, so whoever holds a ticket below
NUM_SHARES reads the job of that ticket. Nobody waits for a helper that has no share: one that the
system does not run costs nothing but its help. Helpers spin, for at most SPINS without work: they
are let in for a step and sent away after it.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.cpu.arrays import Array
from kernels.cpu.jit import compiled
from kernels.cpu.matmul import PackedWeight, matmul_columns
from kernels.cpu.simd import I64, Builder, Codegen, Context, Signature, Type, Value, Values

NUM_SHARES = 8  # two per thread of four; one takes 5 us of the smallest product
LINE = 8  # words of a cache line
TICKET, DONE, OPEN, JOB = 0, LINE, 2 * LINE, 3 * LINE
STATE_WORDS = 6 * LINE
SPINS = 20_000  # about 0.7 ms: the longest that a step goes without a product is its sampling


class ProductTeam:
    """`product` is for one leader at a time, `serve` for any number of helpers."""

    def __init__(self) -> None:
        self._memory = np.zeros(STATE_WORDS + LINE, np.int64)
        skip = -(self._memory.ctypes.data // 8) % LINE
        self._state = self._memory[skip : skip + STATE_WORDS]
        self._state[TICKET] = NUM_SHARES  # nothing to do
        self._like: tuple[Array, Array] | None = None
        self.is_open = False

    def open(self) -> None:
        """Helpers may serve from now on."""
        self._state[OPEN] = 1
        self.is_open = True

    def close(self) -> None:
        """Those that serve return."""
        self.is_open = False
        self._state[OPEN] = 0

    def serve(self) -> None:
        """Help until the team is closed, or nothing came for long."""
        if self._like is not None:
            help_out(self._state, *self._like)

    def product(self, x: int, num_rows: int, packed: PackedWeight, out: int) -> None:
        """`matmul_panels` on the addresses of x [num_rows, K] and out."""
        if self._like is None:
            self._like = packed.panels, packed.bias
        lead(
            self._state, x, num_rows, packed.depth, packed.panels, packed.bias, out,
            packed.num_outputs,
        )  # fmt: skip


@compiled
def lead(
    state: Array,
    x: int,
    num_rows: int,
    depth: int,
    panels: Array,
    bias: Array,
    out: int,
    num_outputs: int,
) -> None:
    """A product whose columns are shared with whoever serves."""
    state[JOB] = x
    state[JOB + 1] = num_rows
    state[JOB + 2] = depth
    state[JOB + 3] = panels.ctypes.data
    state[JOB + 4] = panels.shape[0]
    state[JOB + 5] = panels.shape[1]
    state[JOB + 6] = bias.ctypes.data
    state[JOB + 7] = out
    state[JOB + 8] = num_outputs
    store_release(state, DONE, 0)
    store_release(state, TICKET, 0)
    while True:
        share = add_one(state, TICKET)
        if share >= NUM_SHARES:
            break
        begin = panels.shape[0] * share // NUM_SHARES
        end = panels.shape[0] * (share + 1) // NUM_SHARES
        matmul_columns(x, num_rows, depth, panels, bias, out, num_outputs, begin, end)
        add_one(state, DONE)
    while load_acquire(state, DONE) < NUM_SHARES:
        pause()


@compiled
def help_out(state: Array, like_panels: Array, like_bias: Array) -> None:
    """Take shares of the leader's products; the arrays only say of which types they are."""
    num_idle = 0
    while load_acquire(state, OPEN) != 0 and num_idle < SPINS:
        if load_acquire(state, TICKET) >= NUM_SHARES:
            pause()
            num_idle += 1
            continue
        share = add_one(state, TICKET)
        if share >= NUM_SHARES:
            continue
        num_idle = 0
        num_panels, panel = state[JOB + 4], like_panels.shape[2]
        shape = (num_panels, state[JOB + 5], panel)
        panels = carray(pointer_to(state[JOB + 3], like_panels), shape)
        bias = carray(pointer_to(state[JOB + 6], like_bias), (num_panels * panel,))
        begin, end = num_panels * share // NUM_SHARES, num_panels * (share + 1) // NUM_SHARES
        matmul_columns(
            state[JOB], state[JOB + 1], state[JOB + 2], panels, bias, state[JOB + 7],
            state[JOB + 8], begin, end,
        )  # fmt: skip
        add_one(state, DONE)


def _word(context: Context, builder: Builder, array: Type, args: Values) -> Value:
    """Pointer to an element of an int64 array."""
    memory = context.make_array(array)(context, builder, args[0]).data
    return builder.gep(memory, [args[1]])


@intrinsic
def add_one(typing_context: Context, state: Type, place: Type) -> Codegen:
    """state[place] += 1 for all threads at once; the number before."""
    signature = types.int64(state, types.intp)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        word = _word(context, builder, signature.args[0], args)
        return builder.atomic_rmw("add", word, I64(1), "acq_rel")

    return signature, codegen


@intrinsic
def load_acquire(typing_context: Context, state: Type, place: Type) -> Codegen:
    """state[place]; what was written before it was stored is seen from then on."""
    signature = types.int64(state, types.intp)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        word = _word(context, builder, signature.args[0], args)
        return builder.load_atomic(word, "acquire", 8)

    return signature, codegen


@intrinsic
def store_release(typing_context: Context, state: Type, place: Type, value: Type) -> Codegen:
    """state[place] = value, after all that was written before."""
    signature = types.void(state, types.intp, types.int64)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        word = _word(context, builder, signature.args[0], args)
        builder.store_atomic(args[2], word, "release", 8)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def pause(typing_context: Context) -> Codegen:
    """Tell the core that this is a loop of waiting; nothing where there is no such instruction."""

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        if str(builder.module.triple).startswith("x86"):
            kind = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def pointer_to(typing_context: Context, address: Type, like: Type) -> Codegen:
    """An address as a pointer to elements of the array `like`."""
    signature = types.CPointer(like.dtype)(types.int64, like)

    def codegen(context: Context, builder: Builder, signature: Signature, args: Values) -> Value:
        kind: Any = context.get_data_type(signature.return_type)
        return builder.inttoptr(args[0], kind)

    return signature, codegen
