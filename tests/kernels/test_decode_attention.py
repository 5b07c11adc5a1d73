"""Decode attention over paged keys and values: the kernels equal their reference."""

import pytest
import torch

from kernels.decode_attention import decode_attention, decode_attention_reference
from kernels.decode_plan import plan_decode

HALF = torch.float16
BF16 = pytest.param(torch.bfloat16, marks=pytest.mark.gpu)
MIXES = [(16, torch.float32), (24, HALF), pytest.param(16, torch.bfloat16, marks=pytest.mark.gpu)]


def run_both(
    make_cache,
    lengths,
    num_heads,
    num_kv_heads,
    head_dim,
    page_size,
    dtype,
    window,
    by_load=False,
):
    cache = make_cache(lengths, num_kv_heads, head_dim, page_size, dtype)
    device = cache.pool.device
    q = torch.randn(len(lengths), num_heads, head_dim).to(device, dtype)
    context_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    arguments = (q, cache.pool, cache.layer, cache.block_tables, context_lens, head_dim**-0.5)
    return (
        decode_attention(*arguments, window=window, by_load=by_load),
        decode_attention_reference(*arguments, window=window),
    )


@pytest.mark.parametrize("dtype", [torch.float32, HALF, BF16])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "page_size"),
    [(1, 1, 64, 16), (4, 2, 80, 8), (6, 2, 32, 32), (8, 2, 128, 64), (8, 1, 64, 16)],
)
def test_group_sizes(num_heads, num_kv_heads, head_dim, page_size, dtype, make_cache, assert_same):
    shape = (num_heads, num_kv_heads, head_dim, page_size)
    assert_same(*run_both(make_cache, [1, 100, 0, 17], *shape, dtype, None))


@pytest.mark.parametrize("window", [None, 1, 40, 300])
@pytest.mark.parametrize(("page_size", "dtype"), MIXES)
def test_many_items(page_size, dtype, window, make_cache, assert_same):
    lengths = [256, 257, 0, 700, 30]
    assert_same(*run_both(make_cache, lengths, 4, 2, 32, page_size, dtype, window))


@pytest.mark.parametrize("window", [None, 300])
def test_items_by_load(window, make_cache, assert_same):
    lengths = [256, 257, 0, 700, 30]
    assert_same(*run_both(make_cache, lengths, 4, 2, 32, 24, HALF, window, by_load=True))


def test_more_items_than_a_merging_program_holds(make_cache, assert_same):
    """Eight query heads of 128 dims: 8 items at a time, of 9."""
    assert_same(*run_both(make_cache, [2100], 8, 1, 128, 64, HALF, None))


def test_one_plan_serves_all_layers_of_a_step(make_cache, assert_same, device):
    lengths = torch.tensor([700, 30, 0], dtype=torch.int32, device=device)
    cache = make_cache(lengths.tolist(), 2, 32, 16, HALF)
    q = torch.randn(3, 4, 32).to(device, HALF)
    plan = plan_decode(lengths, 720, 4, 2, 32, by_load=False)
    arguments = (q, cache.pool, cache.layer, cache.block_tables, lengths, 0.2)
    first = decode_attention(*arguments, plan=plan)
    assert torch.equal(decode_attention(*arguments, plan=plan), first)
    assert_same(first, decode_attention_reference(*arguments))
    assert not plan.arrivals.any()


@pytest.mark.parametrize("dtype", [torch.float32, HALF, BF16])
def test_a_row_does_not_depend_on_its_batch(dtype, make_cache, device):
    """Not one bit: alone, in a batch, under a wider block table."""
    lengths = [200, 33, 300, 0]
    cache = make_cache(lengths, 2, 64, 16, dtype)
    q = torch.randn(4, 4, 64).to(device, dtype)
    context_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    together = decode_attention(q, cache.pool, 1, cache.block_tables, context_lens, 0.125)
    for row, length in enumerate(lengths):
        own = slice(row, row + 1)
        table = cache.block_tables[own, : max(1, -(-length // 16))]
        alone = decode_attention(q[own], cache.pool, 1, table, context_lens[own], 0.125)
        assert torch.equal(alone, together[own])


def test_no_rows(make_cache, device):
    cache = make_cache([20], 1, 32, 16, torch.float32)
    q = torch.empty(0, 2, 32, device=device)
    none = torch.empty(0, dtype=torch.int32, device=device)
    assert decode_attention(q, cache.pool, 1, cache.block_tables[:0], none, 1.0).shape == q.shape
