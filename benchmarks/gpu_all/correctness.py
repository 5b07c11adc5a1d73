"""Each kernel on the device against its torch reference in float64, per dtype."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu_all.attempts import one_by_one
from benchmarks.gpu_all.setting import Setting, Table
from kernels.argmax import argmax_rows, argmax_rows_reference
from kernels.decode_attention import decode_attention, decode_attention_reference
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
from kernels.page_digest import page_digests, page_digests_reference
from kernels.pages import gather_pages, gather_pages_reference, scatter_pages
from kernels.prefill_attention import prefill_attention, prefill_attention_reference
from kernels.rms_norm import rms_norm, rms_norm_reference
from kernels.rope import rope_write, rope_write_reference
from kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference

# Largest error allowed, over the largest number of the result: a few roundings of the dtype.
ALLOWED = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
Pair = tuple[torch.Tensor, torch.Tensor]
Family = Callable[[Setting, torch.dtype], Iterator[tuple[str, Pair]]]


def run(setting: Setting) -> Iterator[Table]:
    """A row per kernel and dtype; raises where a kernel is wrong or fails, once all were tried."""
    dtypes = setting.pick(list(ALLOWED), [torch.float32, torch.float16])
    families = (attention_pairs, norm_pairs, rope_pairs, greedy_pairs, page_pairs)
    yield from one_by_one(
        (f"{family.__name__} in {dtype}", partial(compare, setting, family, dtype))
        for dtype in dtypes
        for family in families
    )


def compare(setting: Setting, family: Family, dtype: torch.dtype) -> Table:
    """One family in one dtype. ArithmeticError where a kernel is wrong."""
    torch.manual_seed(0)
    short = str(dtype).removeprefix("torch.")
    errors = {f"{name}, {short}": relative_error(*pair) for name, pair in family(setting, dtype)}
    wrong = [name for name, error in errors.items() if not error <= ALLOWED[dtype]]
    rows = [(name, f"{error:.1e}", "WRONG" * (name in wrong)) for name, error in errors.items()]
    if wrong:
        print(f"  WRONG: {rows}")
        raise ArithmeticError(f"wrong beyond {ALLOWED[dtype]:g}: {', '.join(wrong)}")
    title = "Errors on the device against float64, over the largest number"
    return Table(
        title, ("kernel", "error", ""), rows, {"errors " + n: e for n, e in errors.items()}
    )


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest expected number; nan where there is one."""
    difference = (actual.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max().clamp(min=1e-30))


def random(setting: Setting, dtype: torch.dtype, *sizes: int) -> torch.Tensor:
    """Normal numbers, rounded to the dtype."""
    return torch.randn(sizes, device=setting.device).to(dtype)


def norm_pairs(setting: Setting, dtype: torch.dtype) -> Iterator[tuple[str, Pair]]:
    """RMSNorm behind an addition, and the activation."""
    x, residual = random(setting, dtype, 2, 64, 4096)
    weight = random(setting, dtype, 4096)
    normed, total = rms_norm(x, weight, 1e-5, residual)
    wide = rms_norm_reference(total.double(), weight.double(), 1e-5)[0]
    yield "rms_norm", (normed, wide)
    gate_up = random(setting, dtype, 16, 2 * setting.pick(14336, 512))
    yield "silu_and_mul", (silu_and_mul(gate_up), silu_and_mul_reference(gate_up.double()))


def greedy_pairs(setting: Setting, dtype: torch.dtype) -> Iterator[tuple[str, Pair]]:
    """The end of a step and the begin of the next."""
    logits = random(setting, dtype, 5, setting.pick(128256, 5000))
    (tokens, largest), expected = argmax_rows(logits), argmax_rows_reference(logits)
    yield "argmax_rows", (tokens, expected[0])
    yield "argmax_rows, the largest", (largest, expected[1])
    rows = torch.arange(70, device=setting.device)
    tables = torch.randint(0, 999, (70, 40), device=setting.device).to(torch.int32)
    state = torch.zeros(70, NUM_COLUMNS, dtype=torch.int64, device=setting.device)
    state[:, POSITION] = rows * 8
    state[:, IS_LIVE] = rows % 5 > 0
    state[:, INDEX] = rows
    wanted, results = state.clone(), torch.zeros_like(state[:, :2])
    wanted_results = results.clone()
    advance_rows(state, results, rows + 7, rows.float())
    advance_rows_reference(wanted, wanted_results, rows + 7, rows.float())
    both = torch.cat((state, results), 1), torch.cat((wanted, wanted_results), 1)
    yield "advance_rows", both
    slots, wanted_slots = begin_rows(state, tables, 16), begin_rows_reference(state, tables, 16)
    yield "begin_rows", (torch.stack(slots), torch.stack(wanted_slots))


def page_pairs(setting: Setting, dtype: torch.dtype) -> Iterator[tuple[str, Pair]]:
    """Copies of parts of pages to and from staging, and digests."""
    pool = random(setting, dtype, 9, 4, 2, 8, 16, 64)
    ids = torch.tensor([5, 0, 8], dtype=torch.int32, device=setting.device)
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
    """Decode by load, invariant and windowed; prefill."""
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
    query = torch.randn(new + 1, heads, dim, device=device).to(dtype)
    for window in (None, 100):
        chunk = (two, starts, positions, dim**-0.5, window)
        expected = prefill_attention_reference(query.double(), pool.double(), 1, *chunk)
        name = "prefill_attention" + " windowed" * (window is not None)
        yield name, (prefill_attention(query, pool, 1, *chunk), expected)


def rope_pairs(setting: Setting, dtype: torch.dtype) -> Iterator[tuple[str, Pair]]:
    """Rotated queries, and the pages."""
    device, (heads, kv_heads, dim) = setting.device, (8, 2, 64)
    qkv = torch.randn(20, (heads + 2 * kv_heads) * dim, device=device).to(dtype)
    angles = torch.rand(20, dim // 2, device=device) * 6
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
    rows = torch.arange(20, dtype=torch.int32, device=device)
    pool = torch.zeros(4, 2, 2, kv_heads, 16, dim, dtype=dtype, device=device)
    wide = pool.double()
    where = (1, rows // 16 + 1, rows % 16, heads)
    wide_qkv = qkv.double()
    expected = rope_write_reference(wide_qkv, cos_sin, rows, wide, *where)
    yield "rope_write", (rope_write(qkv, cos_sin, rows, pool, *where), expected)
    yield "rope_write pages", (pool, wide)
