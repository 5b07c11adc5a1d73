"""Running requests leave decode nodes that are short of pages: one wish at a time. Pure.

A wish is a `MoveRequest` to the request's gateway, which begins a move or lets it be.
"""

from coordinator.members import Members, NodeRecord
from coordinator.placements import Placements
from scheduling.migration import DecodeState, Movable, pick_pair, pick_request

PERIOD_S = 1.0  # a node's next heartbeats show what a move changed
COOL_DOWN_S = 30.0  # of a request that moved
MAX_REMEMBERED = 4096


class Migrating:
    """See the module."""

    def __init__(self, members: Members, placements: Placements, *, is_on: bool) -> None:
        self._members = members
        self._placements = placements
        self._is_on = is_on
        self._next_at = 0.0
        self._moved_at: dict[bytes, float] = {}

    def tick(self, now: float) -> tuple[str, Movable, str] | None:
        """A request to move: its gateway, itself, and why. None: nobody should."""
        if not self._is_on or now < self._next_at:
            return None
        self._next_at = now + PERIOD_S
        nodes = [n for n in self._members.nodes.values() if n.does_decode and n.load is not None]
        pair = pick_pair([_state(node) for node in nodes])
        if pair is None:
            return None
        source, target = pair
        owners = {
            request.request_id: (gateway_id, request)
            for gateway_id, request in self._placements.decoding_on(source.node_id)
            if now - self._moved_at.get(request.request_id, -COOL_DOWN_S) >= COOL_DOWN_S
        }
        chosen = pick_request(source, target, (request for _, request in owners.values()))
        if chosen is None:
            return None
        self._note(chosen.request_id, now)
        text = (
            f"a request of {chosen.num_pages} pages should leave {source.node_id}, which has "
            f"{source.freeness():.1f} free pages per request, for one like {target.node_id} with "
            f"{target.freeness():.1f}"
        )
        return owners[chosen.request_id][0], chosen, text

    def _note(self, request_id: bytes, now: float) -> None:
        self._moved_at.pop(request_id, None)
        self._moved_at[request_id] = now
        if len(self._moved_at) > MAX_REMEMBERED:
            del self._moved_at[next(iter(self._moved_at))]


def _state(node: NodeRecord) -> DecodeState:
    load = node.load
    assert load is not None, "asked for nodes that have beaten"
    num_free = load.pages.free + load.pages.cached
    # Promised to live requests, waiting ones and those on their way included, and not yet taken.
    num_due = node.live.num_pages - (node.hello.num_pages - num_free)
    return DecodeState(
        node_id=node.ref.node_id,
        num_free_pages=num_free - max(0, num_due),
        num_running=load.num_decode_running,
        num_rows=node.hello.max_num_seqs,
    )
