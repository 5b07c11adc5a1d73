"""Bit for bit: however many threads share a step, its logits, its KV and its tokens are one's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine.runner import TorchRunner
from node.runner import ChunkQuestion, SequenceStep, StepBatch

Step = Callable[..., Any]
TOKENS = np.random.default_rng(3).integers(0, 512, (5, 120)).astype(np.int32)
TABLES = np.random.default_rng(4).permutation(48).astype(np.int32).reshape(6, 8)


def silent(step: SequenceStep) -> SequenceStep:
    return SequenceStep(step.token_ids, step.start, step.block_table, None)


def steps(step_of: Step) -> list[StepBatch]:
    """A long chunk, mixtures of chunks and decodes, decodes alone, a prefix hit, padding."""
    shared = np.concatenate([TABLES[0, :5], TABLES[5, :3]])
    return [
        StepBatch((step_of(TOKENS[0], 0, 90, TABLES[0]),)),
        StepBatch(
            (
                silent(step_of(TOKENS[1], 0, 40, TABLES[1])),
                step_of(TOKENS[0], 90, 91, TABLES[0]),
                step_of(TOKENS[2], 0, 33, TABLES[2]),
            )
        ),
        StepBatch(
            (step_of(TOKENS[1], 40, 120, TABLES[1]), step_of(TOKENS[0], 91, 92, TABLES[0])),
            padding_contexts=(5, 70, 3),
        ),
        StepBatch(tuple(step_of(TOKENS[i], at, at + 1, TABLES[i]) for i, at in [(0, 92), (2, 33)])),
        StepBatch((step_of(TOKENS[2], 34, 35, TABLES[2]),)),
        StepBatch((step_of(TOKENS[0], 80, 120, shared), step_of(TOKENS[3], 0, 120, TABLES[3]))),
        StepBatch(
            tuple(
                step_of(TOKENS[i], at, at + 1, TABLES[i]) for i, at in [(0, 93), (2, 35), (3, 119)]
            )
        ),
    ]


def outcome(runner: TorchRunner, batches: list[StepBatch]) -> list[torch.Tensor]:
    logits = [runner.logits(batch) for batch in batches]
    return [*logits, runner.pool.tensor[: runner.num_pages].clone()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama3", "mistral", "qwen3"])
def test_threads_change_no_bits(
    checkpoint: Callable[[str], Any], step_of: Step, family: str, dtype: str
) -> None:
    batches = steps(step_of)
    one = outcome(checkpoint(family).runner(dtype=dtype), batches)
    for num_threads in (2, 3):
        shared = outcome(checkpoint(family).runner(dtype=dtype, num_threads=num_threads), batches)
        assert len(shared) == len(one)
        for n, (ours, its) in enumerate(zip(shared, one, strict=True)):
            assert torch.equal(ours, its), (num_threads, n)


def test_threads_change_no_tokens_and_no_answers(
    checkpoint: Callable[[str], Any], step_of: Step, generate: Callable[..., list[list[int]]]
) -> None:
    runners = [checkpoint("llama3").runner(num_threads=n) for n in (1, 2, 3)]
    prompts: list[NDArray[np.int32]] = [TOKENS[0, :77], TOKENS[1, :5], TOKENS[2, :33]]
    answers = [generate(runner, prompts, 12, 40) for runner in runners]
    assert answers[0] == answers[1] == answers[2]
    question = ChunkQuestion("logprobs", 0, TOKENS[0, 1:60], 2)
    asked = SequenceStep(TOKENS[0, :59], 0, TABLES[0], None, question)
    batch = StepBatch((asked, step_of(TOKENS[3], 0, 60, TABLES[3])))
    values = [runner.run(batch).sampled for runner in runners]
    for sampled in values[1:]:
        assert sampled[1] == values[0][1]
        assert np.array_equal(sampled[0].values.logprobs, values[0][0].values.logprobs)


def test_an_error_in_one_part_reaches_the_caller(
    checkpoint: Callable[[str], Any], step_of: Step
) -> None:
    runner = checkpoint("llama3").runner(num_threads=2)
    strange = TOKENS[1].copy()
    strange[100] = 100_000
    whole = step_of(TOKENS[0], 0, 120, TABLES[0])
    with pytest.raises(IndexError):
        runner.run(StepBatch((step_of(strange, 0, 120, TABLES[1]),)))
    sampled = runner.run(StepBatch((whole,))).sampled
    assert sampled == checkpoint("llama3").runner().run(StepBatch((whole,))).sampled
