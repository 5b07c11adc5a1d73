"""Matrix product with packed weights whose every output is one chain of multiply-adds.

    out[t, n] = round(sum over k of x[t, k] * weight[n, k] + bias[n])

x [T, K], weight [N, K], out [T, N]. The sum runs over k in fp32 (fp64 for fp64), in an order that
`kernels/cpu/products.py` fixes, so that a row's bits depend neither on T, on the row's place, on
threads nor on the machine.

Weights lie in panels of two vectors of columns, [ceil(N / PANEL), K, PANEL], that stream through
the first cache while up to 12 rows of x are kept in registers; a block of rows stays in the second
cache while all panels pass. Measured on one Zen 4 core: 200-222 GFLOP/s in bf16 and 96-110 in fp32
from 32 rows on, 98 % of what its multipliers do in long products; one row takes 1.1 times as long
as reading the weights.
"""

from dataclasses import dataclass

import numpy as np
import torch

from kernels.cpu.arrays import WIDE, Array, array_of
from kernels.cpu.host import HAS_BF16_DOT, VECTOR_BYTES
from kernels.cpu.huge_pages import HugePages
from kernels.cpu.jit import compiled
from kernels.cpu.products import (
    BLOCK,
    NUM_VECTORS,
    TILE_ROWS,
    copy_elements,
    pack_row,
    product_rows,
)

BLOCK_WORDS = 98304  # of x: 384 KiB in the second cache, beside a panel


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """`panels` [ceil(N / PANEL), words of K, PANEL], zero behind column N.

    bias [columns of all panels] of the type of sums; -0.0 where there is none: adding it changes
    no number, not even a zero's sign.
    """

    panels: Array
    bias: Array
    num_outputs: int
    depth: int
    dtype: torch.dtype


def pack_weight(
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    memory: HugePages | None = None,
    *,
    pairs: bool = HAS_BF16_DOT,
) -> PackedWeight:
    """Lay out weight [N, K] for `matmul`; the panels are a copy, in `memory` or on their own.

    pairs: multiply bfloat16 in pairs, if K is even, which gives the same bits faster; only where
    the host can.
    """
    num_outputs, depth = weight.shape
    wide = WIDE[weight.dtype]
    panel = NUM_VECTORS * VECTOR_BYTES // wide.itemsize
    num_panels = -(-num_outputs // panel)
    padded = weight.new_zeros(num_panels * panel, depth)
    padded[:num_outputs] = weight
    addends = torch.full((num_panels * panel,), -0.0, dtype=wide)
    if bias is not None:
        addends[:num_outputs] = bias
    if weight.dtype == torch.bfloat16:
        padded = _in_pairs(padded, pairs and depth % 2 == 0)
    source = array_of(padded.view(num_panels, panel, -1).transpose(1, 2))
    panels = (memory or HugePages()).empty(source.shape, source.dtype)
    panels[...] = source
    return PackedWeight(panels, array_of(addends), num_outputs, depth, weight.dtype)


def _in_pairs(weight: torch.Tensor, as_words: bool) -> torch.Tensor:
    """Neighbours in k as one word, or in the order in which a word of them is added up."""
    if as_words:
        return weight.view(torch.int32)
    even = weight.shape[1] // 2 * 2
    swapped = weight[:, :even].reshape(len(weight), -1, 2).flip(2).reshape(len(weight), even)
    return torch.cat((swapped, weight[:, even:]), 1)


def matmul(x: torch.Tensor, packed: PackedWeight) -> torch.Tensor:
    """x [T, K] of the weight's dtype -> [T, N]."""
    num_rows, depth = x.shape
    assert depth == packed.depth and x.dtype == packed.dtype and x.device.type == "cpu"
    x = x.contiguous()
    out = torch.empty(num_rows, packed.num_outputs, dtype=packed.dtype)
    matmul_panels(
        x.data_ptr(), num_rows, depth, packed.panels, packed.bias, out.data_ptr(),
        packed.num_outputs,
    )  # fmt: skip
    return out


@compiled
def matmul_panels(
    x: int, num_rows: int, depth: int, panels: Array, bias: Array, out: int, num_outputs: int
) -> None:
    """`matmul` on the addresses of x and out."""
    matmul_columns(x, num_rows, depth, panels, bias, out, num_outputs, 0, panels.shape[0])


@compiled
def matmul_columns(
    x: int,
    num_rows: int,
    depth: int,
    panels: Array,
    bias: Array,
    out: int,
    num_outputs: int,
    first_panel: int,
    end_panel: int,
) -> None:
    """The columns of some panels of `matmul_panels`."""
    _, num_words, panel = panels.shape
    padded = -(-num_words // BLOCK) * BLOCK
    most = max(1, BLOCK_WORDS // padded // TILE_ROWS) * TILE_ROWS
    words = np.empty(min(num_rows, most) * padded, bias.dtype)
    spare = np.empty(TILE_ROWS * panel, bias.dtype)
    for first in range(0, num_rows, most):
        count = min(num_rows - first, most)
        # As equal as can be: a tile of one row would take half the time of one of twelve.
        num_tiles = -(-count // TILE_ROWS)
        for i in range(num_tiles):
            begin, end = count * i // num_tiles, count * (i + 1) // num_tiles
            for r in range(begin, end):
                place = begin * padded + (r - begin) * BLOCK
                pack_row(x, (first + r) * depth, words, place, end - begin, panels, num_words)
        for p in range(first_panel, end_panel):
            width = min(panel, num_outputs - p * panel)
            for i in range(num_tiles):
                begin, end = count * i // num_tiles, count * (i + 1) // num_tiles
                out_at = (first + begin) * num_outputs + p * panel
                target, target_at, stride = out, out_at, num_outputs
                if width < panel:
                    target, target_at, stride = spare.ctypes.data, 0, panel
                product_rows(
                    words, begin * padded, panels, p * num_words * panel, bias, p * panel,
                    target, target_at, stride, end - begin, num_words,
                )  # fmt: skip
                if width < panel:
                    for r in range(end - begin):
                        row_at = out_at + r * num_outputs
                        copy_elements(target, r * panel, out, row_at, width, panels)
