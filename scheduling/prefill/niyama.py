"""Niyama's order of prompts (Goel et al., 2025, arXiv 2503.22562). Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from scheduling.batch.options import require
from scheduling.prefill.ranked import service_time_s
from scheduling.views import RequestKey, SequenceView, Services
from tandem.config import Help


@dataclass(frozen=True, slots=True)
class NiyamaOptions:
    """Options of Niyama's order."""

    length_weight_ms: Annotated[
        float, Help("what a token still to be computed weighs against time until the deadline")
    ] = 8.0
    no_target_ms: Annotated[float, Help("TTFT target of prompts that have none")] = 60_000.0

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        require(
            self.length_weight_ms >= 0, "length_weight_ms must not be negative; try 8", "prefill"
        )
        require(self.no_target_ms > 0, "no_target_ms must be above 0; try 60000", "prefill")


class NiyamaPrefill:
    """Earliest deadline blended with shortest remaining prompt, and eager relegation.

    A prompt is ranked by its deadline plus 8 ms for each token left (the value of its code): by
    deadline while there is room, by length where many are due at once. One that can no longer be
    in time even if it ran now is relegated, once and for good: it runs behind all that still can
    be. Without that, under overload every prompt becomes a little too late. Prompts that have begun
    may be overtaken between chunks.
    """

    def __init__(self, options: NiyamaOptions = NiyamaOptions()) -> None:
        self._length_weight_s = options.length_weight_ms / 1e3
        self._no_target_s = options.no_target_ms / 1e3
        self._relegated: set[RequestKey] = set()

    def order(
        self, sequences: Sequence[SequenceView], now: float, services: Services
    ) -> list[RequestKey]:
        """See `PrefillPolicy`."""
        self._relegated &= {s.key for s in sequences}
        ranked = []
        for s in sequences:
            due_at = s.received_at + min(s.ttft_s, self._no_target_s)
            if now + service_time_s(s, services) > due_at:
                self._relegated.add(s.key)
            rank = due_at + self._length_weight_s * s.num_left
            ranked.append((-s.priority, s.key in self._relegated, rank, s.age, s.key))
        return [key for *_, key in sorted(ranked)]
