"""When the next token of each request is due, by its TPOT target. Pure."""

import math
from collections.abc import Iterable

from scheduling.views import RequestKey, SequenceView


class Paces:
    """A TPOT target is a mean over the answer: tokens that came early are slack for later ones.

    The mean counts from the first token that was seen here, and its request's own pace from then.
    """

    def __init__(self) -> None:
        self._began: dict[RequestKey, tuple[float, int]] = {}  # time, tokens known then

    def see(self, sequences: Iterable[SequenceView]) -> None:
        """All requests of a view that have a token; others are forgotten."""
        began = {}
        for s in sequences:
            first = self._began.get(s.key)
            if first is None:
                at = s.arrived_at if s.last_token_at is None else s.last_token_at
                first = (at, s.num_tokens)
            began[s.key] = first
        self._began = began

    def due_at(self, sequence: SequenceView) -> float:
        """When its next token has to be there; infinite without a target."""
        if math.isinf(sequence.tpot_s):
            return math.inf
        at, num_tokens = self._began[sequence.key]
        return at + (sequence.num_tokens - num_tokens + 1) * sequence.tpot_s
