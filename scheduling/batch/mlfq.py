"""FastServe's skip-join multi-level feedback queue (Wu et al., 2023, arXiv 2305.05920). Pure.

The baseline that favours short answers without knowing any length: who has had little service goes
first.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from scheduling.batch.options import require
from scheduling.batch.preemptive import PreemptivePolicy
from scheduling.costs import prefill_s
from scheduling.views import NodeView, RequestKey, SequenceView, Services, StepPlan
from tandem.config import Help


@dataclass(frozen=True, slots=True)
class MlfqOptions:
    """Options of `mlfq`."""

    quantum_ms: Annotated[float, Help("service on the top level before one is demoted")] = 10.0
    factor: Annotated[float, Help("how many times longer the next level's quantum is")] = 2.0
    num_levels: Annotated[int, Help("levels; nobody is demoted from the last")] = 10
    starve_ms: Annotated[float, Help("back to the top after this long without service")] = 3000.0

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        require(self.quantum_ms > 0, "quantum_ms must be above 0; try 10")
        require(self.factor >= 1, "factor must be at least 1; try 2")
        require(1 <= self.num_levels <= 64, "num_levels must be from 1 to 64; try 10")
        require(self.starve_ms > 0, "starve_ms must be above 0; try 3000")


@dataclass(slots=True)
class Standing:
    """Where a request stands: its level, and what of the quantum there it has used."""

    level: int
    served_at: float
    used_s: float = 0.0


class MlfqPolicy:
    """Lowest level first; a request goes down a level with every quantum that it has used up.

    Skip-join: a request enters at the first level whose quantum its prefill fits, as it would be
    demoted to there with its first token anyway, after interrupting everybody above. On one level
    the older goes first. Higher levels take rows and pages from lower ones.
    """

    def __init__(self, options: MlfqOptions = MlfqOptions()) -> None:
        self._quanta_s = [
            options.quantum_ms / 1e3 * options.factor**level for level in range(options.num_levels)
        ]
        self._starve_s = options.starve_ms / 1e3
        self._standings: dict[RequestKey, Standing] = {}
        self._served: tuple[RequestKey, ...] = ()
        self._planned_at = 0.0
        self._by_level = PreemptivePolicy(
            self._rank, lambda incoming, running: self._rank(incoming) < self._rank(running)
        )

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """Account for the last step, then fill the next from the top."""
        self._charge(view.now)
        self._standings = dict(self._current(view, services))
        plan = self._by_level.plan(view, services)
        self._served = (*plan.decode, *(key for key, _ in plan.prefill))
        self._planned_at = view.now
        return plan

    def _rank(self, sequence: SequenceView) -> tuple[float, ...]:
        return (-sequence.priority, self._standings[sequence.key].level)

    def _charge(self, now: float) -> None:
        took_s = now - self._planned_at
        for key in self._served:
            standing = self._standings[key]
            standing.used_s += took_s
            standing.served_at = now
            last = len(self._quanta_s) - 1
            while standing.level < last and standing.used_s >= self._quanta_s[standing.level]:
                standing.used_s -= self._quanta_s[standing.level]
                standing.level += 1

    def _current(self, view: NodeView, services: Services) -> Iterable[tuple[RequestKey, Standing]]:
        """Standings of all that are here: new ones join, starving ones rise."""
        for s in view.prefill + view.waiting + view.running + view.swapped:
            standing = self._standings.get(s.key)
            if standing is None:
                standing = Standing(self._entry_level(s, view, services), view.now)
            elif view.now - standing.served_at >= self._starve_s:
                standing = Standing(0, view.now)
            yield s.key, standing

    def _entry_level(self, sequence: SequenceView, view: NodeView, services: Services) -> int:
        num_new = sequence.num_prompt_tokens - sequence.num_cached
        seconds = prefill_s(
            services.costs, num_new, sequence.num_cached, view.max_num_batched_tokens
        )
        for level, quantum_s in enumerate(self._quanta_s):
            if seconds <= quantum_s:
                return level
        return len(self._quanta_s) - 1
