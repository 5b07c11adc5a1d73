"""What operators are told of members, in pieces that fit one message. Pure."""

from typing import TypeVar

from coordinator.members import GatewayRecord, NodeRecord
from tandem.messages.membership import GatewayStatus, LinkReport, NodeStatus

# With the longest names and addresses a node takes about 1.5 kB with its costs and 0.4 kB for each
# of its links, a gateway 0.3 kB, a down 2.4 kB at the longest reason and a decision 0.6 kB: they
# are together under the 64 KiB of a message.
STATUS_NODES = 10
STATUS_LINKS = 5
STATUS_GATEWAYS = 24
STATUS_DOWNS = 5
STATUS_DECISIONS = 8

T = TypeVar("T")


def after(members: dict[str, T], name: str | None) -> list[T]:
    """The members after `name`, in the order of their names; all of them after None."""
    return [members[each] for each in sorted(members) if name is None or each > name]


def node_status(record: NodeRecord, num_cached_prefixes: int, now: float) -> NodeStatus:
    """One node as an operator sees it."""
    return NodeStatus(
        node_id=record.ref.node_id,
        epoch=record.ref.epoch,
        weights=record.weights,
        control_address=record.ref.control_address,
        device=record.hello.device,
        num_pages=record.hello.num_pages,
        heartbeat_age_s=max(0.0, now - record.last_seen),
        draining=record.draining,
        load=record.load,
        is_slow=record.is_slow,
        num_cached_prefixes=num_cached_prefixes,
        links=tuple(sorted(record.links, key=_health)[:STATUS_LINKS]),
        num_links=len(record.links),
    )


def _health(link: LinkReport) -> tuple[bool, float]:
    """Links that do not work come first, then the slowest."""
    return link.transport is not None, link.bytes_per_s


def gateway_status(record: GatewayRecord, now: float) -> GatewayStatus:
    """One gateway as an operator sees it."""
    return GatewayStatus(
        gateway_id=record.hello.gateway_id,
        num_live_requests=record.hello.num_live_requests,
        heartbeat_age_s=max(0.0, now - record.last_seen),
        draining=record.is_drain_ordered or record.hello.is_draining,
    )
