"""Decodes at the last schedulable time (SLAI, SIGMETRICS 2026, arXiv 2508.01002). Pure."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from scheduling.batch.composing import StepBuilder, num_pages_to_grow, oldest_first
from scheduling.batch.options import require
from scheduling.costs import step_s, step_shape
from scheduling.views import NodeView, SequenceView, Services, StepPlan
from tandem.config import Help

# Above this share of pages in use rows are run earlier: those that end give pages back.
PAGES_SHARE = 0.96
SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class SlaiOptions:
    """Options of `slai`; defaults are those of its paper."""

    token_budget: Annotated[int, Help("tokens of a step at most")] = 512
    theta: Annotated[float, Help("steps by which a row runs before its token is due")] = 5.0
    theta_full: Annotated[float, Help("the same while KV pages are nearly all in use")] = 10.0
    tpot_ms: Annotated[float, Help("gap of tokens where a request has no target")] = 200.0
    order: Annotated[
        Literal["spf", "fifo", "strict"],
        Help("prompts: shortest first, by age, or tightest TPOT target first, then shortest"),
    ] = "spf"

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        require(self.token_budget > 0, "token_budget must be above 0; try 512")
        require(min(self.theta, self.theta_full) >= 0, "theta must not be negative; try 5")
        require(self.tpot_ms > 0, "tpot_ms must be above 0; try 200")


class SlaiPolicy:
    """Rows wait until their token is nearly due; the step is spent on prompts until then.

    A row is critical from `last token + TPOT target - theta * mean step`. Critical rows run first,
    then prompts that have begun, then new ones, then, with what is left of the budget, the other
    rows in the order of their last schedulable times. Spends the slack of relaxed requests on the
    TTFT of others; they stay longer and hold pages longer.
    """

    def __init__(self, options: SlaiOptions = SlaiOptions()) -> None:
        self._options = options
        self._measured_s: float | None = None
        self._planned_at: float | None = None

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """See the class."""
        mean_s = self._mean_step_s(view, services)
        step = StepBuilder(view, max(self._options.token_budget, view.max_num_seqs + 1))
        due = {s.key: self._last_time(s, view, mean_s) for s in view.running}
        rows = sorted(view.running, key=lambda s: (due[s.key], s.age))
        num_critical = sum(at <= view.now for at in due.values())
        keeping = oldest_first(view.running)
        step.decode(rows[:num_critical], keeping)
        num_kept = sum(num_pages_to_grow(s, view.page_size) for s in rows[num_critical:])
        step.num_pages -= num_kept  # the other rows come after prompts, yet before newcomers
        step.admit(oldest_first(view.waiting + view.swapped))
        step.num_pages += num_kept
        step.prefill(sorted(view.prefill, key=self._prompt_rank))
        if step.is_short:
            for row in rows[num_critical:]:
                step.try_decode(row)
        else:
            step.decode(rows[num_critical:], keeping)
        plan = step.plan()
        self._planned_at = view.now if plan.decode or plan.prefill else None
        return plan

    def _last_time(self, sequence: SequenceView, view: NodeView, mean_s: float) -> float:
        num_used = view.num_pages - view.num_free_pages
        is_full = num_used >= PAGES_SHARE * view.num_pages
        theta = self._options.theta_full if is_full else self._options.theta
        has_target = math.isfinite(sequence.tpot_s)
        tpot_s = sequence.tpot_s if has_target else self._options.tpot_ms / 1e3
        last_at = sequence.last_token_at
        return (sequence.arrived_at if last_at is None else last_at) + tpot_s - theta * mean_s

    def _prompt_rank(self, sequence: SequenceView) -> tuple[float, ...]:
        begun = 0.0 if sequence.is_begun else 1.0
        match self._options.order:
            case "spf":
                return (begun, -sequence.priority, sequence.num_left, sequence.age)
            case "fifo":
                return (begun, -sequence.priority, sequence.age)
            case "strict":
                return (begun, -sequence.priority, sequence.tpot_s, sequence.num_left)

    def _mean_step_s(self, view: NodeView, services: Services) -> float:
        """Mean time of a step: as measured here, by the node's costs until something was."""
        if self._planned_at is not None:
            ends = [s.last_token_at for s in view.running if s.last_token_at is not None]
            ended_at = max(ends, default=0.0)
            if ended_at > self._planned_at:
                took_s = ended_at - self._planned_at
                mean_s = took_s if self._measured_s is None else self._measured_s
                self._measured_s = mean_s + SMOOTHING * (took_s - mean_s)
        if self._measured_s is not None:
            return self._measured_s
        shape = step_shape((), (s.num_tokens for s in view.running))
        return step_s(services.costs, shape)
