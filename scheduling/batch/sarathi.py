"""Chunked prefill without stalls (Sarathi-Serve, OSDI 2024, arXiv 2403.02310). Pure."""

from dataclasses import dataclass
from typing import Annotated

from scheduling.batch.composing import StepBuilder, oldest_first
from scheduling.batch.options import require
from scheduling.views import NodeView, Services, StepPlan
from tandem.config import Help


@dataclass(frozen=True, slots=True)
class SarathiOptions:
    """Options of `sarathi`."""

    token_budget: Annotated[
        int, Help("tokens of a step at most, decode rows included; bounds the gaps of tokens")
    ] = 512

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        require(self.token_budget > 0, "token_budget must be above 0; try 512")


class SarathiPolicy:
    """Every row decodes in every step; what is left of a fixed budget goes to prompts.

    Chunks of prompts that have begun come before new ones. Where pages run out the last arrived
    gives way. The budget, not the longest prompt, bounds how long a token can take.
    """

    def __init__(self, options: SarathiOptions = SarathiOptions()) -> None:
        self._token_budget = options.token_budget

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """Rows first, then chunks that go on, then new ones."""
        # Rows are never cut: a budget below them would hold tokens back, which this is to prevent.
        budget = max(self._token_budget, view.max_num_seqs + 1)
        step = StepBuilder(view, budget)
        step.decode(oldest_first(view.running))
        step.admit(oldest_first(view.waiting + view.swapped))
        step.prefill(sorted(view.prefill, key=lambda s: not s.is_begun))
        return step.plan()
