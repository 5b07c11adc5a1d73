"""Matrix products, and the check that a row's bits do not depend on its batch.

On the CPU `invariant` numerics take, for every weight shape, the first product that passes
`rows_are_invariant` at start: our packed panels (`kernels/cpu/matmul.py`, invariant by construction
and the same on every machine), or torch's product over blocks of a fixed number of rows. `fast`
numerics take the same panels, which lose to oneDNN by 2 % at most where both use the same
instructions (docs/decisions/0024-products-on-avx512.md), and prepacked oneDNN where only it has a
way: matrix instructions for bfloat16, and other dtypes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from engine.ops import Linear, MakeLinear, plain_linear
from kernels.cpu.arrays import SUPPORTED
from kernels.cpu.host import HAS_BF16_MATRICES
from kernels.cpu.huge_pages import HugePages
from kernels.cpu.matmul import PackedWeight, matmul, pack_weight

# Rows that a packed oneDNN weight is laid out for. It is no candidate for `invariant`: in float32
# with K = 1408 and 2816 rows change bits whatever it is laid out for, in bfloat16 with K = 2816
# from some count above 33 on.
ONEDNN_ROWS = 16
PADDED_ROWS = 16
CHECKED_COUNTS = (1, 2, 3, 4, 7, 8, 16, 33, 129)
CHECKED_ROWS = 134

Candidate = tuple[str, MakeLinear]


class InvariantLinears:
    """A `MakeLinear` that checks each new shape once and remembers what passed."""

    def __init__(self, candidates: tuple[Candidate, ...]) -> None:
        self._candidates = candidates
        self._chosen: dict[tuple[int, ...], Candidate] = {}

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        """The prepared product of weight [N, K]; ValueError where no candidate is invariant."""
        shape = tuple(weight.shape)
        if shape in self._chosen:
            return self._chosen[shape][1](weight, bias)
        for candidate in self._candidates:
            linear = candidate[1](weight, bias)
            if rows_are_invariant(linear, weight.shape[1], weight.dtype, weight.device):
                self._chosen[shape] = candidate
                return linear
        names = ", ".join(name for name, _ in self._candidates)
        raise ValueError(
            f"none of the products {names} keeps the bits of a row for a weight of shape "
            f"{list(shape)} in {weight.dtype} on this machine: use --numerics fast"
        )

    def chosen(self) -> dict[tuple[int, ...], str]:
        """Weight shape [N, K] -> name of the product that it got."""
        return {shape: name for shape, (name, _) in self._chosen.items()}


def rows_are_invariant(
    linear: Linear, depth: int, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether rows have the same bits alone, in batches of other sizes and at other places."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(CHECKED_ROWS, depth, generator=generator).to(device, dtype)
    whole = linear(x)
    return all(
        torch.equal(linear(x[first : first + count].contiguous()), whole[first : first + count])
        for count in CHECKED_COUNTS
        for first in (0, CHECKED_ROWS - count)
    )


@dataclass(frozen=True, slots=True)
class PanelLinear:
    """Our own product over packed panels; `packed` for whoever calls its kernel directly."""

    packed: PackedWeight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, K] -> [T, N]."""
        return matmul(x, self.packed)


class PanelLinears:
    """A `MakeLinear` of `PanelLinear`, whose weights lie together in large pages."""

    def __init__(self) -> None:
        self._memory = HugePages()

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PanelLinear:
        return PanelLinear(pack_weight(weight, bias, self._memory))


def onednn_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """oneDNN's product with a weight packed once; torch's own where this torch has none."""
    if not has_onednn(weight.dtype):
        return plain_linear(weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ONEDNN_ROWS)
    product: Callable[..., torch.Tensor] = torch.ops.mkldnn._linear_pointwise
    return lambda x: product(x, packed, bias, "none", [], "")


def has_onednn(dtype: torch.dtype) -> bool:
    """Whether torch can pack and multiply this dtype here; bfloat16 needs AVX-512 or newer."""
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def padded_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """torch's product, always over PADDED_ROWS rows: slow for one row, the same call for all."""

    def linear(x: torch.Tensor) -> torch.Tensor:
        num_rows = x.shape[0]
        padded = functional.pad(x, (0, 0, 0, -num_rows % PADDED_ROWS))
        blocks = [functional.linear(block, weight, bias) for block in padded.split(PADDED_ROWS)]
        return torch.cat(blocks)[:num_rows]

    return linear


def cpu_linears(numerics: Literal["invariant", "fast"], dtype: torch.dtype) -> MakeLinear:
    """The products for a dtype under the numerics asked for."""
    ours: tuple[Candidate, ...] = (("panels", PanelLinears()),) if dtype in SUPPORTED else ()
    if numerics == "fast":
        has_better = dtype == torch.bfloat16 and HAS_BF16_MATRICES and has_onednn(dtype)
        return PanelLinears() if ours and not has_better else onednn_linear
    return InvariantLinears((*ours, ("padded", padded_linear)))


def gpu_linears(numerics: Literal["invariant", "fast"]) -> MakeLinear:
    """cuBLAS as it is, or whichever way of calling it keeps the bits of a row."""
    if numerics == "fast":
        return plain_linear
    return InvariantLinears((("torch", plain_linear), ("padded", padded_linear)))
