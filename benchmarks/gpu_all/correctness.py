"""Each kernel on the device against its torch reference in float64, per dtype."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu_all.setting import Setting, Table
from kernels.advance_batch import advance_batch, advance_batch_reference
from kernels.argmax import argmax_rows, argmax_rows_reference
from kernels.decode_attention import decode_attention, decode_attention_reference
from kernels.page_digest import page_digests, page_digests_reference
from kernels.pages import gather_pages, gather_pages_reference, scatter_pages
from kernels.prefill_attention import prefill_attention, prefill_attention_reference
from kernels.rms_norm import rms_norm, rms_norm_reference
from kernels.rope import rope_write, rope_write_reference
from kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference

# Largest error allowed, over the largest number of the result: a few roundings of the dtype.
ALLOWED = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
Pair = tuple[torch.Tensor, torch.Tensor]


def run(setting: Setting) -> Iterator[Table]:
    """A row per kernel, a column per dtype; raises where a kernel is wrong."""
    dtypes = setting.pick(list(ALLOWED), [torch.float32, torch.float16])
    errors: dict[str, dict[str, float]] = {}
    wrong = []
    for dtype in dtypes:
        torch.manual_seed(0)
        for name, (actual, expected) in pairs(setting, dtype):
            error = relative_error(actual, expected)
            errors.setdefault(name, {})[str(dtype).removeprefix("torch.")] = error
            if not error <= ALLOWED[dtype]:
                wrong.append(f"{name} in {dtype}: {error:.1e}")
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    rows = [(name, *(f"{found[n]:.1e}" for n in names)) for name, found in errors.items()]
    notes = tuple(f"WRONG: {line}" for line in wrong) or ("all within a few roundings",)
    title = "Errors on the device against float64, over the largest number"
    yield Table(title, ("kernel", *names), rows, {"errors": errors, "wrong": wrong}, notes)
    if wrong:
        raise ArithmeticError("; ".join(wrong))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest expected number; nan where there is one."""
    difference = (actual.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max().clamp(min=1e-30))


def pairs(setting: Setting, dtype: torch.dtype) -> Iterator[tuple[str, Pair]]:
    """(actual, expected) of every kernel."""
    device = setting.device

    def random(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, device=device).to(dtype)

    yield from attention_pairs(setting, dtype)
    x, residual, weight = random(64, 4096), random(64, 4096), random(4096)
    normed, total = rms_norm(x, weight, 1e-5, residual)
    wide = rms_norm_reference(total.double(), weight.double(), 1e-5)[0]
    yield "rms_norm", (normed, wide)
    gate_up = random(16, 2 * setting.pick(14336, 512))
    yield "silu_and_mul", (silu_and_mul(gate_up), silu_and_mul_reference(gate_up.double()))
    yield from rope_pairs(setting, dtype)
    logits = random(5, setting.pick(128256, 5000))
    yield "argmax_rows", (argmax_rows(logits), argmax_rows_reference(logits))
    yield "advance_batch", advance_pair(device)
    pool = random(9, 4, 2, 8, 16, 64)
    ids = torch.tensor([5, 0, 8], dtype=torch.int32, device=device)
    for layers, heads in [(None, None), ((1, 3), None), (None, (2, 5)), ((3, 4), (0, 4))]:
        staging = gather_pages(pool, ids, layers, heads)
        expected = gather_pages_reference(pool, ids, layers, heads)
        yield f"gather_pages {layers} {heads}", (staging, expected)
        scatter_pages(-staging, pool, ids.flip(0), layers, heads)
        back = gather_pages_reference(pool, ids.flip(0), layers, heads)
        yield f"scatter_pages {layers} {heads}", (back, -expected)
    words = pool.view(9, -1).view(torch.int32)
    digests = (page_digests(words, ids), page_digests_reference(words, ids))
    yield "page_digests", (digests[0] - digests[1] + 1, torch.ones_like(digests[0]))


