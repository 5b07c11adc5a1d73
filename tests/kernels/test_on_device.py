"""What only a GPU can show: real shapes, addresses beyond 32 bits, capture in CUDA graphs."""

import pytest
import torch

from kernels.decode_attention import decode_attention, decode_attention_reference
from kernels.pages import gather_pages, gather_pages_reference, scatter_pages
from kernels.prefill_attention import prefill_attention, prefill_attention_reference
from kernels.rms_norm import rms_norm, rms_norm_reference
from kernels.rope import rope_write, rope_write_reference
from kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]
HALF_TYPES = [torch.bfloat16, torch.float16]
SCALE = 128**-0.5


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("window", [None, 4096])
@pytest.mark.parametrize("by_load", [False, True])
def test_decode_at_the_shape_of_an_8b_model(
    by_load, window, dtype, make_cache, assert_same, device
):
    lengths = [*range(1, 9001, 500), 255, 256, 257, 0]
    cache = make_cache(lengths, 8, 128, 16, dtype)
    q = torch.randn(len(lengths), 32, 128, dtype=dtype, device=device)
    context_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    arguments = (q, cache.pool, 1, cache.block_tables, context_lens, SCALE, window)
    expected = decode_attention_reference(*arguments)
    first = decode_attention(*arguments, by_load=by_load)
    assert_same(first, expected)
    for _ in range(20):  # whoever of a row's programs arrives last
        assert torch.equal(decode_attention(*arguments, by_load=by_load), first)


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("window", [None, 1000])
def test_prefill_at_the_shape_of_an_8b_model(window, dtype, make_cache, assert_same, device):
    chunks = [(0, 700), (3000, 1024), (129, 1), (0, 323)]
    cache = make_cache([sum(chunk) for chunk in chunks], 8, 128, 16, dtype)
    starts = torch.tensor([0, 700, 1724, 1725, 2048], dtype=torch.int32, device=device)
    positions = torch.cat([torch.arange(old, old + new) for old, new in chunks])
    positions = positions.to(device, torch.int32)
    q = torch.randn(2048, 32, 128, dtype=dtype, device=device)
    arguments = (q, cache.pool, 1, cache.block_tables, starts, positions, SCALE, window)
    assert_same(prefill_attention(*arguments), prefill_attention_reference(*arguments))


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_rows_at_the_shape_of_an_8b_model(dtype, device, assert_same):
    x, residual = torch.randn(2, 4096, 4096, device=device).to(dtype)
    normed, total = rms_norm(x, residual[0], 1e-5, residual)
    expected, expected_total = rms_norm_reference(x, residual[0], 1e-5, residual)
    assert_same(normed, expected)
    assert torch.equal(total, expected_total)
    gate_up = torch.randn(4096, 2 * 14336, device=device).to(dtype)
    assert_same(silu_and_mul(gate_up), silu_and_mul_reference(gate_up))


def test_a_pool_beyond_32_bits(device, assert_same):
    """Its last page starts behind 2 ** 31 elements: 4.3 GB of pages of 2 MiB."""
    pool = torch.zeros(2100, 32, 2, 8, 16, 128, dtype=torch.bfloat16, device=device)
    assert pool.stride(0) * (pool.shape[0] - 1) > 2**31
    page_ids = torch.tensor([2099, 3], dtype=torch.int32, device=device)
    scatter_pages(torch.randn(2, pool[0].numel(), device=device).bfloat16(), pool, page_ids)
    assert torch.equal(gather_pages(pool, page_ids), gather_pages_reference(pool, page_ids))

    positions = torch.arange(2, dtype=torch.int32, device=device)
    qkv = torch.randn(2, 48 * 128, device=device).bfloat16()
    angles = torch.randn(8, 128, device=device)
    slots = (positions, pool, 31, page_ids[:1].expand(2).contiguous(), positions, 32)
    expected_q = rope_write_reference(qkv, angles, *slots)
    expected_page = pool[2099].clone()
    pool[2099, 31, :, :, :2] = 0
    q = rope_write(qkv, angles, *slots)
    assert_same(q, expected_q)
    assert_same(pool[2099], expected_page)

    tables = page_ids.unsqueeze(0)
    context_lens = torch.tensor([32], dtype=torch.int32, device=device)
    arguments = (q[:1], pool, 31, tables, context_lens, SCALE)
    assert_same(decode_attention(*arguments), decode_attention_reference(*arguments))
    starts = torch.tensor([0, 1], dtype=torch.int32, device=device)
    chunk = (q[:1], pool, 31, tables, starts, context_lens - 1, SCALE)
    assert_same(prefill_attention(*chunk), prefill_attention_reference(*chunk))


@pytest.mark.parametrize("by_load", [False, True])
def test_a_captured_step_follows_its_inputs(by_load, make_cache, device, assert_same):
    """Lengths, tables and slots are read on the device: a replay sees what they hold by then."""
    cache = make_cache([600, 600], 2, 64, 16, torch.bfloat16)
    angles = torch.randn(1000, 64, device=device)
    qkv = torch.randn(2, 8 * 64, device=device).bfloat16()
    positions = torch.tensor([300, 20], dtype=torch.int32, device=device)

    def step() -> torch.Tensor:
        rows = torch.arange(2, device=device)
        pages = cache.block_tables[rows, (positions // 16).long()]
        slots = (positions, cache.pool, 1, pages, positions % 16, 4)
        q = rope_write(qkv, angles, *slots)
        where = (cache.pool, 1, cache.block_tables, positions + 1, 0.125)
        return decode_attention(q, *where, by_load=by_load)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for new_positions in ([300, 20], [301, 255], [599, 256]):
        positions.copy_(torch.tensor(new_positions, dtype=torch.int32))
        qkv.normal_()
        graph.replay()
        replayed = captured.clone()
        assert torch.equal(replayed, step())
        assert bool(replayed.isfinite().all())
