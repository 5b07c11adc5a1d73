"""The coordinator's decisions: `handle(peer, message, now)` and `tick(now)` give actions. Pure.

It holds no request: streams in flight need no coordinator, and what it must know again after a
start it learns from hellos within `GRACE_S`, during which it refuses nobody for lack of nodes.
"""

from coordinator.accounting import ClassAccounts
from coordinator.actions import Action, EventKind, Note, Send
from coordinator.admission import Admission, Answer
from coordinator.balancing import Balancing
from coordinator.cache_index import CacheIndex
from coordinator.config import CoordinatorConfig
from coordinator.draining import order_drain
from coordinator.health import explain_wedge, find_outliers
from coordinator.members import SAID_GOODBYE, Members, NodeRecord, Refused
from coordinator.migrating import Migrating
from coordinator.placements import Placements
from coordinator.reports import (
    STATUS_DECISIONS,
    STATUS_DOWNS,
    STATUS_GATEWAYS,
    STATUS_NODES,
    after,
    gateway_status,
    node_status,
)
from coordinator.roles import order_weights, tell_node
from coordinator.shedding import newly_turned_away
from coordinator.welcoming import gateway_welcome
from scheduling.batch.options import split_options
from scheduling.routing.catalogue import ROLE, make_policy
from scheduling.routing.early_rejection import EarlyRejection
from scheduling.routing.placement import QueueLimits
from scheduling.sla import parse_sla_table
from tandem.messages.membership import (
    ClusterStatus,
    DrainAnswer,
    DrainMember,
    FromNode,
    FromOperator,
    Goodbye,
    Heartbeat,
    HeartbeatAck,
    NodeHello,
    NodeRefused,
    NodeWelcome,
    Rejoin,
    SetWeights,
    StatusQuery,
    WeightsAnswer,
)
from tandem.messages.placement import (
    FromGateway,
    GatewayHello,
    GatewayRefused,
    MoveRequest,
    NodeDown,
    Place,
    Placed,
    PlaceRefused,
    RequestEnded,
    RequestEndedAck,
)

GRACE_S = 2.0
# Ticks come every 0.2 s; a longer gap means that this process stood still, not its members.
LONGEST_TICK_S = 1.0
# A request's age must grow over restarts, also after more than one placement per millisecond.
SEQUENCES_PER_MS = 1000
FOR_LACK_OF_NODES = ("no_prefill_node", "no_decode_node", "too_few_pages", "overloaded")
FromPeer = FromNode | FromGateway | FromOperator


