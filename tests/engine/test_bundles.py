"""The bundles compute the same decoder: Triton under its interpreter, numba and plain torch."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from engine.bundles import gpu_ops
from engine.cpu_ops import cpu_ops
from engine.decoder import Decoder, kv_layout
from engine.kv_pool import make_kv_pool
from engine.ops import Ops, plain_ops
from engine.runner import TorchRunner
from engine.sampler import Sampler
from engine.weights import expected_shapes
from node.runner import SampleRequest, SequenceStep, StepBatch
from tandem.sampling import SamplingParams
from tests.engine.resident_world import CONFIG

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_runner(ops: Ops, device: torch.device) -> TorchRunner:
    torch.manual_seed(0)
    weights = {
        name: torch.randn(shape).mul_(0.3).to(device)
        for name, shape in expected_shapes(CONFIG).items()
    }
    pool = make_kv_pool(kv_layout(CONFIG, 4, "float32"), 8, device)
    decoder = Decoder(CONFIG, weights, ops, 64)
    return TorchRunner(decoder, pool, Sampler().sample, device)


def sequence(num_tokens: int, start: int, first_page: int) -> SequenceStep:
    nothing = np.zeros(0, np.int32)
    request = SampleRequest(SamplingParams(temperature=0.0), 0, 0, 0, nothing, nothing, ())
    tokens = np.arange(start + 3, start + 3 + num_tokens, dtype=np.int32)
    return SequenceStep(
        tokens, start, np.arange(first_page, first_page + 3, dtype=np.int32), request
    )


def mixed_logits(runner: TorchRunner) -> torch.Tensor:
    """A prompt, then its decode step beside another prompt and a padding row."""
    first = runner.logits(StepBatch((sequence(6, 0, 0),)))
    batch = StepBatch((sequence(3, 0, 4), sequence(1, 6, 0)), padding_contexts=(2,))
    return torch.cat((first, runner.logits(batch))).cpu()


@pytest.mark.parametrize(
    ("make_ops", "device"),
    [
        (lambda: cpu_ops("invariant", torch.float32), torch.device("cpu")),
        (lambda: cpu_ops("fast", torch.float32), torch.device("cpu")),
        (lambda: gpu_ops("fast", "float32"), DEVICE),
        (lambda: gpu_ops("invariant", "float32"), DEVICE),
    ],
    ids=["cpu-invariant", "cpu-fast", "gpu-fast", "gpu-invariant"],
)
def test_every_bundle_equals_the_plain_one(
    make_ops: Callable[[], Ops], device: torch.device
) -> None:
    expected = mixed_logits(make_runner(plain_ops(), torch.device("cpu")))
    ours = mixed_logits(make_runner(make_ops(), device))
    assert expected.abs().max() > 1
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)


def test_gpu_invariance_holds_where_the_interpreter_runs_it() -> None:
    """One attention kernel for all rows and checked products: prefill has the bits of decode."""
    chunked, stepped = (make_runner(gpu_ops("invariant", "float32"), DEVICE) for _ in "ab")
    whole = chunked.logits(StepBatch((sequence(6, 0, 0),)))
    for start in range(6):
        row = stepped.logits(StepBatch((sequence(1, start, 0),)))
    assert torch.equal(whole, row)
