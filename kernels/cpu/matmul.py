"""Matrix product with packed weights whose every output is one chain of fused multiply-adds.

    out[t, n] = round(sum over k of x[t, k] * weight[n, k] + bias[n])

x [T, K], weight [N, K], out [T, N]. The sum runs over k in order in fp32 (fp64 for fp64), so that a
row's bits do not depend on T, on the row's place, on threads or on the machine's vector length.
Weights lie in panels of 16 columns, [ceil(N / 16), K, 16], which stream through the first cache
while up to 6 rows of x are kept in registers. Measured on one Zen 3 core in fp32: 80-97 GFLOP/s
from 4 rows on (oneDNN 60-88), about 25 for one row, which is bound by memory.
"""

from dataclasses import dataclass

import numpy as np
import torch

from kernels.cpu.arrays import WIDE, Array, array_of, optional_array
from kernels.cpu.jit import compiled, inlined
from kernels.cpu.simd import narrow, widen
from kernels.cpu.tiles import product_1, product_2, product_3, product_4, product_5, product_6

PANEL = 16
TILE_ROWS = 6
BLOCK_ELEMENTS = 32768  # of x: 128 KiB, which stay in the second cache while all panels pass


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """`panels` [ceil(N / 16), K, 16] in the weight's dtype, zero behind column N."""

    panels: Array
    bias: Array
    num_outputs: int
    dtype: torch.dtype


def pack_weight(weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedWeight:
    """Lay out weight [N, K] for `matmul`; the panels are a copy."""
    num_outputs, depth = weight.shape
    num_panels = -(-num_outputs // PANEL)
    padded = weight.new_zeros(num_panels * PANEL, depth)
    padded[:num_outputs] = weight
    panels = padded.view(num_panels, PANEL, depth).transpose(1, 2).contiguous()
    return PackedWeight(array_of(panels), optional_array(bias, weight), num_outputs, weight.dtype)


def matmul(x: torch.Tensor, packed: PackedWeight) -> torch.Tensor:
    """x [T, K] of the weight's dtype -> [T, N]."""
    out = torch.empty(x.shape[0], packed.num_outputs, dtype=packed.dtype)
    wide = x if x.dtype == WIDE[packed.dtype] else x.to(WIDE[packed.dtype])
    matmul_panels(array_of(wide.contiguous()), packed.panels, packed.bias, array_of(out))
    return out


@compiled
def matmul_panels(x: Array, panels: Array, bias: Array, out: Array) -> None:
    """`matmul` on arrays: x [T, K] of the computing type, panels, bias [N] or [0], out [T, N]."""
    num_rows, depth = x.shape
    tile = np.empty((TILE_ROWS, PANEL), x.dtype)
    block = max(TILE_ROWS, BLOCK_ELEMENTS // depth // TILE_ROWS * TILE_ROWS)
    for first in range(0, num_rows, block):
        last = min(first + block, num_rows)
        for panel in range(panels.shape[0]):
            row = first
            while row < last:
                # 7 and 8 rows as 4 and the rest: 6 and 1 or 2 would leave the second tile slow.
                left = last - row
                count = 4 if left in (7, 8) else min(left, TILE_ROWS)
                _product(count, x, row * depth, depth, panels, panel * depth * PANEL, tile)
                _write(tile, count, row, panel * PANEL, bias, out)
                row += count


@inlined
def _product(
    count: int, x: Array, x_at: int, depth: int, panels: Array, panel_at: int, tile: Array
) -> None:
    """tile[r, c] = product of `count` rows of x with one panel."""
    if count == 6:
        product_6(x, x_at, depth, panels, panel_at, PANEL, tile, 0, PANEL, depth)
    elif count == 5:
        product_5(x, x_at, depth, panels, panel_at, PANEL, tile, 0, PANEL, depth)
    elif count == 4:
        product_4(x, x_at, depth, panels, panel_at, PANEL, tile, 0, PANEL, depth)
    elif count == 3:
        product_3(x, x_at, depth, panels, panel_at, PANEL, tile, 0, PANEL, depth)
    elif count == 2:
        product_2(x, x_at, depth, panels, panel_at, PANEL, tile, 0, PANEL, depth)
    else:
        product_1(x, x_at, depth, panels, panel_at, PANEL, tile, 0, PANEL, depth)


@inlined
def _write(tile: Array, count: int, row: int, column: int, bias: Array, out: Array) -> None:
    """Add the bias, round, and store the tile's columns that exist."""
    width = min(PANEL, out.shape[1] - column)
    if len(bias) > 0:
        for r in range(count):
            for c in range(width):
                tile[r, c] += widen(bias[column + c])
    if width == PANEL:  # a known length becomes two vector stores
        for r in range(count):
            for c in range(PANEL):
                out[row + r, column + c] = narrow(tile[r, c], out)
    else:
        for r in range(count):
            for c in range(width):
                out[row + r, column + c] = narrow(tile[r, c], out)
