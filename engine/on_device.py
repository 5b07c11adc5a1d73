"""The CUDA device that a thread's work goes to.

Every thread begins on GPU 0. Whatever asks for "the current device" goes there: launches of Triton
kernels, streams, events, captures, pinned memory. On a node of `cuda:1` that is an illegal address
at best, so whoever does the engine's work enters this first, in whichever thread that is; leaving
it costs some microseconds, which a step of milliseconds does not see.
"""

from contextlib import AbstractContextManager, nullcontext

import torch


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a CUDA device the thread's current one for a while; for others nothing."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
