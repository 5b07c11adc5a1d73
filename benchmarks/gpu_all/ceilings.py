"""What this device can do at most: its copies, its matrix products, its launches."""

from collections.abc import Iterator
from functools import partial

import torch
import triton
import triton.language as tl

from benchmarks.gpu_all.attempts import one_by_one
from benchmarks.gpu_all.setting import Setting, Table
from benchmarks.gpu_all.timing import num_copies, seconds_per_call


@triton.jit  # type: ignore[untyped-decorator]
def _empty_kernel(x_ptr: tl.tensor) -> None:
    """Nothing, by one program."""


def run(setting: Setting) -> Iterator[Table]:
    """`figures` are the ceilings that the other parts are told."""
    parts = (("ceilings", _ceilings), ("products", _thin_products))
    yield from one_by_one((name, partial(measure, setting)) for name, measure in parts)


def _ceilings(setting: Setting) -> Table:
    """Memory, products, launches."""
    device = setting.device
    words = setting.pick(1 << 30, 1 << 12)
    copy_gb_s, read_gb_s = _memory(setting, words)
    size = setting.pick(8192, 64)
    a, b = torch.randn(2, size, size, device=device).to(setting.dtype)
    matmul_s = seconds_per_call(setting, [lambda: a @ b], 0.5, as_graph=False)
    tflop_s = 2 * size**3 / matmul_s / 1e12
    x = torch.zeros(1, dtype=torch.int32, device=device)
    launches = setting.pick(1000, 2)
    empty_s = seconds_per_call(setting, [lambda: _empty_kernel[(1,)](x)] * launches)
    rows = [
        ("device copy, read plus write", f"{copy_gb_s:.0f} GB/s"),
        ("read alone (torch amax)", f"{read_gb_s:.0f} GB/s"),
        (f"{setting.dtype} product of {size}", f"{tflop_s:.0f} TFLOP/s"),
        ("empty kernel in a graph", f"{empty_s * 1e6:.2f} us"),
    ]
    figures = {"copy_gb_s": copy_gb_s, "matmul_tflop_s": tflop_s, "empty_kernel_us": empty_s * 1e6}
    return Table("Ceilings", ("what", "measured"), rows, figures)


def _memory(setting: Setting, words: int) -> tuple[float, float]:
    """GB/s of a copy, read plus write, and of a read alone."""
    source = torch.zeros(words, dtype=torch.int16, device=setting.device)
    target, wide = torch.empty_like(source), source.view(torch.int64)
    copy_s = seconds_per_call(setting, [lambda: target.copy_(source)], as_graph=False)
    read_s = seconds_per_call(setting, [wide.amax], as_graph=False)
    return 2 * source.nbytes / copy_s / 1e9, source.nbytes / read_s / 1e9


def _thin_products(setting: Setting) -> Table:
    """The products of a decode step, bound by their weights: share of the copy's rate."""
    shape = setting.shape
    heads = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    products = {
        "qkv": (heads, shape.hidden),
        "output": (shape.hidden, shape.num_heads * shape.head_dim),
        "gate_up": (2 * shape.intermediate, shape.hidden),
        "down": (shape.hidden, shape.intermediate),
        "head": (shape.vocab, shape.hidden),
    }
    rows, figures = [], {}
    for name, (outputs, depth) in products.items():
        num_bytes = outputs * depth * setting.dtype.itemsize
        weights = [
            torch.randn(outputs, depth, device=setting.device).to(setting.dtype)
            for _ in range(setting.pick(num_copies(num_bytes), 1))
        ]
        for num_rows in setting.pick((1, 32, 128, 256), (1,)):
            x = torch.randn(num_rows, depth, device=setting.device).to(setting.dtype)
            calls = [lambda w=w, x=x: torch.nn.functional.linear(x, w) for w in weights]
            seconds = seconds_per_call(setting, calls)
            rate = num_bytes / seconds / 1e9
            tflop_s = 2 * num_rows * outputs * depth / seconds / 1e12
            share = max(rate / setting.copy_gb_s, tflop_s / setting.matmul_tflop_s)
            cells = (f"{seconds * 1e6:.1f}", f"{rate:.0f}", f"{tflop_s:.0f}", f"{share:.0%}")
            rows.append((f"{name} {outputs} x {depth}, {num_rows} rows", *cells))
            figures[f"{name} {num_rows}"] = {"us": seconds * 1e6, "share": share}
    header = ("cuBLAS products of a step", "us", "GB/s", "TFLOP/s", "of ceiling")
    return Table("Products of a decode step", header, rows, figures)
