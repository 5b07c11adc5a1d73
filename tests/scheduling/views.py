"""Views for tests of single plans, and plans in words."""

from msgspec import structs

from scheduling.views import NodeView, SequenceView, StepPlan
from tandem.messages.common import LengthPrediction


def prompt(n: int, num_prompt: int, num_computed: int = 0, **more: object) -> SequenceView:
    """A prompt with its pages; `n` is its age."""
    view = SequenceView(
        key=(n.to_bytes(16, "big"), 1),
        age=n,
        arrived_at=0.0,
        priority=0,
        tenant="default",
        num_prompt_tokens=num_prompt,
        num_tokens=num_prompt,
        num_computed=num_computed,
        max_total_tokens=num_prompt + 64,
        num_pages=-(-num_prompt // 16),
        is_begun=num_computed > 0,
    )
    return structs.replace(view, **more)  # type: ignore[arg-type]


def row(n: int, num_tokens: int, **more: object) -> SequenceView:
    """A request with KV: all but its last token is computed, a page may be missing for that."""
    view = prompt(n, 10, num_computed=num_tokens - 1)
    num_pages = -(-(num_tokens - 1) // 16)
    view = structs.replace(view, num_tokens=num_tokens, num_pages=num_pages, last_token_at=0.0)
    return structs.replace(view, **more)  # type: ignore[arg-type]


def predicted(score: float, q50: float | None = None) -> LengthPrediction:
    length = score if q50 is None else q50
    return LengthPrediction(score=score, q50=length, q90=2 * length)


def node(
    *,
    now: float = 0.0,
    prefill: tuple[SequenceView, ...] = (),
    waiting: tuple[SequenceView, ...] = (),
    running: tuple[SequenceView, ...] = (),
    swapped: tuple[SequenceView, ...] = (),
    num_free_pages: int = 100,
    num_watermark_pages: int = 0,
    max_num_seqs: int = 4,
    max_num_batched_tokens: int = 64,
) -> NodeView:
    return NodeView(
        now=now,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        prefill_weight=1.0,
        decode_weight=1.0,
        prefill=prefill,
        waiting=waiting,
        running=running,
        swapped=swapped,
        num_pages=100,
        num_free_pages=num_free_pages,
        num_watermark_pages=num_watermark_pages,
    )


def ages(plan: StepPlan) -> dict[str, list[int]]:
    """Who decodes, is admitted, is preempted, and is prefilled, by age."""

    def age(key: tuple[bytes, int]) -> int:
        return int.from_bytes(key[0], "big")

    return {
        "decode": sorted(map(age, plan.decode)),
        "admit": [age(k) for k in plan.admit],
        "preempt": [age(k) for k, _ in plan.preempt],
        "prefill": [age(k) for k, _ in plan.prefill],
    }
