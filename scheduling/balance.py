"""Which node should have which roles: few changes at a time, only where they clearly help. Pure.

With P prefill, M mixed and D decode nodes (a mixed node does 85 % of what it would with one role:
each prompt lengthens the steps of its rows), the load of a configuration is the least that the
best split of the mixed ones can reach, max(p / (P + M), d / (D + M), (p + d) / (P + M + D)), for
needs p and d in nodes: 1 is the target utilisation. The balancer compares all configurations that
change one node; two nodes can be (P, D), (mixed, D), (P, mixed) and (mixed, mixed).

It acts where the load is above 1 and the change lowers it by 15 %, and goes back towards the roles
that the operator gave where those would carry the load with 15 % to spare: so it comes to rest at
any load, and at none. Home nobody is in a hurry to go: it must have been possible for a whole
dwell, or loads that vary by 20 % would send nodes to and fro. At least a dwell lies between two
changes, a third of that while the predicted TTFT misses its target. Where no change keeps a target
it says so and does nothing.

One node of a hundred changes the load by 1 %, and one in each dwell would take an hour. From 20
nodes on it compares configurations that turn any number of nodes from one shape to another, and
turns a tenth of all at once towards the best; the 15 % are between now and there, and the dwell is
of each node: who was turned stays for that long, while others may follow in the next second.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from scheduling.capacity import Needs, NodeSupply, Traffic, needs

HYSTERESIS = 1.15
MIXED_SHARE = 0.85
SPIKE_DWELL_SHARE = 1 / 3
# A change must be clear for so long: one burst of a second is none.
CONFIRM_S = 2.0
AT_ONCE_SHARE = 0.1  # of all nodes

Shape = Literal["prefill", "mixed", "decode"]
Weights = tuple[float, float]  # of prefill and of decode
Counts = Counter[Shape]
Kind = tuple[Shape, Weights, bool]
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


# Changes of one kind to make now; none where it is empty.
Decided = tuple[Change, ...] | Infeasible


@dataclass(frozen=True, slots=True)
class _Turn:
    """Nodes of one shape that should have other weights, and why."""

    nodes: tuple[NodeSupply, ...]
    weights: Weights
    reason: str
    is_homewards: bool = False

    @property
    def kind(self) -> Kind:
        """What must stay wished for until it is done."""
        return shape_of(self.nodes[0]), self.weights, self.is_homewards


def num_at_once(num_nodes: int) -> int:
    """Nodes that one decision may turn."""
    return max(1, int(num_nodes * AT_ONCE_SHARE))


def shape_of(node: NodeSupply) -> Shape:
    """What the node's weights make of it."""
    return _shape(_weights(node))


def _shape(weights: Weights) -> Shape:
    prefill, decode = weights
    if decode == 0:
        return "prefill"
    return "decode" if prefill == 0 else "mixed"


def load_of(nodes: Sequence[NodeSupply], wanted: Needs) -> float:
    """Utilisation of the most loaded role under the best split; 1 is the target."""
    return _load(Counter(map(shape_of, nodes)), wanted)


def _load(counts: Counts, wanted: Needs) -> float:
    mixed = MIXED_SHARE * counts["mixed"]
    prefill, decode = counts["prefill"] + mixed, counts["decode"] + mixed
    if prefill == 0 or decode == 0:
        return math.inf
    both = prefill + decode - mixed
    return max(wanted.prefill / prefill, wanted.decode / decode, wanted.total / both)


class Balancer:
    """See the module. Remembers when it turned which node, and since when it wishes the next."""

    def __init__(self, dwell_s: float) -> None:
        self._dwell_s = dwell_s
        self._acted_at: float | None = None
        self._turned_at: dict[str, float] = {}
        self._wish: tuple[Kind, float] | None = None  # what, and since when

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
        is_spike = wanted.predicted_ttft_s > traffic.ttft_s
        dwell_s = self._dwell_s * (SPIKE_DWELL_SHARE if is_spike else 1.0)
        turn = _best(nodes, self._free(nodes, dwell_s, now), wanted, home)
        if turn is None:
            self._wish = None
            return ()
        if self._wish is None or self._wish[0] != turn.kind:
            self._wish = (turn.kind, now)
        confirm_s = max(CONFIRM_S, self._dwell_s) if turn.is_homewards else CONFIRM_S
        if now - self._wish[1] < confirm_s or not self._may_act(nodes, wanted, dwell_s, now):
            return ()
        self._note(nodes, turn, now)
        reason = f"{turn.reason}; {_describe(wanted, traffic)}"
        return tuple(Change(node.node_id, *turn.weights, reason) for node in turn.nodes)

    def cooldown_s(self, now: float) -> float:
        """Until the dwell after the last change is over."""
        return 0.0 if self._acted_at is None else max(0.0, self._acted_at + self._dwell_s - now)

    def _free(self, nodes: Sequence[NodeSupply], dwell_s: float, now: float) -> list[NodeSupply]:
        """Nodes that may be turned; among many, none that was turned within the dwell."""
        free = [node for node in nodes if node.may_change]
        if num_at_once(len(nodes)) == 1:
            return free
        turned_at = self._turned_at
        return [n for n in free if now - turned_at.get(n.node_id, -math.inf) >= dwell_s]

    def _may_act(
        self, nodes: Sequence[NodeSupply], wanted: Needs, dwell_s: float, now: float
    ) -> bool:
        """Whether the last change is long enough ago."""
        is_many = num_at_once(len(nodes)) > 1
        if self._acted_at is None or is_many or math.isinf(load_of(nodes, wanted)):
            return True
        return now - self._acted_at >= dwell_s

    def _note(self, nodes: Sequence[NodeSupply], turn: _Turn, now: float) -> None:
        """Among many nodes the wish goes on: the next ones may follow at once."""
        self._acted_at = now
        known = {node.node_id for node in nodes}
        self._turned_at = {name: at for name, at in self._turned_at.items() if name in known}
        self._turned_at.update((node.node_id, now) for node in turn.nodes)
        if num_at_once(len(nodes)) == 1:
            self._wish = None


