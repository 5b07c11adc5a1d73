"""The row-invariance check, and which product it lets through."""

import pytest
import torch

from engine.linear import (
    InvariantLinears,
    PanelLinears,
    cpu_linears,
    onednn_linear,
    padded_linear,
    rows_are_invariant,
)
from engine.ops import Linear, plain_linear

CPU = torch.device("cpu")


def batch_dependent(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """Right to a rounding, but the bits of a row change with the number of rows."""
    plain = plain_linear(weight, bias)
    return lambda x: plain(x) * (1.0 + 2.0**-20 * (x.shape[0] > 4))


def place_dependent(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """Right to a rounding, but the bits of a row change with its place."""
    padded = padded_linear(weight, bias)
    return lambda x: padded(x) + torch.arange(x.shape[0]).unsqueeze(1) * 2.0**-20


def test_the_check_sees_batches_and_places() -> None:
    torch.manual_seed(0)
    weight = torch.randn(48, 64)
    assert rows_are_invariant(PanelLinears()(weight), 64, torch.float32, CPU)
    assert rows_are_invariant(padded_linear(weight), 64, torch.float32, CPU)
    assert not rows_are_invariant(batch_dependent(weight), 64, torch.float32, CPU)
    assert not rows_are_invariant(place_dependent(weight), 64, torch.float32, CPU)


def test_the_first_product_that_passes_is_taken_for_a_shape() -> None:
    linears = InvariantLinears((("bad", batch_dependent), ("padded", padded_linear)))
    torch.manual_seed(0)
    first, second = torch.randn(48, 64), torch.randn(48, 64)
    x = torch.randn(5, 64)
    assert torch.equal(linears(first)(x), padded_linear(first)(x))
    assert torch.equal(linears(second)(x), padded_linear(second)(x))
    assert linears.chosen() == {(48, 64): "padded"}


def test_no_product_that_passes_is_an_error_with_advice() -> None:
    linears = InvariantLinears((("bad", batch_dependent),))
    with pytest.raises(ValueError, match=r"bad .*\[48, 64\].*--numerics fast"):
        linears(torch.ones(48, 64))


@pytest.mark.parametrize("numerics", ["invariant", "fast"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_product_is_right(numerics: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(40, 64).to(dtype), torch.randn(40).to(dtype)
    x = torch.randn(19, 64).to(dtype)
    makers = [cpu_linears(numerics, dtype), onednn_linear, padded_linear]  # type: ignore[arg-type]
    exact = x.double() @ weight.double().T + bias.double()
    tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-5
    for make in makers:
        out = make(weight, bias)(x)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)
