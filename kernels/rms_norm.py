"""RMSNorm over rows, with the residual addition that precedes it in a decoder layer.

    residual_out[t] = x[t] + residual[t]                    (x[t] where there is no residual)
    normed[t]       = residual_out[t] * rsqrt(mean(residual_out[t]^2) + eps) * weight

x, residual [T, H], weight [H]. Numerics of Hugging Face's Llama: the sum is rounded to the dtype of
x, the norm is computed in fp32 (fp64 for fp64), rounded to that dtype, then multiplied.
"""

import torch
import triton
import triton.language as tl


def rms_norm_reference(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The specification of `rms_norm`: any floating dtype, any device; x may have leading dims."""
    residual_out = x if residual is None else x + residual
    wide = residual_out.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype), residual_out


@triton.jit
def _rms_norm_kernel(
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    normed_ptr: tl.tensor,
    residual_out_ptr: tl.tensor,
    eps: tl.tensor,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):
    """One program per row; the whole row stays in registers."""
    dtype = normed_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * HIDDEN
    columns = tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    x = tl.load(x_ptr + row + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + row + columns, mask=inside, other=0.0).to(tl.float32)
        x = x.to(dtype).to(tl.float32)
        tl.store(residual_out_ptr + row + columns, x.to(dtype), mask=inside)
    inverse_rms = tl.rsqrt(tl.sum(x * x, axis=0) / HIDDEN + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    normed = (x * inverse_rms).to(dtype).to(tl.float32) * weight
    tl.store(normed_ptr + row + columns, normed.to(dtype), mask=inside)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(normed, residual_out) of contiguous x and residual [T, H] in fp32, fp16 or bf16."""
    assert x.dtype != torch.float64
    assert x.is_contiguous()
    hidden = x.shape[-1]
    normed = torch.empty_like(x)
    residual_out = x if residual is None else torch.empty_like(x)
    if x.numel() == 0:
        return normed, residual_out
    _rms_norm_kernel[(x.numel() // hidden,)](
        x,
        x if residual is None else residual,
        weight,
        normed,
        residual_out,
        eps,
        HIDDEN=hidden,
        BLOCK=triton.next_power_of_2(hidden),
        HAS_RESIDUAL=residual is not None,
        enable_fp_fusion=True,
        num_warps=4 if hidden <= 2048 else 8,
    )
    return normed, residual_out
