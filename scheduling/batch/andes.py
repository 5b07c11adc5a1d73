"""Andes (Liu et al., 2024, arXiv 2404.16283): tokens go to whose reader runs out first. Pure.

A reader takes in text at a certain speed, and what is ahead of it does not help them. So under
pressure a request with tokens in stock can be held, or stopped, for one without.
"""

import math
from dataclasses import dataclass
from typing import Annotated

from scheduling.batch.composing import StepBuilder, oldest_first
from scheduling.batch.options import require
from scheduling.costs import StepShape, step_s
from scheduling.views import NodeView, RequestKey, SequenceView, Services, StepPlan
from tandem.config import Help

MIN_GAIN = 1e-6  # keeps those with a full stock in order of what they would gain


@dataclass(frozen=True, slots=True)
class AndesOptions:
    """Options of `andes`."""

    horizon_s: Annotated[float, Help("how far ahead a reader's stock of tokens is looked at")] = 1.0
    tpot_ms: Annotated[
        float, Help("time that a reader takes for a token, where no TPOT is promised")
    ] = 200.0
    max_preemptions: Annotated[
        int, Help("times that one request is stopped for another at most")
    ] = 1

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        require(self.horizon_s > 0, "horizon_s must be above 0; try 1")
        require(self.tpot_ms > 0, "tpot_ms must be above 0; try 200")
        require(self.max_preemptions >= 0, "max_preemptions must not be negative; try 1")


class AndesPolicy:
    """A greedy knapsack of quality-of-experience gain per token of KV that a step has to read.

    The gain of a token is the share of the next `horizon_s` in which its reader would otherwise
    have nothing left. Rows are taken by gain per token of context while the step stays within the
    tightest reading time among them; the others are held. That only bites under pressure: while a
    step over all rows is fast enough, nobody is held. Where rows or pages run out, a request that
    has a whole horizon in stock is stopped for one that waits with less.
    """

    def __init__(self, options: AndesOptions = AndesOptions()) -> None:
        self._options = options
        self._reading_since: dict[RequestKey, float] = {}  # less what came before it was seen

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """See the class."""
        everybody = view.running + view.waiting + view.swapped
        self._see(everybody, view.now)
        gains = {s.key: self._gain(s, view.now) for s in everybody}
        step = StepBuilder(view)
        running = sorted(view.running, key=lambda s: self._rank(s, gains))
        rows = self._within_pace(running, services)
        step.decode(rows, running)
        self._admit(view, step, gains, running)
        step.prefill(view.prefill)
        return step.plan()

    def _see(self, sequences: tuple[SequenceView, ...], now: float) -> None:
        """A reader begins with the first token; tokens of earlier attempts are read by then."""
        self._reading_since = {
            s.key: self._reading_since.get(
                s.key, (s.last_token_at or now) - (s.num_output_tokens - 1) * self._tpot_s(s)
            )
            for s in sequences
        }

    def _tpot_s(self, sequence: SequenceView) -> float:
        has_target = math.isfinite(sequence.tpot_s)
        return sequence.tpot_s if has_target else self._options.tpot_ms / 1e3

    def stock_s(self, sequence: SequenceView, now: float) -> float:
        """How long its reader is busy with what has been made; below zero: how late it is."""
        read_until = self._reading_since[sequence.key]
        return read_until + sequence.num_output_tokens * self._tpot_s(sequence) - now

    def _gain(self, sequence: SequenceView, now: float) -> float:
        """Share of the horizon that its reader gains by a token now; 1 for one who waits."""
        missing_s = self._options.horizon_s - max(0.0, self.stock_s(sequence, now))
        return max(MIN_GAIN / (1 + now - self._reading_since[sequence.key]), missing_s)

    @staticmethod
    def _rank(sequence: SequenceView, gains: dict[RequestKey, float]) -> tuple[float, ...]:
        return (-sequence.priority, -gains[sequence.key] / sequence.num_tokens, sequence.age)

    def _within_pace(self, ranked: list[SequenceView], services: Services) -> list[SequenceView]:
        """The first ones whose step is no longer than any of them takes to read a token."""
        tightest_s, num_tokens = math.inf, 0
        for n, sequence in enumerate(ranked):
            tightest_s = min(tightest_s, self._tpot_s(sequence))
            num_tokens += sequence.num_tokens
            shape = StepShape(num_decode_rows=n + 1, num_decode_tokens=num_tokens)
            if n > 0 and step_s(services.costs, shape) > tightest_s:
                return ranked[:n]
        return ranked

    def _admit(
        self,
        view: NodeView,
        step: StepBuilder,
        gains: dict[RequestKey, float],
        running: list[SequenceView],
    ) -> None:
        """By gain; who has a horizon in stock gives way to who has not, least gain first."""
        waiting = sorted(view.waiting + view.swapped, key=lambda s: self._rank(s, gains))
        in_stock = [s for s in running if self._can_give_way(s, view.now)]
        for sequence in [] if step.is_short else waiting:
            is_urgent = self.stock_s(sequence, view.now) < self._options.horizon_s
            # What comes back from host memory stops nobody, nor comes when somebody is stopped.
            victims = in_stock if is_urgent and not step.is_swapped(sequence) else []
            leaving = self._make_room(step, sequence, victims)
            if leaving is None or (step.preempted and step.is_swapped(sequence)):
                break
            for victim in leaving:
                step.preempt(victim)
            if not step.try_admit(sequence):
                break
            if step.is_swapped(sequence):
                in_stock = []
        step.unstick(oldest_first(waiting))

    @staticmethod
    def _make_room(
        step: StepBuilder, sequence: SequenceView, victims: list[SequenceView]
    ) -> list[SequenceView] | None:
        """Whom to stop for it, taken off `victims`; None where even that makes no room."""
        leaving: list[SequenceView] = []
        need, num_coming = step.pages_to_admit(sequence), 0
        while step.num_rows + len(leaving) <= 0 or not step.fits(sequence, need, num_coming):
            if not victims or victims[-1].priority > sequence.priority:
                return None
            leaving.append(victims.pop())
            num_coming += leaving[-1].num_pages + leaving[-1].num_promised
        return leaving

    def _can_give_way(self, sequence: SequenceView, now: float) -> bool:
        return (
            sequence.num_preemptions < self._options.max_preemptions
            and self.stock_s(sequence, now) >= self._options.horizon_s
        )
