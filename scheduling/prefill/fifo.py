"""Prompts in the order of their placement. Pure."""

from collections.abc import Sequence

from scheduling.views import RequestKey, SequenceView, Services


class FifoPrefill:
    """Higher priority first, then the coordinator's placement order."""

    def order(
        self, sequences: Sequence[SequenceView], now: float, services: Services
    ) -> list[RequestKey]:
        """See `PrefillPolicy`."""
        return [s.key for s in sorted(sequences, key=lambda s: (-s.priority, s.age))]
