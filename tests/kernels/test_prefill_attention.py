"""Prefill attention over paged keys and values: the kernel equals its reference."""

from itertools import accumulate

import pytest
import torch

from kernels.prefill_attention import prefill_attention, prefill_attention_reference

HALF = torch.float16
BF16 = pytest.param(torch.bfloat16, marks=pytest.mark.gpu)
MIXES = [(16, torch.float32), (24, HALF), pytest.param(16, torch.bfloat16, marks=pytest.mark.gpu)]


def run_both(make_cache, chunks, num_heads, num_kv_heads, head_dim, page_size, dtype, window):
    """chunks: for each sequence the tokens already in its pages, and the new ones after them."""
    cache = make_cache([max(1, sum(c)) for c in chunks], num_kv_heads, head_dim, page_size, dtype)
    device = cache.pool.device
    starts = torch.tensor([0, *accumulate(new for _, new in chunks)], dtype=torch.int32)
    positions = torch.cat([torch.arange(old, old + new) for old, new in chunks])
    q = torch.randn(len(positions), num_heads, head_dim).to(device, dtype)
    metadata = (starts.to(device), positions.to(device, torch.int32))
    arguments = (q, cache.pool, cache.layer, cache.block_tables, *metadata, head_dim**-0.5)
    return (
        prefill_attention(*arguments, window=window),
        prefill_attention_reference(*arguments, window=window),
    )


@pytest.mark.parametrize("dtype", [torch.float32, HALF, BF16])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "page_size"),
    [(1, 1, 64, 16), (4, 2, 80, 8), (6, 2, 32, 32), (8, 2, 128, 64), (8, 1, 64, 16)],
)
def test_group_sizes(num_heads, num_kv_heads, head_dim, page_size, dtype, make_cache, assert_same):
    shape = (num_heads, num_kv_heads, head_dim, page_size)
    assert_same(*run_both(make_cache, [(0, 45), (70, 1), (33, 20)], *shape, dtype, None))


@pytest.mark.parametrize("window", [None, 1, 40, 150])
@pytest.mark.parametrize(("page_size", "dtype"), MIXES)
def test_chunks_and_windows(page_size, dtype, window, make_cache, assert_same):
    chunks = [(0, 0), (200, 35), (0, 70), (0, 0), (129, 1), (0, 1), (5, 0)]
    assert_same(*run_both(make_cache, chunks, 4, 2, 32, page_size, dtype, window))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 50])
def test_a_row_does_not_depend_on_its_chunk(window, dtype, make_cache, device):
    """Not one bit: a prompt at once, in chunks, and behind another sequence.

    On a GPU only: the interpreter multiplies with BLAS, whose bits vary with a row's place.
    """
    cache = make_cache([150], 1, 64, 16, dtype)
    q = torch.randn(150, 4, 64).to(device, dtype)
    positions = torch.arange(150, dtype=torch.int32, device=device)

    def attend(rows, starts, num_sequences=1):
        tables = cache.block_tables.expand(num_sequences, -1).contiguous()
        starts = torch.tensor(starts, dtype=torch.int32, device=device)
        return prefill_attention(
            q[rows], cache.pool, 1, tables, starts, positions[rows], 0.125, window
        )

    whole = attend(slice(None), [0, 150])
    for begin, end in [(0, 1), (1, 48), (48, 150)]:
        assert torch.equal(attend(slice(begin, end), [0, end - begin]), whole[begin:end])
    assert torch.equal(attend(slice(None), [0, 61, 150], num_sequences=2), whole)


def test_no_rows(make_cache, device):
    cache = make_cache([20], 1, 32, 16, torch.float32)
    q = torch.empty(0, 2, 32, device=device)
    starts = torch.zeros(2, dtype=torch.int32, device=device)
    none = torch.empty(0, dtype=torch.int32, device=device)
    out = prefill_attention(q, cache.pool, 1, cache.block_tables, starts, none, 1.0)
    assert out.shape == q.shape
