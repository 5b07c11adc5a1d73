"""Whether a group of requests runs now, or waits for more of its kind to come. Pure."""

import math


class ArrivalRate:
    """Events per second, forgetting what is older than a window or two."""

    def __init__(self, window_s: float, now: float) -> None:
        self._window_s = window_s
        self._per_s = 0.0
        self._counted_at = now

    def count(self, num_events: int, now: float) -> None:
        """So many came until now."""
        self._per_s = self.per_s(now) + num_events / self._window_s
        self._counted_at = now

    def per_s(self, now: float) -> float:
        """The rate as of now; it decays while nothing comes."""
        return self._per_s * math.exp(-(now - self._counted_at) / self._window_s)


class Gate:
    """One group's threshold of WAIT, in whole requests, with the rules that bound its wait.

    `num_per_step` requests are to enter in each step. That is a fraction in most systems (64 rows
    and answers of 200 tokens: 0.3), and rounded down to 0 it would close the gate for good: so the
    fraction is kept as credit, and a step's threshold is the whole part of it. The gate is closed
    while fewer wait, with two ways out. Max wait: after `max_wait_s` it opens until the threshold
    is reached again. Drain: it opens at once where at this rate the threshold would not be reached
    in that time.
    """

    def __init__(self, max_wait_s: float) -> None:
        self._max_wait_s = max_wait_s
        self._credit = 0.0
        self.waiting_since: float | None = None

    def quota(
        self, num_entries: int, *, num_per_step: float, rate: float, now: float
    ) -> int | None:
        """How many of the `num_entries` that wait may enter in this step; None: closed."""
        self._credit = min(self._credit, 1.0) + num_per_step
        threshold = math.floor(self._credit + 1e-9)
        if num_entries >= threshold:
            self.waiting_since = None
            return threshold
        if self.waiting_since is None:
            self.waiting_since = now
        left_s = self.waiting_since + self._max_wait_s - now
        if left_s <= 0 or num_entries + rate * left_s < threshold:
            return num_entries
        self._credit -= num_per_step  # nothing ran
        return None

    def entered(self, num_requests: int) -> None:
        """So many entered."""
        self._credit = max(0.0, self._credit - num_requests)

    @property
    def opens_at(self) -> float:
        """When a closed gate opens for want of company."""
        assert self.waiting_since is not None
        return self.waiting_since + self._max_wait_s
