"""How much of the KV pools holds live requests. Pure."""

from collections.abc import Iterable

from coordinator.members import PAGE_STATES, NodeRecord
from tandem.messages.membership import NodeLoad


def used_share(load: NodeLoad) -> float:
    """Of the pool: what is neither free nor cache that may be evicted."""
    num_used, num_pages = _used_and_all(load)
    return num_used / num_pages if num_pages else 0.0


def used_share_of_all(nodes: Iterable[NodeRecord]) -> float | None:
    """Of the pools together; None before the first heartbeat."""
    loads = [node.load for node in nodes if node.load is not None]
    pairs = [_used_and_all(load) for load in loads]
    num_pages = sum(num for _, num in pairs)
    return sum(num for num, _ in pairs) / num_pages if num_pages else None


def _used_and_all(load: NodeLoad) -> tuple[int, int]:
    num_pages = sum(getattr(load.pages, state) for state in PAGE_STATES)
    return num_pages - load.pages.free - load.pages.cached, num_pages
