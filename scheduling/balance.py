"""Which node should have which roles: one change at a time, only where it clearly helps. Pure.

With P prefill, M mixed and D decode nodes (a mixed node does 85 % of what it would with one role:
each prompt lengthens the steps of its rows), the load of a configuration is the least that the
best split of the mixed ones can reach, max(p / (P + M), d / (D + M), (p + d) / (P + M + D)), for
needs p and d in nodes: 1 is the target utilisation. The balancer compares all configurations that
change one node; two nodes can be (P, D), (mixed, D), (P, mixed) and (mixed, mixed).

It acts where the load is above 1 and the change lowers it by 15 %, and goes back towards the roles
that the operator gave where those would carry the load with 15 % to spare: so it comes to rest at
any load, and at none. At least a dwell lies between two changes, a third of that while the
predicted TTFT misses its target. Where no change keeps a target it says so and does nothing.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scheduling.capacity import Needs, NodeSupply, Traffic, needs

HYSTERESIS = 1.15
MIXED_SHARE = 0.85
SPIKE_DWELL_SHARE = 1 / 3
# A change must be clear for so long: one burst of a second is none.
CONFIRM_S = 2.0

Shape = Literal["prefill", "mixed", "decode"]
Weights = tuple[float, float]  # of prefill and of decode
WEIGHTS: dict[Shape, Weights] = {
    "prefill": (1.0, 0.0),
    "mixed": (1.0, 1.0),
    "decode": (0.0, 1.0),
}


@dataclass(frozen=True, slots=True)
class Change:
    """Give a node other weights, and why, in words with numbers."""

    node_id: str
    prefill_weight: float
    decode_weight: float
    reason: str


@dataclass(frozen=True, slots=True)
class Infeasible:
    """A target that no change of roles can keep."""

    reason: str


Decided = Change | Infeasible | None
Found = tuple[NodeSupply, Weights, str]


def shape_of(node: NodeSupply) -> Shape:
    """What the node's weights make of it."""
    if node.decode_weight == 0:
        return "prefill"
    return "decode" if node.prefill_weight == 0 else "mixed"


def load_of(nodes: Sequence[NodeSupply], wanted: Needs) -> float:
    """Utilisation of the most loaded role under the best split; 1 is the target."""
    shapes = [shape_of(node) for node in nodes]
    mixed = MIXED_SHARE * shapes.count("mixed")
    prefill, decode = shapes.count("prefill") + mixed, shapes.count("decode") + mixed
    if prefill == 0 or decode == 0:
        return math.inf
    both = prefill + decode - mixed
    return max(wanted.prefill / prefill, wanted.decode / decode, wanted.total / both)


class Balancer:
    """See the module. Remembers its last change, and for how long it has wished the next one."""

    def __init__(self, dwell_s: float) -> None:
        self._dwell_s = dwell_s
        self._acted_at: float | None = None
        self._wish: tuple[str, Weights, float] | None = None  # what it would do, and since when

    def decide(
        self,
        nodes: Sequence[NodeSupply],
        traffic: Traffic,
        home: dict[str, Weights],
        now: float,
    ) -> Decided:
        """To be asked about every second while no change is under way.

        `home` are the weights that operators gave nodes, by name.
        """
        wanted = needs(nodes, traffic)
        if wanted.infeasible is not None:
            self._wish = None
            return Infeasible(wanted.infeasible)
        found = self._best(nodes, wanted, home)
        if found is None:
            self._wish = None
            return None
        node, weights, reason = found
        if self._wish is None or self._wish[:2] != (node.node_id, weights):
            self._wish = (node.node_id, weights, now)
        if now - self._wish[2] < CONFIRM_S or not self._may_act(nodes, wanted, traffic, now):
            return None
        self._acted_at, self._wish = now, None
        return Change(node.node_id, *weights, f"{reason}; {_describe(wanted, traffic)}")

    def _may_act(
        self, nodes: Sequence[NodeSupply], wanted: Needs, traffic: Traffic, now: float
    ) -> bool:
        """Whether the last change is long enough ago."""
        if self._acted_at is None or math.isinf(load_of(nodes, wanted)):
            return True
        is_spike = wanted.predicted_ttft_s > traffic.ttft_s
        dwell_s = self._dwell_s * (SPIKE_DWELL_SHARE if is_spike else 1.0)
        return now - self._acted_at >= dwell_s

    @staticmethod
    def _best(nodes: Sequence[NodeSupply], wanted: Needs, home: dict[str, Weights]) -> Found | None:
        """The change to make, if any."""
        load = load_of(nodes, wanted)
        if load > 1:
            return _relief(nodes, wanted, load)
        at_home = [_at(node, *home.get(node.node_id, _weights(node))) for node in nodes]
        if load_of(at_home, wanted) * HYSTERESIS > 1:
            return None
        for node, origin in zip(nodes, at_home, strict=True):
            if not node.may_change or _weights(node) == _weights(origin):
                continue
            after_load = load_of([origin if n is node else n for n in nodes], wanted)
            if after_load * HYSTERESIS <= 1:
                return (
                    node,
                    _weights(origin),
                    f"back to its own role: load {after_load:.2f} of the target",
                )
        return None


def _relief(nodes: Sequence[NodeSupply], wanted: Needs, load: float) -> Found | None:
    """The change that lowers the load most, where that is worth it."""
    tried = [(load_of(after, wanted), node, shape) for node, shape, after in _changes(nodes)]
    best = min(tried, key=lambda t: (t[0], _work(t[1], t[2]), t[1].node_id), default=None)
    if best is None or best[0] * HYSTERESIS > load:
        return None
    after, node, shape = best
    if math.isinf(load):
        return node, WEIGHTS[shape], f"a role has no node; load {after:.2f} of the target with it"
    return node, WEIGHTS[shape], f"load {load:.2f} of the target becomes {after:.2f}"


def _changes(nodes: Sequence[NodeSupply]) -> Iterator[tuple[NodeSupply, Shape, list[NodeSupply]]]:
    """All configurations that one change makes and that keep both roles."""
    for node in nodes:
        for shape, weights in WEIGHTS.items():
            if node.may_change and shape != shape_of(node):
                after = [_at(n, *weights) if n is node else n for n in nodes]
                if _has_both(after):
                    yield node, shape, after


def _has_both(nodes: Sequence[NodeSupply]) -> bool:
    has_prefill = any(node.prefill_weight > 0 for node in nodes)
    return has_prefill and any(node.decode_weight > 0 for node in nodes)


def _at(node: NodeSupply, prefill_weight: float, decode_weight: float) -> NodeSupply:
    return replace(node, prefill_weight=prefill_weight, decode_weight=decode_weight)


def _weights(node: NodeSupply) -> Weights:
    return node.prefill_weight, node.decode_weight


def _work(node: NodeSupply, shape: Shape) -> int:
    """What a change would disturb: the fewer the better."""
    return node.num_sequences if shape == "prefill" else node.num_prompts


def _describe(wanted: Needs, traffic: Traffic) -> str:
    """Needs and what they rest on."""
    source = "guessed from queues" if wanted.is_guess else "by measured costs"
    return (
        f"needs {wanted.prefill:.2f} prefill and {wanted.decode:.2f} decode nodes ({source}) for "
        f"{traffic.num_requests_s:.2g} requests/s, {traffic.num_prefill_tokens_s:.0f} prompt "
        f"tokens/s to compute, {traffic.num_requests_s * traffic.mean_output:.0f} output tokens/s, "
        f"predicted TTFT {wanted.predicted_ttft_s:.2g} s of {traffic.ttft_s:.2g} s"
    )
