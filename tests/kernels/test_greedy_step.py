"""Greedy sampling and the advance to the next step: the kernels equal their references."""

import pytest
import torch

from kernels.advance_batch import advance_batch, advance_batch_reference
from kernels.argmax import argmax_rows, argmax_rows_reference

DTYPES = (torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (2, 4097), (2, 20000)])
def test_argmax(shape, dtype, device):
    """In half precision thousands of logits share few values: the lowest token must win."""
    logits = torch.randn(shape, device=device).to(dtype)
    assert torch.equal(argmax_rows(logits), argmax_rows_reference(logits))


def test_argmax_takes_the_lowest_of_equals_across_blocks(device):
    logits = torch.zeros(4, 9000, device=device)
    for row, columns in enumerate([[8999, 5000], [4095, 4096], [], [0, 8191]]):
        logits[row, columns] = 1.0
    logits[2] = float("-inf")
    out = torch.full((4,), -1, device=device)
    assert argmax_rows(logits, out) is out
    assert out.tolist() == [5000, 4095, 0, 0]
    assert argmax_rows_reference(logits).tolist() == out.tolist()


def test_argmax_of_rows_with_a_stride(device):
    logits = torch.randn(3, 600, device=device)[:, :513]
    assert torch.equal(argmax_rows(logits), argmax_rows_reference(logits))


@pytest.mark.parametrize("num_rows", [1, 5, 130])
def test_advance(num_rows, device):
    page_size, columns = 16, 6
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(0, page_size * columns - 1, (num_rows,), generator=generator)
    lengths = positions + 1
    if num_rows > 1:
        positions[::3] = lengths[::3] = 0  # padding
        positions[1], lengths[1] = page_size - 1, page_size  # the next token opens a page
    state = [torch.randint(0, 99, (num_rows,), generator=generator), positions, lengths]
    state += [torch.full((num_rows,), 77), torch.zeros(num_rows)]
    own = [x.to(device, torch.int64 if i == 0 else torch.int32) for i, x in enumerate(state)]
    expected = [x.clone() for x in own]
    next_tokens = torch.randint(100, 200, (num_rows,), generator=generator).to(device)
    tables = torch.randint(0, 1000, (num_rows, columns), generator=generator)
    tables = tables.to(device, torch.int32)
    for _ in range(2):
        for advance, rows in ((advance_batch_reference, expected), (advance_batch, own)):
            token_ids, own_positions, own_lengths, page_ids, offsets = rows
            vectors = (own_positions, own_lengths, page_ids, offsets)
            advance(next_tokens, token_ids, *vectors, tables, page_size)
        assert all(torch.equal(x, y) for x, y in zip(own, expected, strict=True))
        own[1].clamp_(max=page_size * columns - 2)
        expected[1].clamp_(max=page_size * columns - 2)


def test_no_rows(device):
    none = torch.empty(0, dtype=torch.int64, device=device)
    integers = (none.int(), none.int(), none.int(), none.int())
    assert argmax_rows(torch.empty(0, 8, device=device)).shape == (0,)
    advance_batch(none, none, *integers, torch.empty(0, 2, dtype=torch.int32, device=device), 16)
