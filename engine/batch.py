"""One step's work as flat tensors: token rows of all sequences side by side, decode rows first.

`build_batch` turns the node's StepBatch into them with one numpy call per tensor and nothing per
token. Sequences with one row come first, then the padding rows of the static baseline, then prefill
chunks, so that a device may run its decode kernel over the first `num_decode` sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.decode_plan import DecodePlan
from node.runner import ChunkQuestion, SampleRequest, SequenceStep, StepBatch

Int32Array = NDArray[np.int32]
Rows = Any  # numpy arrays or torch tensors, as the operations of a device take them


@dataclass(frozen=True, slots=True)
class AskedRows:
    """Rows `begin : end` of a batch are the chunk of StepBatch.sequences[sequence_id]."""

    sequence_id: int
    begin: int
    end: int
    question: ChunkQuestion


@dataclass(frozen=True, slots=True)
class Batch:
    """T token rows of S sequences; sequence s owns rows `query_starts[s] : query_starts[s + 1]`.

    token_ids int64 [T]; positions, page_ids, offsets int32 [T] (where each row's K and V go);
    block_tables int32 [S, max_pages]; query_starts int32 [S + 1]; context_lens int32 [S] counts a
    sequence's tokens up to its last row; the first `num_decode` sequences have exactly one row.
    sample_rows int64 [N] are the rows whose logits are wanted, in the order of `requests`, and
    `sequence_ids[i]` is the index in StepBatch.sequences that request i belongs to. `asked` are the
    chunks with questions. `decode_plans`, by window, are made by the first layer that needs one:
    they hold for all layers of the step.
    """

    token_ids: Rows
    positions: Rows
    page_ids: Rows
    offsets: Rows
    block_tables: Rows
    query_starts: Rows
    context_lens: Rows
    sample_rows: Rows
    num_decode: int
    requests: tuple[SampleRequest, ...]
    sequence_ids: tuple[int, ...]
    asked: tuple[AskedRows, ...] = ()
    decode_plans: dict[int | None, DecodePlan] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Token rows, padding included."""
        return len(self.token_ids)


def build_batch(
    step: StepBatch, page_size: int, scratch_page: int, device: torch.device | None
) -> Batch:
    """Flatten a step; rows of `padding_contexts` read and write only `scratch_page`.

    Tensors on the device; without one, numpy arrays.
    """
    order, counts, slots, num_single = _in_order(step, page_size, scratch_page)
    starts = np.array([sequence.start for sequence in order], np.int32)
    tables = _stack_tables(order, starts + counts, page_size, scratch_page)
    if num_single == len(order):  # as in most steps
        owners, positions = np.arange(len(order)), starts
        query_starts = np.arange(len(order) + 1, dtype=np.int32)
    else:
        query_starts = np.zeros(len(order) + 1, np.int32)
        np.cumsum(counts, out=query_starts[1:])
        owners = np.repeat(np.arange(len(order)), counts)
        positions = np.arange(len(owners), dtype=np.int32) + (starts - query_starts[:-1])[owners]
    page_ids = tables[owners, positions // page_size]
    sampled = [i for i, sequence in enumerate(step.sequences) if sequence.sample is not None]
    sampled_slots = slots if len(sampled) == len(slots) else slots[sampled]
    sample_rows = query_starts[sampled_slots + 1].astype(np.int64) - 1
    asked = [
        AskedRows(i, int(query_starts[slots[i]]), int(query_starts[slots[i] + 1]), each.question)
        for i, each in enumerate(step.sequences)
        if each.question is not None
    ]

    def rows(array: NDArray[np.generic]) -> Rows:
        return array if device is None else torch.from_numpy(array).to(device, non_blocking=True)

    return Batch(
        token_ids=rows(_joined([s.token_ids for s in order]).astype(np.int64)),
        positions=rows(positions),
        page_ids=rows(page_ids),
        offsets=rows(positions % page_size),
        block_tables=rows(tables),
        query_starts=rows(query_starts),
        context_lens=rows(starts + counts),
        sample_rows=rows(sample_rows),
        num_decode=num_single,
        requests=tuple(s.sample for s in step.sequences if s.sample is not None),
        sequence_ids=tuple(sampled),
        asked=tuple(asked),
    )


def padding_row(context: int, page_size: int, scratch_page: int) -> SequenceStep:
    """A decode row over `context` tokens that all lie in the scratch page."""
    return SequenceStep(
        token_ids=np.zeros(1, np.int32),
        start=context - 1,
        block_table=np.full(-(-context // page_size), scratch_page, np.int32),
        sample=None,
    )


def _in_order(
    step: StepBatch, page_size: int, scratch_page: int
) -> tuple[Sequence[SequenceStep], Int32Array, NDArray[np.int64], int]:
    """Sequences of one row, padding, then chunks; their rows, the place of each sequence of the
    step among them, and how many have one row."""
    row_counts = [len(sequence.token_ids) for sequence in step.sequences]
    num_sequences = len(row_counts)
    if row_counts.count(1) == num_sequences and not step.padding_contexts:
        ones = np.ones(num_sequences, np.int32)
        return step.sequences, ones, np.arange(num_sequences), num_sequences
    singles = [i for i, count in enumerate(row_counts) if count == 1]
    chunks = [i for i, count in enumerate(row_counts) if count != 1]
    padding = [padding_row(each, page_size, scratch_page) for each in step.padding_contexts]
    num_single = len(singles) + len(padding)
    order = [step.sequences[i] for i in singles] + padding
    order += [step.sequences[i] for i in chunks]
    counts = np.array([len(sequence.token_ids) for sequence in order], np.int32)
    slots = np.empty(num_sequences, np.int64)
    slots[singles] = np.arange(len(singles))
    slots[chunks] = np.arange(num_single, len(order))
    return order, counts, slots, num_single


def _joined(arrays: Sequence[Int32Array]) -> Int32Array:
    """One behind the other: as bytes, which takes 7 us for 256 where `np.concatenate` takes 45."""
    joined: Int32Array = np.frombuffer(b"".join(cast(Sequence[bytes], arrays)), np.int32)
    return joined


def _stack_tables(
    sequences: Sequence[SequenceStep], lengths: Int32Array, page_size: int, scratch_page: int
) -> Int32Array:
    """Block tables [S, max_pages], cut to the pages in use; the rest names the scratch page."""
    given = [sequence.block_table for sequence in sequences]
    num_given = np.fromiter(map(len, given), np.int32, len(given))
    num_used = -(-lengths // page_size)
    columns = np.arange(num_given.max())
    tables = np.full((len(given), columns.size), scratch_page, np.int32)
    tables[columns < num_given[:, None]] = _joined(given)
    if (num_given == num_used).all():
        return tables
    tables[columns >= num_used[:, None]] = scratch_page
    return np.ascontiguousarray(tables[:, : num_used.max()])
