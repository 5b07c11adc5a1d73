"""Chooses the operations for a device, a dtype and the numerics that were asked for."""

from typing import Literal

import torch

from engine.cpu_ops import cpu_ops
from engine.gpu_attention import load_attention
from engine.kv_pool import TORCH_DTYPES
from engine.linear import gpu_linears
from engine.ops import Ops, RowAttention, plain_ops
from kernels import rms_norm as gpu_rms_norm
from kernels import rope as gpu_rope
from kernels import silu_and_mul as gpu_silu_and_mul
from kernels.cpu.arrays import SUPPORTED
from kernels.cpu.simd import LANES
from kernels.cpu.team import ProductTeam
from kernels.decode_attention import decode_attention
from tandem.model_config import ModelConfig, ModelDtype

Numerics = Literal["auto", "invariant", "fast"]
ResolvedNumerics = Literal["invariant", "fast"]


def select_ops(
    device: torch.device,
    dtype: ModelDtype,
    numerics: Numerics,
    config: ModelConfig,
    team: ProductTeam | None = None,
) -> Ops:
    """The fastest operations for `config` in `dtype` on `device` that keep what `numerics` says.

    "auto" is "invariant" on the CPU and "fast" on a GPU, where invariance costs speed. `team`: of
    threads that share products on the CPU.
    """
    if device.type == "cuda":
        return gpu_ops("fast" if numerics == "auto" else numerics, dtype)
    resolved: ResolvedNumerics = "invariant" if numerics == "auto" else numerics
    torch_dtype = TORCH_DTYPES[dtype]
    if torch_dtype in SUPPORTED and config.head_dim % LANES == 0:
        return cpu_ops(resolved, torch_dtype, team)
    if resolved == "fast":
        return plain_ops()
    raise ValueError(
        f"invariant numerics on the CPU need a head_dim that is a multiple of {LANES} (this model "
        f"has {config.head_dim}) and float64, float32 or bfloat16 (not {dtype}): use "
        "--numerics fast or another --dtype"
    )


def gpu_ops(numerics: ResolvedNumerics, dtype: ModelDtype) -> Ops:
    """Triton kernels and cuBLAS. Invariance there means the decode kernel for every row."""
    if dtype == "float64":
        raise ValueError("float64 runs on the CPU only: use --device cpu or another --dtype")
    invariant = numerics == "invariant"
    return Ops(
        name=f"gpu, {numerics}",
        rms_norm=gpu_rms_norm.rms_norm,
        rope_write=gpu_rope.rope_write,
        silu_and_mul=gpu_silu_and_mul.silu_and_mul,
        attention=RowAttention(decode_attention) if invariant else load_attention,
        make_linear=gpu_linears(numerics),
    )