def attention_pairs(setting: Setting, dtype: torch.dtype) -> Iterator[tuple[str, Pair]]:
    """Decode by load, invariant and windowed; prefill from pages and with fresh rows."""
    device, (heads, kv_heads, dim) = setting.device, setting.pick((32, 8, 128), (4, 2, 32))
    lengths = setting.pick([1, 17, 256, 257, 8000, 3333, 0, 64], [1, 300, 0])
    columns = -(-max(lengths) // 16)
    pool = torch.randn(len(lengths) * columns, 2, 2, kv_heads, 16, dim, device=device).to(dtype)
    order = torch.randperm(len(pool), device=device).to(torch.int32)
    tables = order.view(len(lengths), columns)
    context_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    q = torch.randn(len(lengths), heads, dim, device=device).to(dtype)
    wide = pool.double()
    for window in (None, 100):
        where = (tables, context_lens, dim**-0.5, window)
        expected = decode_attention_reference(q.double(), wide, 1, *where)
        for by_load in (False, True):
            out = decode_attention(q, pool, 1, *where, by_load=by_load)
            name = f"decode_attention{' by load' * by_load}{' windowed' * (window is not None)}"
            yield name, (out, expected)
    old, new = setting.pick((1000, 700), (20, 40))
    starts = torch.tensor([0, new, new + 1], dtype=torch.int32, device=device)
    rows = [*range(old, old + new), 5]
    positions = torch.tensor(rows, dtype=torch.int32, device=device)
    two = order[: 2 * columns].view(2, columns)
    qkv = torch.randn(new + 1, heads + 2 * kv_heads, dim, device=device).to(dtype)
    fresh = qkv[:, heads:].split(kv_heads, dim=1)
    own = two[[0] * new + [1]].gather(1, (positions // 16).long().unsqueeze(1)).squeeze(1)
    pool[own.long(), 1, :, :, (positions % 16).long()] = torch.stack(fresh, dim=1)
    query = qkv[:, :heads].contiguous()
    for window in (None, 100):
        chunk = (two, starts, positions, dim**-0.5, window)
        expected = prefill_attention_reference(query.double(), pool.double(), 1, *chunk)
        attend = partial(prefill_attention, query, pool, 1, *chunk)
        suffix = " windowed" * (window is not None)
        yield f"prefill_attention{suffix}", (attend(), expected)
        yield f"prefill_attention fresh{suffix}", (attend(fresh=fresh), expected)


def rope_pairs(setting: Setting, dtype: torch.dtype) -> Iterator[tuple[str, Pair]]:
    """Rotated queries, the pages, and the keys written back."""
    device, (heads, kv_heads, dim) = setting.device, (8, 2, 64)
    qkv = torch.randn(20, (heads + 2 * kv_heads) * dim, device=device).to(dtype)
    angles = torch.rand(20, dim // 2, device=device) * 6
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
    rows = torch.arange(20, dtype=torch.int32, device=device)
    pool = torch.zeros(4, 2, 2, kv_heads, 16, dim, dtype=dtype, device=device)
    wide = pool.double()
    where = (1, rows // 16 + 1, rows % 16, heads)
    wide_qkv = qkv.double()
    expected = rope_write_reference(wide_qkv, cos_sin, rows, wide, *where, write_back=True)
    yield "rope_write", (rope_write(qkv, cos_sin, rows, pool, *where, write_back=True), expected)
    yield "rope_write pages", (pool, wide)
    yield "rope_write back", (qkv, wide_qkv)


def advance_pair(device: torch.device) -> Pair:
    """All vectors behind one advance, side by side."""
    tables = torch.randint(0, 999, (70, 40), device=device).to(torch.int32)
    positions = torch.randint(0, 600, (70,), device=device).to(torch.int32)
    drawn = torch.randint(0, 99, (70,), device=device)
    rows = torch.stack((positions, positions + 1, positions * 0, positions * 0))
    rows[:2, ::5] = 0
    tokens, expected_tokens, expected = (
        torch.zeros_like(drawn),
        torch.zeros_like(drawn),
        rows.clone(),
    )
    one, two, three, four = rows
    advance_batch(drawn, tokens, one, two, three, four, tables, 16)
    one, two, three, four = expected
    advance_batch_reference(drawn, expected_tokens, one, two, three, four, tables, 16)
    both = ((tokens, rows), (expected_tokens, expected))
    actual, wanted = (torch.cat((ids, vectors.flatten().long())) for ids, vectors in both)
    return actual, wanted
