"""Greedy sampling, and how a step begins and ends its rows: the kernels equal their references."""

import pytest
import torch

from kernels.argmax import argmax_rows, argmax_rows_reference
from kernels.decode_rows import (
    INDEX,
    IS_LIVE,
    NUM_COLUMNS,
    POSITION,
    advance_rows,
    advance_rows_reference,
    begin_rows,
    begin_rows_reference,
)

DTYPES = (torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu))


def assert_equals_the_reference(logits):
    tokens, largest = argmax_rows(logits)
    expected, expected_largest = argmax_rows_reference(logits)
    assert torch.equal(tokens, expected)
    assert torch.equal(largest, expected_largest.float())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (2, 4097), (2, 20000)])
def test_argmax(shape, dtype, device):
    """In half precision thousands of logits share few values: the lowest token must win."""
    assert_equals_the_reference(torch.randn(shape, device=device).to(dtype))


def test_argmax_takes_the_lowest_of_equals_across_blocks(device):
    logits = torch.zeros(4, 9000, device=device)
    for row, columns in enumerate([[8999, 5000], [4095, 4096], [], [0, 8191]]):
        logits[row, columns] = 1.0
    logits[2] = float("-inf")
    tokens, largest = argmax_rows(logits)
    assert tokens.tolist() == [5000, 4095, 0, 0]
    assert largest.tolist() == [1.0, 1.0, float("-inf"), 1.0]
    assert_equals_the_reference(logits)


@pytest.mark.parametrize("column", [0, 4095, 4096, 8999])
def test_a_nan_is_the_largest_of_its_row_alone(column, device):
    logits = torch.randn(3, 9000, device=device)
    logits[1, column] = float("nan")
    tokens, largest = argmax_rows(logits)
    assert largest.isnan().tolist() == [False, True, False]
    assert torch.equal(tokens[::2], argmax_rows_reference(logits)[0][::2])
    assert 0 <= int(tokens[1]) < 9000


def test_argmax_of_rows_with_a_stride(device):
    assert_equals_the_reference(torch.randn(3, 600, device=device)[:, :513])


def make_rows(num_rows, columns, page_size, device):
    """Rows at any position, a third of them idle, the second at the end of a page."""
    generator = torch.Generator().manual_seed(0)
    state = torch.randint(-(2**62), 2**62, (num_rows, NUM_COLUMNS), generator=generator)
    high = page_size * columns - 3
    state[:, POSITION] = torch.randint(0, high, (num_rows,), generator=generator)
    state[:, IS_LIVE] = 1
    state[:, INDEX] = torch.arange(num_rows)
    if num_rows > 1:
        state[::3, [POSITION, IS_LIVE]] = 0
        state[1, POSITION] = page_size - 1
    tables = torch.randint(0, 1000, (num_rows, columns), generator=generator, dtype=torch.int32)
    return state.to(device), tables.to(device)


@pytest.mark.parametrize("num_rows", [1, 5, 130])
def test_rows_begin_and_advance(num_rows, device):
    own, tables = make_rows(num_rows, 6, 16, device)
    expected = own.clone()
    results = torch.full((num_rows, 2), 77, device=device)
    expected_results = results.clone()
    largest = torch.randn(num_rows, device=device)
    largest[num_rows // 2] = float("nan")
    largest[-1] = float("-inf")
    for step in range(3):
        slots = begin_rows(own, tables, 16)
        wanted = begin_rows_reference(expected, tables, 16)
        for one, other in zip(slots, wanted, strict=True):
            assert one.dtype == torch.int32 and torch.equal(one, other)
        drawn = torch.arange(num_rows, device=device) + 1000 * step
        advance_rows(own, results, drawn, largest)
        advance_rows_reference(expected, expected_results, drawn, largest)
        assert torch.equal(own, expected)
        assert torch.equal(results, expected_results)
    assert results[-1].tolist() == [num_rows - 1 + 2000, 0]


def test_no_rows(device):
    none = torch.empty(0, dtype=torch.int64, device=device)
    assert [x.shape for x in argmax_rows(torch.empty(0, 8, device=device))] == [(0,), (0,)]
    state = none.view(0, NUM_COLUMNS)
    tables = torch.empty(0, 2, dtype=torch.int32, device=device)
    assert all(x.shape == (0,) for x in begin_rows(state, tables, 16))
    advance_rows(state, none.view(0, 2), none, none.float())
