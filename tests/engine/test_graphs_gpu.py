"""On a CUDA device: replayed graphs draw what the plain runner draws there."""

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.build import BuiltRunner, EngineOptions, build_runner
from node.runner import Runner, SampleRequest, SequenceStep, StepBatch
from tandem.model_folder import load_model_config
from tandem.sampling import SamplingParams
from tests.engine.resident_world import NUM_PAGES, run_both

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(180)]


@pytest.mark.parametrize("seed", range(3))
def test_any_course_of_steps_gives_the_plain_runners_tokens(seed: int) -> None:
    plain, ours = run_both("gpu", seed, 200, max_rows=20)
    torch.testing.assert_close(
        ours.pool.tensor[:NUM_PAGES], plain.pool.tensor[:NUM_PAGES], rtol=0, atol=1e-3
    )


def build(folder: Path, device: str) -> BuiltRunner:
    options = EngineOptions(
        device=device, dtype="float32", num_pages=400, max_model_len=1000, max_num_seqs=8
    )
    config = load_model_config(folder)
    quiet = {"on_phase": lambda name, seconds: None, "progress": lambda done, total: None}
    return build_runner(folder, config, options, **quiet)  # type: ignore[arg-type]


def generate(runner: Runner, prompt: list[int], num_new: int) -> list[int]:
    """Greedy tokens of one request on pages of its own."""
    tokens = list(prompt)
    pages, start = np.arange(100, dtype=np.int32), 0
    for _ in range(num_new):
        ids = np.array(tokens, np.int32)
        request = SampleRequest(
            SamplingParams(temperature=0.0), 0, 0, len(ids), ids, ids[:0], (), (b"x", 1)
        )
        step = SequenceStep(ids[start:], start, pages, request)
        drawn = runner.run(StepBatch((step,))).sampled[0]
        assert drawn is not None and drawn.error is None
        start = len(tokens)
        tokens.append(drawn.token_id)
    return tokens[len(prompt) :]


def test_a_built_node_measures_its_steps_and_generates_what_the_cpu_does(demo_model: Path) -> None:
    on_gpu, on_cpu = build(demo_model, "cuda"), build(demo_model, "cpu")
    assert on_gpu.resident is not None and on_cpu.resident is None
    assert on_gpu.budget.step_bytes > 1 << 20 and on_cpu.budget.step_bytes == 0
    prompt = np.random.default_rng(0).integers(0, 4096, 50).tolist()
    assert generate(on_gpu.fastest, prompt, 60) == generate(on_cpu.fastest, prompt, 60)
