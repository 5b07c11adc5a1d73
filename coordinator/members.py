"""Who belongs to the deployment: nodes with epochs and leases, gateways, what they share. Pure.

Epochs are issued here, one per admission, and only grow, also over restarts of the coordinator
(their base is the start time, and epochs that nodes still carry are overtaken).
"""

from collections import deque
from dataclasses import dataclass, field

from coordinator.compatibility import (
    Deployment,
    explain_gateway_difference,
    explain_node_difference,
    explain_unusable,
)
from scheduling.routing.placement import Candidate
from tandem.messages.common import NodeRef
from tandem.messages.membership import (
    Heartbeat,
    LinkReport,
    NodeHello,
    NodeLoad,
    PageCounts,
    RoleOrder,
    RoleWeights,
)
from tandem.messages.placement import GatewayHello, NodeDown

MAX_MEMBERS = 4096
SAID_GOODBYE = "said goodbye"
PAGE_STATES = PageCounts.__struct_fields__
MAX_RECENT_DOWNS = 32
RECENT_DOWN_S = 60.0
# A forged epoch must not use up the number range, nor a forged sequence silence its node.
MAX_EPOCH_AHEAD = 2**40
MAX_SEQUENCE_AHEAD = 1_000_000


@dataclass(frozen=True, slots=True)
class Share:
    """Work placed on a node that its next heartbeats will not yet show."""

    placed_at: float
    num_prefill_tokens: int
    num_sequences: int
    num_pages: int


@dataclass(slots=True)
class LiveWork:
    """What live requests have on a node that decodes them, whether or not it has begun."""

    num_sequences: int = 0
    num_pages: int = 0
    num_suspects: int = 0
    num_by_tpot: dict[float, int] = field(default_factory=dict)  # by their target, in seconds


@dataclass(slots=True)
class NodeRecord:
    """An admitted node. `recent` is what was placed since the heartbeat that `load` came with.

    `speed` is below 1 while its steps take far longer than its peers'. That it works showed last
    at `evidence_at`, when it had taken `evidence_steps`. `candidate`: the node as placement sees
    it, None after a change; see `coordinator.candidates`. `in_force` are its weights by its own
    word; `order` is what it was told to have.
    """

    hello: NodeHello
    ref: NodeRef
    peer: bytes
    last_seen: float
    load: NodeLoad | None = None
    links: tuple[LinkReport, ...] = ()
    draining: bool = False
    is_drain_ordered: bool = False
    last_sequence: int = 0
    num_placed: int = 0
    recent: dict[tuple[bytes, int], Share] = field(default_factory=dict)
    live: LiveWork = field(default_factory=LiveWork)
    speed: float = 1.0
    slow_since: float | None = None
    evidence_steps: int = -1
    evidence_at: float = 0.0
    candidate: Candidate | None = None
    in_force: RoleWeights | None = None
    order: RoleOrder | None = None

    @property
    def told(self) -> RoleWeights:
        """The weights in force by its last word."""
        return self.hello.weights if self.in_force is None else self.in_force

    @property
    def wanted(self) -> RoleWeights:
        """The weights that it has, or shall have."""
        return self.told if self.order is None else self.order.weights

    @property
    def weights(self) -> RoleWeights:
        """By which work is placed: a role closes with the order, and opens once the node obeyed."""
        told, wanted = self.told, self.wanted
        if told == wanted:
            return told
        return RoleWeights(
            prefill=wanted.prefill if told.prefill else 0.0,
            decode=wanted.decode if told.decode else 0.0,
        )

    @property
    def open_order(self) -> RoleOrder | None:
        """An order that it has not obeyed yet."""
        return None if self.wanted == self.told else self.order

    @property
    def is_slow(self) -> bool:
        """Whether it gets less work than its weights say."""
        return self.speed < 1.0

    @property
    def does_prefill(self) -> bool:
        """Whether it takes new prompts."""
        return self.weights.prefill > 0 and not self.draining

    @property
    def does_decode(self) -> bool:
        """Whether it takes new sequences."""
        return self.weights.decode > 0 and not self.draining


@dataclass(slots=True)
class GatewayRecord:
    """An admitted gateway as of its last hello."""

    hello: GatewayHello
    peer: bytes
    last_seen: float
    is_drain_ordered: bool = False


class Refused(ValueError):
    """A member was not admitted; the text says why and what to do."""


