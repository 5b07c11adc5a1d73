"""Steps cut for threads: every row once, in order, about the same work in each part."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.parts import CUT_ROWS, Part, cut_step
from node.runner import ChunkQuestion, SampleRequest, SequenceStep, StepBatch
from scheduling.costs import num_pairs
from tandem.sampling import SamplingParams

PAIR_COST = 0.002
NOTHING = np.zeros(0, np.int32)


def sequence(num_rows: int, start: int, question: ChunkQuestion | None = None) -> SequenceStep:
    tokens = np.arange(start, start + num_rows, dtype=np.int32)
    sample = SampleRequest(SamplingParams(), 0, 0, 0, NOTHING, NOTHING, ())
    return SequenceStep(tokens, start, NOTHING, None if question else sample, question)


def cost(part: Part) -> float:
    return sum(
        len(s.token_ids) + PAIR_COST * num_pairs(len(s.token_ids), s.start)
        for s in part.step.sequences
    )


sequences = st.lists(
    st.builds(
        sequence,
        st.one_of(st.just(1), st.integers(1, 300)),
        st.integers(0, 2000),
        st.one_of(st.none(), st.just(ChunkQuestion("sum"))),
    ),
    max_size=12,
)


@given(sequences, st.lists(st.integers(1, 50), max_size=5), st.integers(1, 4))
def test_every_row_is_in_one_part_and_chunks_go_on_where_they_were_cut(
    whole: list[SequenceStep], padding: list[int], num_parts: int
) -> None:
    parts = cut_step(StepBatch(tuple(whole), tuple(padding)), num_parts, PAIR_COST)
    assert len(parts) <= num_parts
    assert all(part.step.num_tokens for part in parts)
    assert sorted(c for part in parts for c in part.step.padding_contexts) == sorted(padding)
    found: dict[int, list[int]] = {}
    for n, part in enumerate(parts):
        for at, (i, piece) in enumerate(zip(part.sequence_ids, part.step.sequences, strict=True)):
            goes_on = i in found
            assert goes_on == (part.follows and at == 0)
            assert not goes_on or parts[n - 1].sequence_ids[-1] == i
            found.setdefault(i, []).extend(piece.token_ids.tolist())
            is_last = found[i][-1] == whole[i].token_ids[-1]
            assert piece.sample is (whole[i].sample if is_last else None)
            assert piece.question is whole[i].question
            assert piece.start == piece.token_ids[0]
    assert found == {i: each.token_ids.tolist() for i, each in enumerate(whole)}


@pytest.mark.parametrize("num_parts", [2, 3])
@pytest.mark.parametrize(
    "step",
    [
        [sequence(512, 0)],
        [sequence(512, 4000)],
        [sequence(1, 50 * n) for n in range(40)],
        [*(sequence(1, 300) for _ in range(32)), sequence(480, 1000)],
    ],
)
def test_parts_take_about_the_same_time(step: list[SequenceStep], num_parts: int) -> None:
    parts = cut_step(StepBatch(tuple(step)), num_parts, PAIR_COST)
    costs = [cost(part) for part in parts]
    # Half a block of rows to either side, at what the last of them cost.
    slack = CUT_ROWS * (1 + PAIR_COST * 4512)
    assert len(parts) == num_parts and max(costs) - min(costs) <= slack
    if len(step) == 1:
        num_rows = [part.step.num_tokens for part in parts]
        assert num_rows == sorted(num_rows, reverse=True) and num_rows[0] % CUT_ROWS == 0


def test_what_cannot_be_cut_stays_whole() -> None:
    lone = cut_step(StepBatch((sequence(1, 900),)), 2, PAIR_COST)
    assert [part.step.num_tokens for part in lone] == [1]
    asked = cut_step(StepBatch((sequence(300, 0, ChunkQuestion("sum")),)), 2, PAIR_COST)
    assert [part.step.num_tokens for part in asked] == [300]
    assert cut_step(StepBatch(()), 2, PAIR_COST) == ()
