"""A decoder of random weights made of nothing but our kernels and torch's products.

What a step of the engine can cost at best: no scheduler, no sampling but the largest logit, static
buffers. Its code follows `engine/decoder.py`, which needs packages that this folder does without.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from benchmarks.gpu_all.paged import Paged
from benchmarks.gpu_all.setting import Setting
from kernels.argmax import argmax_rows
from kernels.decode_attention import decode_attention
from kernels.decode_plan import plan_decode
from kernels.decode_rows import IS_LIVE, NUM_COLUMNS, POSITION, TOKEN, advance_rows, begin_rows
from kernels.prefill_attention import prefill_attention
from kernels.rms_norm import rms_norm
from kernels.rope import rope_write
from kernels.silu_and_mul import silu_and_mul

EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights [outputs, inputs] of the four products; norms are all ones."""

    qkv: torch.Tensor
    output: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


class Model:
    """Random weights on the device."""

    def __init__(self, setting: Setting, max_positions: int) -> None:
        shape = setting.shape
        self.setting = setting
        heads = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
        sizes = (
            (heads, shape.hidden),
            (shape.hidden, shape.num_heads * shape.head_dim),
            (2 * shape.intermediate, shape.hidden),
            (shape.hidden, shape.intermediate),
        )
        self.layers = [
            Layer(*(self._weight(*size) for size in sizes)) for _ in range(shape.num_layers)
        ]
        self.embedding = self._weight(shape.vocab, shape.hidden)
        self.head = self._weight(shape.vocab, shape.hidden)
        self.norm = torch.ones(shape.hidden, dtype=setting.dtype, device=setting.device)
        angles = torch.outer(
            torch.arange(max_positions), 1e4 ** -torch.linspace(0, 1, shape.head_dim // 2)
        )
        self.cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1).to(setting.device)

    def _weight(self, outputs: int, inputs: int) -> torch.Tensor:
        setting = self.setting
        weight = torch.empty(outputs, inputs, dtype=setting.dtype, device=setting.device)
        return weight.normal_(std=inputs**-0.5)

    def prefill(self, tokens: torch.Tensor, begin: int, paged: Paged) -> None:
        """The rows of one sequence's chunk, at positions from `begin`: their pages, last logits."""
        shape, page_size, device = self.setting.shape, self.setting.page_size, tokens.device
        rows = torch.arange(begin, begin + len(tokens), dtype=torch.int32, device=device)
        starts = torch.tensor([0, len(tokens)], dtype=torch.int32, device=device)
        page_ids, offsets = paged.tables[0, (rows // page_size).long()], rows % page_size

        def attend(qkv: torch.Tensor, index: int) -> torch.Tensor:
            where = (self.cos_sin, rows, paged.pool, index, page_ids, offsets, shape.num_heads)
            q = rope_write(qkv, *where)
            args = (paged.pool, index, paged.tables, starts, rows, shape.head_dim**-0.5)
            return prefill_attention(q, *args)

        hidden, residual = self.layers_of(tokens, attend)
        last = rms_norm(hidden[-1:], self.norm, EPS, residual[-1:])[0]
        functional.linear(last, self.head)

    def layers_of(
        self, tokens: torch.Tensor, attend: Callable[[torch.Tensor, int], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(hidden, residual) behind the last layer; attend(qkv, layer) gives [T, Hq, D]."""
        hidden = functional.embedding(tokens, self.embedding)
        residual: torch.Tensor | None = None
        for index, layer in enumerate(self.layers):
            normed, residual = rms_norm(hidden, self.norm, EPS, residual)
            attended = attend(functional.linear(normed, layer.qkv), index)
            hidden = functional.linear(attended.flatten(1), layer.output)
            normed, residual = rms_norm(hidden, self.norm, EPS, residual)
            hidden = functional.linear(
                silu_and_mul(functional.linear(normed, layer.gate_up)), layer.down
            )
        assert residual is not None
        return hidden, residual


class Step:
    """One greedy decode step over static buffers; every call is the next token of all rows."""

    def __init__(self, model: Model, paged: Paged, *, by_load: bool = True) -> None:
        setting, device = model.setting, paged.lengths.device
        self._model, self._paged, self._by_load = model, paged, by_load
        num_rows = len(paged.lengths)
        self._state = torch.zeros((num_rows, NUM_COLUMNS), dtype=torch.int64, device=device)
        self._results = torch.zeros((num_rows, 2), dtype=torch.int64, device=device)
        self._page_size = setting.page_size
        self.reset()

    def reset(self) -> None:
        """Back to the lengths of the pool: every step makes its sequences longer."""
        self._state[:, IS_LIVE] = 1
        self._state[:, POSITION] = self._paged.lengths - 1

    def __call__(self) -> torch.Tensor:
        """The tokens that were drawn, int64 [rows]."""
        model, paged, shape = self._model, self._paged, self._model.setting.shape
        page_size, scale = self._page_size, shape.head_dim**-0.5
        positions, page_ids, offsets, lengths = begin_rows(self._state, paged.tables, page_size)
        most = paged.tables.shape[1] * page_size
        sizes = (shape.num_heads, shape.num_kv_heads, shape.head_dim)
        plan = plan_decode(lengths, most, *sizes, by_load=self._by_load)
        slots = (page_ids, offsets, shape.num_heads)

        def attend(qkv: torch.Tensor, index: int) -> torch.Tensor:
            layer = index % paged.num_layers
            q = rope_write(qkv, model.cos_sin, positions, paged.pool, layer, *slots)
            rest = (paged.tables, lengths, scale)
            return decode_attention(q, paged.pool, layer, *rest, plan=plan)

        hidden, residual = model.layers_of(self._state[:, TOKEN], attend)
        normed = rms_norm(hidden, model.norm, EPS, residual)[0]
        drawn, largest = argmax_rows(functional.linear(normed, model.head))
        advance_rows(self._state, self._results, drawn, largest)
        return drawn
