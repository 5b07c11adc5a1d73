"""Torch tensors as the numpy arrays that numba sees: the same memory, bfloat16 as its bits."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]

WIDE = {torch.float64: torch.float64, torch.float32: torch.float32, torch.bfloat16: torch.float32}
SUPPORTED = tuple(WIDE)
NOTHING: dict[torch.dtype, Array] = {
    torch.float64: np.empty(0, np.float64),
    torch.float32: np.empty(0, np.float32),
    torch.bfloat16: np.empty(0, np.uint16),
}


def array_of(tensor: torch.Tensor) -> Array:
    """A view of a CPU tensor's memory; bfloat16 as uint16."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    array: Array = tensor.numpy()
    return array


def optional_array(tensor: torch.Tensor | None, like: torch.Tensor) -> Array:
    """A view as `array_of`; an empty array of the same dtype where there is no tensor."""
    return NOTHING[like.dtype] if tensor is None else array_of(tensor)
