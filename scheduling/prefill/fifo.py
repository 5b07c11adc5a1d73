"""Prompts in the order of their placement. Pure."""

from collections.abc import Sequence

from scheduling.views import RequestKey, SequenceView, Services


class FifoPrefill:
    """Begun ones to their end, then higher priority, then the coordinator's placement order."""

    def order(
        self, sequences: Sequence[SequenceView], now: float, services: Services
    ) -> list[RequestKey]:
        """See `PrefillPolicy`."""
        ordered = sorted(sequences, key=lambda s: (not s.is_begun, -s.priority, s.age))
        return [s.key for s in ordered]
