"""Static batching, the baseline that continuous batching beats. Pure."""

from dataclasses import dataclass
from typing import Annotated

from scheduling.batch.composing import StepBuilder, oldest_first
from scheduling.batch.fifo import with_room_to_end
from scheduling.batch.options import require
from scheduling.views import NodeView, RequestKey, SequenceView, Services, StepPlan
from tandem.config import Help

DEFAULT_MAX_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class StaticOptions:
    """Options of static batching."""

    max_wait_s: Annotated[float, Help("how long a partial batch waits for company")] = (
        DEFAULT_MAX_WAIT_S
    )

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        require(self.max_wait_s >= 0, "max_wait_s must not be negative; try 1")


class DeadRows:
    """Ended members of a static batch, which its tensor still computes: a context each."""

    def __init__(self) -> None:
        self._contexts: dict[RequestKey, int] = {}  # members of the batch -> last known context

    def clear(self) -> None:
        """The batch is over."""
        self._contexts.clear()

    def contexts(self, running: tuple[SequenceView, ...]) -> tuple[int, ...]:
        """Contexts of the members that ended, while any goes on; `running` are members."""
        # A dead row's context grows with the batch, up to where the longest member may end.
        longest = max((s.max_total_tokens for s in running), default=0)
        for key, context in self._contexts.items():
            self._contexts[key] = max(context, min(context + 1, longest))
        for sequence in running:
            self._contexts[sequence.key] = sequence.num_tokens
        alive = {s.key for s in running}
        if not alive:
            return ()
        return tuple(context for key, context in self._contexts.items() if key not in alive)


class StaticPolicy:
    """Static batching: a batch forms, runs until its longest request ends, then the next forms.

    keep_finished_rows: ended requests stay in the batch as padding rows that are computed and
    dropped, as a tensor of fixed batch size really does; otherwise their rows are left out. Each
    is admitted only with room for its full length.
    """

    def __init__(
        self, options: StaticOptions = StaticOptions(), *, keep_finished_rows: bool
    ) -> None:
        self._keep_finished_rows = keep_finished_rows
        self._max_wait_s = options.max_wait_s
        self._dead_rows = DeadRows()
        self._waiting_since: float | None = None

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """Continue the batch, or form the next one."""
        step = StepBuilder(view)
        step.decode(oldest_first(view.running))
        wake_at = None
        if not view.running:
            self._dead_rows.clear()
            wake_at = self._form_batch(view, step)
        admitted = tuple(s for s in view.waiting + view.swapped if s.key in step.decoding)
        dead = self._dead_rows.contexts(view.running + admitted)
        padding = dead if self._keep_finished_rows else ()
        padding = padding[: view.max_num_seqs - len(step.decoding)]
        step.num_tokens -= len(padding)
        step.prefill(view.prefill)
        return step.plan(wake_at=wake_at, padding_contexts=padding)

    def _form_batch(self, view: NodeView, step: StepBuilder) -> float | None:
        """Admit what fits at full length; or when to look again for company."""
        candidates = with_room_to_end(view, step)
        if not candidates:
            self._waiting_since = None
            return None
        if self._waiting_since is None:
            self._waiting_since = view.now
        wake_at = self._waiting_since + self._max_wait_s
        has_all = len(candidates) == len(view.waiting) + len(view.swapped)
        if has_all and len(candidates) < view.max_num_seqs and view.now < wake_at:
            return wake_at
        self._waiting_since = None
        step.admit(candidates)
        step.unstick(oldest_first(view.waiting))
        return None
