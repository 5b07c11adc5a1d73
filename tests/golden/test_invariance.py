"""Bit for bit: a row's logits do not depend on batch, chunks, prefix hits, threads or padding."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine.runner import TorchRunner
from node.runner import StepBatch

FAMILIES = ["llama2", "llama3", "mistral", "qwen2", "qwen2.5", "qwen3"]
PAGES = np.arange(8, dtype=np.int32)
OTHERS = np.random.default_rng(5).integers(0, 512, (3, 90)).astype(np.int32)
Step = Callable[..., Any]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def one_by_one(runner: TorchRunner, tokens: NDArray[np.int32], step_of: Step) -> torch.Tensor:
    """Logits [tokens, vocab], each token a decode step of its own."""
    rows = [
        runner.logits(StepBatch((step_of(tokens, at, at + 1, PAGES),)))[0]
        for at in range(len(tokens))
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bits_of_a_row_depend_on_its_history_alone(
    checkpoint: Callable[[str], Any],
    prompt: NDArray[np.int32],
    step_of: Step,
    family: str,
    dtype: str,
) -> None:
    runner = checkpoint(family).runner(dtype=dtype)
    decoded = one_by_one(runner, prompt, step_of)
    for borders in ([0, 120], [0, 64, 120], [0, 7, 8, 63, 65, 119, 120]):
        for start, end in pairwise(borders):
            row = runner.logits(StepBatch((step_of(prompt, start, end, PAGES),)))[0]
            assert torch.equal(row, decoded[end - 1]), (borders, end)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama3", "qwen3"])
def test_bits_of_a_row_do_not_depend_on_its_company(
    checkpoint: Callable[[str], Any],
    prompt: NDArray[np.int32],
    step_of: Step,
    family: str,
    dtype: str,
) -> None:
    runner = checkpoint(family).runner(dtype=dtype)
    alone = one_by_one(runner, prompt, step_of)
    tables = [PAGES + 10 + 8 * i for i in range(3)]
    for start, end in [(0, 50), (50, 117), (117, 118), (118, 119)]:
        company = [step_of(OTHERS[0], 0, 90, tables[0]), step_of(OTHERS[1], 0, 33, tables[1])]
        own = step_of(prompt, start, end, PAGES)
        batch = StepBatch((company[0], own, company[1]), padding_contexts=(5, 70))
        assert torch.equal(runner.logits(batch)[1], alone[end - 1]), end
    decodes = [step_of(OTHERS[i], 89, 90, tables[i]) for i in range(3)]
    batch = StepBatch((*decodes, step_of(prompt, 119, 120, PAGES)))
    assert torch.equal(runner.logits(batch)[3], alone[119])


def test_a_prefix_hit_changes_no_bits(
    checkpoint: Callable[[str], Any], prompt: NDArray[np.int32], step_of: Step
) -> None:
    runner = checkpoint("llama3").runner()
    runner.logits(StepBatch((step_of(prompt, 0, 100, PAGES),)))
    fresh = np.array([20, 21, 22, 23, 24, 25, 26, 27], np.int32)
    whole = runner.logits(StepBatch((step_of(prompt, 0, 120, fresh),)))[0]
    for shared in (1, 3, 6):
        # The first pages were computed by another request and in other chunks.
        hit = np.concatenate([PAGES[:shared], np.arange(40, 48 - shared, dtype=np.int32)])
        row = runner.logits(StepBatch((step_of(prompt, 16 * shared, 120, hit),)))[0]
        assert torch.equal(row, whole), shared


@pytest.mark.usefixtures("two_threads")
def test_the_number_of_threads_changes_no_bits(
    checkpoint: Callable[[str], Any], prompt: NDArray[np.int32], step_of: Step
) -> None:
    runner = checkpoint("llama3").runner()
    with_two = runner.logits(StepBatch((step_of(prompt, 0, 120, PAGES),)))
    torch.set_num_threads(1)
    with_one = checkpoint("llama3").runner().logits(StepBatch((step_of(prompt, 0, 120, PAGES),)))
    assert torch.equal(with_two, with_one)
