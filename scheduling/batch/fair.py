"""Fair queueing of tenants by what they were served (VTC, OSDI 2024, arXiv 2401.00588). Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from scheduling.views import (
    BatchPolicy,
    NodeView,
    RequestKey,
    SequenceView,
    Services,
    StepPlan,
)

# What a token costs its tenant, as in the paper: an output token takes a row of a whole step.
PROMPT_TOKEN = 1.0
OUTPUT_TOKEN = 2.0


class FairShares:
    """Shows the policy inside the requests of the least served tenants, as many as find room.

    A tenant's counter grows by 1 for each prompt token when its request is first served and by 2
    for each output token, over the tenant's weight. A tenant that comes back starts at the least
    counter of those that are here: idle time is no credit. Where all find room everybody is seen,
    so nothing is left idle for fairness. Between two tenants that always have requests waiting,
    counters drift apart by what one step admits and those requests' answers at most.
    """

    def __init__(self, inner: BatchPolicy) -> None:
        self._inner = inner
        self._counters: dict[str, float] = {}
        self._active: set[str] = set()
        self._charged: set[RequestKey] = set()  # prompts that their tenants have paid for

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """The inner policy's plan over what is fair to serve now; charged to the tenants."""
        everybody = {s.key: s for s in view.prefill + view.waiting + view.running + view.swapped}
        self._lift({s.tenant for s in everybody.values()})
        self._charged &= everybody.keys()
        num_rows = max(0, view.max_num_seqs - len(view.running))
        # Who has to come back first may not fit yet: that fills no room.
        rows = dict.fromkeys((s.key for s in view.waiting), 1)
        tokens = {s.key: s.num_left for s in view.prefill}
        coming = {s.key for s in self._fair(view.waiting + view.swapped, rows, num_rows)}
        fair = replace(
            view,
            prefill=tuple(self._fair(view.prefill, tokens, view.max_num_batched_tokens)),
            waiting=tuple(s for s in view.waiting if s.key in coming),
            swapped=tuple(s for s in view.swapped if s.key in coming),
        )
        plan = self._inner.plan(fair, services)
        self._charge(plan, everybody)
        return plan

    def _lift(self, tenants: set[str]) -> None:
        """Newcomers start level; a counter below all of those here says nothing and is dropped."""
        known = [self._counters[t] for t in tenants & self._active]
        floor = min(known, default=max(self._counters.values(), default=0.0))
        for tenant in tenants - self._active:
            self._counters[tenant] = max(floor, self._counters.get(tenant, 0.0))
        self._active = tenants
        self._counters = {
            tenant: counter
            for tenant, counter in self._counters.items()
            if tenant in tenants or counter > floor
        }

    def _fair(
        self, sequences: Iterable[SequenceView], sizes: Mapping[RequestKey, int], room: int
    ) -> list[SequenceView]:
        """All requests of the least served tenants, until their sizes fill the room."""
        by_tenant: dict[str, list[SequenceView]] = {}
        for s in sequences:
            by_tenant.setdefault(s.tenant, []).append(s)
        found: list[SequenceView] = []
        for tenant in sorted(by_tenant, key=lambda t: (self._counters[t], t)):
            if room <= 0 and found:
                break
            mine = by_tenant[tenant]
            found += mine
            room -= sum(sizes.get(s.key, 0) for s in mine)
        return found

    def _charge(self, plan: StepPlan, everybody: dict[RequestKey, SequenceView]) -> None:
        for key in [*(key for key, _ in plan.prefill), *plan.decode]:
            if key not in self._charged:
                self._charged.add(key)
                self._pay(everybody[key], PROMPT_TOKEN * everybody[key].num_prompt_tokens)
        for key in plan.decode:
            self._pay(everybody[key], OUTPUT_TOKEN)

    def _pay(self, sequence: SequenceView, cost: float) -> None:
        self._counters[sequence.tenant] += cost / sequence.tenant_weight
