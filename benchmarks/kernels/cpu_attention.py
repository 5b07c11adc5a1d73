"""Attention and elementwise kernels on the CPU, beside a plain read, SDPA and a product.

One thread. Decode rows read keys and values that are cold: every call takes the next layer of a
pool that is larger than the last cache, pages in random order. The plain read adds up as many bytes
of another tensor. SDPA has contiguous keys and values of the same sizes, which a paged server has
not. All ways are timed in turn and the best round counts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from benchmarks.kernels.cpu_products import Call, best_seconds, one_thread
from benchmarks.kernels.shapes import LLAMA_300M, LlamaShape
from benchmarks.options import Options
from benchmarks.report import Report, Table, say
from kernels.cpu.attention import paged_attention
from kernels.cpu.rms_norm import rms_norm
from kernels.cpu.rope import rope_write
from kernels.cpu.silu_and_mul import silu_and_mul

PAGE_SIZE = 16
SCALE = 0.125
DECODE_HEADER = ("ctx", "ours ms", "of a plain read", "SDPA / ours")
PREFILL_HEADER = ("rows", "from", "ours ms", "GFLOP/s", "SDPA GFLOP/s", "of a float32 product")
ELEMENTWISE_HEADER = ("kernel", "rows", "us", "GB/s", "torch / ours")
Figures = list[dict[str, object]]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    batch: int
    contexts: tuple[int, ...]
    chunks: tuple[tuple[int, int], ...]
    elementwise_rows: tuple[int, ...]
    pool_bytes: int
    num_rounds: int


CHUNKS = ((128, 0), (128, 512), (128, 3584), (512, 0), (512, 512), (512, 3584))
FULL = Size(32, (128, 512, 2048), CHUNKS, (32, 512), 96 << 20, 15)
QUICK = Size(2, (32,), ((16, 0), (16, 32)), (4,), 1 << 20, 2)


def run(options: Options) -> Report:
    """Three tables per dtype."""
    size = QUICK if options.quick else FULL
    torch.manual_seed(options.seed)
    tables, figures = [], {}
    with one_thread():
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            for kind, measure in MEASUREMENTS.items():
                say(f"{kind} {name}")
                header, rows, cells = measure(LLAMA_300M, dtype, size)
                tables.append(Table(f"{kind} {name}", header, rows))
                figures[f"{kind} {name}"] = cells
    notes = [
        f"16 query and 8 KV heads of 64, pages of {PAGE_SIZE}; decode: {size.batch} sequences",
        "of a plain read: our time / the time of adding up the bytes of keys and values",
    ]
    return Report(tables, notes, figures)


Result = tuple[tuple[str, ...], list[list[str]], Figures]


def _sdpa(q: torch.Tensor, kv: torch.Tensor, mask: torch.Tensor | None, causal: bool) -> Call:
    def call() -> object:
        return functional.scaled_dot_product_attention(
            q, kv[0], kv[1], attn_mask=mask, is_causal=causal, scale=SCALE, enable_gqa=True
        )

    return call


def measure_decode(shape: LlamaShape, dtype: torch.dtype, size: Size) -> Result:
    """A batch of decode rows at several contexts."""
    rows: list[list[str]] = []
    cells: Figures = []
    heads, kv_heads, dim, batch = shape.num_heads, shape.num_kv_heads, shape.head_dim, size.batch
    starts = torch.arange(batch + 1, dtype=torch.int32)
    q = torch.randn(batch, heads, dim).to(dtype)
    for context in size.contexts:
        num_pages = batch * -(-context // PAGE_SIZE)
        layer_bytes = num_pages * PAGE_SIZE * 2 * kv_heads * dim * dtype.itemsize
        layers = max(2, round(size.pool_bytes / layer_bytes))
        pool = torch.randn(num_pages, layers, 2, kv_heads, PAGE_SIZE, dim).to(dtype)
        tables = torch.randperm(num_pages).to(torch.int32).view(batch, -1)
        positions = torch.full((batch,), context - 1, dtype=torch.int32)
        words = torch.randn(layers, layer_bytes // 4)
        contiguous = torch.randn(2, batch, kv_heads, context, dim).to(dtype)

        def ours(
            layer: int,
            pool: torch.Tensor = pool,
            tables: torch.Tensor = tables,
            positions: torch.Tensor = positions,
        ) -> Call:
            return lambda: paged_attention(q, pool, layer, tables, starts, positions, SCALE)

        calls: dict[str, list[Call]] = {
            "ours": [ours(layer) for layer in range(layers)],
            "read": [words[layer].sum for layer in range(layers)],
            "SDPA": [_sdpa(q.unsqueeze(2), contiguous, None, False)],
        }
        best = best_seconds(calls, size.num_rounds)
        ratio, sdpa = best["ours"] / best["read"], best["SDPA"] / best["ours"]
        rows.append([str(context), f"{1e3 * best['ours']:.2f}", f"{ratio:.2f}x", f"{sdpa:.2f}"])
        cells.append({"context": context, "bytes": layer_bytes, **_milliseconds(best)})
    return DECODE_HEADER, rows, cells


def measure_prefill(shape: LlamaShape, dtype: torch.dtype, size: Size) -> Result:
    """Chunks of one prompt from several positions on."""
    rows: list[list[str]] = []
    cells: Figures = []
    heads, kv_heads, dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
    matrix = torch.randn(1024, 1024)
    for count, start in size.chunks:
        end = start + count
        num_pages = -(-end // PAGE_SIZE)
        pool = torch.randn(num_pages, 1, 2, kv_heads, PAGE_SIZE, dim).to(dtype)
        table = torch.randperm(num_pages).to(torch.int32).view(1, -1)
        starts = torch.tensor([0, count], dtype=torch.int32)
        positions = torch.arange(start, end, dtype=torch.int32)
        q = torch.randn(count, heads, dim).to(dtype)
        mask = (positions.unsqueeze(1) >= torch.arange(end)) if start > 0 else None
        turned = q.transpose(0, 1).unsqueeze(0).contiguous()
        kv = torch.randn(2, 1, kv_heads, end, dim).to(dtype)

        def ours(
            q: torch.Tensor = q,
            pool: torch.Tensor = pool,
            table: torch.Tensor = table,
            starts: torch.Tensor = starts,
            positions: torch.Tensor = positions,
        ) -> object:
            return paged_attention(q, pool, 0, table, starts, positions, SCALE)

        calls: dict[str, list[Call]] = {
            "ours": [ours],
            "SDPA": [_sdpa(turned, kv, mask, start == 0)],
            "product": [lambda: matrix @ matrix],
        }
        best = best_seconds(calls, max(2, size.num_rounds // 3))
        flops = 4.0 * heads * dim * (int(positions.sum()) + count)
        rate, product = flops / best["ours"] / 1e9, 2 * 1024**3 / best["product"] / 1e9
        rows.append([
            str(count), str(start), f"{1e3 * best['ours']:.2f}", f"{rate:.1f}",
            f"{flops / best['SDPA'] / 1e9:.1f}", f"{rate / product:.0%}",
        ])  # fmt: skip
        cells.append({"rows": count, "from": start, "flops": flops, **_milliseconds(best)})
    return PREFILL_HEADER, rows, cells


def measure_elementwise(shape: LlamaShape, dtype: torch.dtype, size: Size) -> Result:
    """The kernels between the products, at the rows of a decode step and of a chunk."""
    rows: list[list[str]] = []
    cells: Figures = []
    for count in size.elementwise_rows:
        for name, (ours, theirs, num_elements) in _elementwise(shape, dtype, count).items():
            calls: dict[str, list[Call]] = {"ours": [ours], "torch": [theirs]}
            best = best_seconds(calls, size.num_rounds)
            rate = num_elements * dtype.itemsize / best["ours"] / 1e9
            ratio = best["torch"] / best["ours"]
            row = [name, str(count), f"{1e6 * best['ours']:.1f}", f"{rate:.1f}", f"{ratio:.2f}"]
            rows.append(row)
            cells.append({"kernel": name, "rows": count, **_milliseconds(best)})
    return ELEMENTWISE_HEADER, rows, cells


def _elementwise(
    shape: LlamaShape, dtype: torch.dtype, count: int
) -> dict[str, tuple[Call, Call, int]]:
    """Kernel -> our call, what torch has for it (for rope a copy), elements read and written."""
    hidden, dim, kv_heads = shape.hidden, shape.head_dim, shape.num_kv_heads
    x, residual = torch.randn(2, count, hidden).to(dtype)
    weight = torch.randn(hidden).to(dtype)
    gate_up = torch.randn(count, 2 * shape.inner).to(dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    width = (shape.num_heads + 2 * kv_heads) * dim
    qkv = torch.randn(count, width).to(dtype)
    pool = torch.zeros(-(-count // PAGE_SIZE), 1, 2, kv_heads, PAGE_SIZE, dim, dtype=dtype)
    rows = torch.arange(count, dtype=torch.int32)
    angles = torch.randn(count, dim)
    pages, offsets = rows // PAGE_SIZE, rows % PAGE_SIZE
    return {
        "add and norm": (
            lambda: rms_norm(x, weight, 1e-5, residual),
            lambda: functional.rms_norm(x + residual, (hidden,), weight, 1e-5),
            4 * count * hidden,
        ),
        "rope and write": (
            lambda: rope_write(qkv, angles, rows, pool, 0, pages, offsets, shape.num_heads),
            qkv.clone,
            2 * count * width,
        ),
        "silu and mul": (
            lambda: silu_and_mul(gate_up),
            lambda: functional.silu(gate) * up,
            3 * count * shape.inner,
        ),
    }


def _milliseconds(best: dict[str, float]) -> dict[str, float]:
    return {f"{way}_ms": round(1e3 * seconds, 4) for way, seconds in best.items()}


MEASUREMENTS: dict[str, Callable[[LlamaShape, torch.dtype, Size], Result]] = {
    "decode": measure_decode,
    "prefill": measure_prefill,
    "elementwise": measure_elementwise,
}
