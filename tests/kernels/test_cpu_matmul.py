"""The packed product: right, and the same bits per row whatever is computed beside it."""

import pytest
import torch

from kernels.cpu.matmul import matmul, pack_weight

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("depth", "num_outputs"), [(64, 32), (250, 100), (7, 1), (2048, 40)])
def test_product_equals_torch(dtype: torch.dtype, depth: int, num_outputs: int) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(num_outputs, depth) / depth**0.5).to(dtype)
    bias = torch.randn(num_outputs).to(dtype)
    x = torch.randn(23, depth).to(dtype)
    exact = x.double() @ weight.double().T
    torch.testing.assert_close(
        matmul(x, pack_weight(weight)).double(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )
    torch.testing.assert_close(
        matmul(x, pack_weight(weight, bias)).double(),
        exact + bias.double(),
        rtol=TOLERANCE[dtype],
        atol=TOLERANCE[dtype],
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_in_every_batch(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    packed = pack_weight(torch.randn(72, 192).to(dtype), torch.randn(72).to(dtype))
    x = torch.randn(400, 192).to(dtype)  # more rows than one cache block holds
    whole = matmul(x, packed)
    for count in (*range(1, 14), 170, 171):
        for first in (0, 5, 400 - count):
            part = matmul(x[first : first + count], packed)
            assert torch.equal(part, whole[first : first + count]), (count, first)


def test_no_rows_give_no_rows() -> None:
    assert matmul(torch.zeros(0, 16), pack_weight(torch.zeros(8, 16))).shape == (0, 8)
