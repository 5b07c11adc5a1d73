"""A batch policy that preempts whom it likes, when it likes: whatever a plan says, streams hold."""

import random

from scheduling.batch.catalogue import is_steady_policy, make_batch_policy
from scheduling.batch.composing import oldest_first
from scheduling.views import BatchPolicy, NodeView, PreemptMode, RequestKey, Services, StepPlan
from simulator.knobs import Knobs

MODES: tuple[PreemptMode, ...] = ("auto", "recompute", "swap", "migrate")


class RudePolicy:
    """Continuous batching that in every tenth step or so also preempts, in any mode."""

    def __init__(self, rng: random.Random, chance: float = 0.1) -> None:
        self._rng = rng
        self._chance = chance
        self._fifo = make_batch_policy("fifo")

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """What continuous batching does, less whom it preempts; swapped ones wait their turn."""
        plan = self._fifo.plan(view, services)
        preempt: dict[RequestKey, PreemptMode] = {}
        for sequence in view.running:
            if self._rng.random() < self._chance:
                preempt[sequence.key] = self._rng.choice(MODES)
        num_free = max(0, view.max_num_seqs - len(plan.decode))
        back = tuple(s.key for s in oldest_first(view.swapped)[:num_free])
        if self._rng.random() < self._chance:
            back = ()
        admit = plan.admit + tuple(key for key in back if key not in plan.admit)
        decode = tuple(dict.fromkeys((*plan.decode, *back)))
        return StepPlan(
            decode=decode, prefill=plan.prefill, admit=admit, preempt=tuple(preempt.items())
        )


def make_policy(knobs: Knobs, index: int) -> tuple[BatchPolicy, bool]:
    """The policy of a node of this scenario, and whether it is steady."""
    if knobs.batch_policy == "rude":
        return RudePolicy(random.Random(f"rude {knobs.seed} {index}")), False
    return make_batch_policy(knobs.batch_policy), is_steady_policy(knobs.batch_policy)
