"""The operations on the CPU: numba kernels and packed products over numpy arrays.

Each function here gives its kernel memory to write to and calls it, in about 1 us; the arguments
are those of `engine/ops.py`. All of it may run in several threads at once.
"""

from functools import partial
from typing import Literal

import numpy as np
import torch

from engine.batch import Batch
from engine.linear import PanelLinear, cpu_linears
from engine.ops import Linear, Ops
from kernels.cpu.arrays import Array, array_of
from kernels.cpu.attention import NO_WINDOW, paged_attention_rows
from kernels.cpu.matmul import PackedWeight, matmul_panels
from kernels.cpu.rms_norm import rms_norm_rows
from kernels.cpu.rope import rope_write_rows
from kernels.cpu.silu_and_mul import silu_and_mul_rows
from kernels.cpu.team import ProductTeam

BITS = np.dtype(np.uint16)  # of bfloat16
ONES = {dtype: np.ones(1, dtype) for dtype in (np.float32, np.float64)}


def cpu_ops(
    numerics: Literal["invariant", "fast"], dtype: torch.dtype, team: ProductTeam | None = None
) -> Ops:
    """numba kernels and packed products; one attention kernel for all rows of a batch.

    While `team` is open, products are shared with whoever serves it.
    """
    make_tensor_linear = cpu_linears(numerics, dtype)

    def make_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        linear = make_tensor_linear(weight, bias)
        if isinstance(linear, PanelLinear):
            return partial(product, packed=linear.packed, team=team)
        return lambda x: array_of(linear(tensor_of(x)))

    return Ops(
        name=f"cpu, {numerics}",
        rms_norm=rms_norm,
        rope_write=rope_write,
        silu_and_mul=silu_and_mul,
        attention=attention,
        make_linear=make_linear,
        embed=lambda token_ids, table: table[token_ids],
        load=array_of,
        unload=tensor_of,
        takes_arrays=True,
    )


def tensor_of(array: Array) -> torch.Tensor:
    """A view of an array's memory; uint16 as bfloat16."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == BITS else tensor


def product(x: Array, packed: PackedWeight, team: ProductTeam | None = None) -> Array:
    """x [T, K] -> [T, N]; `kernels.cpu.matmul.matmul` without tensors."""
    num_rows, depth = x.shape
    assert depth == packed.depth and x.flags.c_contiguous
    out = np.empty((num_rows, packed.num_outputs), x.dtype)
    if team is not None and team.is_open:
        team.product(x.ctypes.data, num_rows, packed, out.ctypes.data)
        return out
    matmul_panels(
        x.ctypes.data,
        num_rows,
        depth,
        packed.panels,
        packed.bias,
        out.ctypes.data,
        packed.num_outputs,
    )
    return out


def rms_norm(
    x: Array, weight: Array, eps: float, residual: Array | None = None
) -> tuple[Array, Array]:
    """(normed, residual_out) of x [T, H]."""
    normed = np.empty_like(x)
    scratch = np.empty(x.shape[1], _wide(x))
    if residual is None:
        rms_norm_rows(x, x, False, weight, eps, scratch, normed, x)
        return normed, x
    total = np.empty_like(x)
    rms_norm_rows(x, residual, True, weight, eps, scratch, normed, total)
    return normed, total


def rope_write(
    qkv: Array,
    cos_sin: Array,
    positions: Array,
    pool: Array,
    layer: int,
    page_ids: Array,
    offsets: Array,
    num_heads: int,
    q_norm: Array | None = None,
    k_norm: Array | None = None,
    eps: float = 1e-6,
) -> Array:
    """Rotated q [T, Hq, D]; k and v go to the pool."""
    head_dim = pool.shape[5]
    query = np.empty((len(qkv), num_heads, head_dim), qkv.dtype)
    nothing = np.empty(0, qkv.dtype)
    rope_write_rows(
        qkv,
        cos_sin,
        positions,
        pool,
        layer,
        page_ids,
        offsets,
        nothing if q_norm is None else q_norm,
        nothing if k_norm is None else k_norm,
        eps,
        np.empty(head_dim, _wide(qkv)),
        query,
    )
    return query


def silu_and_mul(gate_up: Array) -> Array:
    """gate_up [T, 2 I] -> silu(gate) * up [T, I]."""
    out = np.empty((len(gate_up), gate_up.shape[1] // 2), gate_up.dtype)
    silu_and_mul_rows(gate_up, ONES[_wide(gate_up)], out)
    return out


def attention(
    q: Array, pool: Array, layer: int, batch: Batch, scale: float, window: int | None = None
) -> Array:
    """q [T, Hq, D] -> out [T, Hq, D]."""
    out = np.empty_like(q)
    paged_attention_rows(
        q,
        pool,
        layer,
        batch.block_tables,
        batch.query_starts,
        batch.positions,
        np.full(1, scale, _wide(q)),
        NO_WINDOW if window is None else window,
        out,
    )
    return out


def _wide(x: Array) -> type[np.floating]:
    """The computing type."""
    return np.float64 if x.dtype == np.float64 else np.float32
