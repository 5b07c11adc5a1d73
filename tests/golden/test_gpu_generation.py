"""Greedy tokens of the demo model on a GPU: token for token those of transformers there."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from engine.build import EngineOptions, build_runner
from engine.runner import TorchRunner
from node.runner import SampleRequest, SequenceStep, StepBatch
from tandem.model_folder import load_model_config
from tandem.sampling import SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(180)]
FOLDER = Path(__file__).resolve().parents[2] / "models/demo"
LENGTHS = (1, 16, 33, 200, 300, 7, 64, 128)
NUM_NEW = 48
NEAR_TIE = 1e-3  # between the two best float32 logits: either is right there


@pytest.mark.parametrize("numerics", ["fast", "invariant"])
def test_greedy_tokens_equal_transformers_on_the_gpu(numerics: str) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    model = model.to("cuda").eval()
    config = load_model_config(FOLDER)
    options = EngineOptions(
        device="cuda", dtype="float32", numerics=numerics, num_pages=100, max_model_len=512
    )  # type: ignore[arg-type]
    runner = build_runner(
        FOLDER, config, options, on_phase=lambda *_: None, progress=lambda *_: None
    ).runner
    random = np.random.default_rng(7)
    prompts = [random.integers(5, config.vocab_size, n).astype(np.int32) for n in LENGTHS]
    num_same = 0
    for prompt in prompts:
        ours = greedy_tokens(runner, prompt)
        theirs, gaps = oracle_tokens(model, prompt)
        num_same += ours == theirs
        if ours != theirs:
            at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
            assert gaps[at] < NEAR_TIE, f"prompt of {len(prompt)} tokens, answer token {at}"
    print(f"\n  {numerics}: {num_same} of {len(prompts)} answers of {NUM_NEW} tokens are the same")
    assert num_same > len(prompts) // 2


def oracle_tokens(
    model: torch.nn.Module, prompt: NDArray[np.int32]
) -> tuple[list[int], list[float]]:
    """transformers' greedy tokens, and the gap between the two best logits at each."""
    ids = torch.from_numpy(prompt[None].astype(np.int64)).cuda()
    tokens, gaps = [], []
    with torch.inference_mode():
        for _ in range(NUM_NEW):
            best = model(ids).logits[0, -1].topk(2)
            tokens.append(int(best.indices[0]))
            gaps.append(float(best.values[0] - best.values[1]))
            ids = torch.cat((ids, best.indices[:1].unsqueeze(0)), dim=1)
    return tokens, gaps


def greedy_tokens(runner: TorchRunner, prompt: NDArray[np.int32]) -> list[int]:
    """Our runner's: the prompt in two chunks, then one token a step."""
    nothing = np.zeros(0, np.int32)
    request = SampleRequest(SamplingParams(temperature=0.0), 0, 0, 0, nothing, nothing, ())
    pages = np.arange(40, dtype=np.int32)
    tokens: list[int] = []
    start = len(prompt) // 2
    if start:
        runner.run(StepBatch((SequenceStep(prompt[:start], 0, pages, None),)))
    chunk = prompt[start:]
    while len(tokens) < NUM_NEW:
        sampled = runner.run(StepBatch((SequenceStep(chunk, start, pages, request),))).sampled[0]
        assert sampled is not None
        tokens.append(sampled.token_id)
        start, chunk = start + len(chunk), np.array(tokens[-1:], np.int32)
    return tokens
