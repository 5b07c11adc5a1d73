"""RMSNorm over rows, with the residual addition that precedes it in a decoder layer.

    residual_out[t] = x[t] + residual[t]                    (x[t] where there is no residual)
    normed[t]       = residual_out[t] * rsqrt(mean(residual_out[t]^2) + eps) * weight

x, residual [T, H], weight [H]. Numerics of Hugging Face's Llama: the sum is rounded to the dtype of x, the
norm is computed in fp32 (in fp64 for fp64), rounded to that dtype, and only then multiplied by the weight.
"""

import torch


def rms_norm_reference(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The specification of `rms_norm`: any floating dtype, any device; x may have leading dims."""
    residual_out = x if residual is None else x + residual
    wide = residual_out.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype), residual_out
