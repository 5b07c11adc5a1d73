"""The production balancer over simulated nodes: its traffic meter, its supplies, its decisions.

As `coordinator.balancing`: nodes are judged once they are warm, and what one decision changes is
obeyed before the next. Pure.
"""

from collections.abc import Sequence

from coordinator.balancing import PERIOD_S, WARM_S
from coordinator.traffic import TrafficMeter
from scheduling.balance import Balancer, Change
from scheduling.capacity import NodeSupply
from simulator.performance.candidates import Loads
from simulator.performance.node import SimNode
from simulator.performance.requests import SimRequest
from tandem.messages.common import SlaTargets


class SimBalancing:
    """See the module. `turned` counts changes; each is kept with its time."""

    def __init__(self, dwell_s: float) -> None:
        self._balancer = Balancer(dwell_s)
        self._meter = TrafficMeter(dwell_s, 0.0)
        self._nodes: Sequence[SimNode] = ()
        self._loads = Loads.none(0)
        self._home: dict[str, tuple[float, float]] = {}
        self._busy_s: list[float] = []
        self._looked_at = 0.0
        self.next_at = WARM_S
        self.changes: list[tuple[float, Change]] = []

    def start(self, nodes: Sequence[SimNode], loads: Loads) -> None:
        """The roles that nodes have now are their own."""
        self._nodes, self._loads = nodes, loads
        self._home = {node.name: _weights(node) for node in nodes}
        self._busy_s = [0.0] * len(nodes)

    def arrived(self, request: SimRequest, num_computed: int | None, now: float) -> None:
        """A request was placed, with so many tokens to compute, or refused for overload."""
        predicted = request.prediction
        most = float(request.max_output)
        self._meter.arrived(
            now,
            num_prompt=request.num_prompt,
            num_computed=num_computed,
            num_output=most if predicted is None else min(most, predicted.q50),
            targets=SlaTargets(
                sla_class=request.sla_class,
                ttft_ms=request.ttft_s * 1e3,
                tpot_ms=request.tpot_s * 1e3,
            ),
        )

    def ended(self, num_output: int) -> None:
        """An answer of that many tokens."""
        self._meter.ended(num_output)

    def decide(self, now: float) -> Sequence[Change]:
        """To be asked at `next_at`; what shall be changed at once."""
        self.next_at = now + PERIOD_S
        supplies = [self._supply(node, now) for node in self._nodes]
        self._looked_at = now
        decided = self._balancer.decide(supplies, self._meter.now(now), self._home, now)
        changes = decided if isinstance(decided, tuple) else ()
        self.changes += [(now, change) for change in changes]
        return changes

    def _supply(self, node: SimNode, now: float) -> NodeSupply:
        before_s, busy_s = self._busy_s[node.index], node.busy_until(now)
        self._busy_s[node.index] = busy_s
        settings, queues = node.settings, node.queues
        prefill, decode = _weights(node)
        return NodeSupply(
            node_id=node.name,
            prefill_weight=prefill,
            decode_weight=decode,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            num_total_tokens=node.pages.num_pages * settings.profile.page_size,
            num_prefill_tokens=int(self._loads.prompt_tokens[node.index]),
            num_prompts=int(self._loads.prompts[node.index]),
            num_sequences=len(queues.running) + len(queues.waiting) + len(queues.swapped),
            busy=min(1.0, (busy_s - before_s) / max(1e-9, now - self._looked_at)),
            costs=node.services.costs,
        )


def _weights(node: SimNode) -> tuple[float, float]:
    return node.settings.prefill_weight, node.settings.decode_weight
