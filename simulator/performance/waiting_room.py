"""Requests that wait at the coordinator for a node with room: its own queue and pace. Pure.

As `coordinator.admission`, whose queue and measure of pace these are; only the questions are made
here, and there is one tenant.
"""

from coordinator.admission import MAX_HOLD_S
from coordinator.queueing import HeldPlaces
from coordinator.shedding import RecentFlow
from scheduling.costs import prefill_s
from simulator.performance.requests import SimRequest
from tandem.frames import Blob
from tandem.messages.common import NodeCosts
from tandem.messages.placement import Place

INCARNATION = 1


class WaitingRoom:
    """At most `max_held` requests, each for as long as its first token can still be in time."""

    def __init__(self, costs: NodeCosts, chunk_tokens: int, max_held: int) -> None:
        self._costs = costs
        self._chunk_tokens = chunk_tokens
        self._held = HeldPlaces(max_held)
        self._requests: dict[bytes, SimRequest] = {}
        self._flow = RecentFlow()

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, request: SimRequest, now: float) -> float | None:
        """Until when it may wait; None where it could not be in time, or the room is full."""
        if self._held.is_full:
            return None
        own_s = prefill_s(self._costs, request.num_prompt, 0, self._chunk_tokens)
        due_at = now + min(max(0.0, request.ttft_s - own_s), MAX_HOLD_S)
        wait_s = self._flow.wait_s(self._held.num_ahead(0, due_at) + 1, now)
        if wait_s is None or now + wait_s > due_at:
            return None
        self._requests[request.key[0]] = request
        self._held.add(_question(request), due_at)
        return due_at

    def first(self) -> SimRequest | None:
        """Whose turn it is."""
        held = self._held.first(lambda request: True)
        return None if held is None else self._requests[held.request.request_id]

    def leave(self, request: SimRequest) -> None:
        """It was placed, or refused."""
        self._held.remove((INCARNATION, request.key[0]))
        del self._requests[request.key[0]]

    def overdue(self, now: float) -> list[SimRequest]:
        """Those that waited too long."""
        return [self._requests[held.request.request_id] for held in self._held.overdue(now)]

    def note_ended(self, now: float) -> None:
        """A request ended: there is room for another."""
        self._flow.note_ended(now)


def _question(request: SimRequest) -> Place:
    return Place(
        gateway_id="gateway",
        incarnation=INCARNATION,
        request_id=request.key[0],
        attempt=1,
        num_prompt_tokens=request.num_prompt,
        num_output_tokens=0,
        max_output_tokens=request.max_output,
        sla_class=request.sla_class,
        ttft_ms=request.ttft_s * 1e3,
        tpot_ms=request.tpot_s * 1e3,
        tenant="default",
        priority=0,
        prefix_hashes=Blob(b""),
    )
