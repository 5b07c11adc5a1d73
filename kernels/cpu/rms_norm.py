"""`kernels/rms_norm.py` on the CPU: one pass per row, the sum of squares in eight fixed lanes."""

import math

import torch

from kernels.cpu.arrays import WIDE, Array, array_of
from kernels.cpu.jit import compiled
from kernels.cpu.simd import LANES, narrow, widen
from kernels.cpu.tiles import dot


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(normed, residual_out) of x [T, H]; see `rms_norm_reference`."""
    normed = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    added = x if residual is None else residual
    rms_norm_rows(
        array_of(x),
        array_of(added),
        residual is not None,
        array_of(weight),
        eps,
        torch.empty(x.shape[1], dtype=WIDE[x.dtype]).numpy(),
        array_of(normed),
        array_of(total),
    )
    return normed, total


@compiled
def rms_norm_rows(
    x: Array,
    residual: Array,
    has_residual: bool,
    weight: Array,
    eps: float,
    row: Array,
    normed: Array,
    total: Array,
) -> None:
    """`rms_norm` on arrays [T, H]; `row` is scratch of the computing type [H]."""
    size = x.shape[1]
    whole = size // LANES * LANES
    one = row.dtype.type(1.0)
    for t in range(x.shape[0]):
        if has_residual:
            for i in range(size):
                total[t, i] = narrow(widen(x[t, i]) + widen(residual[t, i]), total)
        for i in range(size):
            row[i] = widen(total[t, i])
        squares = dot(row, 0, row, 0, whole) if whole > 0 else row.dtype.type(0.0)
        for i in range(whole, size):
            squares += row[i] * row[i]
        scale = one / math.sqrt(squares / row.dtype.type(size) + row.dtype.type(eps))
        for i in range(size):
            value = widen(narrow(row[i] * scale, normed))
            normed[t, i] = narrow(widen(weight[i]) * value, normed)
