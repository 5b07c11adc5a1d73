"""The balancer's eyes and hands: what the members say becomes supply, a decision an order. Pure.

What one decision changes (one node, a tenth of many) is obeyed before the next. Nodes that are new,
slow, draining or held by an operator are left as they are. Everything decided, or that would be, is
kept in words.
"""

from collections import deque
from dataclasses import dataclass
from typing import Literal

from coordinator.members import Members, NodeRecord, Share
from coordinator.roles import describe, explain_last
from coordinator.traffic import TrafficMeter
from scheduling.balance import Balancer, Change, Infeasible
from scheduling.capacity import NodeSupply
from scheduling.routing.estimates import trusted
from tandem.messages.common import SlaTargets
from tandem.messages.membership import Decision, RoleWeights
from tandem.messages.placement import Place, Placed, RequestEnded

Mode = Literal["off", "observe", "on"]
KINDS = ("roles", "observed", "kept", "infeasible", "move")
PERIOD_S = 1.0
WARM_S = 5.0  # after its start a node, and the coordinator, have seen too little
MAX_DECISIONS = 64
MAX_TEXT = 500
REPORT_AGAIN_S = 60.0  # what stays true is said again


@dataclass(slots=True)
class _Seen:
    """What is kept of a node between two looks."""

    epoch: int
    since: float
    busy_s: float
    at: float
    busy: float = 0.0
    held_until: float = 0.0


