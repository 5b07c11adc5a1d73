"""Continuous batching by rank that takes rows and pages from those ranked lower. Pure.

`ltr`: vLLM-LTR (Fu et al., NeurIPS 2024, arXiv 2408.15792), a score given once. `srpt`: shortest
remaining time by prediction, with TRAIL's limit (arXiv 2410.01035) on whom it may stop. `priority`:
the operator's classes, as in vLLM.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from scheduling.batch.composing import StepBuilder
from scheduling.batch.lengths import tokens_to_come
from scheduling.batch.options import require
from scheduling.views import NodeView, RequestKey, SequenceView, Services, StepPlan
from tandem.config import Help

Rank = tuple[float, ...]
Ranks = dict[RequestKey, Rank]
# May this running request, the second argument, give its row or pages to that waiting one?
MayStop = Callable[[SequenceView, SequenceView], bool]


@dataclass(frozen=True, slots=True)
class SrptOptions:
    """Options of `srpt`."""

    stop_until: Annotated[
        float, Help("a request is only stopped before this share of its predicted answer is done")
    ] = 0.8
    gain: Annotated[
        float, Help("how many times shorter what is left of the other must be to stop one")
    ] = 2.0

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        require(0 <= self.stop_until <= 1, "stop_until must be within [0, 1]; try 0.8")
        require(self.gain >= 1, "gain must be at least 1; try 2")


class PreemptivePolicy:
    """Fills rows and pages from the top of one order over running and waiting requests.

    For whoever comes in, those at the bottom of the order go out, as few as make room. Nothing
    comes back from host memory in a step that sends something away (no ping-pong). Running requests
    below the cut keep their rows while they are wanted by nobody.
    """

    def __init__(
        self, rank: Callable[[SequenceView], Rank], may_stop: MayStop | None = None
    ) -> None:
        self._rank = rank
        self._may_stop = may_stop or (lambda incoming, running: True)

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """See the class."""
        step = StepBuilder(view)
        everybody = view.running + view.waiting + view.swapped
        ranks = {s.key: (*self._rank(s), s.age) for s in everybody}
        running = sorted(view.running, key=lambda s: ranks[s.key])
        step.decode(running)
        if not step.is_short:
            candidates = sorted(view.waiting + view.swapped, key=lambda s: ranks[s.key])
            self._bring_in(step, candidates, running, ranks)
            step.unstick(candidates)
        step.prefill(sorted(view.prefill, key=lambda s: (*self._rank(s), s.age)))
        return step.plan()

    def _bring_in(
        self,
        step: StepBuilder,
        candidates: list[SequenceView],
        bottom: list[SequenceView],
        ranks: Ranks,
    ) -> None:
        """Admit from the top until one does not fit, whoever makes room for it off the bottom."""
        has_returned = False
        for sequence in candidates:
            if step.preempted and step.is_swapped(sequence):
                continue
            leaving = self._make_room(step, sequence, bottom, ranks)
            has_returned = has_returned or step.is_swapped(sequence)
            if leaving is None or (leaving and has_returned):
                return
            if step.num_tokens + len(leaving) <= 0:
                return
            for victim in leaving:
                step.preempt(victim)
            if not step.try_admit(sequence):
                return

    def _make_room(
        self, step: StepBuilder, sequence: SequenceView, bottom: list[SequenceView], ranks: Ranks
    ) -> list[SequenceView] | None:
        """Whom to stop for it, taken off `bottom`; None where even that makes no room."""
        leaving: list[SequenceView] = []
        need = step.pages_to_admit(sequence)
        num_coming = 0
        while step.num_rows + len(leaving) <= 0 or not step.fits(sequence, need, num_coming):
            if not bottom or ranks[bottom[-1].key] < ranks[sequence.key]:
                return None
            victim = bottom.pop()
            if self._may_stop(sequence, victim):
                leaving.append(victim)
                num_coming += victim.num_pages + victim.num_promised
        return leaving


def priority_policy() -> PreemptivePolicy:
    """Higher priority first, then age; only a lower class gives way."""
    return PreemptivePolicy(
        lambda s: (-s.priority,), lambda incoming, running: incoming.priority > running.priority
    )


def ltr_policy() -> PreemptivePolicy:
    """By score, which is drawn once; requests without one come last, by age."""
    return PreemptivePolicy(
        lambda s: (-s.priority, math.inf if s.prediction is None else s.prediction.score)
    )


def srpt_policy(options: SrptOptions) -> PreemptivePolicy:
    """By tokens to come. Late in its answer nobody is stopped: much KV for little time (TRAIL)."""

    def may_stop(incoming: SequenceView, running: SequenceView) -> bool:
        if incoming.priority > running.priority:
            return True
        expected = running.num_output_tokens + tokens_to_come(running)
        is_early = running.num_output_tokens < options.stop_until * expected
        return is_early and options.gain * tokens_to_come(incoming) <= tokens_to_come(running)

    return PreemptivePolicy(lambda s: (-s.priority, tokens_to_come(s)), may_stop)
