"""Logits of every family against transformers, in fp32 and, to nine digits, in float64."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine.decoder import Decoder, kv_layout
from engine.kv_pool import make_kv_pool
from engine.ops import plain_ops
from engine.runner import TorchRunner
from engine.sampler import Sampler
from engine.weights import load_weights
from node.runner import StepBatch
from tandem.model_folder import load_model_config

FAMILIES = ["llama2", "llama3", "llama-biased", "mistral", "qwen2", "qwen2.5", "qwen3"]
BORDERS = [0, 37, 50, 64, 118, 119, 120]
CPU = torch.device("cpu")
PAGES = np.random.default_rng(1).permutation(64).astype(np.int32)[:8]


def plain_runner(checkpoint: Any) -> TorchRunner:
    """The specification: torch references in float64."""
    config = load_model_config(checkpoint.folder)
    weights = load_weights(checkpoint.folder, config, torch.float64, CPU, lambda done, total: None)
    pool = make_kv_pool(kv_layout(config, 16, "float64"), 64, CPU)
    decoder = Decoder(config, weights, plain_ops(), 512)
    return TorchRunner(decoder, pool, Sampler().sample, CPU)


def logits_in_chunks(
    runner: TorchRunner, prompt: NDArray[np.int32], step_of: Callable[..., Any]
) -> torch.Tensor:
    """Logits [chunks, vocab] behind each chunk, with a padding row beside every chunk."""
    rows = [
        runner.logits(StepBatch((step_of(prompt, start, end, PAGES),), padding_contexts=(33,)))[0]
        for start, end in pairwise(BORDERS)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [
        ("plain", torch.float64, 1e-9),
        ("cpu", torch.float64, 1e-9),
        ("cpu", torch.float32, 5e-5),
    ],
)
def test_logits_equal_transformers(
    checkpoint: Callable[[str], Any],
    prompt: NDArray[np.int32],
    step_of: Callable[..., Any],
    family: str,
    kind: str,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    folder = checkpoint(family)
    options = {"dtype": str(dtype).removeprefix("torch.")}
    runner = plain_runner(folder) if kind == "plain" else folder.runner(**options)
    ours = logits_in_chunks(runner, prompt, step_of)
    with torch.inference_mode():
        theirs = folder.oracle(dtype)(torch.from_numpy(prompt[None].astype(np.int64))).logits[0]
    expected = theirs[[end - 1 for end in BORDERS[1:]]]
    assert expected.abs().max() > 1, "the weights are too small for the comparison to mean much"
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)
