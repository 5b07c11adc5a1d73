"""How many messages a peer may send: a token bucket for each. Pure."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

MAX_PEERS = 4096
TELL_S = 1.0
Verdict = Literal["take", "drop", "tell"]


@dataclass(frozen=True, slots=True)
class Rate:
    """Messages per second in the long run, and at once after a pause."""

    per_s: float
    burst: float


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float
    told_at: float | None = None


class TokenBuckets:
    """One bucket per peer; those unused for longest are forgotten, to their peers' advantage."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()

    def judge(self, peer: Hashable, now: float) -> Verdict:
        """Take the peer's message or drop it; `tell`: drop it, and say so to the peer (once per
        second)."""
        bucket = self._buckets.get(peer)
        if bucket is None:
            bucket = self._buckets[peer] = _Bucket(self.rate.burst, now)
            if len(self._buckets) > MAX_PEERS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(peer)
        earned = max(0.0, now - bucket.filled_at) * self.rate.per_s
        bucket.tokens = min(self.rate.burst, bucket.tokens + earned)
        bucket.filled_at = now
        if bucket.tokens >= 1.0:
            bucket.tokens -= 1.0
            return "take"
        if bucket.told_at is None or now - bucket.told_at >= TELL_S:
            bucket.told_at = now
            return "tell"
        return "drop"
