"""Norm, rotary and activation in numba against the torch references."""

import pytest
import torch

from kernels.cpu.rms_norm import rms_norm
from kernels.cpu.rope import rope_write
from kernels.cpu.silu_and_mul import silu_and_mul
from kernels.rms_norm import rms_norm_reference
from kernels.rope import rope_write_reference
from kernels.silu_and_mul import silu_and_mul_reference

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 1e-2}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 8, 100, 256])
@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm_equals_the_reference(dtype: torch.dtype, size: int, with_residual: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(9, size).to(dtype), torch.randn(size).to(dtype)
    residual = torch.randn(9, size).to(dtype) if with_residual else None
    normed, total = rms_norm(x, weight, 1e-5, residual)
    expected, expected_total = rms_norm_reference(x, weight, 1e-5, residual)
    assert_close(normed, expected)
    assert torch.equal(total, expected_total)
    single, _ = rms_norm(x[4:5], weight, 1e-5, None if residual is None else residual[4:5])
    assert torch.equal(single[0], normed[4])


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_and_mul_equals_the_reference_up_to_the_largest_inputs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate_up = (torch.randn(5, 60) * 4).to(dtype)
    gate_up[0, :4] = torch.tensor([-200.0, 200.0, -80.0, 0.0])
    assert_close(silu_and_mul(gate_up), silu_and_mul_reference(gate_up))


def test_silu_and_mul_keeps_nan() -> None:
    assert silu_and_mul(torch.tensor([[float("nan"), 1.0]])).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 16), (3, 1, 6)])
def test_rope_write_equals_the_reference(
    dtype: torch.dtype, with_norm: bool, num_heads: int, num_kv_heads: int, head_dim: int
) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(7, (num_heads + 2 * num_kv_heads) * head_dim).to(dtype)
    table = torch.randn(50, head_dim)
    positions = torch.randint(0, 50, (7,), dtype=torch.int32)
    ours = torch.zeros(9, 2, 2, num_kv_heads, 4, head_dim, dtype=dtype)
    theirs = ours.clone()
    pages = torch.randperm(9)[:7].to(torch.int32)
    offsets = torch.randint(0, 4, (7,), dtype=torch.int32)
    norms = [torch.randn(head_dim).to(dtype) for _ in "qk"] if with_norm else [None, None]
    query = rope_write(qkv, table, positions, ours, 1, pages, offsets, num_heads, *norms)
    expected = rope_write_reference(
        qkv, table, positions, theirs, 1, pages, offsets, num_heads, *norms
    )
    assert_close(query, expected)
    assert_close(ours, theirs)
    assert not ours[:, 0].any()
