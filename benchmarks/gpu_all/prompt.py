"""Prefill of whole prompts by an 8B-shaped model of random weights."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu_all.attempts import one_by_one
from benchmarks.gpu_all.model import Model
from benchmarks.gpu_all.paged import Paged, make_paged
from benchmarks.gpu_all.setting import Setting, Table
from benchmarks.gpu_all.timing import seconds_per_call

TARGETS_MS = {8192: 215.0, 32768: 1350.0}
CHUNK = 8192
HEADER = ("tokens", "chunks of", "ms", "floor ms", "of floor", "target ms", "tok/s")


def floor_s(setting: Setting, tokens: int) -> float:
    """Products and causal attention at the chip's rate for products."""
    shape = setting.shape
    products = 2 * shape.num_layers * shape.layer_weights * tokens
    attention = 2 * shape.num_layers * shape.num_heads * shape.head_dim * tokens**2
    return (products + attention) / setting.matmul_tflop_s / 1e12


def run(setting: Setting) -> Iterator[Table]:
    """Both lengths, in chunks and at once."""
    lengths = setting.pick(list(TARGETS_MS), [40])
    model = Model(setting, max(lengths))
    yield from one_by_one((f"{n} tokens", partial(measure, setting, model, n)) for n in lengths)


def measure(setting: Setting, model: Model, tokens: int) -> Table:
    """One length."""
    rows, figures = [], {}
    paged = make_paged(setting, 1, tokens, setting.shape.num_layers)
    ids = torch.randint(0, setting.shape.vocab, (tokens,), device=setting.device)
    for chunk in sorted({min(tokens, setting.pick(CHUNK, 16)), setting.pick(2048, 16)}):
        prompt = partial(whole_prompt, model, ids, paged, chunk)
        seconds = seconds_per_call(setting, [prompt], 0.6, as_graph=False)
        floor = floor_s(setting, tokens)
        target = TARGETS_MS.get(tokens, 0.0)
        cells = (f"{seconds * 1e3:.0f}", f"{floor * 1e3:.0f}", f"{floor / seconds:.0%}")
        rate = f"{tokens / seconds:.0f}"
        rows.append((str(tokens), str(chunk), *cells, f"{target:.0f}", rate))
        figures[f"{tokens} in {chunk}"] = {"ms": seconds * 1e3}
    return Table("Prefill of random weights", HEADER, rows, figures)


def whole_prompt(model: Model, ids: torch.Tensor, paged: Paged, chunk: int) -> None:
    """One prompt, chunk by chunk."""
    for begin in range(0, len(ids), chunk):
        model.prefill(ids[begin : begin + chunk], begin, paged)
