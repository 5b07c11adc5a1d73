"""The simulated deployment: arrivals, placement by the production policy, hand-offs, ends.

Equal times are in a fixed order, so equal scenarios give equal results: what arrives first, then
the steps that end, by node.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import Any

from scheduling.routing.placement import Demand, PlacementPolicy, Refusal
from simulator.performance.balancing import SimBalancing
from simulator.performance.candidates import BlockHolders, CandidatePool, Loads
from simulator.performance.foresight import Foresight
from simulator.performance.links import Links
from simulator.performance.meters import Meters
from simulator.performance.node import SimNode
from simulator.performance.profiles import Profile
from simulator.performance.requests import Phase, Resident, SimRequest
from simulator.performance.waiting_room import WaitingRoom

PROGRESS_REQUESTS = 500
OBEY_S = 0.2  # from an order of roles to the heartbeat that says it is obeyed
OVERDUE_S = 1e-9  # who may wait until a time is overdue after it
_EVENT, _STEP = 0, 1  # order at equal times


class Cluster:
    """Nodes, links and the requests among them. A `World` of its nodes."""

    def __init__(
        self,
        profile: Profile,
        meters: Meters,
        policy: PlacementPolicy,
        room: WaitingRoom,
        *,
        balancing: SimBalancing | None = None,
        foresight: Foresight | None = None,
    ) -> None:
        self.now = 0.0
        self.meters = meters
        self.nodes: list[SimNode] = []
        self.num_events = 0
        self._profile = profile
        self._policy = policy
        self._room = room
        self._balancing = balancing
        self._foresight = foresight
        self._num_open = 0  # requests that have not ended
        self._pool: CandidatePool | None = None
        self._loads = Loads.none(0)
        self._links = Links(profile, 0)
        self._heap: list[tuple[float, int, int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._num_scheduled = 0
        self._num_placed = 0
        # Decode nodes' reserves that wait for pages: by age, as `kv_transfer.incoming` grants them.
        self._reserves: list[list[tuple[int, int, Resident]]] = []
        self._expected: dict[int, Resident] = {}  # by request, on its decode node

    def start(
        self, nodes: Sequence[SimNode], holders: BlockHolders, max_candidates: int | None
    ) -> None:
        """All nodes serve."""
        self.nodes = list(nodes)
        self._loads = Loads.none(len(nodes))
        self._pool = CandidatePool(nodes, self._loads, holders, max_candidates)
        self._links = Links(self._profile, len(nodes))
        self._reserves = [[] for _ in nodes]
        if self._balancing is not None:
            self._balancing.start(self.nodes, self._loads)
            self._after(self._balancing.next_at, self._balance)

    @property
    def num_shipped_bytes(self) -> int:
        """KV that went from node to node."""
        return self._links.num_bytes

    def run(
        self,
        requests: Sequence[SimRequest],
        until: float,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        """Serve them all; stop at `until` at the latest. `progress`: arrived, of how many."""
        self._num_open = len(requests)
        arrivals = iter(requests)
        upcoming = next(arrivals, None)
        while True:
            next_at = self._heap[0][0] if self._heap else None
            if upcoming is not None and (next_at is None or upcoming.arrived_at <= next_at):
                if upcoming.arrived_at > until:
                    return
                self.now = upcoming.arrived_at
                self._arrive(upcoming, self.now)
                if progress is not None and upcoming.index % PROGRESS_REQUESTS == 0:
                    progress(upcoming.index, len(requests))
                upcoming = next(arrivals, None)
                continue
            if next_at is None or next_at > until:
                return
            self.now, _, _, _, callback, arguments = heapq.heappop(self._heap)
            self.num_events += 1
            callback(*arguments, self.now)

    def at(self, time: float, node: int, step: int) -> None:
        """See `World`."""
        self._push(time, _STEP, node, self.nodes[node].due, (step,))

    def _after(self, time: float, callback: Callable[..., None], *arguments: object) -> None:
        self._push(time, _EVENT, 0, callback, arguments)

    def _push(
        self,
        time: float,
        kind: int,
        node: int,
        callback: Callable[..., None],
        arguments: tuple[Any, ...],
    ) -> None:
        self._num_scheduled += 1
        heapq.heappush(self._heap, (time, kind, node, self._num_scheduled, callback, arguments))

    # --- roles ------------------------------------------------------------------------------

    def _balance(self, now: float) -> None:
        """A role is closed with the order, and open once the node has obeyed."""
        assert self._balancing is not None and self._pool is not None, "asked for by `start`"
        for change in self._balancing.decide(now):
            weights = (change.prefill_weight, change.decode_weight)
            node = self._pool.index(change.node_id)
            self._pool.close(node, weights)
            self._after(now + OBEY_S, self._obey, node, weights)
        if self._num_open:
            self._after(self._balancing.next_at, self._balance)

    def _obey(self, node: int, weights: tuple[float, float], now: float) -> None:
        assert self._pool is not None, "not started"
        self.nodes[node].turn(*weights, now)
        self._pool.open(node)
        self._release(now)

    # --- placement --------------------------------------------------------------------------

    def _arrive(self, request: SimRequest, now: float) -> None:
        """As `coordinator.admission.ask`: nobody goes past those that wait."""
        if len(self._room) and self._hold(request, now):
            self._release(now)
            return
        refusal = self._place(request, now)
        if refusal is not None and not (refusal.can_wait and self._hold(request, now)):
            self._refuse(request, refusal.code)

    def _hold(self, request: SimRequest, now: float) -> bool:
        due_at = self._room.hold(request, now)
        if due_at is None:
            return False
        self._after(due_at + OVERDUE_S, self._release)
        return True

    def _release(self, now: float) -> None:
        """As `coordinator.admission.release`: place in turn while there is room."""
        for request in self._room.overdue(now):
            self._room.leave(request)
            self._refuse(request, "overloaded")
        while (first := self._room.first()) is not None:
            refusal = self._place(first, now)
            if refusal is not None and refusal.can_wait:
                return
            self._room.leave(first)
            if refusal is not None:
                self._refuse(first, refusal.code)

    def _refuse(self, request: SimRequest, code: str) -> None:
        request.refusal = code
        request.num_ends += 1
        self._num_open -= 1
        if self._balancing is not None and code == "overloaded":
            self._balancing.arrived(request, None, self.now)

    def _place(self, request: SimRequest, now: float) -> Refusal | None:
        """Place it; why not, where there is no room."""
        demand = Demand(
            num_prompt_tokens=request.num_prompt,
            num_output_tokens=0,
            max_output_tokens=request.max_output,
            ttft_s=request.ttft_s,
            tpot_s=request.tpot_s,
            waited_s=now - request.arrived_at,
        )
        pool = self._pool
        assert pool is not None, "not started"
        candidates = pool.candidates(request)
        placement = self._policy.route(demand, candidates)
        if self._foresight is not None and not isinstance(placement, Refusal):
            placement = self._foresight.judge(request, demand, placement, candidates, now)
        if isinstance(placement, Refusal):
            return placement
        self._num_placed += 1
        by_name = {c.node_id: c for c in candidates}
        prefill_name = placement.prefill or placement.decode
        decode, prefill = pool.index(placement.decode), pool.index(prefill_name)
        resident = Resident(
            request=request,
            age=self._num_placed,
            arrived_at=now + 3 * self._profile.control_s,  # to the coordinator, back, to the node
            phase=Phase.EXPECTED,
            num_tokens=request.num_prompt,
            decode=None if placement.prefill is None else decode,
            prefill=prefill,
            num_todo=by_name[prefill_name].num_new_tokens(demand),
            num_placed_pages=by_name[placement.decode].num_new_pages(demand),
        )
        pool.placed(resident, prefill, decode)
        if self._balancing is not None:
            self._balancing.arrived(request, resident.num_todo, now)
        self._after(resident.arrived_at, self._deliver, resident)
        return None

    def _deliver(self, resident: Resident, now: float) -> None:
        assert resident.prefill is not None
        if resident.decode is not None:
            self._expected[resident.request.index] = Resident(
                request=resident.request,
                age=resident.age,
                arrived_at=now,
                phase=Phase.EXPECTED,
                num_tokens=resident.num_tokens,
                prefill=resident.prefill,
                num_placed_pages=resident.num_placed_pages,
            )
        self.nodes[resident.prefill].enqueue(resident, now)

    # --- the hand-off -----------------------------------------------------------------------

    def reserve(self, source: int, resident: Resident, now: float) -> None:
        """See `World`. The answer is there after a round trip."""
        assert resident.decode is not None
        owner = self.nodes[resident.decode]
        expected = self._expected[resident.request.index]
        if owner.residency.claim(expected, with_growth=True):
            self._after(now + 2 * self._profile.control_s, self._granted, source, resident)
            return
        node = self.nodes[source]
        node.give_back(resident, now)
        resident.num_computed = 0
        node.todo_changed(resident)
        node.set_phase(resident, Phase.PARKED)
        entry = (resident.age, resident.request.index, resident)
        heapq.heappush(self._reserves[owner.index], entry)

    def pages_freed(self, node: int, now: float) -> None:
        """See `World`. Reserves are granted in the order of age, none past one that must wait."""
        queue = self._reserves[node]
        while queue:
            resident = queue[0][2]
            if not self.nodes[node].residency.claim(
                self._expected[resident.request.index], with_growth=True
            ):
                return
            heapq.heappop(queue)
            assert resident.prefill is not None
            at = now + self._profile.control_s
            self._after(at, self._granted_late, resident.prefill, resident)

    def _granted_late(self, source: int, resident: Resident, now: float) -> None:
        self.nodes[source].set_phase(resident, Phase.GRANTED)
        self.nodes[source].poke(now)

    def _granted(self, source: int, resident: Resident, now: float) -> None:
        """Both sides have pages: read what of the prefix is cheaper to read, then run."""
        node = self.nodes[source]
        read_at = self._read(node, resident, now)
        if read_at > now:
            self._after(read_at, self._runnable, source, resident)
        else:
            self._runnable(source, resident, now)

    def _read(self, node: SimNode, resident: Resident, now: float) -> float:
        """When a prefix that only the owner has is here; now where computing it is cheaper."""
        assert resident.decode is not None
        expected = self._expected[resident.request.index]
        num_owner = len(expected.blocks) * node.settings.block_tokens
        num_tokens = num_owner - resident.num_computed
        if num_tokens <= 0 or self._profile.transfer_bytes_per_s <= 0:
            return now
        num_bytes = num_tokens * self._profile.kv_bytes_per_token
        costs = self._profile.costs
        read_s = self._profile.transfer_s + num_bytes / self._profile.transfer_bytes_per_s
        if read_s >= costs.prefill_token_s * num_tokens:
            return now
        resident.num_computed = resident.request.num_cached = num_owner
        node.todo_changed(resident)
        resident.changed()
        return self._links.ship(resident.decode, node.index, [(now, num_bytes)])

    def _runnable(self, source: int, resident: Resident, now: float) -> None:
        self.nodes[source].set_phase(resident, Phase.RUNNABLE)
        self.nodes[source].poke(now)

    def computed(self, source: int, resident: Resident, now: float) -> None:
        """See `World`."""
        request = resident.request
        assert resident.decode is not None
        if resident.num_left_to_draw == 0:
            expected = self._expected.pop(request.index)
            owner = self.nodes[resident.decode]
            expected.phase = Phase.GONE
            owner.give_back(expected, now)
            self.nodes[source].give_back(resident, now)
            self.ended(owner.index, expected, now)
            owner.poke(now)
            return
        done_at = self._links.ship(source, resident.decode, self._chunks(source, resident))
        self._after(done_at, self._arrived, source, resident)

    def _chunks(self, source: int, resident: Resident) -> list[tuple[float, int]]:
        """When pages were full, and their bytes; what the decode node has is not shipped."""
        expected = self._expected[resident.request.index]
        node = self.nodes[source]
        sent = len(expected.blocks) * node.pages.block_pages
        chunks = []
        for at, num_computed in resident.chunks:
            num_pages = num_computed // self._profile.page_size
            if num_computed == resident.num_computed:
                num_pages = node.residency.num_pages(num_computed)  # the last page goes as it is
            if num_pages > sent:
                chunks.append((at, (num_pages - sent) * self._profile.page_bytes))
                sent = num_pages
        return chunks or [(resident.chunks[-1][0], 0)]

    def _arrived(self, source: int, resident: Resident, now: float) -> None:
        """All pages are at the decode node."""
        assert resident.decode is not None
        expected = self._expected.pop(resident.request.index)
        owner = self.nodes[resident.decode]
        expected.num_tokens = resident.num_tokens
        expected.num_computed = resident.num_computed
        expected.changed()
        owner.residency.publish(expected)
        owner.set_phase(expected, Phase.WAITING)
        owner.poke(now)
        self.nodes[source].give_back(resident, now)
        self.nodes[source].poke(now)

    def prompt_computed(self, node: int) -> None:
        """See `World`."""
        self._loads.prompts[node] -= 1

    def todo_changed(self, node: int, num_tokens: int) -> None:
        """See `World`."""
        self._loads.prompt_tokens[node] += num_tokens

    def ended(self, node: int, resident: Resident, now: float) -> None:
        """See `World`."""
        request = resident.request
        request.finished_at = now
        request.num_ends += 1
        assert self._pool is not None, "not started"
        self._pool.ended(resident, node)
        self._num_open -= 1
        if self._balancing is not None:
            self._balancing.ended(request.num_output)
        if self._foresight is not None:
            self._foresight.ended(request)
        self._room.note_ended(now)
        if len(self._room):
            self._release(now)
