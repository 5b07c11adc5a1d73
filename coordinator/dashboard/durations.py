"""Quantiles of durations over time in bounded memory: counts by bins of 4 % width. Pure."""

import math
from array import array
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tandem.messages.operations import Quantiles

STAGES = ("queue", "prefill", "transfer", "decode_admission", "ttft", "tpot", "max_itl")
SHORTEST_MS = 0.01
GROWTH = 1.04  # a quantile is at most 2 % off
NUM_BINS = 1 + math.ceil(math.log(1e7 / SHORTEST_MS) / math.log(GROWTH))  # up to three hours
Bins = tuple[int, ...]
_LOG_GROWTH = math.log(GROWTH)
MIDDLES_MS = np.array([0.0, *(SHORTEST_MS * GROWTH ** (n + 0.5) for n in range(NUM_BINS - 1))])


class Durations:
    """Counts of durations for each of `STAGES`. `counts` are the same memory: single elements of
    an array are counted up five times as fast as those of numpy's."""

    def __init__(self) -> None:
        self._flat = array("q", bytes(8 * len(STAGES) * NUM_BINS))
        self.counts = np.frombuffer(self._flat, dtype=np.int64).reshape(len(STAGES), NUM_BINS)

    def add(self, bins: Bins) -> None:
        """Count what one request took."""
        for place in bins:
            self._flat[place] += 1

    def quantiles(self, stage: int) -> Quantiles | None:
        """None where there is nothing."""
        return quantiles_of(self.counts[stage])

    def clear(self) -> None:
        """Begin anew."""
        self.counts[:] = 0


def bins_of(durations_ms: Iterable[float | None]) -> Bins:
    """Where durations are counted, given in the order of `STAGES`; None did not happen."""
    return tuple(
        stage * NUM_BINS + _bin_of(duration_ms)
        for stage, duration_ms in enumerate(durations_ms)
        if duration_ms is not None
    )


def _bin_of(duration_ms: float) -> int:
    if duration_ms < SHORTEST_MS:
        return 0
    return min(NUM_BINS - 1, 1 + int(math.log(duration_ms / SHORTEST_MS) / _LOG_GROWTH))


def quantiles_of(counts: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Quantiles | None:
    """The middles of the bins in which the p50, p95 and p99 lie."""
    reached = np.cumsum(counts)
    total = int(reached[-1])
    if total == 0:
        return None
    ranks = [max(1, math.ceil(share * total)) for share in (0.5, 0.95, 0.99)]
    p50, p95, p99 = MIDDLES_MS[np.searchsorted(reached, ranks)].tolist()
    return Quantiles(p50=p50, p95=p95, p99=p99)


@dataclass(slots=True)
class _Slice:
    number: int
    durations: Durations


class RecentDurations:
    """Durations of the last five minutes, in slices that are forgotten one by one."""

    def __init__(self, span_s: int = 300, slice_s: int = 10) -> None:
        self._slice_s = slice_s
        self._num_slices = span_s // slice_s
        self._slices: deque[_Slice] = deque()
        self._total = Durations()

    def add(self, bins: Bins, unix_s: float) -> None:
        """Count what one request took."""
        number = int(unix_s // self._slice_s)
        if not self._slices or number > self._slices[-1].number:
            self._slices.append(_Slice(number, Durations()))
        self._slices[-1].durations.add(bins)
        self._total.add(bins)
        self._forget(unix_s)

    def _forget(self, unix_s: float) -> None:
        oldest = int(unix_s // self._slice_s) - self._num_slices
        while self._slices and self._slices[0].number <= oldest:
            self._total.counts -= self._slices.popleft().durations.counts

    def quantiles(self, unix_s: float) -> dict[str, Quantiles | None]:
        """By stage."""
        self._forget(unix_s)
        return {name: self._total.quantiles(index) for index, name in enumerate(STAGES)}
