"""Continuous batching, first come first served. Pure."""

from scheduling.batch.composing import oldest_first, prefill_chunks
from scheduling.views import NodeView, Services, StepPlan


class FifoPolicy:
    """Continuous batching (Orca, OSDI 2022): whoever has KV gets a row, oldest first."""

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """Decode everything resident, admit while rows are free, prefill with what is left."""
        num_free = max(0, view.max_num_seqs - len(view.running))
        admitted = tuple(s.key for s in oldest_first(view.waiting)[:num_free])
        decode = tuple(s.key for s in view.running) + admitted
        return StepPlan(
            decode=decode,
            admit=admitted,
            prefill=prefill_chunks(view.prefill, view.max_num_batched_tokens - len(decode)),
        )
