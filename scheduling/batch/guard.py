"""Nobody waits for ever: a share of every step for those that waited too long. Pure.

The boost of vLLM-LTR (200 steps passed over) orders boosted requests by the same score again, and
a boost after some 100 ms under overload boosts everybody. Here a request is boosted when it waited
more than both a time and a multiple of its predicted service; boosted ones run by arrival, on a
part of rows and tokens that the policy inside does not see.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from scheduling.batch.composing import StepBuilder
from scheduling.batch.lengths import ServiceTimes
from scheduling.views import (
    BatchPolicy,
    NodeView,
    PreemptMode,
    RequestKey,
    SequenceView,
    Services,
    StepPlan,
)


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """When to boost: `max_wait_s` and `factor` times the predicted service passed, or `num_steps`.

    `share` of rows and tokens is what boosted requests get, at least one of each.
    """

    max_wait_s: float | None
    num_steps: int | None
    factor: float
    share: float


@dataclass(slots=True)
class _Wait:
    """How long a request was not served while it was here, or before it came."""

    waited_s: float
    num_steps: int = 0
    is_boosted: bool = False


class StarvationGuard:
    """Boosted requests are served first, until their end, oldest first.

    With a share `x` and steps of at most `d` seconds, a boosted request with `p` prompt tokens and
    `o` answer tokens that is the oldest ends within `d * (p / (x * budget) + o)` seconds once it
    has a row; a row is free when the first request that runs ends.
    """

    def __init__(self, inner: BatchPolicy, limits: GuardLimits) -> None:
        self._inner = inner
        self._limits = limits
        self._waits: dict[RequestKey, _Wait] = {}
        self._served: frozenset[RequestKey] = frozenset()
        self._planned_at = 0.0

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """Boosted requests on their share, all others as the policy inside says."""
        self._count(view, services)
        plan = self._guarded(view, services) or self._inner.plan(view, services)
        self._served = frozenset(plan.decode) | {key for key, _ in plan.prefill}
        self._planned_at = view.now
        return plan

    def _guarded(self, view: NodeView, services: Services) -> StepPlan | None:
        """The plan with its boosted part; None where there is none, or it would stop everything."""
        boosted = self._boosted(view)
        if not boosted:
            return None
        step = StepBuilder(view, self._share_of(view.max_num_batched_tokens))
        self._serve(step, view, boosted)
        if not (step.num_taken or view.running):
            return None  # others that wait hold the pages: they have to go on before it can
        rest = _rest(view, step, boosted)
        has_tokens = rest.max_num_batched_tokens > 0
        inner = self._inner.plan(rest, services) if has_tokens else StepPlan()
        return _merged(view, step, inner)

    def _count(self, view: NodeView, services: Services) -> None:
        """Add the time since the last plan to the wait of those whom that did not serve."""
        waits: dict[RequestKey, _Wait] = {}
        times = ServiceTimes(view, services)
        passed_s = view.now - self._planned_at
        for s in _everybody(view):
            wait = self._waits.get(s.key)
            if wait is None:
                wait = _Wait(view.now - s.received_at)
            elif s.key not in self._served:
                wait.waited_s += passed_s
                wait.num_steps += 1
            waits[s.key] = wait
            if not wait.is_boosted:
                wait.is_boosted = self._is_starving(wait, s, times)
        self._waits = waits

    def _is_starving(self, wait: _Wait, sequence: SequenceView, times: ServiceTimes) -> bool:
        limits = self._limits
        if limits.num_steps is not None and wait.num_steps >= limits.num_steps:
            return True
        if limits.max_wait_s is None or wait.waited_s <= limits.max_wait_s:
            return False
        predicted_s = 0.0 if sequence.prediction is None else times.service_s(sequence)
        return wait.waited_s > limits.factor * predicted_s

    def _boosted(self, view: NodeView) -> list[SequenceView]:
        """Those that are served from the share: the oldest, as many as it has rows."""
        starving = [s for s in _everybody(view) if self._waits[s.key].is_boosted]
        starving.sort(key=lambda s: (s.received_at, s.age))
        return starving[: self._share_of(view.max_num_seqs)]

    def _share_of(self, num: int) -> int:
        return max(1, int(self._limits.share * num))

    def _serve(self, step: StepBuilder, view: NodeView, boosted: list[SequenceView]) -> None:
        """Rows and chunks for boosted requests; the newest others give way to their pages."""
        wanted = {s.key for s in boosted}
        others = sorted((s for s in view.running if s.key not in wanted), key=lambda s: s.age)
        running = [s for s in view.running if s.key in wanted]
        running.sort(key=lambda s: (s.received_at, s.age))
        step.decode(running, running + others)
        coming = {s.key for s in view.waiting + view.swapped}
        for sequence in boosted:
            if sequence.key in coming and not step.preempted:
                step.try_admit(sequence)
        prompts = {s.key for s in view.prefill}
        step.prefill([s for s in boosted if s.key in prompts])


def _everybody(view: NodeView) -> tuple[SequenceView, ...]:
    return view.prefill + view.waiting + view.running + view.swapped


def _rest(view: NodeView, step: StepBuilder, boosted: list[SequenceView]) -> NodeView:
    """What the policy inside sees: no boosted requests, and what they left of everything."""
    gone = {s.key for s in boosted} | step.preempted.keys()

    def without(sequences: Iterable[SequenceView]) -> tuple[SequenceView, ...]:
        return tuple(s for s in sequences if s.key not in gone)

    coming = {s.key for s in view.waiting + view.swapped} - step.decoding
    num_kept = sum(step.pages_to_admit(s) for s in boosted if s.key in coming)
    running = without(view.running)
    # A row for each boosted request that has KV, and for one that will have, soon.
    return replace(
        view,
        max_num_seqs=max(view.max_num_seqs - len(boosted), len(running)),
        max_num_batched_tokens=view.max_num_batched_tokens - step.num_taken,
        prefill=without(view.prefill),
        waiting=() if step.is_short else without(view.waiting),
        running=running,
        swapped=() if step.is_short else without(view.swapped),
        num_free_pages=max(0, step.num_pages - num_kept),
    )


def _merged(view: NodeView, step: StepBuilder, inner: StepPlan) -> StepPlan:
    """One plan, the boosted part first; nothing comes back from host memory while others go."""
    own = step.plan(wake_at=inner.wake_at)
    preempt: dict[RequestKey, PreemptMode] = dict(own.preempt) | dict(inner.preempt)
    dropped = {s.key for s in view.swapped} if preempt else set()
    return StepPlan(
        decode=tuple(key for key in own.decode if key not in dropped) + inner.decode,
        prefill=own.prefill + inner.prefill,
        admit=tuple(key for key in own.admit if key not in dropped) + inner.admit,
        preempt=tuple(preempt.items()),
        padding_contexts=inner.padding_contexts,
        wake_at=own.wake_at,
    )
