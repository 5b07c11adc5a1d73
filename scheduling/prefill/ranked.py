"""Prefill policies that sort by one number: shortest prompt, shortest answer, deadline, HRRN. Pure.

None of them helps an empty queue, and all but HRRN let somebody wait for ever under overload: put
`scheduling.prefill.guard.WaitGuard` around them.
"""

import math
from collections.abc import Callable, Sequence

from scheduling.costs import prefill_s
from scheduling.views import RequestKey, SequenceView, Services

# Prompts are timed as if computed in chunks of this: the default of --max-num-batched-tokens.
CHUNK_TOKENS = 512

Rank = Callable[[SequenceView, float, Services], float]


class RankedPrefill:
    """Higher priority first, then the lower rank, then the older.

    preemptive: a prompt that has begun may be overtaken between two of its chunks; otherwise it
    runs to its end, as its pages and its reserve at the decode node are taken already.
    """

    def __init__(self, rank: Rank, *, preemptive: bool) -> None:
        self._rank = rank
        self._preemptive = preemptive

    def order(
        self, sequences: Sequence[SequenceView], now: float, services: Services
    ) -> list[RequestKey]:
        """See `PrefillPolicy`."""
        ranked = [
            (
                not (s.is_begun or self._preemptive),
                -s.priority,
                self._rank(s, now, services),
                s.age,
                s.key,
            )
            for s in sequences
        ]
        return [key for *_, key in sorted(ranked)]


def prompt_length(sequence: SequenceView, now: float, services: Services) -> float:
    """SPF: tokens still to be computed; what is cached counts once the prompt has its pages."""
    return sequence.num_left


def predicted_answer(sequence: SequenceView, now: float, services: Services) -> float:
    """SJF: the median of its predicted answer; the longest that it may be without a prediction."""
    if sequence.prediction is None:
        return sequence.max_total_tokens - sequence.num_tokens
    return sequence.prediction.q50 - sequence.num_output_tokens


def predicted_rank(sequence: SequenceView, now: float, services: Services) -> float:
    """Learning to rank (Fu et al., NeurIPS 2024): the score only orders; without one, last."""
    return math.inf if sequence.prediction is None else sequence.prediction.score


def response_ratio(sequence: SequenceView, now: float, services: Services) -> float:
    """HRRN: highest (wait + service) / service first, service being the time of its prefill.

    Short prompts first, yet whoever waits long enough overtakes everybody.
    """
    service_s = service_time_s(sequence, services)
    return -(now - sequence.received_at + service_s) / service_s


def deadline(sequence: SequenceView, now: float, services: Services) -> float:
    """EDF: when its first token is due; those without a promise last."""
    return sequence.first_token_due_at


def service_time_s(sequence: SequenceView, services: Services) -> float:
    """Seconds to compute the rest of a prompt alone; never zero."""
    seconds = prefill_s(services.costs, sequence.num_left, sequence.num_computed, CHUNK_TOKENS)
    return max(seconds, 1e-9)