class Coordinator:
    """See the module. `incarnation` is the start time in unix milliseconds: it only grows."""

    def __init__(self, config: CoordinatorConfig, *, incarnation: int, now: float) -> None:
        self._config = config
        self.started = now
        self._last_tick = now
        self.sla = parse_sla_table(config.sla_classes, config.default_class)
        self.members = Members(
            first_epoch=incarnation, lease_s=config.lease_s, heartbeat_s=config.heartbeat_s
        )
        self._caches = CacheIndex()
        limits = QueueLimits(config.max_queued_tokens_per_node, config.max_queued_requests_per_node)
        self.placements = Placements(
            self.members,
            self._caches,
            make_policy(
                config.placement_policy, limits, split_options(config.placement_option, ROLE)
            ),
            self.sla,
            first_sequence=incarnation * SEQUENCES_PER_MS,
            early_rejection=EarlyRejection(config.early_rejection_tolerance)
            if config.early_rejection == "on"
            else None,
        )
        self.admission = Admission(self.placements, max_held=config.max_held_requests)
        self.balancing = Balancing(
            self.members, mode=config.balance, dwell_s=config.balance_dwell_s, now=now
        )
        self._migrating = Migrating(self.members, self.placements, is_on=config.migrate == "on")
        self.accounts = ClassAccounts(self.sla)
        self.num_dropped = 0

    def handle(self, peer: bytes, message: FromPeer, now: float) -> list[Action]:
        """Answer one message of a peer."""
        match message:
            case Heartbeat():
                return self._heartbeat(peer, message, now)
            case Place():
                return self._place(peer, message, now)
            case RequestEnded():
                return self._ended(peer, message, now)
            case GatewayHello():
                return self._gateway_hello(peer, message, now)
            case NodeHello():
                return self._node_hello(peer, message, now)
            case Goodbye():
                return self._goodbye(message, now)
            case StatusQuery():
                return [Send(peer, self.status(message, now))]
            case DrainMember():
                return self._drain(peer, message, now)
            case SetWeights():
                return self._set_weights(peer, message, now)

    def tick(self, now: float) -> list[Action]:
        """Sweep leases; to be called every 0.2 s."""
        pause_s = now - self._last_tick
        self._last_tick = now
        if pause_s > LONGEST_TICK_S:
            self.members.forgive(pause_s, now)
        actions: list[Action] = []
        for node_id in self.members.lapsed_nodes(now):
            reason = f"no heartbeat for {self._config.lease_s:g} s"
            actions += self._remove(node_id, reason, now)
        for gateway_id in self.members.lapsed_gateways(now):
            del self.members.gateways[gateway_id]
            num_gone = self.admission.forget_gateway(gateway_id)
            text = f"gateway {gateway_id} is silent: dropped, {num_gone} requests forgotten"
            actions.append(Note(text, "error"))
        actions += [Note(text) for text in find_outliers(self.members.nodes.values(), now)]
        return [*actions, *self._send(self.admission.release(now), now), *self._balance(now)]

    def _migrate(self, now: float) -> list[Action]:
        """Wish a request elsewhere; its gateway decides."""
        found = self._migrating.tick(now)
        gateway = None if found is None else self.members.gateways.get(found[0])
        if found is None or gateway is None:
            return []
        _, request, reason = found
        wish = MoveRequest(request_id=request.request_id, attempt=request.attempt)
        text = self.balancing.say("move", reason, now)
        return [Send(gateway.peer, wish), *([] if text is None else [Note(text, "decision")])]

    def _balance(self, now: float) -> list[Action]:
        """Let the balancer look; who gets other roles hears at once."""
        texts, nodes = self.balancing.tick(now)
        told = [action for node in nodes for action in tell_node(node)]
        told += self._tell_gateways(now) if nodes else []
        decisions = [Note(text, "decision") for text in texts]
        return [*told, *self._migrate(now), *decisions]

    def _node_hello(self, peer: bytes, hello: NodeHello, now: float) -> list[Action]:
        known = self.members.nodes.get(hello.node_id)
        if known is not None and known.ref.incarnation == hello.incarnation:
            known.peer, known.last_seen = peer, now
            return [Send(peer, self._welcome(known))]
        newer = 0 if known is None else known.ref.incarnation
        if self.members.is_late(hello.node_id, hello.incarnation, newer):
            return [self._late(hello.node_id)]
        try:
            record = self.members.admit_node(peer, hello, now)
        except Refused as refused:
            note = Note(f"node {hello.node_id} refused: {refused}", "error")
            return [Send(peer, NodeRefused(reason=str(refused))), note]
        actions: list[Action] = []
        if known is not None:
            self.members.supersede(hello.node_id, known.ref.incarnation)
            actions += self._remove(hello.node_id, "replaced by a newer process", now)
        self.members.nodes[hello.node_id] = record
        self._caches.expect(hello.node_id, record.ref.epoch)
        weights = hello.weights
        text = (
            f"node {hello.node_id} joined as epoch {record.ref.epoch} at {hello.control_address}: "
            f"prefill {weights.prefill:g}, decode {weights.decode:g}, {hello.num_pages} pages"
        )
        return [*actions, Send(peer, self._welcome(record)), Note(text)]

    def _welcome(self, record: NodeRecord) -> NodeWelcome:
        return NodeWelcome(
            coordinator_incarnation=self.members.incarnation,
            epoch=record.ref.epoch,
            lease_s=self._config.lease_s,
            heartbeat_s=self._config.heartbeat_s,
        )

    def _heartbeat(self, peer: bytes, heartbeat: Heartbeat, now: float) -> list[Action]:
        known = self.members.nodes.get(heartbeat.node_id)
        was_draining = known is not None and known.draining
        record = self.members.beat(peer, heartbeat, now)
        if record is None:
            reason = f"epoch {heartbeat.epoch} of {heartbeat.node_id} is not admitted here"
            return [Send(peer, Rejoin(reason=reason))]
        wedge = None if record.load is None else explain_wedge(record.load)
        if wedge is not None:  # it says hello, for a new epoch, when its loop comes round again
            rejoin = Send(peer, Rejoin(reason=wedge))
            return [*self._remove(heartbeat.node_id, wedge, now), rejoin]
        dropped = self._caches.update(heartbeat.node_id, heartbeat.epoch, heartbeat.cache)
        ack = HeartbeatAck(
            epoch=heartbeat.epoch,
            sequence=heartbeat.sequence,
            wants_snapshot=self._caches.wants_snapshot(heartbeat.node_id),
            drain=record.is_drain_ordered and not heartbeat.draining,
            roles=record.open_order,
        )
        actions: list[Action] = [Send(peer, ack)]
        if dropped is not None:
            actions.append(Note(dropped))
        if record.draining and not was_draining:
            actions.append(Note(f"node {heartbeat.node_id} drains: no new work for it"))
        return actions

    def _goodbye(self, goodbye: Goodbye, now: float) -> list[Action]:
        record = self.members.nodes.get(goodbye.node_id)
        if record is None or record.ref.incarnation != goodbye.incarnation:
            self.num_dropped += 1
            return []
        return self._remove(goodbye.node_id, SAID_GOODBYE, now)

    def _remove(self, node_id: str, reason: str, now: float) -> list[Action]:
        """Take a node out and tell every gateway; they hear it again with their next welcome."""
        down: NodeDown = self.members.remove_node(node_id, reason, now)
        self._caches.forget(node_id)
        told = [Send(gateway.peer, down) for gateway in self.members.gateways.values()]
        kind: EventKind = "member" if reason == SAID_GOODBYE else "error"
        return [*told, Note(f"node {node_id} of epoch {down.epoch} is down: {reason}", kind)]

    def _gateway_hello(self, peer: bytes, hello: GatewayHello, now: float) -> list[Action]:
        known = self.members.gateways.get(hello.gateway_id)
        before = None if known is None else known.hello
        newer = 0 if before is None else before.incarnation
        if self.members.is_late(hello.gateway_id, hello.incarnation, newer):
            return [self._late(hello.gateway_id)]
        try:
            is_new = self.members.admit_gateway(peer, hello, now)
        except Refused as refused:
            note = Note(f"gateway {hello.gateway_id} refused: {refused}")
            return [Send(peer, GatewayRefused(reason=str(refused))), note]
        if is_new:  # an earlier incarnation of the name took its requests with it
            self.admission.forget_gateway(hello.gateway_id)
        gateway = self.members.gateways[hello.gateway_id]
        welcome = Send(peer, gateway_welcome(self.members, self.sla, gateway, now))
        answers: list[Action] = [welcome, *(Send(peer, each) for each in self._lost(hello, now))]
        if is_new or before is None:  # what it turned away earlier was counted then, or by nobody
            return [*answers, Note(f"gateway {hello.gateway_id} joined")]
        turned_away = newly_turned_away(before, hello)
        self.admission.num_shed += sum(each.num_requests for each in turned_away)
        return [*answers, *turned_away]

    def _lost(self, hello: GatewayHello, now: float) -> list[NodeDown]:
        """The gateway's nodes that are none here: they died while there was no coordinator.

        Those that live have said hello within a lease of the start.
        """
        if now - self.started < self._config.lease_s:
            return []
        return [
            NodeDown(node_id=ref.node_id, epoch=ref.epoch, reason="it is no member any more")
            for ref in hello.nodes
            if self.members.is_lost(ref)
        ]

    def _late(self, name: str) -> Note:
        """An older process says hello under a name that is taken: late words, or a live twin.

        It is heard again when the newer one is gone.
        """
        self.num_dropped += 1
        text = f"an older process says hello as {name}: give every process its own --name"
        return Note(text, "error")

    def _drain(self, peer: bytes, order: DrainMember, now: float) -> list[Action]:
        """An operator's order; gateways hear at once, so that requests can move."""
        accepted, text = order_drain(self.members, order)
        answer = Send(peer, DrainAnswer(accepted=accepted, message=text))
        if not accepted:
            return [answer]
        return [answer, *self._tell_gateways(now), Note(text, "order")]

    def _set_weights(self, peer: bytes, order: SetWeights, now: float) -> list[Action]:
        """An operator's order; node and gateways hear at once."""
        accepted, text = order_weights(self.members, order)
        answer = Send(peer, WeightsAnswer(accepted=accepted, message=text))
        if not accepted:
            return [answer]
        node = self.members.nodes[order.name]
        self.balancing.ordered(node, now)
        return [answer, *self._roles_changed(node, now), Note(text, "order")]

    def _roles_changed(self, node: NodeRecord, now: float) -> list[Action]:
        return [*tell_node(node), *self._tell_gateways(now)]

    def _tell_gateways(self, now: float) -> list[Action]:
        return [
            Send(gateway.peer, gateway_welcome(self.members, self.sla, gateway, now))
            for gateway in self.members.gateways.values()
        ]

    def _place(self, peer: bytes, request: Place, now: float) -> list[Action]:
        gateway = self.members.gateways.get(request.gateway_id)
        is_ended = self.accounts.has_ended(request.incarnation, request.request_id)
        if gateway is None or gateway.hello.incarnation != request.incarnation or is_ended:
            # A gateway that is not known yet says hello within a second and asks again.
            self.num_dropped += 1
            return []
        return self._send(self.admission.ask(request, now), now)

    def _send(self, answers: list[Answer], now: float) -> list[Action]:
        """Answers to those who asked, also some time ago."""
        sent: list[Action] = []
        is_early = now - self.started < GRACE_S
        for request, answer in answers:
            self._note_arrival(request, answer, now)
            if is_early and isinstance(answer, PlaceRefused) and answer.code in FOR_LACK_OF_NODES:
                continue  # nodes are still coming back; the gateway asks again
            gateway = self.members.gateways.get(request.gateway_id)
            if gateway is not None:
                sent.append(Send(gateway.peer, answer))
        return sent

    def _note_arrival(self, request: Place, answer: Placed | PlaceRefused, now: float) -> None:
        """Tell the balancer of work that came, taken or not."""
        if isinstance(answer, Placed):
            self.balancing.placed(request, answer, now)
        elif answer.code == "overloaded" and request.attempt == 1:
            targets = self.sla.resolve(request.sla_class, request.ttft_ms, request.tpot_ms)
            self.balancing.shed(request, targets, now)

    def _ended(self, peer: bytes, report: RequestEnded, now: float) -> list[Action]:
        self.accounts.ended(report)
        self.balancing.ended(report)
        released = self._send(self.admission.ended(report, now), now)
        return [Send(peer, RequestEndedAck(request_id=report.request_id)), *released]

    def status(self, query: StatusQuery, now: float) -> ClusterStatus:
        """The state of everything, as far as one message takes it."""
        deployment = self.members.deployment
        nodes = after(self.members.nodes, query.after_node)
        gateways = after(self.members.gateways, query.after_gateway)
        return ClusterStatus(
            coordinator_incarnation=self.members.incarnation,
            uptime_s=max(0.0, now - self.started),
            model=None if deployment is None else deployment.model,
            nodes=tuple(
                node_status(node, self._caches.num_prefixes(node.ref.node_id), now)
                for node in nodes[:STATUS_NODES]
            ),
            gateways=tuple(gateway_status(each, now) for each in gateways[:STATUS_GATEWAYS]),
            classes=self.accounts.snapshot(),
            num_live_requests=len(self.placements),
            num_dropped_messages=self.num_dropped
            + self.members.num_bad_loads
            + self.admission.num_dropped,
            num_shed=self.admission.num_shed,
            num_queued=self.admission.num_held,
            decisions=self.balancing.decisions(now, STATUS_DECISIONS),
            downs=self.members.recent_downs(now)[-STATUS_DOWNS:],
            has_more=len(nodes) > STATUS_NODES or len(gateways) > STATUS_GATEWAYS,
        )
