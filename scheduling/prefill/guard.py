"""Nobody waits for ever behind a prefill policy that prefers others. Pure."""

from collections.abc import Sequence

from scheduling.views import PrefillPolicy, RequestKey, SequenceView, Services


class WaitGuard:
    """Lets prompts that have waited for `max_wait_s` run first, oldest first, one turn in `every`.

    Learning to rank boosts everybody whom it has passed over too often (Fu et al., NeurIPS 2024:
    200 steps). Under overload all have waited, and to serve all of them by age is FIFO again: so
    only one prompt in `every` that leave the queue is taken for its age. The oldest of n overdue
    prompts therefore runs after at most `every` others, the n-th after `every * n`.
    """

    def __init__(self, inner: PrefillPolicy, *, max_wait_s: float, every: int = 5) -> None:
        if max_wait_s < 0 or every < 1:
            raise ValueError(f"max_wait_s {max_wait_s} must not be negative, every {every} >= 1")
        self._inner = inner
        self._max_wait_s = max_wait_s
        self._every = every
        self._present: set[RequestKey] = set()
        self._boosted: RequestKey | None = None
        self._num_left = every  # prompts that left since the last boost

    def order(
        self, sequences: Sequence[SequenceView], now: float, services: Services
    ) -> list[RequestKey]:
        """See `PrefillPolicy`."""
        order = self._inner.order(sequences, now, services)
        present = {s.key for s in sequences}
        self._num_left += len(self._present - present)
        self._present = present
        if self._boosted not in present:
            self._boosted = self._next(sequences, now)
        if self._boosted is not None:
            order = [self._boosted, *(key for key in order if key != self._boosted)]
        return order

    def _next(self, sequences: Sequence[SequenceView], now: float) -> RequestKey | None:
        overdue = [
            s for s in sequences if not s.is_begun and now - s.received_at >= self._max_wait_s
        ]
        if not overdue or self._num_left < self._every:
            return None
        self._num_left = 0
        return min(overdue, key=lambda s: (-s.priority, s.age)).key
