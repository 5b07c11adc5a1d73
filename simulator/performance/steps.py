"""How long a run of equal steps takes: the profile's model, with noise from a stream per node.

A run of `k` steps over the same rows gives, bit for bit, the times of `k` single steps: same
operations in the same order, the same noise values (decision 0017).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scheduling.costs import StepShape
from simulator.performance.profiles import Profile

Floats = NDArray[np.float64]
NUM_DRAWN = 1024


class Noise:
    """Factors on step times: lognormal with median 1, and rare stalls. A stream of its own."""

    def __init__(self, profile: Profile, seed: int, node: int) -> None:
        self._profile = profile
        self._rng = np.random.default_rng([seed, node])
        self._factors: Floats = np.empty(0)
        self._stalls: Floats = np.empty(0)
        self.is_silent = profile.noise_sigma == 0 and profile.stall_probability == 0

    def apply(self, seconds: Floats) -> Floats:
        """Step times with the next noise of the stream, which `advance` then consumes."""
        count = len(seconds)
        while len(self._factors) < count:
            self._draw()
        return seconds * self._factors[:count] + self._stalls[:count]

    def advance(self, num_steps: int) -> None:
        """So many steps were run."""
        self._factors = self._factors[num_steps:]
        self._stalls = self._stalls[num_steps:]

    def _draw(self) -> None:
        normal = self._rng.standard_normal(NUM_DRAWN)
        uniform = self._rng.random(NUM_DRAWN)
        factors = np.exp(self._profile.noise_sigma * normal)
        stalls = np.where(uniform < self._profile.stall_probability, self._profile.stall_s, 0.0)
        self._factors = np.concatenate([self._factors, factors])
        self._stalls = np.concatenate([self._stalls, stalls])


@dataclass(slots=True)
class Run:
    """Steps of one plan: `ends[i]` is when step `i` ends; `num_steps` of them shall be run."""

    began_at: float
    ends: list[float]
    num_steps: int

    @property
    def ends_at(self) -> float:
        """When its last step ends."""
        return self.ends[self.num_steps - 1]


def decode_run(
    profile: Profile, num_rows: int, num_context: int, num_steps: int, now: float, noise: Noise
) -> Run:
    """Steps that decode the same rows, each one token longer after every step.

    `num_context` tokens are known of all rows together before the first.
    """
    regime = profile.regime(num_rows, num_rows)
    base = regime.decode_base_s + regime.decode_row_s * num_rows
    contexts = num_context + num_rows * np.arange(num_steps, dtype=np.int64)
    seconds: Floats = np.asarray(base + regime.decode_context_s * contexts, dtype=np.float64)
    if not noise.is_silent:
        seconds = noise.apply(seconds)
    ends = np.cumsum(np.concatenate([[now], seconds]))[1:]
    return Run(now, ends.tolist(), num_steps)


def single_step(
    profile: Profile,
    shape: StepShape,
    num_prefix_tokens: int,
    extra_s: float,
    now: float,
    noise: Noise,
) -> Run:
    """One step of any shape; `extra_s` for pages that are swapped."""
    seconds = profile.step_s(shape, num_prefix_tokens)
    if not noise.is_silent:
        seconds = float(noise.apply(np.array([seconds]))[0])
    return Run(now, [now + seconds + extra_s], 1)
