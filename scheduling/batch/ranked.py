"""Continuous batching in another order than that of arrival, without preemption. Pure.

One policy, parametrised by what it sorts by. Higher priority goes first in all of them. None but
HRRN is safe from starvation under overload: add the guard (`guard_ms`).
"""

from collections.abc import Callable

from scheduling.batch.composing import StepBuilder, oldest_first
from scheduling.batch.lengths import ServiceTimes, answer_tokens
from scheduling.views import NodeView, SequenceView, Services, StepPlan

Rank = Callable[[SequenceView], float]
MakeRank = Callable[[NodeView, Services], Rank]


class RankedPolicy:
    """Admits and prefills by lowest rank; whoever runs stays, unless pages run out."""

    def __init__(self, make_rank: MakeRank) -> None:
        self._make_rank = make_rank

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """Decode everything resident, then the best ranked of those that wait."""
        rank = self._make_rank(view, services)
        step = StepBuilder(view)
        step.decode(oldest_first(view.running))
        step.admit(by_rank(view.waiting + view.swapped, rank))
        step.prefill(by_rank(view.prefill, rank))
        return step.plan()


def by_rank(sequences: tuple[SequenceView, ...], rank: Rank) -> list[SequenceView]:
    """Higher priority first, then lower rank, then placement order."""
    return sorted(sequences, key=lambda s: (-s.priority, rank(s), s.age))


def shortest_prompt(view: NodeView, services: Services) -> Rank:
    """SPF: tokens of the prompt still to be computed; requests with KV come by age."""
    return lambda s: s.num_left


def shortest_answer(view: NodeView, services: Services) -> Rank:
    """SJF: predicted length of the whole answer."""
    return answer_tokens


def highest_response_ratio(view: NodeView, services: Services) -> Rank:
    """HRRN: (wait + service) / service, highest first; whoever waits long enough comes first."""
    times = ServiceTimes(view, services)

    def rank(sequence: SequenceView) -> float:
        service_s = times.service_s(sequence)
        return -(view.now - sequence.received_at + service_s) / service_s

    return rank
