"""Our packed products beside torch's, oneDNN's, and a plain read of the same weights.

One thread. Every call takes another copy of the weight, together more than the last cache holds,
as the layers of a model do. All ways are timed in turn, and the best of several rounds counts:
neighbours on the machine only ever make a round slower. The times are of calls from Python, in CPU
time of the calling thread: that does not count what the machine gave to others in between.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.kernels.shapes import LLAMA_35M, LLAMA_300M, LlamaShape
from benchmarks.options import Options
from benchmarks.report import Report, Table, say
from engine.linear import PanelLinears, has_onednn, onednn_linear
from engine.ops import Linear, MakeLinear, plain_linear
from kernels.cpu.huge_pages import HugePages

NUM_ROWS = (1, 8, 32, 128, 512)
ROTATED_BYTES = 80 << 20  # the last cache here has 32 MiB
MAX_COPIES = 48
ROUND_S = 0.006  # a round repeats calls for about this long
NUM_ROUNDS = 15
HEADER = (
    "product", "N x K", "rows", "ours us", "GFLOP/s", "GB/s",
    "of plain read", "F.linear / ours", "oneDNN / ours",
)  # fmt: skip
Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    shapes: tuple[LlamaShape, ...]
    num_rows: tuple[int, ...]
    num_rounds: int
    rotated_bytes: int


FULL = Size((LLAMA_35M, LLAMA_300M), NUM_ROWS, NUM_ROUNDS, ROTATED_BYTES)
QUICK = Size((LLAMA_35M,), (1, 32), 2, 1 << 20)


def run(options: Options) -> Report:
    """A table per checkpoint and dtype."""
    size = QUICK if options.quick else FULL
    torch.manual_seed(options.seed)
    tables, figures = [], {}
    with one_thread():
        for shape in size.shapes:
            for dtype in (torch.float32, torch.bfloat16):
                key = f"{shape.name} {str(dtype).removeprefix('torch.')}"
                say(f"{key}: {', '.join(shape.products())}")
                cells = measure(shape, dtype, size)
                tables.append(Table(key, HEADER, [_row(cell) for cell in cells]))
                figures[key] = [_figures(cell) for cell in cells]
    notes = [
        "ratios above 1: ours is faster. of plain read: time of adding up the weight / our time",
        "oneDNN: packed once for 16 rows, as engine/linear.py does; not every shape is invariant",
    ]
    return Report(tables, notes, figures)


@dataclass(frozen=True, slots=True)
class Cell:
    """Seconds of one call by way, for a product of num_rows rows with a weight [N, K]."""

    product: str
    num_outputs: int
    depth: int
    num_rows: int
    weight_bytes: int
    seconds: dict[str, float]


def measure(shape: LlamaShape, dtype: torch.dtype, size: Size) -> list[Cell]:
    """All products of a checkpoint with all row counts."""
    cells = []
    for name, (num_outputs, depth) in shape.products().items():
        num_bytes = num_outputs * depth * dtype.itemsize
        num_copies = min(MAX_COPIES, max(1, round(size.rotated_bytes / num_bytes)))
        weights = [
            (torch.randn(num_outputs, depth) / depth**0.5).to(dtype) for _ in range(num_copies)
        ]
        linears = {way: [make(w) for w in weights] for way, make in _ways(dtype).items()}
        memory = HugePages()
        reads = [_read(weight, memory) for weight in weights]
        for num_rows in size.num_rows:
            x = torch.randn(num_rows, depth).to(dtype)
            calls = {way: [_product(f, x) for f in each] for way, each in linears.items()}
            calls["read"] = reads
            seconds = best_seconds(calls, size.num_rounds)
            cells.append(Cell(name, num_outputs, depth, num_rows, num_bytes, seconds))
    return cells


def _ways(dtype: torch.dtype) -> dict[str, MakeLinear]:
    ways: dict[str, MakeLinear] = {"ours": PanelLinears(), "F.linear": plain_linear}
    return {**ways, "oneDNN": onednn_linear} if has_onednn(dtype) else ways


def _product(linear: Linear, x: torch.Tensor) -> Call:
    return lambda: linear(x)


def _read(weight: torch.Tensor, memory: HugePages) -> Call:
    """Adds up the weight's bytes as float32, in memory that is as fast to read as the panels'."""
    words = memory.empty((weight.nbytes // 4,), np.dtype(np.float32))
    words[:] = weight.view(-1).view(torch.float32).numpy()
    return torch.from_numpy(words).sum


def best_seconds(calls: dict[str, list[Call]], num_rounds: int) -> dict[str, float]:
    """Seconds per call of every way: ways in turn, calls in rotation, the best round."""
    turns = {way: _endless(each) for way, each in calls.items()}
    counts, best = {}, {}
    for way, turn in turns.items():
        next(turn)()
        started = time.thread_time()
        next(turn)()
        best[way] = time.thread_time() - started
        counts[way] = max(1, min(len(calls[way]), round(ROUND_S / best[way])))
    for _ in range(num_rounds):
        for way, turn in turns.items():
            started = time.thread_time()
            for _ in range(counts[way]):
                next(turn)()
            best[way] = min(best[way], (time.thread_time() - started) / counts[way])
    return best


def _endless(calls: list[Call]) -> Iterator[Call]:
    while True:
        yield from calls


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _row(cell: Cell) -> list[str]:
    ours = cell.seconds["ours"]
    flops = 2.0 * cell.num_rows * cell.num_outputs * cell.depth
    onednn = cell.seconds.get("oneDNN")
    return [
        cell.product,
        f"{cell.num_outputs} x {cell.depth}",
        str(cell.num_rows),
        f"{1e6 * ours:.1f}",
        f"{flops / ours / 1e9:.1f}",
        f"{cell.weight_bytes / ours / 1e9:.1f}",
        f"{cell.seconds['read'] / ours:.0%}",
        f"{cell.seconds['F.linear'] / ours:.2f}",
        "-" if onednn is None else f"{onednn / ours:.2f}",
    ]


def _figures(cell: Cell) -> dict[str, object]:
    times = {f"{way}_us": round(1e6 * seconds, 2) for way, seconds in cell.seconds.items()}
    shape = [cell.num_outputs, cell.depth]
    return {"product": cell.product, "shape": shape, "rows": cell.num_rows, **times}
