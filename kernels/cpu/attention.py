"""`kernels/prefill_attention.py` on the CPU, for prefill chunks and decode rows alike.

Online softmax over blocks of 64 keys (or a page, if larger) whose borders are absolute positions.
For a row and a block: scores, their maximum, exponentials, their sum and the weighted values, in an
order that neither other rows nor the chunk's borders change. There are two ways, to the same bits:
`attention_rows` for decode steps, bound by memory, and `attention_blocks` for chunks, bound by
arithmetic. Slots that a row may not see are never read into a sum, so what they hold (even NaN) has
no effect. Calls share nothing, so threads may run them at once.
"""

import torch

from kernels.cpu.arrays import WIDE, Array, array_of
from kernels.cpu.attention_blocks import attend_block, block_for
from kernels.cpu.attention_rows import Shape, attend_rows, rows_for
from kernels.cpu.jit import compiled
from kernels.cpu.simd import LANES

BLOCK_ROWS = 128
FEW_PAIRS = 16  # below so many rows times heads of a group, tiles do not pay
BLOCK_KEYS = 64
NO_WINDOW = 1 << 30


def paged_attention(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    block_tables: torch.Tensor,
    query_starts: torch.Tensor,
    positions: torch.Tensor,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """q [T, Hq, D] -> out [T, Hq, D]; see `prefill_attention_reference`.

    D is a multiple of 8, and the rows of a sequence stand at consecutive positions.
    """
    out = torch.empty_like(q)
    paged_attention_rows(
        array_of(q),
        array_of(pool),
        layer,
        array_of(block_tables),
        array_of(query_starts),
        array_of(positions),
        torch.full((1,), scale, dtype=WIDE[q.dtype]).numpy(),
        NO_WINDOW if window is None else window,
        array_of(out),
    )
    return out


@compiled
def paged_attention_rows(
    q: Array,
    pool: Array,
    layer: int,
    block_tables: Array,
    query_starts: Array,
    positions: Array,
    scale: Array,
    window: int,
    out: Array,
) -> None:
    """`paged_attention` on arrays; `scale` [1] is of the computing type."""
    num_kv_heads, page_size, head_dim = pool.shape[3:]
    group, pages = q.shape[1] // num_kv_heads, max(1, BLOCK_KEYS // page_size)
    padded = -(-page_size // LANES) * LANES
    per_word = 2 if pool.itemsize == 2 else 1
    shape = Shape(
        layer, pool.shape[1], num_kv_heads, group, head_dim, page_size, padded, pages, window,
        per_word,
    )  # fmt: skip
    num_sequences = len(query_starts) - 1
    flat, queries = pool.reshape(-1), q.reshape(-1)
    few = max(1, (FEW_PAIRS - 1) // group)
    longest = 0
    for s in range(num_sequences):
        longest = max(longest, query_starts[s + 1] - query_starts[s])
    rows = rows_for(shape, min(few, longest), scale)
    block = block_for(shape, min(BLOCK_ROWS, longest) if longest > few else 0, scale)
    for s in range(num_sequences):
        end = query_starts[s + 1]
        after = block_tables[min(s + 1, num_sequences - 1), 0]
        for row in range(query_starts[s], end, BLOCK_ROWS):
            count, table, position = min(BLOCK_ROWS, end - row), block_tables[s], positions[row]
            if count > few:
                attend_block(
                    shape, block, queries, flat, table, row, count, position, scale[0], out
                )
            else:
                attend_rows(
                    shape, rows, queries, flat, table, after, row, count, position, scale[0],
                    out,
                )  # fmt: skip
