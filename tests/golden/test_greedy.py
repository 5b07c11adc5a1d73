"""Greedy tokens of every family against transformers; how often bfloat16 diverges is reported."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

FAMILIES = ["llama2", "llama3", "llama-biased", "mistral", "qwen2", "qwen2.5", "qwen3"]
NUM_NEW = 16
NEAR_TIE = 1e-4


def make_prompts(num_prompts: int) -> list[NDArray[np.int32]]:
    random = np.random.default_rng(7)
    lengths = random.integers(1, 60, num_prompts)
    return [random.integers(0, 512, length).astype(np.int32) for length in lengths]


def oracle_tokens(model: Any, prompt: NDArray[np.int32]) -> list[int]:
    """transformers' own greedy generation, without stops."""
    ids = torch.from_numpy(prompt[None].astype(np.int64))
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NUM_NEW,
            min_new_tokens=NUM_NEW,
            eos_token_id=None,
            pad_token_id=0,
        )
    return list(output[0, len(prompt) :].tolist())


def gap_at_first_difference(
    model: Any, prompt: NDArray[np.int32], ours: list[int], theirs: list[int]
) -> float:
    """Between the two best float64 logits where two answers part."""
    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    ids = torch.tensor([prompt.tolist() + ours[:at]])
    with torch.inference_mode():
        best = model(ids).logits[0, -1].topk(2).values
    return float(best[0] - best[1])


@pytest.mark.timeout(60)  # transformers' first generation imports for seconds
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_transformers(
    checkpoint: Callable[[str], Any], generate: Callable[..., list[list[int]]], family: str
) -> None:
    prompts = make_prompts(10)
    folder = checkpoint(family)
    ours = generate(folder.runner(), prompts, NUM_NEW, chunk=24)
    model = folder.oracle(torch.float32)
    theirs = [oracle_tokens(model, prompt) for prompt in prompts]
    differing = [case for case in zip(prompts, ours, theirs, strict=True) if case[1] != case[2]]
    exact = folder.oracle(torch.float64) if differing else model
    gaps = [gap_at_first_difference(exact, *case) for case in differing]
    print(f"{family}: {len(differing)} of {len(prompts)} differ, float64 gaps {gaps}")
    assert all(gap < NEAR_TIE for gap in gaps)
    assert len(differing) <= len(prompts) // 100
    assert len({tuple(answer) for answer in ours}) > len(prompts) // 2


def test_bfloat16_answers_do_not_depend_on_chunks_and_their_divergence_is_reported(
    checkpoint: Callable[[str], Any],
    generate: Callable[..., list[list[int]]],
    record_property: Callable[[str, object], None],
) -> None:
    prompts = make_prompts(10)
    folder = checkpoint("llama3")
    runner = folder.runner(dtype="bfloat16")
    ours = generate(runner, prompts, NUM_NEW, chunk=24)
    assert generate(runner, prompts, NUM_NEW, chunk=64) == ours
    model = folder.oracle(torch.bfloat16)
    same = [oracle_tokens(model, p) == tokens for p, tokens in zip(prompts, ours, strict=True)]
    record_property("bfloat16_divergence_rate", 1 - sum(same) / len(same))
    print(f"bfloat16: {len(same) - sum(same)} of {len(same)} answers differ from transformers'")
    assert any(same)
