"""A prompt waits for another that is about to compute the prefix of both. Pure."""

from collections.abc import Sequence

from scheduling.views import PrefillPolicy, RequestKey, SequenceView, Services


class SharedPrefixFirst:
    """Leaves out prompts whose first pages somebody ahead of them is about to compute.

    Two prompts that begin alike and start together both compute what they share; one after the
    other, the second finds it in the cache (SGLang's in-batch prefix caching). `prefix_id` tells
    who begins alike; where somebody found those pages cached, nobody waits for them. One is left
    out until the other is computed, as what they share beyond the first pages is not known, and
    for `max_wait_s` at most.
    """

    def __init__(self, inner: PrefillPolicy, *, max_wait_s: float = 1.0) -> None:
        self._inner = inner
        self._max_wait_s = max_wait_s
        self._left_out_since: dict[RequestKey, float] = {}

    def order(
        self, sequences: Sequence[SequenceView], now: float, services: Services
    ) -> list[RequestKey]:
        """See `PrefillPolicy`."""
        by_key = {s.key: s for s in sequences}
        since = {key: at for key, at in self._left_out_since.items() if key in by_key}
        self._left_out_since = since
        holders = [s for s in sequences if s.num_pages]
        cached = {s.prefix_id for s in holders if s.num_cached}
        leading = {s.prefix_id for s in holders} - cached
        order = []
        for key in self._inner.order(sequences, now, services):
            prefix_id = by_key[key].prefix_id
            # Who has pages has looked for its prefix already: it computes, whoever is ahead of it.
            if prefix_id is None or prefix_id in cached or by_key[key].num_pages:
                order.append(key)
            elif prefix_id not in leading:
                leading.add(prefix_id)
                order.append(key)
            elif now - since.setdefault(key, now) >= self._max_wait_s:
                order.append(key)
        return order
