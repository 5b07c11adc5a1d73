"""The gated activation of Llama's MLP: out = silu(gate) * up, with silu(x) = x / (1 + exp(-x)).

gate_up [T, 2 I] holds gate then up, as one matrix product leaves them side by side; out [T, I].
silu is computed in fp32 (fp64 for fp64), rounded to the dtype, then multiplied.
"""

import torch
import triton
import triton.language as tl
from torch.nn import functional


def silu_and_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """The specification of `silu_and_mul`: any floating dtype, any device."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


@triton.jit
def _silu_and_mul_kernel(
    gate_up_ptr: tl.tensor, out_ptr: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """One program per row and block of columns."""
    dtype = out_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    gate = tl.load(gate_up_ptr + row * 2 * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * WIDTH + WIDTH + columns, mask=inside, other=0.0)
    silu = (gate * tl.sigmoid(gate)).to(dtype).to(tl.float32)
    out = silu * up.to(tl.float32)
    tl.store(out_ptr + row * WIDTH + columns, out.to(dtype), mask=inside)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """[T, I] from contiguous gate_up [T, 2 I] in fp32, fp16 or bf16."""
    assert gate_up.dtype != torch.float64
    assert gate_up.is_contiguous()
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((num_rows, width))
    if num_rows == 0:
        return out
    block = min(1024, triton.next_power_of_2(width))
    grid = (num_rows, triton.cdiv(width, block))
    _silu_and_mul_kernel[grid](
        gate_up, out, WIDTH=width, BLOCK=block, enable_fp_fusion=True, num_warps=4
    )
    return out
