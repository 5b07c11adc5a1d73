"""`kernels/rope.py` on the CPU: rotate q and k, write k and v into pages, one pass per row."""

import math

import torch

from kernels.cpu.arrays import WIDE, Array, array_of, optional_array
from kernels.cpu.jit import compiled, inlined
from kernels.cpu.simd import LANES, narrow, widen
from kernels.cpu.tiles import dot


def rope_write(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    page_ids: torch.Tensor,
    offsets: torch.Tensor,
    num_heads: int,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Rotated q [T, Hq, D]; k and v go to the pool; see `rope_write_reference`."""
    head_dim = pool.shape[5]
    query = qkv.new_empty(qkv.shape[0], num_heads, head_dim)
    rope_write_rows(
        array_of(qkv),
        array_of(cos_sin),
        array_of(positions),
        array_of(pool),
        layer,
        array_of(page_ids),
        array_of(offsets),
        optional_array(q_norm, qkv),
        optional_array(k_norm, qkv),
        eps,
        torch.empty(head_dim, dtype=WIDE[qkv.dtype]).numpy(),
        array_of(query),
    )
    return query


@compiled
def rope_write_rows(
    qkv: Array,
    cos_sin: Array,
    positions: Array,
    pool: Array,
    layer: int,
    page_ids: Array,
    offsets: Array,
    q_norm: Array,
    k_norm: Array,
    eps: float,
    head: Array,
    query: Array,
) -> None:
    """`rope_write` on arrays; empty norms mean none; `head` [D] is scratch, of computing type."""
    num_heads, head_dim = query.shape[1], query.shape[2]
    num_kv_heads = pool.shape[3]
    for t in range(qkv.shape[0]):
        angles = cos_sin[positions[t]]
        page, slot = page_ids[t], offsets[t]
        for h in range(num_heads):
            _load_head(qkv, t, h * head_dim, q_norm, eps, head)
            _rotate(head, angles, query[t, h])
        for h in range(num_kv_heads):
            key_at = (num_heads + h) * head_dim
            _load_head(qkv, t, key_at, k_norm, eps, head)
            _rotate(head, angles, pool[page, layer, 0, h, slot])
            value_at = key_at + num_kv_heads * head_dim
            for i in range(head_dim):
                pool[page, layer, 1, h, slot, i] = qkv[t, value_at + i]


@inlined
def _load_head(qkv: Array, t: int, at: int, weight: Array, eps: float, head: Array) -> None:
    """One head, widened; normalised where there is a weight, and rounded like `rms_norm`."""
    size = len(head)
    for i in range(size):
        head[i] = widen(qkv[t, at + i])
    if len(weight) == 0:
        return
    whole = size // LANES * LANES
    squares = dot(head, 0, head, 0, whole) if whole > 0 else head.dtype.type(0.0)
    for i in range(whole, size):
        squares += head[i] * head[i]
    one = head.dtype.type(1.0)
    scale = one / math.sqrt(squares / head.dtype.type(size) + head.dtype.type(eps))
    for i in range(size):
        value = widen(narrow(head[i] * scale, weight))
        head[i] = widen(narrow(widen(weight[i]) * value, weight))


@inlined
def _rotate(head: Array, angles: Array, out: Array) -> None:
    """The halves of a head turned by the angles, whose cosines come before their sines."""
    half = len(head) // 2
    for i in range(half):
        cos, sin = head.dtype.type(angles[i]), head.dtype.type(angles[half + i])
        first, second = head[i], head[half + i]
        out[i] = narrow(first * cos - second * sin, out)
        out[half + i] = narrow(second * cos + first * sin, out)
