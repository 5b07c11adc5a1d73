"""Chunks as large as the slack of tokens allows (Niyama, 2025, arXiv 2503.22562). Pure.

The rules are those of the paper's code: hybrid key, eager relegation, dynamic chunks.
"""

import math
from dataclasses import dataclass
from typing import Annotated

from scheduling.batch.composing import StepBuilder, prefill_chunks
from scheduling.batch.lengths import ServiceTimes
from scheduling.batch.options import require
from scheduling.batch.pace import Paces
from scheduling.costs import step_s, step_shape
from scheduling.views import NodeView, RequestKey, SequenceView, Services, StepPlan
from tandem.config import Help

# Sizes of the tokens of prompts in a step. The least of them always runs: prompts never stop.
SIZES = (32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 2560, 4096, 8192)
# With so little left the largest chunk is 512, as pages may be wanted before the step is over.
FREE_PAGES_SHARE = 0.04
SIZE_WHEN_FULL = 512


@dataclass(frozen=True, slots=True)
class NiyamaOptions:
    """Options of `niyama`."""

    margin: Annotated[float, Help("predicted step time is multiplied by this")] = 1.2
    length_weight: Annotated[
        float,
        Help(
            "seconds of deadline that a second of prefill left weighs; 68 is the paper's 8 ms a "
            "token at 8500 tokens/s; 0: earliest deadline first"
        ),
    ] = 68.0
    ttft_s: Annotated[float, Help("TTFT target of requests that have none")] = 60.0
    relegate: Annotated[
        bool, Help("put prompts that can no longer be in time behind those that can")
    ] = True

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        require(self.margin >= 1, "margin must be at least 1; try 1.2")
        require(self.length_weight >= 0, "length_weight must not be negative; try 68")
        require(self.ttft_s > 0, "ttft_s must be above 0; try 60")


class NiyamaPolicy:
    """All rows decode; prompts get the largest chunk by which no token comes late.

    Prompts run by `due + weight * prefill left`: by deadline while there is room, shortest first
    where everything is due. One that cannot be in time any more is relegated for good: under
    overload some are late instead of all. Requests with KV are admitted by when their next token
    is due; relegated ones and those with the most slack give way where pages run out.
    """

    def __init__(self, options: NiyamaOptions = NiyamaOptions()) -> None:
        self._options = options
        self._paces = Paces()
        self._relegated: set[RequestKey] = set()

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """See the class."""
        with_kv = view.running + view.waiting + view.swapped
        self._paces.see(with_kv)
        self._relegated &= {s.key for s in with_kv + view.prefill}
        due = {s.key: self._paces.due_at(s) for s in with_kv}

        def urgency(sequence: SequenceView) -> tuple[float, ...]:
            is_late = sequence.key in self._relegated
            return (-sequence.priority, is_late, due[sequence.key], sequence.age)

        step = StepBuilder(view)
        step.decode(sorted(view.running, key=urgency))
        step.admit(sorted(view.waiting + view.swapped, key=urgency))
        if view.prefill:
            prompts = self._in_order(view, services)
            rows = [s for s in with_kv if s.key in step.decoding]
            step.prefill(prompts, self._size(prompts, rows, view, services))
        return step.plan()

    def _in_order(self, view: NodeView, services: Services) -> list[SequenceView]:
        """Prompts by the hybrid key, relegated ones last."""
        times = ServiceTimes(view, services)
        ranked = []
        for s in view.prefill:
            left_s = times.prefill_s(s)
            due_at = s.received_at + min(s.ttft_s, self._options.ttft_s)
            if self._options.relegate and view.now + left_s > due_at:
                self._relegated.add(s.key)
            key = due_at + self._options.length_weight * left_s
            ranked.append((-s.priority, s.key in self._relegated, key, s.age, s))
        ranked.sort(key=lambda entry: entry[:4])
        return [entry[4] for entry in ranked]

    def _size(
        self,
        prompts: list[SequenceView],
        rows: list[SequenceView],
        view: NodeView,
        services: Services,
    ) -> int:
        """The most tokens of prompts by which every row that can be in time is."""
        contexts = [s.num_tokens for s in rows]
        rows_s = self._options.margin * step_s(services.costs, step_shape((), contexts))
        # What even a step without prompts would break is no reason to hold prompts back.
        slacks = (self._paces.due_at(s) - view.now for s in rows if s.tpot_s > rows_s)
        slack_s = min(slacks, default=math.inf)
        left = {s.key: s.num_computed for s in prompts}

        def is_in_time(size: int) -> bool:
            chunks = prefill_chunks(prompts, size)
            shape = step_shape(((n, left[key]) for key, n in chunks), contexts)
            return self._options.margin * step_s(services.costs, shape) <= slack_s

        sizes = [n for n in SIZES if n < view.max_num_batched_tokens]
        sizes.append(view.max_num_batched_tokens)
        if view.num_free_pages < FREE_PAGES_SHARE * view.num_pages:
            sizes = [n for n in sizes if n <= SIZE_WHEN_FULL] or sizes[:1]
        low, high = 0, len(sizes) - 1  # the first always runs
        while low < high:
            middle = (low + high + 1) // 2
            if is_in_time(sizes[middle]):
                low = middle
            else:
                high = middle - 1
        return sizes[low]
