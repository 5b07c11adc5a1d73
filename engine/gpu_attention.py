"""Attention of a batch with the GPU's kernels, where a row's bits may depend on its batch."""

import torch

from engine.batch import Batch
from kernels.decode_attention import decode_attention
from kernels.decode_plan import DecodePlan, plan_decode
from kernels.prefill_attention import prefill_attention


def load_attention(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    batch: Batch,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """Single-row sequences cut by the load of the device, the prefill kernel over the rest.

    See `engine.ops.Attention`. The first layer of a step plans for all others of its window.
    """
    n = batch.num_decode
    singles = q[:0]
    if n > 0:
        lengths = batch.context_lens[:n]
        plan = batch.decode_plans.get(window)
        if plan is None:
            plan = _plan(q, pool, batch, lengths, window)
            batch.decode_plans[window] = plan
        tables = batch.block_tables[:n]
        singles = decode_attention(q[:n], pool, layer, tables, lengths, scale, window, plan=plan)
    if n == batch.num_tokens:
        return singles
    starts = batch.query_starts[n:] - n
    tables, positions = batch.block_tables[n:], batch.positions[n:]
    chunks = prefill_attention(q[n:], pool, layer, tables, starts, positions, scale, window)
    return torch.cat((singles, chunks)) if n else chunks


def _plan(
    q: torch.Tensor, pool: torch.Tensor, batch: Batch, lengths: torch.Tensor, window: int | None
) -> DecodePlan:
    num_kv_heads, page_size, head_dim = pool.shape[3:]
    max_context = batch.block_tables.shape[1] * page_size
    return plan_decode(
        lengths, max_context, q.shape[1], num_kv_heads, head_dim, window, by_load=True
    )
