"""The gated activation of Llama's MLP: out = silu(gate) * up, with silu(x) = x / (1 + exp(-x)).

gate_up [T, 2 I] holds gate then up, side by side, as one matrix product leaves them; out [T, I]. silu is
computed in fp32 (fp64 for fp64), rounded to the dtype, then multiplied, as transformers does.
"""

import torch
from torch.nn import functional


def silu_and_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """The specification of `silu_and_mul`: any floating dtype, any device."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up
