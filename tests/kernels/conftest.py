"""Kernel tests run on the GPU where there is one, else under Triton's interpreter on the CPU."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

if not torch.cuda.is_available():
    # Read when `@triton.jit` runs: it must be set before anything imports triton or kernels/.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from kernels import rms_norm

# (relative, absolute): a few roundings of the dtype
TOLERANCE = {
    torch.float32: (2e-5, 2e-6),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1.6e-2, 1.6e-2),
}


@dataclass(frozen=True, slots=True)
class Cache:
    """A pool whose sequences own scattered pages; every slot that no sequence owns is NaN."""

    pool: torch.Tensor
    layer: int
    block_tables: torch.Tensor


@pytest.fixture
def device() -> torch.device:
    """Where the kernels under test run."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    interpreted = type(rms_norm._rms_norm_kernel).__name__ == "InterpretedFunction"
    assert interpreted, "triton was imported before TRITON_INTERPRET=1 was set: set it outside"
    return torch.device("cpu")


@pytest.fixture
def assert_same() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Compares a kernel's result with the reference's, within the rounding of its dtype."""

    def check(actual: torch.Tensor, expected: torch.Tensor) -> None:
        rtol, atol = TOLERANCE[expected.dtype]
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)

    return check


@pytest.fixture
def make_cache(device: torch.device) -> Callable[..., Cache]:
    """Builds a cache of given context lengths with random keys and values in one layer of two.

    Table entries behind a context point far outside the pool: nobody may follow them.
    """

    def make(
        lengths: list[int],
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        dtype: torch.dtype,
        spare_columns: int = 1,
    ) -> Cache:
        counts = [-(-length // page_size) for length in lengths]
        shape = (sum(counts) + 3, 2, 2, num_kv_heads, page_size, head_dim)
        pool = torch.full(shape, float("nan"), dtype=dtype)
        order = torch.randperm(shape[0])[: sum(counts)].to(torch.int32)
        tables = torch.full((len(lengths), max(counts) + spare_columns), 1 << 24, dtype=torch.int32)
        for row, (length, own) in enumerate(zip(lengths, order.split(counts), strict=True)):
            tables[row, : len(own)] = own
            for index, page in enumerate(own.tolist()):
                used = min(page_size, length - index * page_size)
                pool[page, 1, :, :, :used] = torch.randn(2, num_kv_heads, used, head_dim)
        return Cache(pool.to(device), 1, tables.to(device))

    return make


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
