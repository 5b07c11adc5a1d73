"""The references themselves, in float64, against other formulations of the same maths."""

import pytest
import torch
from torch.nn import functional

from kernels.decode_attention import decode_attention_reference
from kernels.pages import gather_pages_reference
from kernels.prefill_attention import prefill_attention_reference
from kernels.rms_norm import rms_norm_reference
from kernels.rope import rope_write_reference
from kernels.silu_and_mul import silu_and_mul_reference

LENGTH, HEADS, KV_HEADS, DIM, PAGE = 45, 6, 2, 16, 8


@pytest.mark.parametrize("window", [None, 1, 5, 44])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_attention_equals_torch(dtype, window, make_cache):
    cache = make_cache([LENGTH], KV_HEADS, DIM, PAGE, dtype)
    pool, tables = cache.pool.cpu(), cache.block_tables.cpu()
    q = torch.randn(LENGTH, HEADS, DIM, dtype=dtype)
    positions = torch.arange(LENGTH, dtype=torch.int32)
    starts = torch.tensor([0, LENGTH], dtype=torch.int32)
    prefill = prefill_attention_reference(q, pool, 1, tables, starts, positions, 0.3, window)
    each = tables.expand(LENGTH, -1)
    decode = decode_attention_reference(q, pool, 1, each, positions + 1, 0.3, window)

    pages = gather_pages_reference(pool, tables[0, :-1]).view(-1, *pool.shape[1:])[:, 1]
    contiguous = pages.permute(1, 2, 0, 3, 4).reshape(2, KV_HEADS, -1, DIM)[:, :, :LENGTH]
    key, value = contiguous.double()
    distance = positions[:, None] - positions
    visible = (distance >= 0) & (distance < (window or LENGTH))
    expected = functional.scaled_dot_product_attention(
        q.double().transpose(0, 1), key, value, visible, scale=0.3, enable_gqa=True
    )
    expected = expected.transpose(0, 1).to(dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 0.01
    torch.testing.assert_close(prefill, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(decode, expected, rtol=tolerance, atol=tolerance)


def test_rope_rotates_in_the_complex_plane():
    angles = torch.rand(4, DIM // 2, dtype=torch.float64) * 6.28
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
    qkv = torch.randn(4, (HEADS + 2 * KV_HEADS) * DIM, dtype=torch.float64)
    pool = torch.zeros(3, 2, 2, KV_HEADS, PAGE, DIM, dtype=torch.float64)
    rows = torch.arange(4, dtype=torch.int32)
    page_ids = torch.tensor([2, 2, 0, 1], dtype=torch.int32)
    q = rope_write_reference(qkv, cos_sin, rows, pool, 1, page_ids, rows, HEADS)

    heads = qkv.view(4, -1, DIM)
    first, second = heads.chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)[:, None]
    rotated = torch.cat((turned.real, turned.imag), dim=-1)
    torch.testing.assert_close(q, rotated[:, :HEADS])
    for row, page in enumerate(page_ids.tolist()):
        torch.testing.assert_close(pool[page, 1, 0, :, row], rotated[row, HEADS : HEADS + KV_HEADS])
        assert torch.equal(pool[page, 1, 1, :, row], heads[row, HEADS + KV_HEADS :])
    assert int((pool != 0).sum()) == 4 * 2 * KV_HEADS * DIM


def test_rope_norms_heads_first():
    weight = torch.randn(2, DIM, dtype=torch.float64)
    qkv = torch.randn(3, (HEADS + 2 * KV_HEADS) * DIM, dtype=torch.float64)
    cos_sin = torch.cat((torch.ones(1, DIM // 2), torch.zeros(1, DIM // 2)), dim=-1)
    pool = torch.zeros(1, 1, 2, KV_HEADS, PAGE, DIM, dtype=torch.float64)
    rows, zeros = torch.arange(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    q = rope_write_reference(
        qkv, cos_sin, zeros, pool, 0, zeros, rows, HEADS, weight[0], weight[1], 1e-5
    )
    heads = qkv.view(3, -1, DIM)
    expected = functional.rms_norm(heads[:, :HEADS], (DIM,), weight[0], 1e-5)
    torch.testing.assert_close(q, expected)
    expected = functional.rms_norm(heads[:, HEADS : HEADS + KV_HEADS], (DIM,), weight[1], 1e-5)
    torch.testing.assert_close(pool[0, 0, 0, :, :3].transpose(0, 1), expected)


def test_rows_equal_torch():
    x, residual = torch.randn(2, 5, 12, dtype=torch.float64)
    weight = torch.randn(12, dtype=torch.float64)
    normed, total = rms_norm_reference(x, weight, 1e-5, residual)
    torch.testing.assert_close(normed, functional.rms_norm(x + residual, (12,), weight, 1e-5))
    assert torch.equal(total, x + residual)
    expected = x[:, :6] / (1 + (-x[:, :6]).exp()) * x[:, 6:]
    torch.testing.assert_close(silu_and_mul_reference(x), expected)
