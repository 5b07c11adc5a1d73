"""WAIT and nested WAIT (Ao et al., 2025, arXiv 2504.11320): steps wait for enough to enter. Pure.

First come, first served admits whatever fits, all at once; they grow together, overflow memory
together and are evicted together. WAIT admits the same few of each kind in every step, and holds a
kind while fewer are there. The paper shows a larger stable range in simulation; below it nothing is
gained, and its authors' later notes found no gain over chunked prefill for mixed, long requests.
These are its variants with a longest wait and a drain (see `scheduling.batch.gate`): without them a
request waits for ever where traffic ends.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

from scheduling.batch.buckets import length_bucket
from scheduling.batch.composing import StepBuilder, oldest_first
from scheduling.batch.fluid import RequestType, entries_at_rows
from scheduling.batch.gate import ArrivalRate, Gate
from scheduling.batch.lengths import answer_tokens
from scheduling.batch.options import require
from scheduling.views import NodeView, RequestKey, SequenceView, Services, StepPlan
from tandem.config import Help

DEFAULT_MAX_WAIT_S = 0.05
SMOOTHING = 0.05  # of a group's mean prompt


@dataclass(frozen=True, slots=True)
class WaitOptions:
    """Options of `wait` and `wait-nested`."""

    max_wait_s: Annotated[float, Help("how long a group waits for more of its kind at most")] = (
        DEFAULT_MAX_WAIT_S
    )
    window_s: Annotated[float, Help("over which arrival rates are estimated")] = 10.0
    first_bound: Annotated[int, Help("answers of up to this many tokens are one group")] = 32
    factor: Annotated[float, Help("how many times longer answers of the next group are")] = 2.0

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        require(self.max_wait_s >= 0, "max_wait_s must not be negative; try 0.05")
        require(self.window_s > 0, "window_s must be above 0; try 10")
        require(self.first_bound >= 1, "first_bound must be at least 1; try 32")
        require(self.factor > 1, "factor must be above 1; try 2")


@dataclass(slots=True)
class Group:
    """Requests of one type, or in one segment of their answers; here and over time."""

    gate: Gate
    rate: ArrivalRate
    num_prompt: float = 0.0  # mean context with which they enter
    entries: list[SequenceView] = field(default_factory=list)  # at the gate
    inside: list[SequenceView] = field(default_factory=list)


class WaitPolicy:
    """See the module.

    nested=False: groups are types by predicted answer length, each with its own gate; a closed type
    is held whole. nested=True: no prediction; groups are segments of the answer, everybody enters
    the first and whoever is still alive at a boundary waits there for the next. A closed segment
    holds all later ones too. Those at the end of the line that are held lose their pages first.
    """

    def __init__(self, options: WaitOptions = WaitOptions(), *, nested: bool) -> None:
        self._options = options
        self._is_nested = nested
        self._groups: dict[int, Group] = {}
        self._entered: dict[RequestKey, int] = {}  # -> the group whose gate it has passed
        self._seen: dict[RequestKey, int] = {}  # -> the group at whose gate it was counted

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """Run the groups whose gates open, wait where none does."""
        self._sort(view)
        num_rows, quotas = self._quotas(view)
        selected, entering, wake_at = self._open(view, quotas)
        step = StepBuilder(view)
        running = {s.key for s in view.running}
        rows = oldest_first(s for s in selected if s.key in running)
        chosen = {s.key for s in rows}
        held = oldest_first(s for s in view.running if s.key not in chosen)
        if rows:
            step.decode(rows, [*rows, *held])
        if not step.is_short:
            for sequence in entering[: max(0, num_rows - len(view.running))]:
                if step.try_admit(sequence):
                    self._enter(sequence)
            if entering:
                step.unstick(oldest_first(view.waiting + view.swapped))
        # More with KV than the node settles at would take the pages that the others grow into.
        if len(view.running) + len(view.waiting) < num_rows or not step.decoding:
            step.prefill(view.prefill)
        return step.plan(wake_at=wake_at)

    # --- groups -------------------------------------------------------------------------------

    def _bounds(self, index: int) -> tuple[float, float]:
        """Answer tokens of a group: above the first number, up to the second."""
        first, factor = self._options.first_bound, self._options.factor
        return (0 if index == 0 else first * factor ** (index - 1)), first * factor**index

    def _group_of(self, num_tokens: float) -> int:
        return length_bucket(num_tokens, self._options.first_bound, self._options.factor)

    def _index(self, sequence: SequenceView) -> int:
        if self._is_nested:
            return self._group_of(sequence.num_output_tokens)
        return self._seen.get(sequence.key, self._group_of(answer_tokens(sequence)))

    def _sort(self, view: NodeView) -> None:
        """Everybody into the group where it is, at its gate or inside; count who came to a gate."""
        for group in self._groups.values():
            group.entries, group.inside = [], []
        came: dict[int, int] = {}
        entered, seen = {}, {}
        running = oldest_first(view.running)
        num_running = len(running)
        for n, s in enumerate([*running, *oldest_first(view.waiting + view.swapped)]):
            index = self._index(s)
            group = self._group(index, s, view.now)
            if n < num_running and self._entered.get(s.key, index) >= index:
                entered[s.key] = index
                group.inside.append(s)
            else:
                group.entries.append(s)
                if n < num_running:
                    entered[s.key] = self._entered[s.key]
                if self._seen.get(s.key) != index:
                    came[index] = came.get(index, 0) + 1
                    group.num_prompt += SMOOTHING * (s.num_tokens - group.num_prompt)
            seen[s.key] = index
        for index, num_requests in came.items():
            self._groups[index].rate.count(num_requests, view.now)
        self._entered, self._seen = entered, seen

    def _group(self, index: int, sequence: SequenceView, now: float) -> Group:
        if index not in self._groups:
            gate = Gate(self._options.max_wait_s)
            rate = ArrivalRate(self._options.window_s, now)
            self._groups[index] = Group(gate, rate, num_prompt=sequence.num_tokens)
        return self._groups[index]

    # --- thresholds ---------------------------------------------------------------------------

    def _open(
        self, view: NodeView, quotas: Iterable[tuple[int, float]]
    ) -> tuple[list[SequenceView], list[SequenceView], float | None]:
        """Running requests that run on, waiting ones to admit, and when to look again."""
        running = {s.key for s in view.running}
        selected: list[SequenceView] = []
        entering: list[SequenceView] = []
        wakes: list[float] = []
        for index, num_per_step in quotas:
            group = self._groups[index]
            is_empty = not (group.entries or group.inside)
            if is_empty and not self._is_nested:
                continue
            rate = group.rate.per_s(view.now)
            quota = group.gate.quota(
                len(group.entries), num_per_step=num_per_step, rate=rate, now=view.now
            )
            if quota is None:
                wakes.append(group.gate.opens_at)
                if self._is_nested:
                    break
                continue
            selected += group.inside
            # The first of a group has nobody to run with, whatever the credit is.
            quota = quota if group.inside else max(1, quota)
            crossing = self._first(group.entries, quota, view.now)
            selected += [s for s in crossing if s.key in running]
            entering += [s for s in crossing if s.key not in running]
            for sequence in crossing:
                if sequence.key in running:
                    self._enter(sequence)
        return selected, entering, min(wakes, default=None)

    def _first(self, entries: list[SequenceView], quota: int, now: float) -> list[SequenceView]:
        """As many as may enter; beyond that one a step of those that have waited too long."""
        chosen, rest = entries[:quota], entries[quota:]
        max_wait_s = self._options.max_wait_s
        overdue = [s for s in rest if now - (s.last_token_at or s.arrived_at) >= max_wait_s]
        return chosen + overdue[:1]

    def _enter(self, sequence: SequenceView) -> None:
        index = self._seen[sequence.key]
        self._entered[sequence.key] = index
        self._groups[index].gate.entered(1)

    def _quotas(self, view: NodeView) -> tuple[int, Iterable[tuple[int, float]]]:
        """Rows that the node settles at, and how many of each group then enter per step."""
        indices = sorted(self._groups)
        types = []
        for index in indices:
            lower, upper = self._bounds(index)
            num_answer = upper - lower - 1 if self._is_nested else upper
            group = self._groups[index]
            types.append(RequestType(group.rate.per_s(view.now), group.num_prompt, num_answer))
        num_rows = min(view.max_num_seqs, _rows_in_memory(types, view))
        return num_rows, zip(indices, entries_at_rows(types, num_rows), strict=True)


def _rows_in_memory(types: list[RequestType], view: NodeView) -> int:
    """Rows that the node's pages hold in the fluid limit: rows of mean length M / rows."""
    stages = sum(t.rate * t.num_stages for t in types)
    tokens = sum(t.rate * t.token_iterations for t in types)
    if tokens <= 0:
        return view.max_num_seqs
    return max(1, int(view.num_pages * view.page_size * stages / tokens))
