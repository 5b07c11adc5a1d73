"""The kernels that move rows and pages: GB/s and share of a plain copy."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu_all.attempts import one_by_one
from benchmarks.gpu_all.setting import Setting, Table
from benchmarks.gpu_all.timing import num_copies, seconds_per_call
from kernels.argmax import argmax_rows
from kernels.decode_rows import NUM_COLUMNS, advance_rows, begin_rows
from kernels.page_digest import page_digests
from kernels.pages import gather_pages, scatter_pages
from kernels.rms_norm import rms_norm
from kernels.rope import rope_write
from kernels.silu_and_mul import silu_and_mul

Calls = list[Callable[[], object]]
Case = tuple[str, int, Calls]  # name, bytes read and written, calls
Family = Callable[[Setting], Iterator[Case]]


def run(setting: Setting) -> Iterator[Table]:
    """Each family by itself: the memory of one is free before the next is made."""
    families = (elementwise, rope, greedy, pages)
    yield from one_by_one((f.__name__, partial(measure, setting, f)) for f in families)


def measure(setting: Setting, family: Family) -> Table:
    """One family. Target: 85 % of the copy for whole prompts and pages."""
    rows, figures = [], {}
    for name, num_bytes, calls in family(setting):
        seconds = seconds_per_call(setting, calls)
        rate = num_bytes / seconds / 1e9
        share = rate / setting.copy_gb_s
        rows.append((name, f"{seconds * 1e6:.1f}", f"{rate:.0f}", f"{share:.0%}"))
        figures[name] = {"us": seconds * 1e6, "gb_s": rate, "share": share}
    title = "Rows and pages (target: 85 % of the copy; a step's rows are launches)"
    return Table(title, ("kernel", "us", "GB/s", "of copy"), rows, figures)


def elementwise(setting: Setting) -> Iterator[Case]:
    """RMSNorm with its residual, SiLU-and-mul: a prompt of 8k, a step of 32."""
    shape, size = setting.shape, setting.dtype.itemsize
    for tokens in setting.pick((8192, 32), (3,)):
        num_bytes = 4 * tokens * shape.hidden * size
        sets = [
            torch.randn(2, tokens, shape.hidden, device=setting.device).to(setting.dtype)
            for _ in range(setting.pick(num_copies(num_bytes), 1))
        ]
        weight = sets[0][0, 0].clone()
        calls: Calls = [partial(rms_norm, x[0], weight, 1e-5, x[1]) for x in sets]
        yield f"rms_norm and residual, {tokens} x {shape.hidden}", num_bytes, calls
        num_bytes = 3 * tokens * shape.intermediate * size
        sets = [
            torch.randn(tokens, 2 * shape.intermediate, device=setting.device).to(setting.dtype)
            for _ in range(setting.pick(num_copies(num_bytes), 1))
        ]
        calls = [partial(silu_and_mul, x) for x in sets]
        yield f"silu_and_mul, {tokens} x {shape.intermediate}", num_bytes, calls


def rope(setting: Setting) -> Iterator[Case]:
    """Rotation and the write of keys and values."""
    shape, device, page_size = setting.shape, setting.device, setting.page_size
    heads = shape.num_heads + 2 * shape.num_kv_heads
    for tokens in setting.pick((8192, 32), (3,)):
        num_bytes = 2 * tokens * heads * shape.head_dim * setting.dtype.itemsize
        num_pages = -(-tokens // page_size)
        sizes = (num_pages, 2, 2, shape.num_kv_heads, page_size, shape.head_dim)
        pool = torch.zeros(sizes, dtype=setting.dtype, device=device)
        rows = torch.arange(tokens, dtype=torch.int32, device=device)
        order = torch.randperm(num_pages, device=device).to(torch.int32)
        page_ids = order[(rows // page_size).long()]
        cos_sin = torch.randn(tokens, shape.head_dim, device=device)
        sets = [
            torch.randn(tokens, heads * shape.head_dim, device=device).to(setting.dtype)
            for _ in range(setting.pick(num_copies(num_bytes), 1))
        ]
        where = (cos_sin, rows, pool, 1, page_ids, rows % page_size, shape.num_heads)
        yield (
            f"rope_write, {tokens} tokens",
            num_bytes,
            [partial(rope_write, x, *where) for x in sets],
        )


def greedy(setting: Setting) -> Iterator[Case]:
    """The end of a step."""
    device, vocab = setting.device, setting.shape.vocab
    for count in setting.pick((1, 32, 256), (2,)):
        num_bytes = count * vocab * setting.dtype.itemsize
        sets = [
            torch.randn(count, vocab, device=device).to(setting.dtype)
            for _ in range(setting.pick(num_copies(num_bytes), 1))
        ]
        yield (
            f"argmax_rows, {count} x {vocab}",
            num_bytes,
            [partial(argmax_rows, x) for x in sets],
        )
        yield (
            f"(torch.argmax, {count} x {vocab})",
            num_bytes,
            [partial(x.argmax, -1) for x in sets],
        )
    rows = setting.pick(256, 3)
    state = torch.zeros(rows, NUM_COLUMNS, dtype=torch.int64, device=device)
    tables = torch.zeros(rows, setting.pick(1 << 14, 8), dtype=torch.int32, device=device)
    begin: Calls = [partial(begin_rows, state, tables, setting.page_size)]
    yield f"begin_rows, {rows} rows", rows * 28, begin
    results, tokens = torch.zeros_like(state[:, :2]), state[:, 0].clone()
    advance: Calls = [partial(advance_rows, state, results, tokens, tokens.float())]
    yield f"advance_rows, {rows} rows", rows * 76, advance


def pages(setting: Setting) -> Iterator[Case]:
    """8k tokens of whole pages, of one layer, of half the heads; and their digests."""
    shape, device = setting.shape, setting.device
    num_pages = setting.pick(512, 3)
    sizes = (2 * num_pages, shape.num_layers, 2, shape.num_kv_heads, setting.page_size)
    pool = torch.zeros((*sizes, shape.head_dim), dtype=setting.dtype, device=device)
    page_ids = torch.randperm(2 * num_pages, device=device)[:num_pages].to(torch.int32)
    half = (0, shape.num_kv_heads // 2)
    for name, layers, heads in [("whole", None, None), ("one layer", (1, 2), None),
                                ("half the heads", None, half)]:  # fmt: skip
        staging = gather_pages(pool, page_ids, layers, heads)
        num_bytes = 2 * staging.nbytes
        yield (
            f"gather_pages, {name}, {num_pages} pages",
            num_bytes,
            [partial(gather_pages, pool, page_ids, layers, heads)],
        )
        yield (
            f"scatter_pages, {name}, {num_pages} pages",
            num_bytes,
            [partial(scatter_pages, staging, pool, page_ids, layers, heads)],
        )
    words = pool.view(len(pool), -1).view(torch.int32)
    read = num_pages * pool[0].nbytes
    yield f"page_digests, {num_pages} pages", read, [partial(page_digests, words, page_ids)]
