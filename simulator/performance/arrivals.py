"""When requests arrive: Poisson, gamma (bursty) and Markov-modulated streams, or a trace's times.

Each has its own random stream, so that changing the arrivals leaves the lengths as they were.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from loadgen.traces import Trace, overlaid, sampled

Process = Literal["trace", "poisson", "gamma", "mmpp"]

GAMMA_CV = 3.0
# Markov-modulated Poisson: calm and burst phases of these means; a burst has 4 times the mean rate
# and calm phases what is left of it.
MMPP_CALM_S = 27.0
MMPP_BURST_S = 3.0
MMPP_BURST_FACTOR = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent: requests of a trace, at `rate` per second (None: as in the trace)."""

    trace: Trace
    num_requests: int
    rate: float | None = None
    process: Process = "poisson"

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        if self.num_requests < 1:
            raise ValueError(f"{self.num_requests} requests: give at least 1")
        if self.rate is not None and not 0 < self.rate < 1e9:
            raise ValueError(f"a rate of {self.rate} requests/s: give one above 0")
        if self.process == "trace" and not self.trace.has_times:
            raise ValueError(
                f"the trace {self.trace.name} has lengths only: choose poisson, gamma or mmpp "
                "arrivals and a rate"
            )
        if self.process != "trace" and self.rate is None:
            raise ValueError(f"{self.process} arrivals need a rate in requests per second")

    def requests(self, seed: int) -> Trace:
        """The load of one seed, with times.

        With arrivals of its own the requests of a trace keep their order, so that turns of a
        conversation stay in order; those of a list of lengths are drawn.
        """
        trace = self.trace
        chosen = (
            overlaid(trace, self.num_requests, seed)
            if trace.has_times
            else sampled(trace, self.num_requests, seed)
        )
        if self.process == "trace":
            is_timed = self.rate is not None and chosen.rate > 0
            return chosen.scaled((self.rate or 0.0) / chosen.rate) if is_timed else chosen
        assert self.rate is not None
        rng = random.Random(f"arrivals {seed}")
        times = _times(self.process, self.rate, rng)
        requests = tuple(
            replace(request, arrived_at=at)
            for request, at in zip(chosen.requests, times, strict=False)
        )
        return replace(chosen, requests=requests, has_times=True)


def _times(process: Process, rate: float, rng: random.Random) -> Iterator[float]:
    if process == "mmpp":
        yield from _modulated(rate, rng)
    shape = 1.0 if process == "poisson" else GAMMA_CV**-2
    now = 0.0
    while True:
        now += rng.gammavariate(shape, 1 / (rate * shape))
        yield now


def _modulated(rate: float, rng: random.Random) -> Iterator[float]:
    """Exponential phases; what is left of a gap goes on at the other phase's rate."""
    share = MMPP_BURST_S / (MMPP_BURST_S + MMPP_CALM_S)
    rates = (rate * (1 - share * MMPP_BURST_FACTOR) / (1 - share), rate * MMPP_BURST_FACTOR)
    phases = (MMPP_CALM_S, MMPP_BURST_S)
    now, phase = 0.0, 0
    ends_at = rng.expovariate(1 / phases[0])
    while True:
        work = rng.expovariate(1.0)  # of the unit-rate process that the phases stretch
        while work > (ends_at - now) * rates[phase]:
            work -= (ends_at - now) * rates[phase]
            now, phase = ends_at, 1 - phase
            ends_at = now + rng.expovariate(1 / phases[phase])
        now += work / rates[phase]
        yield now
