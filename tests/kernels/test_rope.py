"""RoPE with the write into pages: the kernel equals its reference, and writes its slots only."""

import pytest
import torch

from kernels.rope import rope_write, rope_write_reference

DTYPES = (
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.gpu),
)


def make_inputs(num_tokens, num_heads, num_kv_heads, head_dim, page_size, dtype, device):
    angles = torch.rand(50, head_dim // 2) * 6.28
    slots = torch.randperm(8 * page_size)[:num_tokens]
    return {
        "qkv": torch.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim).to(device, dtype),
        "cos_sin": torch.cat((angles.cos(), angles.sin()), dim=-1).to(device),
        "positions": torch.randint(0, 50, (num_tokens,), dtype=torch.int32).to(device),
        "pool": torch.full((9, 3, 2, num_kv_heads, page_size, head_dim), 7.0).to(device, dtype),
        "layer": 1,
        "page_ids": (slots // page_size + 1).to(device, torch.int32),
        "offsets": (slots % page_size).to(device, torch.int32),
        "num_heads": num_heads,
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "page_size"),
    [(1, 1, 32, 8), (4, 2, 80, 16), (6, 2, 128, 3), (8, 1, 64, 64), (3, 3, 128, 32)],
)
def test_rope_write(
    num_heads, num_kv_heads, head_dim, page_size, with_norm, dtype, device, assert_same
):
    inputs = make_inputs(4, num_heads, num_kv_heads, head_dim, page_size, dtype, device)
    weights = torch.randn(2, head_dim).to(device, dtype)
    norms = dict(zip(("q_norm", "k_norm"), weights, strict=True)) if with_norm else {}
    expected_pool = inputs["pool"].clone()
    expected = rope_write_reference(**inputs | norms | {"pool": expected_pool})
    assert_same(rope_write(**inputs | norms), expected)
    assert_same(inputs["pool"], expected_pool)
    untouched = expected_pool == 7.0
    assert torch.equal(inputs["pool"] == 7.0, untouched)
    assert torch.equal(inputs["pool"][:, 1, 1], expected_pool[:, 1, 1])


def test_padding_rows_share_the_scratch_page(device):
    inputs = make_inputs(6, 2, 1, 32, 8, torch.float32, device)
    inputs["page_ids"][4:] = 0
    inputs["offsets"][4:] = 0
    inputs["positions"][4:] = 0
    expected_pool = inputs["pool"].clone()
    rope_write_reference(**inputs | {"pool": expected_pool})
    rope_write(**inputs)
    torch.testing.assert_close(inputs["pool"][1:], expected_pool[1:])
    assert (inputs["pool"][0, 1, :, :, 1:] == 7.0).all()


def test_no_tokens(device):
    inputs = make_inputs(0, 2, 1, 32, 8, torch.float32, device)
    assert rope_write(**inputs).shape == (0, 2, 32)