class Members:
    """See the module. Times are the caller's monotonic clock; `first_epoch` its start time."""

    def __init__(self, *, first_epoch: int, lease_s: float, heartbeat_s: float) -> None:
        self.nodes: dict[str, NodeRecord] = {}
        self.gateways: dict[str, GatewayRecord] = {}
        self._first_epoch = first_epoch
        self._next_epoch = first_epoch
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._superseded: dict[str, int] = {}
        self._downs: deque[tuple[float, NodeDown]] = deque(maxlen=MAX_RECENT_DOWNS)
        self._ordered: dict[str, int] = {}  # incarnations of nodes that an operator told to drain
        self._role_orders: dict[str, tuple[int, RoleOrder]] = {}  # the last, and for which process
        self._num_role_orders = 0
        # Members obey the highest incarnation. After a clock was set back ours must overtake too.
        self.incarnation = first_epoch
        self.num_bad_loads = 0
        self.num_lost = 0  # nodes that went without a goodbye

    @property
    def deployment(self) -> Deployment | None:
        """What is served, by its oldest member; None while there is nobody."""
        return self._deployment_of(list(self.nodes.values())[:1])

    def _deployment_of(self, nodes: list[NodeRecord]) -> Deployment | None:
        if nodes:
            return Deployment(nodes[0].ref.node_id, nodes[0].hello.model, nodes[0].hello.layout)
        for gateway in self.gateways.values():
            return Deployment(gateway.hello.gateway_id, gateway.hello.model, None)
        return None

    def admit_node(self, peer: bytes, hello: NodeHello, now: float) -> NodeRecord:
        """Admit a node under a new epoch, in the place of an earlier incarnation.

        Raises Refused. The caller knows that this incarnation is not in yet, and takes an earlier
        one out by `remove_node` once this succeeded.
        """
        self._check_node(hello)
        ref = NodeRef(
            node_id=hello.node_id,
            incarnation=hello.incarnation,
            epoch=self._next_epoch,
            control_address=hello.control_address,
        )
        self._next_epoch += 1
        is_ordered = self._ordered.get(hello.node_id) == hello.incarnation
        process, order = self._role_orders.get(hello.node_id, (0, None))
        return NodeRecord(
            hello=hello,
            ref=ref,
            peer=peer,
            last_seen=now,
            draining=is_ordered,
            is_drain_ordered=is_ordered,
            order=order if process == hello.incarnation else None,
        )

    def order_drain(self, record: NodeRecord) -> None:
        """An operator wants the node to leave; the order outlives its epoch, not its process."""
        record.draining = record.is_drain_ordered = True
        record.candidate = None
        name = record.ref.node_id
        self._ordered.pop(name, None)
        self._ordered[name] = record.ref.incarnation
        if len(self._ordered) > MAX_MEMBERS:
            del self._ordered[next(iter(self._ordered))]

    def order_roles(self, record: NodeRecord, weights: RoleWeights) -> None:
        """The node shall have other weights; the order outlives its epoch, not its process."""
        self._num_role_orders += 1
        record.order = RoleOrder(
            coordinator_incarnation=self.incarnation,
            number=self._num_role_orders,
            weights=weights,
        )
        record.candidate = None
        name = record.ref.node_id
        self._role_orders.pop(name, None)
        self._role_orders[name] = (record.ref.incarnation, record.order)
        if len(self._role_orders) > MAX_MEMBERS:
            del self._role_orders[next(iter(self._role_orders))]

    def _check_node(self, hello: NodeHello) -> None:
        if self._superseded.get(hello.node_id) == hello.incarnation:
            raise Refused(
                f"another process has taken the name {hello.node_id}: give every node its own "
                "--name"
            )
        others = [r for r in self.nodes.values() if r.ref.node_id != hello.node_id]
        deployment = self._deployment_of(others[:1])
        reason = explain_unusable(hello)
        if reason is None and deployment is not None:
            reason = explain_node_difference(deployment, hello)
        if reason is None and len(others) >= MAX_MEMBERS:
            reason = f"this coordinator already has {MAX_MEMBERS} nodes: start another deployment"
        if reason is not None:
            raise Refused(reason)

    def remove_node(self, node_id: str, reason: str, now: float) -> NodeDown:
        """Take a node out; the result is what gateways must hear."""
        record = self.nodes.pop(node_id)
        down = NodeDown(node_id=node_id, epoch=record.ref.epoch, reason=reason)
        self._downs.append((now, down))
        self.num_lost += reason != SAID_GOODBYE
        return down

    def is_lost(self, ref: NodeRef) -> bool:
        """Whether the process that somebody knows by this reference is no member (any more)."""
        record = self.nodes.get(ref.node_id)
        if record is None:
            return True
        return record.ref.incarnation != ref.incarnation and record.ref.epoch > ref.epoch

    def supersede(self, name: str, incarnation: int) -> None:
        """Remember an incarnation whose name a newer process has: it must not take it back."""
        self._superseded.pop(name, None)
        self._superseded[name] = incarnation
        if len(self._superseded) > MAX_MEMBERS:
            del self._superseded[next(iter(self._superseded))]

    def is_late(self, name: str, incarnation: int, newer: int) -> bool:
        """Whether a process that was no member yet is older than the one that has its name."""
        return incarnation < newer and self._superseded.get(name) != incarnation

    def recent_downs(self, now: float) -> tuple[NodeDown, ...]:
        """What gateways may have missed."""
        return tuple(down for at, down in self._downs if now - at < RECENT_DOWN_S)

    def beat(self, peer: bytes, heartbeat: Heartbeat, now: float) -> NodeRecord | None:
        """Note a heartbeat; None where this node, incarnation or epoch is not admitted."""
        record = self.nodes.get(heartbeat.node_id)
        stated = (heartbeat.incarnation, heartbeat.epoch)
        if record is None or stated != (record.ref.incarnation, record.ref.epoch):
            ahead = heartbeat.epoch - self._next_epoch
            if ahead >= 0 and heartbeat.epoch < self._first_epoch + MAX_EPOCH_AHEAD:
                self._next_epoch = self.incarnation = heartbeat.epoch + 1
            return None
        record.peer, record.last_seen = peer, now
        ahead = heartbeat.sequence - record.last_sequence
        is_leap = record.last_sequence > 0 and ahead > MAX_SEQUENCE_AHEAD
        if is_leap or not _is_plausible(heartbeat.load, record):
            self.num_bad_loads += 1
        elif ahead > 0:
            record.last_sequence = heartbeat.sequence
            record.load, record.candidate = heartbeat.load, None
            record.in_force = heartbeat.weights or record.in_force
            record.links = record.links if heartbeat.links is None else heartbeat.links
            record.draining = heartbeat.draining or record.is_drain_ordered
            # What was placed within one heartbeat may still be on its way to the node.
            shown = [k for k, s in record.recent.items() if now - s.placed_at > self._heartbeat_s]
            for key in shown:
                del record.recent[key]
        return record

    def admit_gateway(self, peer: bytes, hello: GatewayHello, now: float) -> bool:
        """Note a gateway's hello; True where this incarnation is new here. Raises Refused."""
        known = self.gateways.get(hello.gateway_id)
        if known is not None and known.hello.incarnation == hello.incarnation:
            known.hello, known.peer, known.last_seen = hello, peer, now
            return False
        self._check_gateway(hello)
        if known is not None:
            self.supersede(hello.gateway_id, known.hello.incarnation)
        self.gateways[hello.gateway_id] = GatewayRecord(hello, peer, now)
        return True

    def _check_gateway(self, hello: GatewayHello) -> None:
        if self._superseded.get(hello.gateway_id) == hello.incarnation:
            raise Refused(
                f"another process has taken the name {hello.gateway_id}: give every gateway its "
                "own --name"
            )
        deployment = self.deployment
        if deployment is not None:
            reason = explain_gateway_difference(deployment, hello.gateway_id, hello.model)
            if reason is not None:
                raise Refused(reason)
        if len(self.gateways) >= MAX_MEMBERS:
            raise Refused(f"this coordinator already has {MAX_MEMBERS} gateways: use those")

    def lapsed_nodes(self, now: float) -> list[str]:
        """Nodes that were silent for a lease."""
        return [n for n, r in self.nodes.items() if now - r.last_seen > self._lease_s]

    def lapsed_gateways(self, now: float) -> list[str]:
        """Gateways that were silent for a lease."""
        return [g for g, r in self.gateways.items() if now - r.last_seen > self._lease_s]

    def forgive(self, pause_s: float, now: float) -> None:
        """This process itself stood still until now: nobody's silence during it counts."""
        for node in self.nodes.values():
            node.last_seen = min(now, node.last_seen + pause_s)
        for gateway in self.gateways.values():
            gateway.last_seen = min(now, gateway.last_seen + pause_s)


def _is_plausible(load: NodeLoad, record: NodeRecord) -> bool:
    """Whether the pages sum to the pool, as they do after every change on an honest node."""
    num_pages: int = sum(getattr(load.pages, state) for state in PAGE_STATES)
    return num_pages == record.hello.num_pages
