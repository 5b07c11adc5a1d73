"""The operations a decoder layer is made of, bundled per device so that the decoder has one body.

`plain_ops` are the torch references: any dtype, any device, the specification of the other bundles.
Pool, batch and weights are arguments; no operation keeps state but what `make_linear` prepacks.

Rows are what operations pass to each other: torch tensors, or numpy arrays where a bundle says so,
which are the same memory with bfloat16 as its bits. Measured on one Zen 4 core: with tensors 11 us
of each numba call are conversions, with arrays the call takes 0.5 us.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from engine.batch import Batch, Rows
from kernels.decode_attention import decode_attention_reference
from kernels.prefill_attention import prefill_attention_reference
from kernels.rms_norm import rms_norm_reference
from kernels.rope import rope_write_reference
from kernels.silu_and_mul import silu_and_mul_reference

Linear = Callable[[Rows], Rows]


class RMSNorm(Protocol):
    """See `kernels/rms_norm.py`."""

    def __call__(
        self, x: Rows, weight: Rows, eps: float, residual: Rows | None = None
    ) -> tuple[Rows, Rows]: ...


class RopeWrite(Protocol):
    """See `kernels/rope.py`."""

    def __call__(
        self,
        qkv: Rows,
        cos_sin: Rows,
        positions: Rows,
        pool: Rows,
        layer: int,
        page_ids: Rows,
        offsets: Rows,
        num_heads: int,
        q_norm: Rows | None = None,
        k_norm: Rows | None = None,
        eps: float = 1e-6,
    ) -> Rows: ...


class Attention(Protocol):
    """Attention of every row of a batch over its pages: q [T, Hq, D] -> out [T, Hq, D]."""

    def __call__(
        self,
        q: Rows,
        pool: Rows,
        layer: int,
        batch: Batch,
        scale: float,
        window: int | None = None,
    ) -> Rows: ...


class MakeLinear(Protocol):
    """Prepares x [T, K] -> x @ weight.T + bias, with weight [N, K] and bias [N]."""

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear: ...


def unchanged(tensor: torch.Tensor) -> torch.Tensor:
    """Of a bundle whose rows are tensors."""
    return tensor


@dataclass(frozen=True, slots=True)
class Ops:
    """One bundle; `name` is what the node reports.

    `embed(token_ids [T], table [V, H])` gives rows of the table. `load` makes rows of a tensor,
    `unload` a tensor of rows, both over the same memory; `takes_arrays`: rows are numpy arrays.
    """

    name: str
    rms_norm: RMSNorm
    rope_write: RopeWrite
    silu_and_mul: Callable[[Rows], Rows]
    attention: Attention
    make_linear: MakeLinear
    embed: Callable[[Rows, Rows], Rows] = functional.embedding
    load: Callable[[torch.Tensor], Rows] = unchanged
    unload: Callable[[Rows], torch.Tensor] = unchanged
    takes_arrays: bool = False


class SplitAttention:
    """One decode kernel over the rows of single-row sequences, one prefill kernel over the rest."""

    def __init__(self, decode: "DecodeAttention", prefill: "PrefillAttention") -> None:
        self._decode = decode
        self._prefill = prefill

    def __call__(
        self,
        q: torch.Tensor,
        pool: torch.Tensor,
        layer: int,
        batch: Batch,
        scale: float,
        window: int | None = None,
    ) -> torch.Tensor:
        n = batch.num_decode
        lengths = batch.context_lens[:n]
        if n == batch.num_tokens:
            return self._decode(q, pool, layer, batch.block_tables, lengths, scale, window)
        starts = batch.query_starts[n:] - n
        positions = batch.positions[n:]
        chunks = self._prefill(
            q[n:], pool, layer, batch.block_tables[n:], starts, positions, scale, window
        )
        if n == 0:
            return chunks
        singles = self._decode(q[:n], pool, layer, batch.block_tables[:n], lengths, scale, window)
        return torch.cat((singles, chunks))


class RowAttention:
    """The decode kernel over every row: one order of additions for prefill and decode alike."""

    def __init__(self, decode: "DecodeAttention") -> None:
        self._decode = decode

    def __call__(
        self,
        q: torch.Tensor,
        pool: torch.Tensor,
        layer: int,
        batch: Batch,
        scale: float,
        window: int | None = None,
    ) -> torch.Tensor:
        counts = batch.query_starts.diff()
        tables = batch.block_tables.repeat_interleave(counts, 0, output_size=batch.num_tokens)
        return self._decode(q, pool, layer, tables, batch.positions + 1, scale, window)


class DecodeAttention(Protocol):
    """See `kernels/decode_attention.py`."""

    def __call__(
        self,
        q: torch.Tensor,
        pool: torch.Tensor,
        layer: int,
        block_tables: torch.Tensor,
        context_lens: torch.Tensor,
        scale: float,
        window: int | None = None,
    ) -> torch.Tensor: ...


class PrefillAttention(Protocol):
    """See `kernels/prefill_attention.py`."""

    def __call__(
        self,
        q: torch.Tensor,
        pool: torch.Tensor,
        layer: int,
        block_tables: torch.Tensor,
        query_starts: torch.Tensor,
        positions: torch.Tensor,
        scale: float,
        window: int | None = None,
    ) -> torch.Tensor: ...


def plain_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """torch's own product: the specification of every other linear."""
    return lambda x: functional.linear(x, weight, bias)


def plain_ops() -> Ops:
    """The torch references: any floating dtype on any device."""
    return Ops(
        name="plain",
        rms_norm=rms_norm_reference,
        rope_write=rope_write_reference,
        silu_and_mul=silu_and_mul_reference,
        attention=SplitAttention(decode_attention_reference, prefill_attention_reference),
        make_linear=plain_linear,
    )
