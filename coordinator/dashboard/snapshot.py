"""The coordinator's state at one instant, as operators see it. Pure."""

from collections.abc import Sequence

from coordinator.core import Coordinator
from coordinator.dashboard.meters import NodeMeters, NodePace, RequestMeter
from coordinator.members import SAID_GOODBYE, GatewayRecord, NodeRecord
from tandem.messages.membership import NodeLoad, RoleWeights
from tandem.messages.operations import (
    SNAPSHOT_VERSION,
    Balance,
    ClassVerdict,
    Event,
    GatewayView,
    LiveView,
    NodeView,
    Rates,
    Snapshot,
)

MAX_LIVE = 200  # the oldest; `num_live` counts all


def role_of(weights: RoleWeights) -> str:
    """What the weights make of a node."""
    if weights.prefill and weights.decode:
        return "mixed"
    if weights.prefill:
        return "prefill"
    return "decode" if weights.decode else "closed"


def node_view(node: NodeRecord, pace: NodePace, now: float, *, state: str = "") -> NodeView:
    """One node; `state` where its record does not say it."""
    load = node.load
    useful_share = None if load is None else _useful_share(load, node.hello.layout.page_size)
    return NodeView(
        node_id=node.ref.node_id,
        role=role_of(node.weights),
        state=state or _state_of(node),
        weights=node.weights,
        device=node.hello.device,
        epoch=node.ref.epoch,
        heartbeat_age_s=max(0.0, now - node.last_seen),
        num_pages=node.hello.num_pages,
        pages=None if load is None else load.pages,
        useful_share=useful_share,
        last_page_waste=None if useful_share is None else 1.0 - useful_share,
        busy_share=pace.busy_share,
        num_prefill_waiting=0 if load is None else load.num_prefill_waiting,
        num_prefill_tokens_waiting=0 if load is None else load.num_prefill_tokens_waiting,
        num_decode_running=0 if load is None else load.num_decode_running,
        num_decode_waiting=0 if load is None else load.num_decode_waiting,
        num_transfers=0 if load is None else load.num_transfers,
        tokens_per_s=pace.tokens_per_s,
        transfer_bytes_per_s=pace.transfer_bytes_per_s,
        num_transfers_done=0 if load is None else load.num_transfers_done,
        num_transfers_failed=0 if load is None else load.num_transfers_failed,
        num_preempted=0 if load is None else load.num_preempted,
        costs=None if load is None else load.costs,
    )


def _state_of(node: NodeRecord) -> str:
    if node.draining:
        return "draining"
    return "slow" if node.is_slow else "ok"


def _useful_share(load: NodeLoad, page_size: int) -> float | None:
    if load.num_held_pages == 0:
        return None
    return min(1.0, load.num_held_tokens / (load.num_held_pages * page_size))


def gateway_view(gateway: GatewayRecord, now: float) -> GatewayView:
    """One gateway."""
    is_draining = gateway.is_drain_ordered or gateway.hello.is_draining
    return GatewayView(
        gateway_id=gateway.hello.gateway_id,
        state="draining" if is_draining else "ok",
        num_live_requests=gateway.hello.num_live_requests,
        heartbeat_age_s=max(0.0, now - gateway.last_seen),
    )


def balance_view(core: Coordinator, now: float) -> Balance:
    """Roles now, and the last word on them."""
    roles = [role_of(node.weights) for node in core.members.nodes.values() if not node.draining]
    return Balance(
        mode=core.balancing.mode,
        num_prefill=roles.count("prefill"),
        num_decode=roles.count("decode"),
        num_mixed=roles.count("mixed"),
        explanation=_explain_balance(core, now),
        cooldown_s=core.balancing.cooldown_s(now),
    )


def _explain_balance(core: Coordinator, now: float) -> str:
    if core.balancing.mode == "off":
        return "roles stay as they are: --balance off"
    last = core.balancing.decisions(now, 1)
    if not last:
        return "no change of roles was called for since the coordinator started"
    return f"{last[0].age_s:.0f} s ago: {last[0].kind}: {last[0].message}"


def rates_of(meter: RequestMeter, output_tokens_per_s: float) -> Rates:
    """Over the last ten seconds."""
    return Rates(
        requests=meter.per_s("requests"),
        goodput=meter.per_s("goodput"),
        output_tokens=output_tokens_per_s,
        input_tokens=meter.per_s("input_tokens"),
        shed=meter.per_s("shed"),
        failed=meter.per_s("failed"),
    )


class Surveyor:
    """Makes snapshots. Nodes that went down are shown for a minute more."""

    def __init__(self, core: Coordinator) -> None:
        self._core = core
        self._meters = NodeMeters()
        self._known: dict[str, NodeRecord] = {}
        self.nodes: tuple[NodeView, ...] = ()

    def look(self, now: float) -> None:
        """Look at all nodes; once per second."""
        members = self._core.members
        self._meters.sample(members.nodes.values())
        downs = {down.node_id: down for down in members.recent_downs(now)}
        self._known = {name: node for name, node in self._known.items() if name in downs}
        self._known |= members.nodes
        self.nodes = tuple(
            node_view(node, self._meters.pace(node, now), now)
            if name in members.nodes
            else node_view(node, NodePace(), now, state="down")
            for name, node in sorted(self._known.items())
            if name in members.nodes or not _has_left(downs[name].reason)
        )

    @property
    def living(self) -> list[NodeView]:
        """Nodes that are members, as of the last look."""
        return [node for node in self.nodes if node.state != "down"]

    @property
    def output_tokens_per_s(self) -> float:
        """Of nodes that decode: they repeat the first token, which prefill nodes send."""
        decoding = [n for n in self.living if n.role != "prefill" or n.num_decode_running]
        return sum(node.tokens_per_s for node in decoding)

    def snapshot(
        self,
        *,
        now: float,
        unix_s: float,
        classes: Sequence[ClassVerdict],
        meter: RequestMeter,
        live: Sequence[LiveView],
        num_live: int,
        events: Sequence[Event],
    ) -> Snapshot:
        """All of it."""
        core = self._core
        deployment = core.members.deployment
        gateways = core.members.gateways
        return Snapshot(
            version=SNAPSHOT_VERSION,
            unix_s=unix_s,
            coordinator_incarnation=core.members.incarnation,
            uptime_s=max(0.0, now - core.started),
            model=None if deployment is None else deployment.model.served_name,
            max_model_len=None if deployment is None else deployment.model.max_model_len,
            classes=tuple(classes),
            balance=balance_view(core, now),
            rates=rates_of(meter, self.output_tokens_per_s),
            nodes=self.nodes,
            gateways=tuple(gateway_view(gateways[name], now) for name in sorted(gateways)),
            live=tuple(live),
            num_live=num_live,
            num_queued=core.admission.num_held,
            events=tuple(events),
        )


def _has_left(reason: str) -> bool:
    """Whether a node went as it was told to."""
    return reason == SAID_GOODBYE
