"""Magnus's order and memory guard under continuous batching: `magnus-cb`. Pure.

Cheng et al. (2024, arXiv 2406.04785) dispatch static batches by response ratio, and keep a batch's
predicted KV within memory. Of that, continuous batching can use both.
"""

from dataclasses import dataclass
from typing import Annotated

from scheduling.batch.composing import StepBuilder, num_pages_at_end, oldest_first
from scheduling.batch.options import require
from scheduling.batch.ranked import by_rank, highest_response_ratio
from scheduling.views import NodeView, SequenceView, Services, StepPlan
from tandem.config import Help


@dataclass(frozen=True, slots=True)
class MagnusContinuousOptions:
    """Options of `magnus-cb`."""

    memory_share: Annotated[
        float, Help("share of all pages that running requests may come to need, by prediction")
    ] = 0.95

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        require(0 < self.memory_share <= 1, "memory_share must be within (0, 1]; try 0.95")


class MagnusContinuousPolicy:
    """Highest response ratio first, admitted while `sum(prompt + predicted answer)` fits.

    Admission breaks at the first that does not fit, so nothing is overtaken for its size, and the
    ratio of who waits grows. Where answers outgrow their prediction the newest gives way.
    """

    def __init__(self, options: MagnusContinuousOptions = MagnusContinuousOptions()) -> None:
        self._memory_share = options.memory_share

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """Decode everything resident, admit by ratio within predicted memory."""
        rank = highest_response_ratio(view, services)
        step = StepBuilder(view)
        step.decode(oldest_first(view.running))
        candidates = by_rank(view.waiting + view.swapped, rank)
        step.admit(self._within_memory(view, view.running, candidates))
        if not step.is_short:
            step.unstick(candidates)
        prompts = by_rank(view.prefill, rank)
        if step.decoding:
            # Prompts computed beyond what fits would hold the pages that answers grow into.
            prompts = self._within_memory(view, view.running + view.waiting, prompts)
        step.prefill(prompts)
        return step.plan()

    def _within_memory(
        self,
        view: NodeView,
        residents: tuple[SequenceView, ...],
        candidates: list[SequenceView],
    ) -> list[SequenceView]:
        """The first candidates whose predicted pages fit beside those of the residents."""
        num_free = self._memory_share * view.num_pages
        num_free -= sum(num_predicted_pages(s, view.page_size) for s in residents)
        found: list[SequenceView] = []
        for sequence in candidates:
            num_free -= num_predicted_pages(sequence, view.page_size)
            if num_free < 0 and (residents or found):
                break
            found.append(sequence)
        return found


def num_predicted_pages(sequence: SequenceView, page_size: int) -> int:
    """Pages that it will probably come to: nine of ten such answers need no more.

    One that outgrew its prediction is counted with its next token; one without, at full length.
    """
    most = num_pages_at_end(sequence, page_size)
    if sequence.prediction is None:
        return most
    predicted = sequence.num_prompt_tokens + sequence.prediction.q90
    return min(most, -(-int(max(predicted, sequence.num_tokens + 1)) // page_size))
