"""Memory for weights in pages of 2 MiB, where the system gives them to who asks.

A core that reads 11 MB of weights looks up 2,800 pages of 4 KiB, which on a virtual machine costs
more than the reading: 449 us instead of 704 (bf16, 5632 x 1024, one row), 2.1 ms instead of 3.9 for
32000 x 1024. numpy asks the system for large pages for every array of 4 MiB and more; weights are
often smaller, so many lie together in one array.
"""

import math

import numpy as np

from kernels.cpu.arrays import Array

CHUNK_BYTES = 64 << 20  # what is never written of it takes no memory
ALIGNMENT = 64  # a cache line, and a vector: none crosses two lines


class HugePages:
    """Hands out arrays that are never given back alone: a chunk lives while any of them does."""

    def __init__(self) -> None:
        self._chunk: Array = np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """An array with whatever the memory holds; its memory begins on a cache line."""
        num_bytes = math.prod(shape) * dtype.itemsize
        start = -self._chunk.ctypes.data % ALIGNMENT
        if start + num_bytes > len(self._chunk):
            self._chunk = np.empty(max(CHUNK_BYTES, num_bytes + ALIGNMENT), np.uint8)
            start = -self._chunk.ctypes.data % ALIGNMENT
        taken = self._chunk[start : start + num_bytes]
        self._chunk = self._chunk[start + num_bytes :]
        return taken.view(dtype).reshape(shape)
