"""The first and the last operation of a decode step over rows that stay on the device, in place.

A row is NUM_COLUMNS integers of 64 bits (`state`) and a block table. A step begins with

    positions[r]    = state[r, POSITION]
    page_ids[r]     = tables[r, positions[r] // N]
    offsets[r]      = positions[r] % N
    context_lens[r] = positions[r] + 1

and ends with what was drawn, where the host and the next step read it:

    results[r]         = (token_ids[r], 1 where largest[r] is a finite number, else 0)
    state[r, TOKEN]    = token_ids[r] where the row is live, else 0
    state[r, POSITION] += 1 where the row is live, and state[r, INDEX] as well

state int64 [R, NUM_COLUMNS]; tables int32 [R, max_pages]; results int64 [R, 2]; token_ids int64
[R]; largest [R], the largest logits; the others int32 [R]. In torch this is 7 and 10 launches of a
step, each some 2.5 us between its neighbours in a CUDA graph; here it is one and one.
"""

import torch
import triton
import triton.language as tl

# Columns of `state`; TEMPERATURE holds the bits of a float64, SEED those of an unsigned number.
TOKEN, POSITION, IS_LIVE, SEED, CHOICE, INDEX, TEMPERATURE = range(7)
NUM_COLUMNS = 7
_BLOCK = 128
Slots = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def begin_rows_reference(state: torch.Tensor, tables: torch.Tensor, page_size: int) -> Slots:
    """The specification of `begin_rows`: positions, page_ids, offsets, context_lens."""
    positions = state[:, POSITION]
    pages = tables.gather(1, (positions // page_size).unsqueeze(1)).squeeze(1)
    return positions.int(), pages, (positions % page_size).int(), (positions + 1).int()


def advance_rows_reference(
    state: torch.Tensor, results: torch.Tensor, token_ids: torch.Tensor, largest: torch.Tensor
) -> None:
    """The specification of `advance_rows`."""
    torch.stack((token_ids, largest.isfinite().long()), 1, out=results)
    live = state[:, IS_LIVE]
    state[:, TOKEN] = token_ids * live
    state[:, POSITION] += live
    state[:, INDEX] += live


@triton.jit(do_not_specialize=["table_stride", "num_rows"])
def _begin_rows_kernel(
    state_ptr: tl.tensor,
    tables_ptr: tl.tensor,
    table_stride: tl.tensor,
    slots_ptr: tl.tensor,
    num_rows: tl.tensor,
    NUM_COLUMNS: tl.constexpr,
    POSITION: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per block of rows; slots [4, num_rows] are the four results."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_rows
    position = tl.load(state_ptr + row * NUM_COLUMNS + POSITION, mask=inside, other=0).to(tl.int32)
    column = tables_ptr + row.to(tl.int64) * table_stride + position // PAGE_SIZE
    tl.store(slots_ptr + row, position, mask=inside)
    tl.store(slots_ptr + num_rows + row, tl.load(column, mask=inside, other=0), mask=inside)
    tl.store(slots_ptr + 2 * num_rows + row, position % PAGE_SIZE, mask=inside)
    tl.store(slots_ptr + 3 * num_rows + row, position + 1, mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def _advance_rows_kernel(
    state_ptr: tl.tensor,
    results_ptr: tl.tensor,
    token_ids_ptr: tl.tensor,
    largest_ptr: tl.tensor,
    num_rows: tl.tensor,
    NUM_COLUMNS: tl.constexpr,
    TOKEN: tl.constexpr,
    POSITION: tl.constexpr,
    IS_LIVE: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per block of rows."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_rows
    own = state_ptr + row * NUM_COLUMNS
    token = tl.load(token_ids_ptr + row, mask=inside, other=0)
    live = tl.load(own + IS_LIVE, mask=inside, other=0)
    largest = tl.load(largest_ptr + row, mask=inside, other=0.0).to(tl.float32)
    is_finite = tl.abs(largest) < float("inf")  # a NaN is not less than anything
    tl.store(results_ptr + 2 * row, token, mask=inside)
    tl.store(results_ptr + 2 * row + 1, is_finite.to(tl.int64), mask=inside)
    tl.store(own + TOKEN, token * live, mask=inside)
    tl.store(own + POSITION, tl.load(own + POSITION, mask=inside, other=0) + live, mask=inside)
    tl.store(own + INDEX, tl.load(own + INDEX, mask=inside, other=0) + live, mask=inside)


def begin_rows(state: torch.Tensor, tables: torch.Tensor, page_size: int) -> Slots:
    """positions, page_ids, offsets, context_lens, int32 [R] each, of contiguous state."""
    assert state.is_contiguous() and state.dtype == torch.int64
    assert tables.dtype == torch.int32 and tables.stride(1) == 1
    num_rows = state.shape[0]
    slots = torch.empty((4, num_rows), dtype=torch.int32, device=state.device)
    if num_rows:
        _begin_rows_kernel[(triton.cdiv(num_rows, _BLOCK),)](
            state,
            tables,
            tables.stride(0),
            slots,
            num_rows,
            NUM_COLUMNS=NUM_COLUMNS,
            POSITION=POSITION,
            PAGE_SIZE=page_size,
            BLOCK=_BLOCK,
            enable_fp_fusion=True,
            num_warps=4,
        )
    positions, page_ids, offsets, context_lens = slots
    return positions, page_ids, offsets, context_lens


def advance_rows(
    state: torch.Tensor, results: torch.Tensor, token_ids: torch.Tensor, largest: torch.Tensor
) -> None:
    """Overwrites results, and of state what the next step computes; all contiguous."""
    assert all(x.is_contiguous() for x in (state, results, token_ids, largest))
    assert state.dtype == results.dtype == token_ids.dtype == torch.int64
    num_rows = state.shape[0]
    if num_rows == 0:
        return
    _advance_rows_kernel[(triton.cdiv(num_rows, _BLOCK),)](
        state,
        results,
        token_ids,
        largest,
        num_rows,
        NUM_COLUMNS=NUM_COLUMNS,
        TOKEN=TOKEN,
        POSITION=POSITION,
        IS_LIVE=IS_LIVE,
        INDEX=INDEX,
        BLOCK=_BLOCK,
        enable_fp_fusion=True,
        num_warps=4,
    )
