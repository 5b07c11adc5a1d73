"""`kernels/silu_and_mul.py` on the CPU: element by element, with the vector exponential."""

import torch

from kernels.cpu.arrays import WIDE, Array, array_of
from kernels.cpu.jit import compiled
from kernels.cpu.simd import exp, narrow, widen


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up [T, 2 I] -> silu(gate) * up [T, I]; see `silu_and_mul_reference`."""
    out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
    one = torch.ones(1, dtype=WIDE[gate_up.dtype]).numpy()
    silu_and_mul_rows(array_of(gate_up), one, array_of(out))
    return out


@compiled
def silu_and_mul_rows(gate_up: Array, one: Array, out: Array) -> None:
    """`silu_and_mul` on arrays; `one` [1] names the computing type."""
    size = out.shape[1]
    unit = one[0]
    for t in range(out.shape[0]):
        for i in range(size):
            gate = widen(gate_up[t, i])
            silu = widen(narrow(gate / (unit + exp(-gate)), out))
            out[t, i] = narrow(silu * widen(gate_up[t, size + i]), out)
