"""Steps as flat tensors: decode rows first, padding on the scratch page, samples in order."""

import random

import numpy as np
import pytest
import torch

from engine.batch import Batch, build_batch, padding_row
from node.runner import SampleRequest, SequenceStep, StepBatch
from tandem.sampling import SamplingParams

PAGE, SCRATCH = 4, 99


def request(seed: int) -> SampleRequest:
    nothing = np.zeros(0, np.int32)
    return SampleRequest(SamplingParams(), seed, 0, 0, nothing, nothing, ())


def step(start: int, num_tokens: int, pages: list[int], sample: int | None) -> SequenceStep:
    tokens = np.arange(100 * start, 100 * start + num_tokens, dtype=np.int32)
    wanted = None if sample is None else request(sample)
    return SequenceStep(tokens, start, np.array(pages, np.int32), wanted)


def build(*sequences: SequenceStep, padding: tuple[int, ...] = ()) -> Batch:
    return build_batch(StepBatch(sequences, padding), PAGE, SCRATCH, torch.device("cpu"))


def test_rows_of_chunks_and_decodes_go_to_their_slots() -> None:
    batch = build(
        step(2, 4, [7, 5], sample=None),
        step(9, 1, [1, 2, 3], sample=11),
        step(0, 3, [8, 6, 4], sample=12),
    )
    assert batch.num_decode == 1
    assert batch.token_ids.tolist() == [900, 200, 201, 202, 203, 0, 1, 2]
    assert batch.positions.tolist() == [9, 2, 3, 4, 5, 0, 1, 2]
    assert batch.page_ids.tolist() == [3, 7, 7, 5, 5, 8, 8, 8]
    assert batch.offsets.tolist() == [1, 2, 3, 0, 1, 0, 1, 2]
    assert batch.query_starts.tolist() == [0, 1, 5, 8]
    assert batch.context_lens.tolist() == [10, 6, 3]
    # Reserved pages behind a sequence's last token are of no concern to the step.
    assert batch.block_tables.tolist() == [[1, 2, 3], [7, 5, SCRATCH], [8, SCRATCH, SCRATCH]]


def test_samples_keep_the_order_of_the_sequences() -> None:
    batch = build(
        step(0, 3, [8], sample=1),
        step(5, 1, [1, 2], sample=2),
        step(0, 2, [3], sample=None),
        step(6, 1, [4, 5], sample=3),
        padding=(5,),
    )
    # Rows: two decodes, the padding row, then chunks of 3 and 2 rows.
    assert batch.sample_rows.tolist() == [5, 0, 1]
    assert [wanted.seed for wanted in batch.requests] == [1, 2, 3]
    assert batch.sequence_ids == (0, 1, 3)


def test_padding_touches_the_scratch_page_only() -> None:
    batch = build(step(0, 3, [8], sample=1), padding=(9, 1))
    assert batch.num_decode == 2
    assert batch.page_ids.tolist() == [SCRATCH, SCRATCH, 8, 8, 8]
    assert batch.positions.tolist()[:2] == [8, 0]
    assert batch.context_lens.tolist() == [9, 1, 3]
    assert set(batch.block_tables[:2].flatten().tolist()) == {SCRATCH}


def test_a_step_of_padding_alone_samples_nothing() -> None:
    batch = build(padding=(3, 3))
    assert batch.num_tokens == 2
    assert batch.sample_rows.tolist() == []
    assert batch.requests == ()


@pytest.mark.parametrize("seed", range(30))
def test_every_row_is_what_its_sequence_says(seed: int) -> None:
    """The plain form: rows one after the other. Tables may be longer than the tokens need."""
    rng = random.Random(seed)
    has_chunks, has_padding = seed % 3 > 0, seed % 5 == 0
    sequences, num_pages = [], 0
    for n in range(rng.randint(1, 9)):
        start, num_tokens = rng.randint(0, 12), rng.choice((1, 2, 7)) if has_chunks else 1
        length = -(-(start + num_tokens) // PAGE) + (rng.randint(0, 2) if seed % 2 else 0)
        pages = list(range(num_pages, num_pages + length))
        sample = n if rng.random() < 0.6 or not has_chunks else None
        sequences.append(step(start, num_tokens, pages, sample))
        num_pages += length
    padding = (5, 1) if has_padding else ()
    batch = build(*sequences, padding=padding)
    order = [s for s in sequences if len(s.token_ids) == 1]
    order += [padding_row(context, PAGE, SCRATCH) for context in padding]
    assert batch.num_decode == len(order)
    order += [s for s in sequences if len(s.token_ids) != 1]
    rows = [(s, s.start + i, token) for s in order for i, token in enumerate(s.token_ids.tolist())]
    assert batch.token_ids.tolist() == [token for _, _, token in rows]
    assert batch.positions.tolist() == [position for _, position, _ in rows]
    assert batch.page_ids.tolist() == [s.block_table[p // PAGE] for s, p, _ in rows]
    assert batch.offsets.tolist() == [p % PAGE for _, p, _ in rows]
    ends = np.cumsum([len(s.token_ids) for s in order]).tolist()
    assert batch.query_starts.tolist() == [0, *ends]
    assert batch.context_lens.tolist() == [s.start + len(s.token_ids) for s in order]
    for s, length, table in zip(order, batch.context_lens, batch.block_tables, strict=True):
        used = -(-int(length) // PAGE)
        assert table[:used].tolist() == s.block_table[:used].tolist()
        assert (table[used:] == SCRATCH).all()
    wanted = [i for i, s in enumerate(sequences) if s.sample is not None]
    assert batch.sequence_ids == tuple(wanted)
    assert batch.requests == tuple(sequences[i].sample for i in wanted)
    lasts = {id(s): end - 1 for s, end in zip(order, ends, strict=True)}
    assert batch.sample_rows.tolist() == [lasts[id(sequences[i])] for i in wanted]
