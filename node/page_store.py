"""Host memory for the pages of preempted requests, beside the pool that they are copied from."""

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scheduling.views import RequestKey

NUM_PROBED_BYTES = 16 * 2**20


class PageStore(Protocol):
    """Copies pages out of the pool and into it again, at once, between two steps."""

    def save(self, key: RequestKey, pages: Sequence[int]) -> None:
        """Keep a copy of the pages of a request, in token order."""

    def load(self, key: RequestKey, first: int, pages: Sequence[int]) -> None:
        """Copy what was saved, from its page `first` on, into other pages of the pool."""

    def drop(self, key: RequestKey) -> None:
        """Forget the copy."""


class HostPageStore:
    """Over a pool in host memory: uint8 [pages, page_bytes]."""

    def __init__(self, pool: NDArray[np.uint8]) -> None:
        self._pool = pool
        self._saved: dict[RequestKey, NDArray[np.uint8]] = {}

    def save(self, key: RequestKey, pages: Sequence[int]) -> None:
        """Keep a copy of the pages of a request, in token order."""
        self._saved[key] = self._pool[list(pages)]

    def load(self, key: RequestKey, first: int, pages: Sequence[int]) -> None:
        """Copy what was saved, from its page `first` on, into other pages of the pool."""
        self._pool[list(pages)] = self._saved[key][first : first + len(pages)]

    def drop(self, key: RequestKey) -> None:
        """Forget the copy."""
        del self._saved[key]


class NoPageStore:
    """Copies nothing: for replays, which have no pages."""

    def save(self, key: RequestKey, pages: Sequence[int]) -> None:
        """Nothing to keep."""

    def load(self, key: RequestKey, first: int, pages: Sequence[int]) -> None:
        """Nothing was kept."""

    def drop(self, key: RequestKey) -> None:
        """Nothing was kept."""


def measure_copy() -> float:
    """Bytes per second that this process copies within host memory: the faster of two tries."""
    source = np.ones(NUM_PROBED_BYTES, np.uint8)
    target = np.zeros_like(source)  # written once before, so that no page fault is measured
    target[:] = source
    fastest_s = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        target[:] = source
        fastest_s = min(fastest_s, time.perf_counter() - began)
    return NUM_PROBED_BYTES / fastest_s
