"""RMSNorm and SiLU-and-mul: the kernels equal their references."""

import pytest
import torch

from kernels.rms_norm import rms_norm, rms_norm_reference
from kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference

DTYPES = (
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.gpu),
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("shape", [(1, 64), (3, 100), (5, 257), (2, 1536)])
def test_rms_norm(shape, with_residual, dtype, device, assert_same):
    x = torch.randn(shape, dtype=dtype, device=device)
    weight = torch.randn(shape[1], dtype=dtype, device=device)
    residual = torch.randn(shape, dtype=dtype, device=device) if with_residual else None
    normed, residual_out = rms_norm(x, weight, 1e-5, residual)
    expected, expected_residual = rms_norm_reference(x, weight, 1e-5, residual)
    assert_same(normed, expected)
    assert torch.equal(residual_out, expected_residual)
    assert with_residual or residual_out is x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 32), (3, 100), (5, 431), (2, 2816)])
def test_silu_and_mul(shape, dtype, device, assert_same):
    gate_up = 3 * torch.randn(shape[0], 2 * shape[1], dtype=dtype, device=device)
    assert_same(silu_and_mul(gate_up), silu_and_mul_reference(gate_up))


def test_no_rows(device):
    weight = torch.ones(8, device=device)
    assert rms_norm(torch.empty(0, 8, device=device), weight, 1e-5)[0].shape == (0, 8)
    assert silu_and_mul(torch.empty(0, 8, device=device)).shape == (0, 4)
