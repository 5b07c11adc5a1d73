"""An operator's order that a member finish what it has and leave. Pure."""

from coordinator.members import Members, NodeRecord
from tandem.messages.membership import DrainMember


def order_drain(members: Members, order: DrainMember) -> tuple[bool, str]:
    """Note the order in the member's record; whether it was taken, and a text for the operator."""
    node = members.nodes.get(order.name)
    if node is not None:
        return _drain_node(members, node, order)
    gateway = members.gateways.get(order.name)
    if gateway is None:
        return False, (
            f"no node or gateway is called {order.name}: `tandem status` lists those there are"
        )
    gateway.is_drain_ordered = True
    return True, f"gateway {order.name} drains: it takes nothing new, and leaves when it is done"


def _drain_node(members: Members, node: NodeRecord, order: DrainMember) -> tuple[bool, str]:
    if node.draining:
        members.order_drain(node)  # it may have begun by itself; the order outlives its epoch
        return True, f"node {order.name} drains already"
    last = [
        role
        for role, serves in (("prefill", node.does_prefill), ("decode", node.does_decode))
        if serves and not _others_serve(members, node, role)
    ]
    if last and not order.force:
        starts = " and ".join(f"scripts/launch_{role}" for role in last)
        return False, (
            f"{order.name} is the last node that serves {' and '.join(last)}: start another with "
            f"{starts} first, or drain it all the same with --force"
        )
    members.order_drain(node)
    return True, f"node {order.name} drains: no new work for it, and what it has may move"


def _others_serve(members: Members, node: NodeRecord, role: str) -> bool:
    return any(
        other.does_prefill if role == "prefill" else other.does_decode
        for other in members.nodes.values()
        if other is not node
    )
