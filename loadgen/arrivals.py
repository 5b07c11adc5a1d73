"""When requests are sent in an open loop: schedules that do not wait for answers. Pure.

A closed loop sends the next request when one ends, so a slow system is asked less: its queue never
shows (coordinated omission). An open loop sends at times drawn beforehand, and every latency counts
from those times, whether or not the sender was late.
"""

import math
import random
from collections.abc import Sequence


def poisson_arrivals(rate_per_s: float, count: int, seed: int) -> list[float]:
    """Seconds from the start at which `count` requests are due: independent, `rate_per_s` each."""
    return gamma_arrivals(rate_per_s, count, seed, variation=1.0)


def gamma_arrivals(rate_per_s: float, count: int, seed: int, *, variation: float) -> list[float]:
    """As Poisson, with gaps whose coefficient of variation is `variation`: bursts above 1."""
    if not (rate_per_s > 0 and variation > 0):
        raise ValueError(f"rate {rate_per_s} and variation {variation} must both be above 0")
    rng = random.Random(seed)
    shape = variation**-2
    at_s, times = 0.0, []
    for _ in range(count):
        at_s += rng.gammavariate(shape, 1 / (shape * rate_per_s))
        times.append(at_s)
    return times


def scaled_arrivals(times_s: Sequence[float], rate_per_s: float) -> list[float]:
    """A trace's own times from 0 on, stretched to a mean rate; its bursts stay bursts."""
    if len(times_s) < 2 or math.isclose(times_s[-1], times_s[0]):
        raise ValueError("a trace needs two requests at different times to have a rate")
    factor = (len(times_s) - 1) / rate_per_s / (times_s[-1] - times_s[0])
    return [(each - times_s[0]) * factor for each in times_s]
