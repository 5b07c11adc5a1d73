"""Page gather and scatter: the kernels equal their references bit for bit."""

import pytest
import torch

from kernels.pages import (
    gather_pages,
    gather_pages_reference,
    scatter_pages,
    scatter_pages_reference,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2, 1, 8), (2, 3, 7, 10), (3, 2, 16, 64)])
def test_gather_and_scatter(shape, dtype, device):
    layers, heads, page_size, head_dim = shape
    pool = torch.randn(9, layers, 2, heads, page_size, head_dim).to(device, dtype)
    page_ids = torch.tensor([5, 0, 8, 3], dtype=torch.int32, device=device)
    staging = gather_pages(pool, page_ids)
    assert torch.equal(staging, gather_pages_reference(pool, page_ids))

    targets = torch.tensor([1, 8, 2, 6], dtype=torch.int32, device=device)
    expected = pool.clone()
    scatter_pages_reference(staging, expected, targets)
    scatter_pages(staging, pool, targets)
    assert torch.equal(pool, expected)
    assert torch.equal(gather_pages(pool, targets), staging)


@pytest.mark.parametrize("layers", [None, (1, 3), (2, 3)])
@pytest.mark.parametrize("heads", [None, (0, 2), (3, 4)])
def test_ranges_of_layers_and_heads(layers, heads, device):
    pool = torch.randn(7, 3, 2, 4, 8, 16, device=device)
    page_ids = torch.tensor([5, 0, 3], dtype=torch.int32, device=device)
    staging = gather_pages(pool, page_ids, layers, heads)
    assert torch.equal(staging, gather_pages_reference(pool, page_ids, layers, heads))
    targets = torch.tensor([1, 6, 0], dtype=torch.int32, device=device)
    expected = pool.clone()
    scatter_pages_reference(staging, expected, targets, layers, heads)
    scatter_pages(staging, pool, targets, layers, heads)
    assert torch.equal(pool, expected)


def test_no_pages(device):
    pool = torch.randn(2, 1, 2, 1, 4, 8, device=device)
    before = pool.clone()
    none = torch.empty(0, dtype=torch.int32, device=device)
    assert gather_pages(pool, none).shape == (0, 64)
    scatter_pages(gather_pages(pool, none), pool, none)
    assert torch.equal(pool, before)
