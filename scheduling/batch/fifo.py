"""Continuous batching, first come first served, and Orca's form of it. Pure."""

from collections.abc import Sequence

from scheduling.batch.composing import (
    StepBuilder,
    is_reserved,
    num_pages_at_end,
    oldest_first,
)
from scheduling.views import NodeView, SequenceView, Services, StepPlan


class FifoPolicy:
    """Continuous batching (Orca, OSDI 2022): whoever has KV gets a row, oldest first.

    Where pages run out the newest gives way, as in vLLM.
    """

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """Decode everything resident, admit while rows are free, prefill with what is left."""
        step = StepBuilder(view)
        step.decode(oldest_first(view.running))
        step.admit(oldest_first(view.waiting + view.swapped))
        step.prefill(view.prefill)
        return step.plan()


class OrcaPolicy:
    """Orca's reservation (OSDI 2022, algorithm 1): admits where the full length fits.

    A prompt is one iteration, unless it is too long for that. Others that claim free pages can
    still take what was counted on; then the newest gives way.
    """

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """Decode everything resident, admit those with room to end, add whole prompts."""
        step = StepBuilder(view)
        running = oldest_first(view.running)
        step.decode(running)
        step.admit(with_room_to_end(view, step))
        step.unstick(oldest_first(view.waiting))
        step.prefill(_whole_prompts(view, step.num_tokens))
        return step.plan()


def _whole_prompts(view: NodeView, num_tokens: int) -> list[SequenceView]:
    """The first prompts that fit whole; one that does not fit beside full rows goes in pieces."""
    found: list[SequenceView] = []
    for prompt in view.prefill:
        has_to_be_cut = prompt.num_left > view.max_num_batched_tokens - view.max_num_seqs
        if prompt.num_left > num_tokens and (found or not has_to_be_cut):
            break
        found.append(prompt)
        num_tokens -= prompt.num_left
    return found


def with_room_to_end(
    view: NodeView, step: StepBuilder, candidates: Sequence[SequenceView] | None = None
) -> list[SequenceView]:
    """The oldest waiting requests whose full length fits beside that of all running ones.

    Of these `candidates` only, where given.
    """
    num_free = step.num_pages - sum(_num_unreserved(s, view.page_size) for s in view.running)
    found: list[SequenceView] = []
    waiting = view.waiting + view.swapped if candidates is None else candidates
    for sequence in oldest_first(waiting):
        need = _num_unreserved(sequence, view.page_size)
        if step.is_swapped(sequence):
            need = num_pages_at_end(sequence, view.page_size)
        is_alone = not (view.running or found)
        if need > num_free and not is_alone and not is_reserved(sequence, view.page_size):
            break
        found.append(sequence)
        num_free -= need
    return found


def _num_unreserved(sequence: SequenceView, page_size: int) -> int:
    num_pages = sequence.num_pages + sequence.num_promised
    return max(0, num_pages_at_end(sequence, page_size) - num_pages)
