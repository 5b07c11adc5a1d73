"""Chooses the operations for a device, a dtype and the numerics that were asked for."""

from typing import Literal

import torch

from engine.batch import Batch
from engine.kv_pool import TORCH_DTYPES
from engine.linear import cpu_linears
from engine.ops import Ops, plain_ops
from kernels.cpu.arrays import SUPPORTED
from kernels.cpu.attention import paged_attention
from kernels.cpu.rms_norm import rms_norm
from kernels.cpu.rope import rope_write
from kernels.cpu.silu_and_mul import silu_and_mul
from kernels.cpu.simd import LANES
from tandem.model_config import ModelConfig, ModelDtype


def cpu_ops(numerics: Literal["invariant", "fast"], dtype: torch.dtype) -> Ops:
    """numba kernels and packed products; attention runs one kernel over all rows of a batch."""
    return Ops(
        name=f"cpu, {numerics}",
        rms_norm=rms_norm,
        rope_write=rope_write,
        silu_and_mul=silu_and_mul,
        attention=_cpu_attention,
        make_linear=cpu_linears(numerics, dtype),
    )


def select_ops(
    device: torch.device,
    dtype: ModelDtype,
    numerics: Literal["invariant", "fast"],
    config: ModelConfig,
) -> Ops:
    """The fastest operations that compute `config` in `dtype` on `device` as `numerics` promises."""
    torch_dtype = TORCH_DTYPES[dtype]
    if torch_dtype not in SUPPORTED or config.head_dim % LANES:
        return plain_ops()
    return cpu_ops(numerics, torch_dtype)


def _cpu_attention(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    batch: Batch,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    return paged_attention(
        q, pool, layer, batch.block_tables, batch.query_starts, batch.positions, scale, window
    )
