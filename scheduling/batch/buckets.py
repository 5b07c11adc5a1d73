"""Static batches of alike lengths, formed within a time window. Pure.

What serving systems did before continuous batching: a batch takes as long as its longest member, so
requests of like length share one (TetriInfer, arXiv 2401.11181, dispatches decodes by such
buckets).
"""

import math
from dataclasses import dataclass
from typing import Annotated

from scheduling.batch.composing import StepBuilder, oldest_first
from scheduling.batch.fifo import with_room_to_end
from scheduling.batch.lengths import tokens_to_come
from scheduling.batch.options import require
from scheduling.views import NodeView, RequestKey, SequenceView, Services, StepPlan
from tandem.config import Help

DEFAULT_WINDOW_S = 0.05


@dataclass(frozen=True, slots=True)
class BucketOptions:
    """Options of `buckets`."""

    smallest: Annotated[int, Help("answers of up to this many tokens share the first bucket")] = 32
    factor: Annotated[float, Help("how many times longer answers of the next bucket are")] = 2.0
    window_s: Annotated[float, Help("how long the first of a bucket waits for company")] = (
        DEFAULT_WINDOW_S
    )

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        require(self.smallest >= 1, "smallest must be at least 1; try 32")
        require(self.factor > 1, "factor must be above 1; try 2")
        require(self.window_s >= 0, "window_s must not be negative; try 0.05")


def length_bucket(num_tokens: float, smallest: float, factor: float) -> int:
    """0 up to `smallest`, then one more for every `factor` times as much."""
    if num_tokens <= smallest:
        return 0
    return math.ceil(math.log(num_tokens / smallest) / math.log(factor) - 1e-9)


class BucketPolicy:
    """A batch of one bucket runs until its longest member ends, then the next one forms.

    A bucket is due when it fills the rows, or when its oldest member has waited for the window;
    of those that are due, the one whose oldest member has waited longest goes first, so no bucket
    starves. Rows of ended members are left out.
    """

    def __init__(self, options: BucketOptions = BucketOptions()) -> None:
        self._smallest = options.smallest
        self._factor = options.factor
        self._window_s = options.window_s
        self._seen_at: dict[RequestKey, float] = {}

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """Continue the batch, or form the next one."""
        candidates = view.waiting + view.swapped
        self._seen_at = {s.key: self._seen_at.get(s.key, view.now) for s in candidates}
        step = StepBuilder(view)
        step.decode(oldest_first(view.running))
        wake_at = None
        if candidates and not view.running:
            wake_at = self._form_batch(view, step, candidates)
        step.prefill(view.prefill)
        return step.plan(wake_at=wake_at)

    def _form_batch(
        self, view: NodeView, step: StepBuilder, candidates: tuple[SequenceView, ...]
    ) -> float | None:
        """Admit the bucket that is due; or when the first will be."""
        buckets: dict[int, list[SequenceView]] = {}
        for sequence in candidates:
            buckets.setdefault(
                length_bucket(tokens_to_come(sequence), self._smallest, self._factor), []
            ).append(sequence)
        since = {index: min(self._seen_at[s.key] for s in b) for index, b in buckets.items()}
        due = [
            index
            for index, members in buckets.items()
            if len(members) >= view.max_num_seqs or view.now >= since[index] + self._window_s
        ]
        if not due:
            return min(since.values()) + self._window_s
        chosen = buckets[min(due, key=lambda index: (since[index], index))]
        step.admit(with_room_to_end(view, step, chosen))
        step.unstick(oldest_first(candidates))
        return None
