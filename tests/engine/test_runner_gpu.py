"""On a CUDA device: the logits of the CPU, and with invariant numerics the same bits per row."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.build import EngineOptions, build_runner
from engine.runner import TorchRunner
from node.runner import SampleRequest, SequenceStep, StepBatch
from tandem.model_folder import load_model_config
from tandem.sampling import SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(180)]
PROMPT = np.random.default_rng(0).integers(0, 4096, 300).astype(np.int32)
PAGES = np.arange(20, dtype=np.int32)


def make_runner(folder: Path, **options: object) -> TorchRunner:
    return build_runner(
        folder,
        load_model_config(folder),
        EngineOptions(num_pages=300, **options),  # type: ignore[arg-type]
        on_phase=lambda name, seconds: None,
        progress=lambda done, total: None,
    ).runner


def logits(runner: TorchRunner, borders: list[int], padding: tuple[int, ...] = ()) -> torch.Tensor:
    """Logits [chunks, vocab] behind each chunk of the prompt, on the host."""
    nothing = np.zeros(0, np.int32)
    request = SampleRequest(SamplingParams(temperature=0.0), 0, 0, 0, nothing, nothing, ())
    rows = []
    for start, end in pairwise(borders):
        step = SequenceStep(PROMPT[start:end], start, PAGES, request)
        rows.append(runner.logits(StepBatch((step,), padding))[0].cpu())
    return torch.stack(rows)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.5)])
def test_gpu_logits_equal_the_cpus(demo_model: Path, dtype: str, tolerance: float) -> None:
    borders = [0, 128, 200, 299, 300]
    exact = logits(make_runner(demo_model), borders)
    ours = logits(make_runner(demo_model, device="cuda", dtype=dtype), borders, (40, 7))
    torch.testing.assert_close(ours.float(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_invariant_numerics_keep_the_bits_of_a_row(demo_model: Path, dtype: str) -> None:
    runner = make_runner(demo_model, device="cuda", dtype=dtype, numerics="invariant")
    decoded = logits(runner, list(range(301)))
    for borders in ([0, 300], [0, 77, 299, 300]):
        rows = logits(runner, borders, (50,))
        assert torch.equal(rows, decoded[[end - 1 for end in borders[1:]]]), borders
