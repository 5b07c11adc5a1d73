"""Which running request should move to which decode node, for balance. Pure.

The rule of Llumnix (OSDI 2024): a node's freeness is the pages that it has left, after those that
wait got theirs, per running request; the least free node is paired with the freest one, and its
shortest request moves where that narrows the gap between the two. A move costs a step or two of the
request, so the least free node must be short of pages in earnest, and the other one must not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Llumnix's threshold is 3 blocks per running request; below it the next steps run out of pages.
SHORT_OF_PAGES = 3.0
PLENTY_FACTOR = 4.0


@dataclass(frozen=True, slots=True)
class DecodeState:
    """A decode node that takes new sequences.

    num_free_pages: free or only cached, less what its waiting requests will need (may be negative).
    """

    node_id: str
    num_free_pages: int
    num_running: int
    num_rows: int

    def freeness(self, num_more_pages: int = 0, num_more: int = 0) -> float:
        """Free pages per running request, with a request more or less."""
        return (self.num_free_pages - num_more_pages) / max(1, self.num_running + num_more)


@dataclass(frozen=True, slots=True)
class Movable:
    """A request that decodes on a node, and the pages that it has or is promised."""

    request_id: bytes
    attempt: int
    num_pages: int


def pick_pair(nodes: Sequence[DecodeState]) -> tuple[DecodeState, DecodeState] | None:
    """The least free and the freest node, where the one is short of pages and the other is not."""
    busy = [node for node in nodes if node.num_running > 1]
    open_nodes = [node for node in nodes if node.num_running < node.num_rows]
    if not busy or not open_nodes:
        return None
    source = min(busy, key=lambda n: (n.freeness(), n.node_id))
    target = max(open_nodes, key=lambda n: (n.freeness(), n.node_id))
    is_short = source.freeness() < SHORT_OF_PAGES
    has_plenty = target.freeness() >= PLENTY_FACTOR * SHORT_OF_PAGES
    return (source, target) if is_short and has_plenty and source is not target else None


def pick_request(
    source: DecodeState, target: DecodeState, requests: Iterable[Movable]
) -> Movable | None:
    """The shortest request of `source`, where its move narrows the gap and leaves `target` well."""
    shortest = min(requests, key=lambda r: (r.num_pages, r.request_id), default=None)
    if shortest is None:
        return None
    gap = target.freeness() - source.freeness()
    left, taken = source.freeness(-shortest.num_pages, -1), target.freeness(shortest.num_pages, 1)
    is_better = abs(taken - left) < gap and taken >= SHORT_OF_PAGES
    return shortest if is_better else None
