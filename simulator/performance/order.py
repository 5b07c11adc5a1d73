"""The order of a node's prompts, asked from the policy as seldom as a real node does."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prefill_node.order import ORDER_S
from scheduling.views import PrefillPolicy, RequestKey, Services
from simulator.performance.requests import Phase, Resident


@dataclass(slots=True)
class Order:
    """As `prefill_node.order.PromptOrder`: kept until a prompt came or began, or for `ORDER_S`.

    Prompts that the policy leaves out do not start, those with room at their decode node do.
    """

    policy: PrefillPolicy
    services: Services
    block_pages: int
    _known: list[Resident] = field(default_factory=list)
    _asked_at: float | None = None

    def changed(self) -> None:
        """A prompt came, began, can go on, or ended."""
        self._asked_at = None

    def of(
        self, phase: Phase, prompts: Iterable[Mapping[RequestKey, Resident]], now: float
    ) -> list[Resident]:
        """Those of this phase, the next first."""
        if self._asked_at is None or now - self._asked_at >= ORDER_S:
            self._ask(prompts, now)
        return [resident for resident in self._known if resident.phase is phase]

    def _ask(self, prompts: Iterable[Mapping[RequestKey, Resident]], now: float) -> None:
        known = {key: resident for queue in prompts for key, resident in queue.items()}
        views = [resident.view(self.block_pages) for resident in known.values()]
        order = self.policy.order(views, now, self.services)
        self._known = [known.pop(key) for key in order]
        self._known += [r for r in known.values() if r.phase is Phase.GRANTED]
        self._asked_at = now