def _best(
    nodes: Sequence[NodeSupply],
    free: Sequence[NodeSupply],
    wanted: Needs,
    home: dict[str, Weights],
) -> _Turn | None:
    """The turn to make, if any."""
    load = load_of(nodes, wanted)
    if load > 1:
        return _relief(nodes, free, wanted, load)
    origins = {node.node_id: home.get(node.node_id, _weights(node)) for node in nodes}
    if _load(Counter(map(_shape, origins.values())), wanted) * HYSTERESIS > 1:
        return None
    return _homewards(nodes, free, wanted, origins)


def _homewards(
    nodes: Sequence[NodeSupply],
    free: Sequence[NodeSupply],
    wanted: Needs,
    origins: dict[str, Weights],
) -> _Turn | None:
    """Nodes of one kind that can have their own roles again."""
    counts: Counts = Counter(map(shape_of, nodes))
    chosen: list[NodeSupply] = []
    kind, after_load = None, 0.0
    for node in free:
        origin = origins[node.node_id]
        if _weights(node) == origin or kind not in (None, (shape_of(node), origin)):
            continue
        after = _turned(counts, shape_of(node), _shape(origin), 1)
        if _load(after, wanted) * HYSTERESIS > 1:
            continue
        chosen.append(node)
        kind, counts, after_load = (shape_of(node), origin), after, _load(after, wanted)
        if len(chosen) == num_at_once(len(nodes)):
            break
    if kind is None:
        return None
    own = "its own role" if len(chosen) == 1 else f"their own role, {len(chosen)} nodes"
    why = f"back to {own}: load {after_load:.2f} of the target"
    return _Turn(tuple(chosen), kind[1], why, is_homewards=True)


def _relief(
    nodes: Sequence[NodeSupply], free: Sequence[NodeSupply], wanted: Needs, load: float
) -> _Turn | None:
    """The turn towards the configuration of the lowest load, where that is worth it."""
    counts: Counts = Counter(map(shape_of, nodes))
    tried = [
        (_load(_turned(counts, before, after, num), wanted), num, _work(first, after), first, after)
        for before, after, num, first in _turns(counts, free, num_at_once(len(nodes)))
    ]
    best = min(tried, key=lambda t: (t[0], t[1], t[2], t[3].node_id), default=None)
    if best is None or best[0] * HYSTERESIS > load:
        return None
    _, num_best, _, first, shape = best
    alike = [node for node in free if shape_of(node) == shape_of(first)]
    num = min(num_best, num_at_once(len(nodes)))
    chosen = tuple(sorted(alike, key=lambda n: (_work(n, shape), n.node_id))[:num])
    after_load = _load(_turned(counts, shape_of(first), shape, num), wanted)
    if after_load >= load:
        return None
    several = "" if num == 1 else f", {num} nodes at once"
    if math.isinf(load):
        why = f"a role has no node; load {after_load:.2f} of the target with it{several}"
    else:
        why = f"load {load:.2f} of the target becomes {after_load:.2f}{several}"
    return _Turn(chosen, WEIGHTS[shape], why)


def _turns(
    counts: Counts, free: Sequence[NodeSupply], at_once: int
) -> Iterator[tuple[Shape, Shape, int, NodeSupply]]:
    """Shapes, number of nodes, and the first of them, of turns that keep both roles."""
    for before in WEIGHTS:
        alike = [node for node in free if shape_of(node) == before]
        for after in WEIGHTS:
            if not alike or after == before:
                continue
            first = min(alike, key=lambda n: (_work(n, after), n.node_id))
            for num in range(1, 1 + (len(alike) if at_once > 1 else 1)):
                if _has_both(_turned(counts, before, after, num)):
                    yield before, after, num, first


def _turned(counts: Counts, before: Shape, after: Shape, num: int) -> Counts:
    """Counts once so many nodes of one shape have another."""
    turned = counts.copy()
    turned[before] -= num
    turned[after] += num
    return turned


def _has_both(counts: Counts) -> bool:
    mixed = counts["mixed"]
    return counts["prefill"] + mixed > 0 and counts["decode"] + mixed > 0


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
