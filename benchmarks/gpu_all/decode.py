"""Decode attention: time of one layer at the shapes that matter, and a sweep over its settings."""

import itertools
from collections.abc import Iterator
from functools import partial

import torch
from triton.runtime.errors import OutOfResources

from benchmarks.gpu_all.attempts import one_by_one
from benchmarks.gpu_all.paged import Paged, make_paged
from benchmarks.gpu_all.setting import Setting, Table
from benchmarks.gpu_all.timing import seconds_per_call
from kernels.decode_attention import HALF_TUNING, DecodeTuning, decode_attention
from kernels.decode_plan import DecodePlan, plan_decode

# (rows, context): target us of one layer, from the memory's rate
TARGETS_US = {(32, 8192): 290.0, (128, 1024): 150.0, (1, 8192): 14.0, (1, 1024): 6.0}
HEADER = ("rows x context", "way", "us", "GB/s", "of copy", "target us")


def run(setting: Setting) -> Iterator[Table]:
    """The default settings first, then the sweep."""
    sizes = shapes(setting)
    yield from one_by_one((f"{a} x {b}", partial(times, setting, a, b)) for a, b in sizes)
    yield from one_by_one((f"sweep of {a} x {b}", partial(sweep, setting, a, b)) for a, b in sizes)


def shapes(setting: Setting) -> list[tuple[int, int]]:
    """(rows, context)."""
    return list(setting.pick(list(TARGETS_US), [(2, 100)]))


def times(setting: Setting, num_rows: int, context: int) -> Table:
    """Cut by load and invariant, with the plan made before and with it made in every call."""
    rows, figures = [], {}
    paged, q = make_paged(setting, num_rows, context), queries(setting, num_rows)
    for way in ("by load", "invariant", "by load, planned each time"):
        by_load = way != "invariant"
        plan = None if "each" in way else make_plan(setting, paged, by_load=by_load)
        seconds = layer_seconds(setting, q, paged, plan, None, by_load=by_load)
        cells, found = judged(setting, num_rows, context, seconds)
        rows.append((f"{num_rows} x {context}", way, *cells))
        figures[f"{num_rows}x{context} {way}"] = found
    title = "Decode attention, one of an 8B model's layers; calls rotate over layers beyond the L2"
    return Table(title, HEADER, rows, figures)


def judged(
    setting: Setting, num_rows: int, context: int, seconds: float
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Cells and figures of one time."""
    num_bytes = num_rows * context * setting.shape.kv_row * setting.dtype.itemsize
    rate = num_bytes / seconds / 1e9
    target = TARGETS_US.get((num_rows, context))
    share = rate / setting.copy_gb_s
    cells = (f"{seconds * 1e6:.1f}", f"{rate:.0f}", f"{share:.0%}", f"{target or 0:.0f}")
    return cells, {"us": seconds * 1e6, "share": share}


def queries(setting: Setting, num_rows: int) -> torch.Tensor:
    """q [rows, Hq, D]."""
    sizes = (num_rows, setting.shape.num_heads, setting.shape.head_dim)
    return torch.randn(sizes, device=setting.device).to(setting.dtype)


def make_plan(
    setting: Setting, paged: Paged, *, by_load: bool, ctas_per_sm: int = 4, min_chunk: int = 256
) -> DecodePlan:
    """The plan of all rows of a pool."""
    shape = setting.shape
    return plan_decode(
        paged.lengths,
        paged.tables.shape[1] * setting.page_size,
        shape.num_heads,
        shape.num_kv_heads,
        shape.head_dim,
        by_load=by_load,
        ctas_per_sm=ctas_per_sm,
        min_chunk=min_chunk,
    )


def layer_seconds(
    setting: Setting,
    q: torch.Tensor,
    paged: Paged,
    plan: DecodePlan | None,
    tuning: DecodeTuning | None,
    *,
    by_load: bool = True,
) -> float:
    """Seconds of one layer, layers in rotation."""
    call = partial(decode_attention, by_load=by_load, plan=plan, tuning=tuning)
    scale = setting.shape.head_dim**-0.5
    calls = [
        partial(call, q, paged.pool, layer, paged.tables, paged.lengths, scale)
        for layer in range(paged.num_layers)
    ]
    return seconds_per_call(setting, calls, 0.05)


def sweep(setting: Setting, num_rows: int, context: int) -> Table:
    """How a program is built, then how the work is cut: the best five of each, and the default."""
    paged = make_paged(setting, num_rows, context)
    q = queries(setting, num_rows)
    plan = make_plan(setting, paged, by_load=True)
    axes = setting.pick(((32, 64, 128), (4, 8), (2, 3, 4)), ((16,), (4,), (2,)))
    built = {}
    for tuning in itertools.starmap(DecodeTuning, itertools.product(*axes)):
        try:
            built[tuning] = layer_seconds(setting, q, paged, plan, tuning)
        except OutOfResources:
            continue
    best = min(built, key=lambda tuning: built[tuning])
    cut = {}
    for ctas, chunk in setting.pick(
        list(itertools.product((1, 2, 4, 8), (64, 128, 256, 512))), [(1, 64)]
    ):
        made = make_plan(setting, paged, by_load=True, ctas_per_sm=ctas, min_chunk=chunk)
        cut[ctas, chunk] = layer_seconds(setting, q, paged, made, best)
    named = {
        f"tile {t.tile}, {t.num_warps} warps, {t.num_stages} stages": s for t, s in built.items()
    }
    default = built.get(HALF_TUNING, 0.0)
    cuts = {f"best of those, {c} programs per SM, chunk >= {k}": s for (c, k), s in cut.items()}
    ranked = [*sorted(named.items(), key=_seconds)[:5], *sorted(cuts.items(), key=_seconds)[:5]]
    rows = [(name, f"{s * 1e6:.1f}") for name, s in [("default", default), *ranked]]
    title = f"Sweep of decode attention, {num_rows} x {context}"
    figures = {name: s * 1e6 for name, s in (named | cuts).items()}
    return Table(title, ("setting", "us"), rows, figures)


def _seconds(named: tuple[str, float]) -> float:
    return named[1]
