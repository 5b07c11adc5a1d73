"""How long answers become, from how long they became: a table of quantiles. Pure.

Lengths are counted in buckets that grow by a fifth, per tenant and SLA class; old ones fade. An
answer that was cut (by `max_tokens`, or by its client) says only that it would have been longer:
quantiles are of Kaplan and Meier's estimate (1958), in which it counts as alive up to its bucket.
Taken as lengths, the cut ones would make answers look short wherever limits are low; left out,
likewise, since it is the long ones that are cut.
"""

import math
from collections.abc import Iterable
from typing import TypeVar

from tandem.messages.common import LengthPrediction

GROWTH = 1.2
NUM_BUCKETS = 90  # the last begins at 11 million tokens
HALF_LIFE = 500  # answers
MIN_SAMPLES = 20.0
MAX_KEYS = 2048
MAX_WEIGHT = 1e6

_LOG_GROWTH = math.log(GROWTH)
K = TypeVar("K")


class LengthHistogram:
    """Lengths of answers, the last `half_life` for half of it.

    A new answer weighs more than the one before, in place of making all others weigh less.
    """

    def __init__(self, half_life: float = HALF_LIFE) -> None:
        self._gain = 2 ** (1 / half_life)
        self._ended = [0.0] * NUM_BUCKETS
        self._cut = [0.0] * NUM_BUCKETS
        self._weight = 1.0

    @property
    def num_samples(self) -> float:
        """Answers that ended by themselves, older ones as what is left of them."""
        return sum(self._ended) / self._weight

    def add(self, num_tokens: int, *, is_cut: bool) -> None:
        """An answer of this length ended, or was cut there."""
        self._weight *= self._gain
        (self._cut if is_cut else self._ended)[_bucket(num_tokens)] += self._weight
        if self._weight > MAX_WEIGHT:
            self._ended = [each / self._weight for each in self._ended]
            self._cut = [each / self._weight for each in self._cut]
            self._weight = 1.0

    def quantiles(self, shares: Iterable[float]) -> list[float]:
        """Lengths that these shares of answers, in rising order, do not exceed.

        Infinite where so many were cut that it is not known.
        """
        num_alive = sum(self._ended) + sum(self._cut)
        before, survival, at = 1.0, 1.0, 0
        found = []
        for share in shares:
            while at < NUM_BUCKETS and survival > 1 - share:
                before = survival
                if num_alive > 1e-9:
                    survival *= 1 - min(1.0, self._ended[at] / num_alive)
                num_alive -= self._ended[at] + self._cut[at]
                at += 1
            found.append(_within(at - 1, before, survival, 1 - share))
        return found


def _bucket(num_tokens: int) -> int:
    return min(NUM_BUCKETS - 1, max(0, round(math.log(max(1, num_tokens)) / _LOG_GROWTH)))


def _within(bucket: int, before: float, after: float, wanted: float) -> float:
    """Where in its bucket the survival falls to the wanted share."""
    if after > wanted + 1e-12:
        return math.inf
    part = 0.5 if before <= after else min(1.0, (before - wanted) / (before - after))
    return max(1.0, math.exp((bucket - 0.5 + part) * _LOG_GROWTH))


class LengthTable:
    """A prediction for each (tenant, class); where little is known the class's, then everybody's.

    Where nothing is known it is `max_tokens`, which no prediction exceeds.
    """

    def __init__(self) -> None:
        self._all = LengthHistogram()
        self._of_class: dict[str, LengthHistogram] = {}
        self._of_tenant: dict[tuple[str, str], LengthHistogram] = {}

    def note(self, tenant: str, sla_class: str, num_tokens: int, *, is_cut: bool) -> None:
        """An answer ended by itself, or was cut before it would have."""
        self._all.add(num_tokens, is_cut=is_cut)
        _of(self._of_class, sla_class).add(num_tokens, is_cut=is_cut)
        _of(self._of_tenant, (tenant, sla_class)).add(num_tokens, is_cut=is_cut)

    def predict(self, tenant: str, sla_class: str, max_tokens: int) -> LengthPrediction:
        """For an answer that may have up to `max_tokens`."""
        known = (self._of_tenant.get((tenant, sla_class)), self._of_class.get(sla_class), self._all)
        for histogram in known:
            if histogram is not None and histogram.num_samples >= MIN_SAMPLES:
                q50, q90 = (min(q, max_tokens) for q in histogram.quantiles((0.5, 0.9)))
                return LengthPrediction(score=q50, q50=q50, q90=q90)
        unknown = float(max_tokens)
        return LengthPrediction(score=unknown, q50=unknown, q90=unknown)


def _of(histograms: dict[K, LengthHistogram], key: K) -> LengthHistogram:
    """The key's histogram; beyond `MAX_KEYS` the one that was asked for longest ago goes."""
    found = histograms.pop(key, None) or LengthHistogram()
    histograms[key] = found
    if len(histograms) > MAX_KEYS:
        del histograms[next(iter(histograms))]
    return found
