"""The packed product: right, the chain that it says, and the same bits whatever is beside a row."""

import threading

import numpy as np
import pytest
import torch
from numba import njit
from numba.extending import intrinsic

from kernels.cpu.arrays import WIDE
from kernels.cpu.host import HAS_BF16_DOT
from kernels.cpu.huge_pages import ALIGNMENT, CHUNK_BYTES, HugePages
from kernels.cpu.matmul import PackedWeight, matmul, pack_weight
from kernels.cpu.products import TILE_ROWS
from kernels.cpu.simd import call_math

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SHAPES = [(64, 32), (250, 100), (7, 1), (2048, 40), (1, 65), (34, 33)]


@intrinsic
def fma(typing_context, a, b, c):
    """a * b + c with one rounding, of scalars."""

    def codegen(context, builder, signature, args):
        return call_math(builder, "fma", *args)

    return a(a, b, c), codegen


@njit
def chains(x, weight, order, out):
    """The specification: one fused multiply-add after another."""
    for t in range(len(x)):
        for n in range(len(weight)):
            total = out[t, n]
            for k in order:
                total = fma(x[t, k], weight[n, k], total)
            out[t, n] = total


def expected(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`matmul` by the specification."""
    wide, depth = WIDE[x.dtype], x.shape[1]
    order = np.arange(depth)
    if x.dtype == torch.bfloat16:
        order = np.array([k ^ 1 if k ^ 1 < depth else k for k in order])
    out = torch.zeros(len(x), len(weight), dtype=wide)
    chains(x.to(wide).numpy(), weight.to(wide).numpy(), order, out.numpy())
    return (out + bias.to(wide)).to(x.dtype)


def ways(weight: torch.Tensor, bias: torch.Tensor | None = None) -> list[PackedWeight]:
    """Every layout that this host can multiply."""
    plain = pack_weight(weight, bias, pairs=False)
    return [plain, pack_weight(weight, bias, pairs=True)] if HAS_BF16_DOT else [plain]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("depth", "num_outputs"), SHAPES)
def test_product_is_the_chain_that_it_says(
    dtype: torch.dtype, depth: int, num_outputs: int
) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(num_outputs, depth) / depth**0.5).to(dtype)
    bias = torch.randn(num_outputs).to(dtype)
    x = torch.randn(23, depth).to(dtype)
    exact = x.double() @ weight.double().T
    tolerance = TOLERANCE[dtype]
    for packed in ways(weight):
        out = matmul(x, packed)
        torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)
        assert torch.equal(out, expected(x, weight, torch.zeros_like(bias)))
    for packed in ways(weight, bias):
        assert torch.equal(matmul(x, packed), expected(x, weight, bias))


def test_the_layout_is_chosen_by_the_host() -> None:
    weight = torch.randn(40, 64).bfloat16()
    assert (pack_weight(weight).panels.dtype == np.int32) == HAS_BF16_DOT
    assert pack_weight(weight, pairs=False).panels.dtype == np.uint16
    assert pack_weight(weight[:, :63]).panels.dtype == np.uint16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [192, 2064])
def test_a_row_has_the_same_bits_in_every_batch(dtype: torch.dtype, depth: int) -> None:
    torch.manual_seed(1)
    weight, bias = torch.randn(72, depth).to(dtype), torch.randn(72).to(dtype)
    num_rows = 600  # more than one block of rows holds
    x = torch.randn(num_rows, depth).to(dtype)
    for packed in ways(weight, bias):
        whole = matmul(x, packed)
        for count in (*range(1, 5 * TILE_ROWS + 7), 170, 171, 530):
            for first in (0, 5, num_rows - count):
                part = matmul(x[first : first + count], packed)
                assert torch.equal(part, whole[first : first + count]), (count, first)


def test_numbers_that_are_not_finite_stay_in_their_row() -> None:
    weight = torch.randn(40, 64)
    x = torch.randn(13, 64)
    x[4, 3], x[7, 60] = torch.nan, torch.inf
    for dtype in (torch.float32, torch.bfloat16):
        for packed in ways(weight.to(dtype)):
            is_finite = matmul(x.to(dtype), packed).isfinite()
            assert not is_finite[[4, 7]].any() and is_finite.all(1).sum() == 11


def test_rows_that_are_not_contiguous() -> None:
    x = torch.randn(6, 128).bfloat16()
    packed = pack_weight(torch.randn(40, 64).bfloat16())
    assert torch.equal(matmul(x[:, 64:], packed), matmul(x[:, 64:].contiguous(), packed))
    odd = torch.randn(1 + 64).bfloat16()[1:].view(1, 64)  # no pair at an address of its own
    assert torch.equal(matmul(odd, packed), matmul(odd.clone(), packed))


def test_threads_do_not_meet() -> None:
    torch.manual_seed(2)
    packed = pack_weight(torch.randn(300, 256).bfloat16())
    parts = [torch.randn(70 + i, 256).bfloat16() for i in range(2)]
    alone = [matmul(x, packed) for x in parts]
    together: list[list[torch.Tensor]] = [[], []]

    def work(i: int) -> None:
        together[i] += [matmul(parts[i], packed) for _ in range(30)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        assert all(torch.equal(out, alone[i]) for out in together[i])


def test_weights_share_memory_but_no_byte() -> None:
    torch.manual_seed(3)
    memory, weights = HugePages(), [torch.randn(40, 63 + i) for i in range(4)]
    large = memory.empty((CHUNK_BYTES + 1,), np.dtype(np.uint8))
    packed = [pack_weight(weight, None, memory) for weight in weights]
    assert len(large) == CHUNK_BYTES + 1
    for weight, each in zip(weights, packed, strict=True):
        assert each.panels.ctypes.data % ALIGNMENT == 0
        assert np.array_equal(each.panels, pack_weight(weight).panels)
    firsts = [each.panels.ctypes.data for each in packed]
    assert max(firsts) - min(firsts) < 1 << 20


def test_no_rows_give_no_rows() -> None:
    assert matmul(torch.zeros(0, 16), pack_weight(torch.zeros(8, 16))).shape == (0, 8)
