"""Batch policies: `fifo` (continuous batching) and `static` (the baseline that it beats).

Both give prefill chunks what the token budget leaves, in the order of the prefill policy.
"""

from collections.abc import Callable

from scheduling.views import BatchPolicy, NodeView, RequestKey, SequenceView, StepPlan


def prefill_chunks(view: NodeView, budget: int) -> tuple[tuple[RequestKey, int], ...]:
    """Chunks in view order until `budget` tokens are spent."""
    chunks = []
    for sequence in view.prefill:
        if budget <= 0:
            break
        num_tokens = min(sequence.num_tokens - sequence.num_computed, budget)
        chunks.append((sequence.key, num_tokens))
        budget -= num_tokens
    return tuple(chunks)


def oldest_first(sequences: tuple[SequenceView, ...]) -> list[SequenceView]:
    """Higher priority first, then placement order."""
    return sorted(sequences, key=lambda s: (-s.priority, s.age))


class FifoPolicy:
    """Continuous batching (Orca, OSDI 2022): whoever has KV gets a row, oldest first."""

    def plan(self, view: NodeView) -> StepPlan:
        """Decode everything resident, admit while rows are free, prefill with what is left."""
        num_free = max(0, view.max_num_seqs - len(view.running))
        admitted = tuple(s.key for s in oldest_first(view.waiting)[:num_free])
        decode = tuple(s.key for s in view.running) + admitted
        return StepPlan(
            decode=decode,
            admit=admitted,
            prefill=prefill_chunks(view, view.max_num_batched_tokens - len(decode)),
        )


class StaticPolicy:
    """Static batching: a batch forms, runs until its longest request ends, then the next forms.

    keep_finished_rows: ended requests stay in the batch as padding rows that are computed and
    dropped, as a tensor of fixed batch size really does; otherwise their rows are left out.
    A partial batch waits `max_wait_s` for company.
    """

    def __init__(self, *, keep_finished_rows: bool, max_wait_s: float = 1.0) -> None:
        self._keep_finished_rows = keep_finished_rows
        self._max_wait_s = max_wait_s
        self._batch: dict[RequestKey, int] = {}  # members of the batch -> last known context
        self._waiting_since: float | None = None

    def plan(self, view: NodeView) -> StepPlan:
        """Continue the batch, or form the next one."""
        admitted: tuple[SequenceView, ...] = ()
        wake_at = None
        if not view.running:
            self._batch.clear()
            admitted, wake_at = self._form_batch(view)
        running = view.running + admitted
        padding = self._padding(running)
        budget = view.max_num_batched_tokens - len(running) - len(padding)
        return StepPlan(
            decode=tuple(s.key for s in running),
            admit=tuple(s.key for s in admitted),
            prefill=prefill_chunks(view, budget),
            padding_contexts=padding,
            wake_at=wake_at,
        )

    def _form_batch(self, view: NodeView) -> tuple[tuple[SequenceView, ...], float | None]:
        if not view.waiting:
            self._waiting_since = None
            return (), None
        if self._waiting_since is None:
            self._waiting_since = view.now
        wake_at = self._waiting_since + self._max_wait_s
        if len(view.waiting) < view.max_num_seqs and view.now < wake_at:
            return (), wake_at
        self._waiting_since = None
        return tuple(oldest_first(view.waiting)[: view.max_num_seqs]), None

    def _padding(self, running: tuple[SequenceView, ...]) -> tuple[int, ...]:
        # A dead row's context grows with the batch, up to where the longest member may end.
        longest = max((s.max_total_tokens for s in running), default=0)
        for key, context in self._batch.items():
            self._batch[key] = max(context, min(context + 1, longest))
        for sequence in running:
            self._batch[sequence.key] = sequence.num_tokens
        alive = {s.key for s in running}
        if not alive or not self._keep_finished_rows:
            return ()
        return tuple(context for key, context in self._batch.items() if key not in alive)


BATCH_POLICIES: dict[str, Callable[[], BatchPolicy]] = {
    "fifo": FifoPolicy,
    "static": lambda: StaticPolicy(keep_finished_rows=True),
    "static-dropping": lambda: StaticPolicy(keep_finished_rows=False),
}


def make_batch_policy(name: str) -> BatchPolicy:
    """The policy of that name. Raises ValueError listing the names on offer."""
    if name not in BATCH_POLICIES:
        raise ValueError(f"unknown batch policy {name!r}; choose one of {sorted(BATCH_POLICIES)}")
    return BATCH_POLICIES[name]()
