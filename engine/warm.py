"""Compiles all that a CPU node runs into numba's cache: `python -m engine.warm`, called at set-up.

Without it the first node start on a machine compiles for half a minute, and the first sampled
request holds everybody's tokens up for seconds.
"""

import numpy as np
import torch

from engine.sampler import Sampler
from kernels.cpu.arrays import SUPPORTED
from kernels.cpu.warm import warm
from node.runner import SampleRequest
from tandem.sampling import SamplingParams

VOCAB_SIZE = 64


def warm_sampler() -> None:
    """Draw one token with every filter, penalty and logprobs."""
    history = np.array([1, 2], np.int32)
    params = SamplingParams(
        temperature=0.8,
        top_k=20,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        logprobs=2,
    )
    request = SampleRequest(params, 1, 0, 0, history, history, ())
    logits = torch.linspace(-1, 1, VOCAB_SIZE).reshape(1, VOCAB_SIZE)
    for dtype in (torch.float32, torch.bfloat16):
        Sampler().sample(logits.to(dtype), [request])


if __name__ == "__main__":
    for kernel_dtype in SUPPORTED:
        warm(kernel_dtype)
    warm_sampler()
