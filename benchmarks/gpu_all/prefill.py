"""Prefill attention: TFLOP/s of one layer, from pages, beside torch's own."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate

import torch
from torch.nn import functional
from triton.runtime.errors import OutOfResources

from benchmarks.gpu_all.attempts import one_by_one
from benchmarks.gpu_all.paged import make_paged
from benchmarks.gpu_all.setting import Setting, Table
from benchmarks.gpu_all.timing import seconds_per_call
from kernels.prefill_attention import HALF_TUNING, PrefillTuning, prefill_attention

# name: (tokens before the chunk, tokens of the chunk) of each sequence
CHUNKS = {
    "one prompt of 8k": [(0, 8192)],
    "four of 2k": [(0, 2048)] * 4,
    "2k after 6k": [(6144, 2048)],
    "one prompt of 32k": [(0, 32768)],
}
VARIANTS = [
    PrefillTuning(*sizes)
    for sizes in [
        (128, 64, 8, 3), (128, 64, 8, 2), (128, 128, 8, 2), (64, 64, 4, 2), (64, 64, 4, 3),
        (128, 32, 8, 4),
    ]
]  # fmt: skip
HEADER = ("chunks", "way", "us", "TFLOP/s", "of ceiling")


def run(setting: Setting) -> Iterator[Table]:
    """The default settings at all shapes, then the sweep at the first."""
    chunks = setting.pick(CHUNKS, {"tiny": [(20, 30), (0, 5)]})
    attempts = [(name, partial(measure, setting, name, parts)) for name, parts in chunks.items()]
    first = next(iter(chunks.values()))
    yield from one_by_one([*attempts, ("sweep", partial(sweep, setting, first))])


def measure(setting: Setting, name: str, parts: list[tuple[int, int]]) -> Table:
    """Chunks of one kind. 620 TFLOP/s and more need warp specialisation (see decision 0028)."""
    rows, figures = [], {}
    for way, seconds in ways(setting, parts).items():
        tflop_s = flop(setting, parts) / seconds / 1e12
        share = tflop_s / setting.matmul_tflop_s
        rows.append((name, way, f"{seconds * 1e6:.0f}", f"{tflop_s:.0f}", f"{share:.0%}"))
        figures[f"{name} {way}"] = {"us": seconds * 1e6, "tflop_s": tflop_s}
    title = "Prefill attention, one layer, causal (target: 450 TFLOP/s)"
    return Table(title, HEADER, rows, figures)


def flop(setting: Setting, parts: list[tuple[int, int]]) -> float:
    """Of both products, keys that a query does not see left out."""
    pairs = sum(new * old + new * (new + 1) / 2 for old, new in parts)
    return 4 * pairs * setting.shape.num_heads * setting.shape.head_dim


def ways(setting: Setting, parts: list[tuple[int, int]]) -> dict[str, float]:
    """Seconds from pages, and of torch's attention where there is no prefix."""
    found = {"pages": seconds_per_call(setting, [make_call(setting, parts, None)])}
    if all(old == 0 for old, _ in parts) and len({new for _, new in parts}) == 1:
        shape, new = setting.shape, parts[0][1]
        sizes = (len(parts), shape.num_heads, new, shape.head_dim)
        q, k, v = (torch.randn(sizes, device=setting.device).to(setting.dtype) for _ in range(3))
        call = partial(functional.scaled_dot_product_attention, q, k, v, is_causal=True)
        found["torch, contiguous, no GQA"] = seconds_per_call(setting, [call])
    return found


def make_call(
    setting: Setting, parts: list[tuple[int, int]], tuning: PrefillTuning | None
) -> Callable[[], object]:
    """One layer's attention of all chunks."""
    shape, device = setting.shape, setting.device
    paged = make_paged(setting, len(parts), max(map(sum, parts)), num_layers=2)
    starts = torch.tensor([0, *accumulate(new for _, new in parts)], dtype=torch.int32)
    positions = torch.cat([torch.arange(old, old + new) for old, new in parts])
    sizes = (len(positions), shape.num_heads, shape.head_dim)
    q = torch.randn(sizes, device=device).to(setting.dtype)
    metadata = (paged.tables, starts.to(device), positions.to(device, torch.int32))
    return partial(
        prefill_attention,
        q,
        paged.pool,
        1,
        *metadata,
        shape.head_dim**-0.5,
        tuning=tuning,
    )


def sweep(setting: Setting, parts: list[tuple[int, int]]) -> Table:
    """All settings that fit, the fastest first."""
    found: dict[PrefillTuning, float] = {}
    for tuning in setting.pick(VARIANTS, [PrefillTuning(32, 16, 4, 2)]):
        try:
            call = make_call(setting, parts, tuning)
            found[tuning] = seconds_per_call(setting, [call], 0.1)
        except OutOfResources:
            continue
    rows, figures = [], {}
    for tuning, seconds in sorted(found.items(), key=lambda item: item[1]):
        name = f"{tuning.rows} x {tuning.tile}, {tuning.num_warps} warps, "
        name += f"{tuning.num_stages} stages" + (" (default)" if tuning == HALF_TUNING else "")
        tflop_s = flop(setting, parts) / seconds / 1e12
        rows.append((name, f"{seconds * 1e6:.0f}", f"{tflop_s:.0f}"))
        figures[name] = tflop_s
    return Table("Sweep of prefill attention", ("setting", "us", "TFLOP/s"), rows, figures)
