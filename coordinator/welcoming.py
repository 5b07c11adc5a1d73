"""What gateways are told of the deployment, in answer to every hello. Pure."""

from coordinator.members import GatewayRecord, Members
from coordinator.pool_use import used_share_of_all
from coordinator.roles import takes_no_sequences
from scheduling.sla import SlaTable
from tandem.messages.placement import GatewayWelcome

MAX_DRAINING = 256  # as many as a welcome may name


def gateway_welcome(
    members: Members, sla: SlaTable, gateway: GatewayRecord, now: float
) -> GatewayWelcome:
    """The classes on offer and the state of the pools."""
    nodes = members.nodes.values()
    deployment = members.deployment
    model = layout = None
    if deployment is not None and deployment.layout is not None:
        model, layout = deployment.model, deployment.layout
    draining = [node.ref.node_id for node in nodes if node.draining]
    closed = [node.ref.node_id for node in nodes if takes_no_sequences(node)]
    return GatewayWelcome(
        coordinator_incarnation=members.incarnation,
        sla_classes=tuple(each.targets for each in sla.classes.values()),
        default_class=sla.default,
        num_prefill_nodes=sum(node.does_prefill for node in nodes),
        num_decode_nodes=sum(node.does_decode for node in nodes),
        max_model_len=None if model is None else model.max_model_len,
        page_size=None if layout is None else layout.page_size,
        kv_dtype=None if layout is None else layout.dtype,
        draining_nodes=tuple(draining[:MAX_DRAINING]),
        closed_decodes=tuple(closed[:MAX_DRAINING]),
        drain=gateway.is_drain_ordered,
        recent_downs=members.recent_downs(now),
        num_pages=sum(node.hello.num_pages for node in nodes),
        kv_used_share=used_share_of_all(nodes),
    )
