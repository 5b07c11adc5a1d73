"""What the simulation counts while it runs: token gaps, steps, rows. Pure."""

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from simulator.performance.requests import Resident, SimRequest
from simulator.performance.steps import Run

# Bins of 1 % from 1 microsecond to 1e5 s: a percentile is right to within half of that.
_LOWEST_S = 1e-6
_LOG_STEP = math.log(1.01)
_NUM_BINS = int(math.log(1e11) / _LOG_STEP) + 1


class GapHistogram:
    """How long users waited between two tokens; millions of gaps in a few thousand bins."""

    def __init__(self) -> None:
        self._counts: NDArray[np.int64] = np.zeros(_NUM_BINS, dtype=np.int64)
        self.num_gaps = 0
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """One gap."""
        place = int(math.log(max(seconds, _LOWEST_S) / _LOWEST_S) / _LOG_STEP)
        self._counts[min(place, _NUM_BINS - 1)] += 1
        self.num_gaps += 1
        self.sum_s += seconds

    def add_many(self, seconds: NDArray[np.float64], times: int) -> None:
        """These gaps, each so many times."""
        places = np.log(np.maximum(seconds, _LOWEST_S) / _LOWEST_S) / _LOG_STEP
        np.add.at(self._counts, np.minimum(places.astype(np.int64), _NUM_BINS - 1), times)
        self.num_gaps += len(seconds) * times
        self.sum_s += float(seconds.sum()) * times

    def percentile(self, share: float) -> float:
        """Seconds that this share of the gaps is no longer than; NaN without gaps."""
        if not self.num_gaps:
            return math.nan
        place = int(np.searchsorted(np.cumsum(self._counts), share * self.num_gaps))
        return _LOWEST_S * math.exp((min(place, _NUM_BINS - 1) + 0.5) * _LOG_STEP)


@dataclass(slots=True)
class Meters:
    """Counters of one run. Gaps, tokens and busy seconds count from `begins_at` to `ends_at`."""

    begins_at: float
    ends_at: float
    gaps: GapHistogram = field(default_factory=GapHistogram)
    num_tokens: int = 0
    busy_s: float = 0.0
    num_steps: int = 0
    num_rows: int = 0
    num_held_rows: int = 0
    num_padding_rows: int = 0
    num_wasted_tokens: int = 0

    def ran(self, run: Run, rows: list[Resident], num_held: int, num_padding: int) -> None:
        """A run of steps has ended: each row drew a token per step."""
        ends = run.ends[: run.num_steps]
        count = len(ends)
        first = bisect_left(ends, self.begins_at)
        last = bisect_right(ends, self.ends_at)  # measured steps are first..last - 1
        self.num_steps += count
        self.num_rows += count * len(rows)
        self.num_held_rows += count * num_held
        self.num_padding_rows += count * num_padding
        for resident in rows:
            request = resident.request
            if first == 0 < last and request.last_token_at is not None:
                self.gaps.add(ends[0] - request.last_token_at)
            request.last_token_at = ends[-1]
        if first >= last:
            return
        self.num_tokens += (last - first) * len(rows)
        self.busy_s += ends[last - 1] - (ends[first - 1] if first else run.began_at)
        if rows and last > max(1, first):
            self.gaps.add_many(np.diff(np.array(ends))[max(0, first - 1) : last - 1], len(rows))

    def drew(self, request: SimRequest, now: float) -> None:
        """A prompt's last chunk drew a token: the first one, unless it was preempted before."""
        is_measured = self.begins_at <= now <= self.ends_at
        self.num_tokens += is_measured
        if request.first_token_at is None:
            request.first_token_at = now
        elif is_measured and request.last_token_at is not None:
            self.gaps.add(now - request.last_token_at)
        request.last_token_at = now
