"""How much work arrives, over a slow window and a fast one. Pure.

Refused requests count as well: they are what the nodes could not take. A rate is the higher of the
two windows', so that a spike is seen within seconds and forgotten slowly; means are those of the
fast window as soon as it has seen a few requests.
"""

import math
from dataclasses import dataclass

from scheduling.capacity import Traffic
from tandem.messages.common import SlaTargets

FAST_S = 3.0
MIN_SLOW_S = 5.0
ENOUGH = 3.0  # requests in the fast window for a mean
# Below this many requests per second there is no traffic: an exponential never ends.
LEAST_S = 0.01
DECAY = 0.9  # of the mean output length, per request that ended


@dataclass(slots=True)
class Window:
    """Sums that decay with `tau_s`; divided by it they are rates."""

    tau_s: float
    at: float
    num_requests: float = 0.0
    prompt: float = 0.0
    computed: float = 0.0
    output: float = 0.0
    per_ttft: float = 0.0  # sums of 1 / target: a harmonic mean, in which tight targets weigh most
    per_tpot: float = 0.0

    def decay(self, now: float) -> None:
        """Forget."""
        factor = math.exp(-max(0.0, now - self.at) / self.tau_s)
        self.at = max(now, self.at)
        self.num_requests *= factor
        self.prompt *= factor
        self.computed *= factor
        self.output *= factor
        self.per_ttft *= factor
        self.per_tpot *= factor


class TrafficMeter:
    """See the module."""

    def __init__(self, slow_s: float, now: float) -> None:
        self._windows = (Window(FAST_S, now), Window(max(MIN_SLOW_S, slow_s), now))
        self._mean_output: float | None = None

    def arrived(
        self,
        now: float,
        *,
        num_prompt: int,
        num_computed: int | None,
        num_output: float,
        targets: SlaTargets,
    ) -> None:
        """A request: tokens of its prompt, those to compute (None: as many as others'), and how
        long its answer may become."""
        output = num_output if self._mean_output is None else min(num_output, self._mean_output)
        for window in self._windows:
            window.decay(now)
            share = window.computed / window.prompt if window.prompt else 1.0
            window.num_requests += 1
            window.prompt += num_prompt
            window.computed += num_prompt * share if num_computed is None else num_computed
            window.output += output
            window.per_ttft += 1e3 / max(1.0, targets.ttft_ms)
            window.per_tpot += 1e3 / max(1.0, targets.tpot_ms)

    def ended(self, num_output: int) -> None:
        """An answer of that many tokens."""
        before = num_output if self._mean_output is None else self._mean_output
        self._mean_output = DECAY * before + (1 - DECAY) * num_output

    def now(self, now: float) -> Traffic:
        """Rates and means; nothing at all where hardly anything arrives."""
        for window in self._windows:
            window.decay(now)
        fast, slow = self._windows
        rate = max(w.num_requests / w.tau_s for w in self._windows)
        if rate < LEAST_S:
            return Traffic()
        means = fast if fast.num_requests >= ENOUGH else slow
        num = means.num_requests
        return Traffic(
            num_requests_s=rate,
            num_prefill_tokens_s=max(w.computed / w.tau_s for w in self._windows),
            mean_prompt=means.prompt / num,
            mean_computed=means.computed / num,
            mean_output=means.output / num,
            ttft_s=num / means.per_ttft,
            tpot_s=num / means.per_tpot,
        )
