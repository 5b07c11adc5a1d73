"""One decode step's end, on the device: every row's input of the next step, in place.

    token_ids[s]     = next_tokens[s]
    positions[s]    += 1
    context_lens[s] += 1
    page_ids[s]      = block_tables[s, positions[s] // N]      of the new position
    offsets[s]       = positions[s] % N

next_tokens, token_ids int64 [S]; positions, context_lens, page_ids, offsets int32 [S]; block_tables
int32 [S, max_pages], which must name a page for the new position. Rows whose context_lens is 0 are
padding and stay as they are, on the scratch page. With it in a CUDA graph, step n + 1 can be begun
before the tokens of step n are read.
"""

import torch
import triton
import triton.language as tl

_BLOCK = 128


def advance_batch_reference(
    next_tokens: torch.Tensor,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    context_lens: torch.Tensor,
    page_ids: torch.Tensor,
    offsets: torch.Tensor,
    block_tables: torch.Tensor,
    page_size: int,
) -> None:
    """The specification of `advance_batch`: on any device."""
    rows = torch.nonzero(context_lens).flatten()
    token_ids[rows] = next_tokens[rows]
    positions[rows] += 1
    context_lens[rows] += 1
    page_ids[rows] = block_tables[rows, positions[rows].long() // page_size]
    offsets[rows] = positions[rows] % page_size


@triton.jit(do_not_specialize=["num_rows", "table_stride"])
def _advance_kernel(
    next_ptr: tl.tensor,
    token_ids_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    lengths_ptr: tl.tensor,
    page_ids_ptr: tl.tensor,
    offsets_ptr: tl.tensor,
    tables_ptr: tl.tensor,
    table_stride: tl.tensor,
    num_rows: tl.tensor,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per block of rows."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    length = tl.load(lengths_ptr + row, mask=row < num_rows, other=0)
    live = length > 0
    position = tl.load(positions_ptr + row, mask=live, other=0) + 1
    column = tables_ptr + row.to(tl.int64) * table_stride + position // PAGE_SIZE
    tl.store(token_ids_ptr + row, tl.load(next_ptr + row, mask=live, other=0), mask=live)
    tl.store(positions_ptr + row, position, mask=live)
    tl.store(lengths_ptr + row, length + 1, mask=live)
    tl.store(page_ids_ptr + row, tl.load(column, mask=live, other=0), mask=live)
    tl.store(offsets_ptr + row, position % PAGE_SIZE, mask=live)


def advance_batch(
    next_tokens: torch.Tensor,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    context_lens: torch.Tensor,
    page_ids: torch.Tensor,
    offsets: torch.Tensor,
    block_tables: torch.Tensor,
    page_size: int,
) -> None:
    """Overwrites all but next_tokens and block_tables, which are read; vectors are contiguous."""
    integers = (positions, context_lens, page_ids, offsets, block_tables)
    assert next_tokens.dtype == token_ids.dtype == torch.int64
    assert all(x.dtype == torch.int32 and x.stride(-1) == 1 for x in integers)
    num_rows = token_ids.shape[0]
    if num_rows == 0:
        return
    _advance_kernel[(triton.cdiv(num_rows, _BLOCK),)](
        next_tokens,
        token_ids,
        positions,
        context_lens,
        page_ids,
        offsets,
        block_tables,
        block_tables.stride(0),
        num_rows,
        PAGE_SIZE=page_size,
        BLOCK=_BLOCK,
        enable_fp_fusion=True,
        num_warps=4,
    )
