"""The coordinator's decisions: `handle(peer, message, now)` and `tick(now)` give actions. Pure.

It holds no request: streams in flight need no coordinator, and what it must know again after a
start it learns from hellos within `GRACE_S`, during which it refuses nobody for lack of nodes.
"""

from coordinator.accounting import ClassAccounts
from coordinator.actions import Action, Note, Send
from coordinator.config import CoordinatorConfig
from coordinator.members import Members, NodeRecord, Refused
from coordinator.placements import Placements
from scheduling.placement import make_policy
from scheduling.sla import parse_sla_table
from tandem.messages.membership import (
    ClusterStatus,
    FromNode,
    GatewayStatus,
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    NodeHello,
    NodeRefused,
    NodeStatus,
    NodeWelcome,
    Rejoin,
    StatusQuery,
)
from tandem.messages.placement import (
    FromGateway,
    GatewayHello,
    GatewayRefused,
    GatewayWelcome,
    NodeDown,
    Place,
    PlaceRefused,
    RequestEnded,
    RequestEndedAck,
)

GRACE_S = 2.0
# Ticks come every 0.2 s; a longer gap means that this process stood still, not its members.
LONGEST_TICK_S = 1.0
FromPeer = FromNode | FromGateway | StatusQuery


class Coordinator:
    """See the module. `incarnation` is the start time in unix milliseconds: it only grows."""

    def __init__(self, config: CoordinatorConfig, *, incarnation: int, now: float) -> None:
        self._config = config
        self._incarnation = incarnation
        self._started = now
        self._last_tick = now
        self._sla = parse_sla_table(config.sla_classes, config.default_class)
        self._members = Members(
            first_epoch=incarnation, lease_s=config.lease_s, heartbeat_s=config.heartbeat_s
        )
        self._placements = Placements(
            self._members,
            make_policy(config.placement_policy),
            self._sla,
            first_sequence=incarnation,
        )
        self._accounts = ClassAccounts(self._sla)
        self.num_dropped = 0

    def handle(self, peer: bytes, message: FromPeer, now: float) -> list[Action]:
        """Answer one message of a peer."""
        match message:
            case Heartbeat():
                return self._heartbeat(peer, message, now)
            case Place():
                return self._place(peer, message, now)
            case RequestEnded():
                return self._ended(peer, message)
            case GatewayHello():
                return self._gateway_hello(peer, message, now)
            case NodeHello():
                return self._node_hello(peer, message, now)
            case Goodbye():
                return self._goodbye(message, now)
            case StatusQuery():
                return [Send(peer, self.status(now))]

    def tick(self, now: float) -> list[Action]:
        """Sweep leases; to be called every 0.2 s."""
        pause_s = now - self._last_tick
        self._last_tick = now
        if pause_s > LONGEST_TICK_S:
            self._members.forgive(pause_s, now)
        actions: list[Action] = []
        for node_id in self._members.lapsed_nodes(now):
            reason = f"no heartbeat for {self._config.lease_s:g} s"
            actions += self._remove(node_id, reason, now)
        for gateway_id in self._members.lapsed_gateways(now):
            del self._members.gateways[gateway_id]
            num_gone = self._placements.forget_gateway(gateway_id)
            actions.append(
                Note(f"gateway {gateway_id} is silent: dropped, {num_gone} requests forgotten")
            )
        return actions

    def _node_hello(self, peer: bytes, hello: NodeHello, now: float) -> list[Action]:
        known = self._members.nodes.get(hello.node_id)
        if known is not None and known.ref.incarnation == hello.incarnation:
            known.peer, known.last_seen = peer, now
            return [Send(peer, self._welcome(known))]
        try:
            record = self._members.admit_node(peer, hello, now)
        except Refused as refused:
            note = Note(f"node {hello.node_id} refused: {refused}")
            return [Send(peer, NodeRefused(reason=str(refused))), note]
        actions: list[Action] = []
        if known is not None:
            self._members.supersede(hello.node_id, known.ref.incarnation)
            actions += self._remove(hello.node_id, "replaced by a newer process", now)
        self._members.nodes[hello.node_id] = record
        weights = hello.weights
        text = (
            f"node {hello.node_id} joined as epoch {record.ref.epoch} at {hello.control_address}: "
            f"prefill {weights.prefill:g}, decode {weights.decode:g}, {hello.num_pages} pages"
        )
        return [*actions, Send(peer, self._welcome(record)), Note(text)]

    def _welcome(self, record: NodeRecord) -> NodeWelcome:
        return NodeWelcome(
            coordinator_incarnation=self._incarnation,
            epoch=record.ref.epoch,
            lease_s=self._config.lease_s,
            heartbeat_s=self._config.heartbeat_s,
        )

    def _heartbeat(self, peer: bytes, heartbeat: Heartbeat, now: float) -> list[Action]:
        known = self._members.nodes.get(heartbeat.node_id)
        was_draining = known is not None and known.draining
        record = self._members.beat(peer, heartbeat, now)
        if record is None:
            reason = f"epoch {heartbeat.epoch} of {heartbeat.node_id} is not admitted here"
            return [Send(peer, Rejoin(reason=reason))]
        ack = Send(peer, HeartbeatAck(epoch=heartbeat.epoch, sequence=heartbeat.sequence))
        if record.draining and not was_draining:
            return [ack, Note(f"node {heartbeat.node_id} drains: no new work for it")]
        return [ack]

    def _goodbye(self, goodbye: Goodbye, now: float) -> list[Action]:
        record = self._members.nodes.get(goodbye.node_id)
        if record is None or record.ref.incarnation != goodbye.incarnation:
            self.num_dropped += 1
            return []
        return self._remove(goodbye.node_id, "said goodbye", now)

    def _remove(self, node_id: str, reason: str, now: float) -> list[Action]:
        """Take a node out and tell every gateway; they hear it again with their next welcome."""
        down: NodeDown = self._members.remove_node(node_id, reason, now)
        told = [Send(gateway.peer, down) for gateway in self._members.gateways.values()]
        return [*told, Note(f"node {node_id} of epoch {down.epoch} is down: {reason}")]

    def _gateway_hello(self, peer: bytes, hello: GatewayHello, now: float) -> list[Action]:
        try:
            is_new = self._members.admit_gateway(peer, hello, now)
        except Refused as refused:
            note = Note(f"gateway {hello.gateway_id} refused: {refused}")
            return [Send(peer, GatewayRefused(reason=str(refused))), note]
        if is_new:  # an earlier incarnation of the name took its requests with it
            self._placements.forget_gateway(hello.gateway_id)
        nodes = self._members.nodes.values()
        deployment = self._members.deployment
        assert deployment is not None, "the gateway that was just admitted is a member"
        max_model_len = None if deployment.layout is None else deployment.model.max_model_len
        welcome = GatewayWelcome(
            coordinator_incarnation=self._incarnation,
            sla_classes=tuple(each.targets for each in self._sla.classes.values()),
            default_class=self._sla.default,
            num_prefill_nodes=sum(node.does_prefill for node in nodes),
            num_decode_nodes=sum(node.does_decode for node in nodes),
            max_model_len=max_model_len,
            recent_downs=self._members.recent_downs(now),
        )
        if not is_new:
            return [Send(peer, welcome)]
        return [Send(peer, welcome), Note(f"gateway {hello.gateway_id} joined")]

    def _place(self, peer: bytes, request: Place, now: float) -> list[Action]:
        gateway = self._members.gateways.get(request.gateway_id)
        is_ended = self._accounts.has_ended(request.incarnation, request.request_id)
        if gateway is None or gateway.hello.incarnation != request.incarnation or is_ended:
            # A gateway that is not known yet says hello within a second and asks again.
            self.num_dropped += 1
            return []
        answer = self._placements.place(request, now)
        if answer is None:
            self.num_dropped += 1
            return []
        is_early = now - self._started < GRACE_S
        if isinstance(answer, PlaceRefused) and answer.retry_after_s is not None and is_early:
            return []  # nodes are still coming back; the gateway asks again
        return [Send(peer, answer)]

    def _ended(self, peer: bytes, report: RequestEnded) -> list[Action]:
        self._accounts.ended(report)
        self._placements.forget((report.incarnation, report.request_id))
        return [Send(peer, RequestEndedAck(request_id=report.request_id))]

    def status(self, now: float) -> ClusterStatus:
        """The state of everything."""
        deployment = self._members.deployment
        return ClusterStatus(
            coordinator_incarnation=self._incarnation,
            uptime_s=max(0.0, now - self._started),
            model=None if deployment is None else deployment.model,
            nodes=tuple(_node_status(r, now) for r in self._members.nodes.values()),
            gateways=tuple(
                GatewayStatus(
                    gateway_id=each.hello.gateway_id,
                    num_live_requests=each.hello.num_live_requests,
                    heartbeat_age_s=max(0.0, now - each.last_seen),
                )
                for each in self._members.gateways.values()
            ),
            classes=self._accounts.snapshot(),
            num_live_requests=len(self._placements),
            num_dropped_messages=self.num_dropped,
        )


def _node_status(record: NodeRecord, now: float) -> NodeStatus:
    return NodeStatus(
        node_id=record.ref.node_id,
        epoch=record.ref.epoch,
        weights=record.hello.weights,
        control_address=record.ref.control_address,
        device=record.hello.device,
        num_pages=record.hello.num_pages,
        heartbeat_age_s=max(0.0, now - record.last_seen),
        draining=record.draining,
        load=record.load,
    )