class Balancing:
    """See the module. `observe`: says what it would do."""

    def __init__(self, members: Members, *, mode: Mode, dwell_s: float, now: float) -> None:
        self._members = members
        self.mode = mode
        self._dwell_s = dwell_s
        self._balancer = Balancer(dwell_s)
        self._meter = TrafficMeter(dwell_s, now)
        self._seen: dict[str, _Seen] = {}
        self._home: dict[str, tuple[int, RoleWeights]] = {}  # by the node's incarnation
        self._decisions: deque[tuple[float, str, str]] = deque(maxlen=MAX_DECISIONS)
        self.num_by_kind = dict.fromkeys(KINDS, 0)  # since the start
        self._next_at = now + WARM_S
        self._was_whole = False

    # --- what happens -----------------------------------------------------------------------

    def placed(self, request: Place, answer: Placed, now: float) -> None:
        """A request's first attempt was placed just now, or this is said again."""
        node = answer.decode if answer.prefill is None else answer.prefill
        record = self._members.nodes.get(node.node_id)
        key = (request.request_id, request.incarnation)
        share: Share | None = None if record is None else record.recent.get(key)
        if request.attempt == 1 and share is not None and share.placed_at == now:
            self._arrived(request, share.num_prefill_tokens, answer.targets, now)

    def shed(self, request: Place, targets: SlaTargets, now: float) -> None:
        """A request was refused for overload."""
        self._arrived(request, None, targets, now)

    def _arrived(
        self, request: Place, num_computed: int | None, targets: SlaTargets, now: float
    ) -> None:
        predicted = request.prediction
        most = float(max(1, request.max_output_tokens))
        self._meter.arrived(
            now,
            num_prompt=request.num_prompt_tokens,
            num_computed=num_computed,
            num_output=most if predicted is None else min(most, predicted.q50),
            targets=targets,
        )

    def ended(self, report: RequestEnded) -> None:
        """A request ended."""
        if report.reason in ("stop", "length") and not report.is_evaluation:
            self._meter.ended(report.num_output_tokens)

    def ordered(self, node: NodeRecord, now: float) -> None:
        """An operator gave a node roles: they are its own from now on, and stay for a dwell."""
        self._home[node.ref.node_id] = (node.ref.incarnation, node.wanted)
        self._look(node, now).held_until = now + self._dwell_s

    def say(self, kind: str, text: str, now: float) -> str | None:
        """Keep a decision; the text where it is none that was said just before."""
        is_state = kind not in ("roles", "observed")
        for at, known, _ in self._decisions:
            if is_state and known == kind and now - at < REPORT_AGAIN_S:
                return None
        self._decisions.append((now, kind, text[:MAX_TEXT]))
        self.num_by_kind[kind] = self.num_by_kind.get(kind, 0) + 1
        return f"{kind}: {text}"

    def decisions(self, now: float, most: int) -> tuple[Decision, ...]:
        """The last ones, the latest first."""
        latest = list(self._decisions)[-most:]
        return tuple(
            Decision(age_s=max(0.0, now - at), kind=kind, message=text)
            for at, kind, text in reversed(latest)
        )

    def cooldown_s(self, now: float) -> float | None:
        """How long roles stay as they are unless there is a hurry; None: they always do."""
        return self._balancer.cooldown_s(now) if self.mode == "on" else None

    # --- deciding ---------------------------------------------------------------------------

    def tick(self, now: float) -> tuple[list[str], list[NodeRecord]]:
        """Decide once in a period: lines for the log, and nodes that have a new order."""
        if self.mode == "off" or now < self._next_at:
            return [], []
        self._next_at = now + PERIOD_S
        records = [node for node in self._members.nodes.values() if not node.draining]
        supplies = [self._supply(node, now) for node in records]
        self._forget()
        self._was_whole |= _is_whole(records)
        is_busy = any(node.open_order is not None for node in records)
        if not self._was_whole or is_busy:
            return [], []
        home = {name: (w.prefill, w.decode) for name, (_, w) in self._home.items()}
        decided = self._balancer.decide(supplies, self._meter.now(now), home, now)
        if isinstance(decided, Infeasible):
            text = self.say("infeasible", f"{decided.reason}; no roles are changed", now)
            return _said(text), []
        acts = [self._act(change, now) for change in decided]
        return [t for texts, _ in acts for t in texts], [n for _, n in acts if n is not None]

    def _act(self, change: Change, now: float) -> tuple[list[str], NodeRecord | None]:
        node = self._members.nodes[change.node_id]
        weights = RoleWeights(prefill=change.prefill_weight, decode=change.decode_weight)
        turns = f"{change.node_id} from {describe(node.wanted)} to {describe(weights)}"
        problem = explain_last(self._members, node, weights)
        if problem is not None:
            return _said(self.say("kept", f"{turns} is not possible: {problem}", now)), None
        if self.mode == "observe":
            return _said(self.say("observed", f"would turn {turns}: {change.reason}", now)), None
        self._members.order_roles(node, weights)
        return _said(self.say("roles", f"turns {turns}: {change.reason}", now)), node

    def _look(self, node: NodeRecord, now: float) -> _Seen:
        """What is known of a node; roles that it came with are its own."""
        name = node.ref.node_id
        busy_s = 0.0 if node.load is None else node.load.busy_s
        seen = self._seen.get(name)
        if seen is None or seen.epoch != node.ref.epoch:
            seen = self._seen[name] = _Seen(node.ref.epoch, now, busy_s, now)
            incarnation, _ = self._home.get(name, (0, None))
            if incarnation != node.ref.incarnation:
                self._home[name] = (node.ref.incarnation, node.hello.weights)
        return seen

    def _forget(self) -> None:
        """Little is kept of nodes that are gone: they may come back with an order."""
        for name in [name for name in self._seen if name not in self._members.nodes]:
            del self._seen[name]
            if len(self._home) > len(self._members.nodes) + MAX_DECISIONS:
                self._home.pop(name, None)

    def _supply(self, node: NodeRecord, now: float) -> NodeSupply:
        seen, load, hello = self._look(node, now), node.load, node.hello
        if load is not None and now > seen.at:
            seen.busy = min(1.0, max(0.0, load.busy_s - seen.busy_s) / (now - seen.at))
            seen.busy_s, seen.at = load.busy_s, now
        is_warm = load is not None and now - seen.since >= WARM_S
        is_free = node.open_order is None and now >= seen.held_until
        return NodeSupply(
            node_id=node.ref.node_id,
            prefill_weight=node.wanted.prefill,
            decode_weight=node.wanted.decode,
            max_num_seqs=hello.max_num_seqs,
            max_num_batched_tokens=hello.max_num_batched_tokens,
            num_total_tokens=hello.num_pages * hello.layout.page_size,
            num_prefill_tokens=0 if load is None else load.num_prefill_tokens_waiting,
            num_prompts=0 if load is None else load.num_prefill_waiting,
            num_sequences=0 if load is None else load.num_decode_running + load.num_decode_waiting,
            busy=seen.busy,
            costs=trusted(load.costs) if load is not None and is_warm else None,
            may_change=is_warm and is_free and not node.is_slow,
        )


def _said(text: str | None) -> list[str]:
    return [] if text is None else [text]


def _is_whole(records: list[NodeRecord]) -> bool:
    has_prefill = any(node.does_prefill for node in records)
    return has_prefill and any(node.does_decode for node in records)
