"""Compiles every CPU kernel for every dtype into numba's cache: `python -m kernels.cpu.warm`.

Set-up calls this once, so that a node's start loads machine code in milliseconds instead of
compiling for half a minute. The calls below must have the array types that the engine's have.
"""

import torch

from kernels.cpu.arrays import SUPPORTED
from kernels.cpu.attention import paged_attention
from kernels.cpu.matmul import matmul, pack_weight
from kernels.cpu.rms_norm import rms_norm
from kernels.cpu.rope import rope_write
from kernels.cpu.silu_and_mul import silu_and_mul
from kernels.cpu.team import ProductTeam

HEAD_DIM = 16


def warm(dtype: torch.dtype) -> None:
    """Run every kernel once on small tensors of `dtype`."""
    rows = torch.zeros(2, 4 * HEAD_DIM, dtype=dtype)
    weight = torch.ones(4 * HEAD_DIM, dtype=dtype)
    pool = torch.zeros(2, 1, 2, 1, 8, HEAD_DIM, dtype=dtype)
    angles = torch.zeros(2, HEAD_DIM)
    positions = torch.tensor([0, 1], dtype=torch.int32)
    pages = torch.zeros(2, dtype=torch.int32)
    norm = torch.ones(HEAD_DIM, dtype=dtype)
    rms_norm(rows, weight, 1e-6)
    rms_norm(rows, weight, 1e-6, rows)
    silu_and_mul(rows)
    packed = pack_weight(torch.zeros(8, 4 * HEAD_DIM, dtype=dtype))
    product = matmul(rows, packed)
    team = ProductTeam()
    team.product(rows.data_ptr(), len(rows), packed, product.data_ptr())
    team.serve()
    query = rope_write(rows, angles, positions, pool, 0, pages, positions, 2, norm, norm)
    starts = torch.tensor([0, 2], dtype=torch.int32)
    paged_attention(query, pool, 0, pages.view(1, 2), starts, positions, 1.0)


if __name__ == "__main__":
    for kernel_dtype in SUPPORTED:
        warm(kernel_dtype)
