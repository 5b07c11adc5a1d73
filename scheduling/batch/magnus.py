"""Magnus (Cheng et al., 2024, arXiv 2406.04785): static batches of requests alike in both lengths.

Pure. It shows what prediction buys static batching; continuous batching is far ahead of both, where
`magnus-cb` takes over what applies: the order by response ratio and admission by predicted memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from scheduling.batch.composing import StepBuilder, oldest_first
from scheduling.batch.lengths import tokens_to_come
from scheduling.batch.options import require
from scheduling.batch.serving_times import BatchShape, ServingTimes
from scheduling.batch.static import DeadRows
from scheduling.views import NodeView, RequestKey, Services, StepPlan
from tandem.config import Help


@dataclass(frozen=True, slots=True)
class MagnusOptions:
    """Options of `magnus`."""

    max_waste: Annotated[
        float, Help("token reads that a batch may waste on its worst member, else a new one opens")
    ] = 5_000_000.0
    memory_share: Annotated[float, Help("share of all pages that a batch may come to need")] = 0.9

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        require(self.max_waste >= 0, "max_waste must not be negative; try 5000000")
        require(0 < self.memory_share <= 1, "memory_share must be within (0, 1]; try 0.9")


@dataclass(frozen=True, slots=True)
class Member:
    """A request as Magnus sees it: context tokens L_r, answer tokens to come G_r."""

    key: RequestKey
    num_tokens: int
    num_answer: float
    waiting_since: float


def wasted_reads(num_tokens: int, num_answer: float, longest: int, most: float) -> float:
    """Wasted memory access of a row with (L_r, G_r) in a batch of maxima (L, G), in token reads.

    `G_r * (L - L_r)` is padding that each of its steps reads; after its end the row is read on,
    `sum of (g + L) for g from G_r to G`.
    """
    padding = num_answer * (longest - num_tokens)
    num_idle = most - num_answer
    return padding + num_idle * (longest + (num_answer + most) / 2)


class QueuedBatch:
    """Requests that will run together."""

    def __init__(self) -> None:
        self.members: dict[RequestKey, Member] = {}
        self.longest = 0
        self.most = 0.0
        self.waste = 0.0  # of the worst member

    def waste_with(self, new: Member) -> float:
        """The worst member's wasted reads if `new` joined."""
        longest, most = max(self.longest, new.num_tokens), max(self.most, new.num_answer)
        waste = wasted_reads(new.num_tokens, new.num_answer, longest, most)
        if (longest, most) == (self.longest, self.most):
            return max(self.waste, waste)
        others = (wasted_reads(m.num_tokens, m.num_answer, longest, most) for m in self._all())
        return max(waste, *others) if self.members else waste

    def tokens_with(self, new: Member) -> float:
        """Tokens of KV that the batch would come to, each row padded to the longest."""
        longest, most = max(self.longest, new.num_tokens), max(self.most, new.num_answer)
        return (len(self.members) + 1) * (longest + most)

    def add(self, new: Member) -> None:
        """It joins."""
        self.waste = self.waste_with(new)
        self.longest = max(self.longest, new.num_tokens)
        self.most = max(self.most, new.num_answer)
        self.members[new.key] = new

    def keep(self, present: Iterable[RequestKey]) -> None:
        """Those that are gone leave; the maxima stay, as an upper bound."""
        self.members = {key: self.members[key] for key in present if key in self.members}

    @property
    def shape(self) -> BatchShape:
        """What its serving time depends on."""
        return BatchShape(len(self.members), self.longest, self.most)

    @property
    def waiting_since(self) -> float:
        """When its oldest member came."""
        return min(m.waiting_since for m in self._all())

    def _all(self) -> Iterable[Member]:
        return self.members.values()


class MagnusPolicy:
    """Batches by wasted memory access, under a memory guard; the highest response ratio goes first.

    A request joins the queued batch whose worst member then wastes least, if that is at most
    `max_waste` and the batch's predicted KV fits; else it opens one. When the node is free, the
    batch with the highest (wait + serving time) / serving time runs until its longest member ends;
    ended rows are computed on. Who gives way because answers were longer than predicted queues
    again, which is Magnus's split of a batch that ran out of memory.
    """

    def __init__(self, options: MagnusOptions = MagnusOptions()) -> None:
        self._options = options
        self._times = ServingTimes()
        self._dead_rows = DeadRows()
        self._queued: list[QueuedBatch] = []
        self._current: tuple[BatchShape, float] | None = None  # and when it began
        self._running_at = 0.0  # when it was last seen

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """Sort new requests into batches; continue the batch that runs, or begin the next."""
        self._sort_in(view)
        step = StepBuilder(view)
        step.decode(oldest_first(view.running))
        if view.running:
            self._running_at = view.now
        else:
            self._begin_next(view, step, services)
        admitted = tuple(s for s in view.waiting + view.swapped if s.key in step.decoding)
        padding = self._dead_rows.contexts(view.running + admitted)
        padding = padding[: view.max_num_seqs - len(step.decoding)]
        step.num_tokens -= len(padding)
        step.prefill(view.prefill)
        return step.plan(padding_contexts=padding)

    def _sort_in(self, view: NodeView) -> None:
        candidates = {s.key: s for s in oldest_first(view.waiting + view.swapped)}
        for batch in self._queued:
            batch.keep([key for key in batch.members if key in candidates])
        self._queued = [batch for batch in self._queued if batch.members]
        known = {key for batch in self._queued for key in batch.members}
        for key, s in candidates.items():
            if key not in known:
                self._insert(Member(key, s.num_tokens, tokens_to_come(s), s.received_at), view)

    def _insert(self, new: Member, view: NodeView) -> None:
        max_tokens = self._options.memory_share * view.num_pages * view.page_size
        best, least = None, self._options.max_waste
        for batch in self._queued:
            if len(batch.members) >= view.max_num_seqs or batch.tokens_with(new) > max_tokens:
                continue
            own = wasted_reads(
                new.num_tokens,
                new.num_answer,
                max(batch.longest, new.num_tokens),
                max(batch.most, new.num_answer),
            )
            # Adding never lowers the waste: most batches are ruled out without asking all members.
            if max(batch.waste, own) <= least and batch.waste_with(new) <= least:
                best, least = batch, batch.waste_with(new)
        if best is None:
            best = QueuedBatch()
            self._queued.append(best)
        best.add(new)

    def _begin_next(self, view: NodeView, step: StepBuilder, services: Services) -> None:
        self._dead_rows.clear()
        if self._current is not None:
            shape, began_at = self._current
            self._times.ended(shape, self._running_at - began_at)
            self._current = None
        if not self._queued:
            return

        def response_ratio(batch: QueuedBatch) -> float:
            serving_s = self._times.estimate_s(batch.shape, services)
            return (view.now - batch.waiting_since + serving_s) / serving_s

        batch = max(self._queued, key=response_ratio)
        candidates = view.waiting + view.swapped
        step.admit(oldest_first(s for s in candidates if s.key in batch.members))
        step.unstick(oldest_first(candidates))
        self._current = (batch.shape, view.now)
        self._running_at = view.now
