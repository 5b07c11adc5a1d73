"""Which weights a node may be given, and how it is told. Pure.

A role closes with the order and opens when the node says that it has obeyed, so that requests are
placed only where they are served. The last node of a role keeps it, whoever asks.
"""

from coordinator.actions import Action, Send
from coordinator.compatibility import MAX_WEIGHT
from coordinator.members import Members, NodeRecord
from tandem.messages.membership import HeartbeatAck, RoleWeights, SetWeights

Role = str  # "prefill" or "decode"


def order_weights(members: Members, message: SetWeights) -> tuple[bool, str]:
    """Order what an operator asks for; whether it was taken, and a text for the operator."""
    node, weights = members.nodes.get(message.name), message.weights
    if node is None:
        return False, f"no node is called {message.name}: `tandem status` lists those there are"
    if not (weights.prefill or weights.decode):
        return False, (
            f"{message.name} would serve nothing: give one role a weight above 0, or let the node "
            f"leave with `tandem drain {message.name}`"
        )
    if max(weights.prefill, weights.decode) > MAX_WEIGHT:
        return False, f"weights are at most {MAX_WEIGHT:g}: they are shares of one node"
    if node.draining:
        return False, f"{message.name} drains: its roles do not matter any more"
    problem = explain_last(members, node, weights, force=message.force)
    if problem is not None:
        return False, problem
    if node.wanted == weights:
        return True, f"node {message.name} has or will have {describe(weights)}"
    before = node.wanted
    members.order_roles(node, weights)
    return True, f"node {message.name} turns from {describe(before)} to {describe(weights)}"


def explain_last(
    members: Members, node: NodeRecord, weights: RoleWeights, *, force: bool = False
) -> str | None:
    """Why a node may not have these weights: nobody else would serve a role that it loses.

    `force`: others that are slow, or that only turn to the role, count as well.
    """
    lost = [role for role in closes(node, weights) if not _others(members, node, role, force=force)]
    if not lost:
        return None
    roles = " and ".join(lost)
    advice = f"start another with scripts/launch_{lost[0]}, or give another node the role, first"
    if not force and all(_others(members, node, role, force=True) for role in lost):
        advice += "; --force: a slow node, or one that only turns to it, is enough"
    return f"{node.ref.node_id} is the last healthy node that serves {roles}: {advice}"


def closes(node: NodeRecord, weights: RoleWeights) -> list[Role]:
    """Roles that the node has or shall have, and would lose."""
    had = node.wanted
    roles = (("prefill", had.prefill, weights.prefill), ("decode", had.decode, weights.decode))
    return [role for role, before, after in roles if before > 0 and after == 0]


def _others(members: Members, node: NodeRecord, role: Role, *, force: bool) -> bool:
    return any(
        other is not node
        and not other.draining
        and getattr(other.wanted, role) > 0
        and (force or (getattr(other.weights, role) > 0 and not other.is_slow))
        for other in members.nodes.values()
    )


def tell_node(node: NodeRecord) -> list[Action]:
    """An order goes at once, with an acknowledgement that the node had; later ones repeat it."""
    if node.open_order is None:
        return []
    ack = HeartbeatAck(
        epoch=node.ref.epoch,
        sequence=node.last_sequence,
        drain=node.is_drain_ordered,
        roles=node.open_order,
    )
    return [Send(node.peer, ack)]


def takes_no_sequences(node: NodeRecord) -> bool:
    """Whether its decode role is closed while requests still run there, which may move away."""
    load = node.load
    is_closed = node.wanted.decode == 0 and not node.draining
    return is_closed and load is not None and load.num_decode_running + load.num_decode_waiting > 0


def describe(weights: RoleWeights) -> str:
    """`prefill`, `decode`, or both with their weights."""
    if weights.prefill and weights.decode:
        return f"both roles (prefill {weights.prefill:g}, decode {weights.decode:g})"
    return "prefill" if weights.prefill else "decode"
