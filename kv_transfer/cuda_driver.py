"""What the transport over CUDA IPC asks of CUDA: one device of this process, and its streams.

`cupy_driver.py` is the real one; tests have one over byte arrays. Addresses are plain integers.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

HANDLE_BYTES = 64
Digests = NDArray[np.int64]
Run = tuple[int, int, int]  # first page of the source, first page of the target, number of pages


class DeviceLost(RuntimeError):
    """The device does nothing for this process any more: CUDA errors of this kind stay.

    One cause is the death of a process whose memory a copy was using. Nothing can be repaired: the
    node has to end, with this as the reason, and be started again.
    """


class CudaStream(Protocol):
    """Work in order, beside the computation and other streams. DeviceLost where it went wrong."""

    def copy_runs(self, source: int, target: int, runs: Sequence[Run], page_bytes: int) -> None:
        """Begin copies of pages from the pool at `source` into that at `target`."""

    def digest_pages(
        self, base: int, num_pages: int, page_bytes: int, pages: Sequence[int]
    ) -> Digests:
        """Begin digests of pages of a pool; the array holds them once `is_idle`."""

    def is_idle(self) -> bool:
        """Whether all that was begun has ended."""

    def close(self) -> None:
        """Release it, idle."""


class CudaDriver(Protocol):
    """One device, from any thread. DeviceLost where it does nothing any more."""

    @property
    def uuid(self) -> str:
        """Of the device: how two processes know that they mean the same one."""

    @property
    def is_mps(self) -> bool:
        """Whether processes on the device share a server (MPS), and so each other's faults."""

    def explain_unreachable(self, uuid: str) -> str | None:
        """Why memory of that device cannot be mapped here; None where it can."""

    def allocate(self, num_bytes: int) -> int:
        """Zeroed memory of its own allocation, which can be exported. ValueError: too little."""

    def free(self, base: int) -> None:
        """Give an allocation back."""

    def export(self, base: int) -> bytes:
        """The handle by which other processes open an allocation."""

    def open(self, handle: bytes) -> int:
        """Map another process's allocation. ValueError where that cannot be."""

    def close(self, base: int) -> None:
        """Unmap it."""

    def stream(self) -> CudaStream:
        """A new stream."""

    def synchronize(self) -> None:
        """Wait until the whole device has done what this process began."""


def coalesce(source_pages: Sequence[int], target_pages: Sequence[int]) -> list[Run]:
    """Pages that follow each other on both sides become one copy."""
    runs: list[Run] = []
    for source, target in zip(source_pages, target_pages, strict=True):
        if runs:
            first_source, first_target, num_pages = runs[-1]
            if (source, target) == (first_source + num_pages, first_target + num_pages):
                runs[-1] = (first_source, first_target, num_pages + 1)
                continue
        runs.append((source, target, 1))
    return runs
