"""Answers `Place` once per (gateway incarnation, request, attempt), and keeps the load. Pure."""

import math
from dataclasses import dataclass, replace

from coordinator.cache_index import PREFIX_BYTES, CacheIndex, split
from coordinator.candidates import make_candidate
from coordinator.members import Members, NodeRecord, Share
from coordinator.shedding import RecentFlow, TenantShares
from scheduling.routing.placement import Candidate, Demand, PlacementPolicy, Refusal
from scheduling.sla import SlaTable, UnknownSlaClass
from tandem.messages.placement import Place, Placed, PlaceRefused

RequestKey = tuple[int, bytes]  # gateway incarnation, request id
SUSPECT_DEATHS = 2
# A tenant below its share is still admitted until queues are this many times their limits.
ENTITLED_PATIENCE = 2.0


@dataclass(slots=True)
class _Placed:
    """The latest attempt of a live request and the share it has of its nodes."""

    gateway_id: str
    attempt: int
    answer: Placed
    tenant: str
    num_pages: int
    is_suspect: bool


class Placements:
    """Live placements. `sequence` (a request's age) is kept over its attempts and only grows."""

    def __init__(
        self,
        members: Members,
        caches: CacheIndex,
        policy: PlacementPolicy,
        sla: SlaTable,
        *,
        first_sequence: int,
    ) -> None:
        self._members = members
        self._caches = caches
        self._policy = policy
        self._sla = sla
        self._next_sequence = first_sequence
        self._live: dict[RequestKey, _Placed] = {}
        self._flow = RecentFlow()
        self._tenants = TenantShares()
        self.num_shed = 0

    def __len__(self) -> int:
        return len(self._live)

    def place(self, request: Place, now: float) -> Placed | PlaceRefused | None:
        """The answer; None for an attempt that a later one has replaced."""
        key = (request.incarnation, request.request_id)
        known = self._live.get(key)
        if known is not None and request.attempt <= known.attempt:
            return known.answer if request.attempt == known.attempt else None
        try:
            targets = self._sla.resolve(request.sla_class, request.ttft_ms, request.tpot_ms)
        except UnknownSlaClass as error:
            return _refused(request, Refusal("unknown_sla_class", str(error)))
        demand = self._demand(request)
        too_long = self._explain_context(demand)
        if too_long is not None:
            return _refused(request, too_long)
        candidates = self._candidates(request, demand)
        chosen = self._policy.route(demand, list(candidates.values()))
        if isinstance(chosen, Refusal):
            return _refused(request, self._with_retry(chosen, now))
        self.forget(key)
        prefill = self._members.nodes[chosen.prefill or chosen.decode]
        decode = self._members.nodes[chosen.decode]
        answer = Placed(
            request_id=request.request_id,
            attempt=request.attempt,
            prefill=None if chosen.prefill is None else prefill.ref,
            decode=decode.ref,
            targets=targets,
            sequence=self._take_sequence() if known is None else known.answer.sequence,
        )
        num_tokens = candidates[prefill.ref.node_id].num_new_tokens(demand)
        num_pages = candidates[decode.ref.node_id].num_new_pages(demand)
        if prefill is decode:
            self._share(request, decode, Share(now, num_tokens, 1, num_pages))
        else:
            self._share(request, prefill, Share(now, num_tokens, 0, 0))
            self._share(request, decode, Share(now, 0, 1, num_pages))
        self._remember(request, demand, answer, num_pages)
        return answer

    def _demand(self, request: Place) -> Demand:
        """What the request asks for. Fail-overs and moves are never shed: their work is begun."""
        patience = 1.0
        if request.attempt > 1 or request.move_from is not None:
            patience = math.inf
        elif self._is_entitled(request):
            patience = ENTITLED_PATIENCE
        return Demand(
            num_prompt_tokens=request.num_prompt_tokens,
            num_output_tokens=request.num_output_tokens,
            max_output_tokens=request.max_output_tokens,
            patience=patience,
            avoid=request.avoid,
            is_suspect=request.num_deaths >= SUSPECT_DEATHS,
            move_from=request.move_from,
        )

    def _is_entitled(self, request: Place) -> bool:
        """Whose tenant has less than its share; and who goes on from another gateway, as they say:
        a claim, so it buys no more than that."""
        is_below = self._tenants.is_below(request.tenant, request.tenant_weight)
        return is_below or request.num_output_tokens > 0

    def _candidates(self, request: Place, demand: Demand) -> dict[str, Candidate]:
        deployment = self._members.deployment
        prefixes: list[bytes] = []
        if deployment is not None and deployment.layout is not None:
            num_pages = demand.num_prefill_tokens // deployment.layout.page_size
            prefixes = split(request.prefix_hashes.data[: num_pages * PREFIX_BYTES])
        return {
            node_id: make_candidate(record, self._caches.match(prefixes, node_id))
            for node_id, record in self._members.nodes.items()
        }

    def _with_retry(self, refusal: Refusal, now: float) -> Refusal:
        if refusal.code != "overloaded":
            return refusal
        self.num_shed += 1
        self._flow.note_shed(now)
        return replace(refusal, retry_after_s=self._flow.retry_after_s(now))

    def _explain_context(self, demand: Demand) -> Refusal | None:
        deployment = self._members.deployment
        if deployment is None or deployment.layout is None:
            return None
        limit = deployment.model.max_model_len
        if demand.num_total_tokens <= limit:
            return None
        return Refusal(
            "context_too_long",
            f"prompt ({demand.num_prompt_tokens} tokens) and output (up to "
            f"{demand.max_output_tokens}) need {demand.num_total_tokens} tokens, and the nodes "
            f"have a context of {limit}: shorten the prompt, lower max_tokens, or start the nodes "
            "with a higher --max-model-len",
        )

    def _take_sequence(self) -> int:
        self._next_sequence += 1
        return self._next_sequence

    def _remember(self, request: Place, demand: Demand, answer: Placed, num_pages: int) -> None:
        placed = _Placed(
            gateway_id=request.gateway_id,
            attempt=request.attempt,
            answer=answer,
            tenant=request.tenant,
            num_pages=num_pages,
            is_suspect=demand.is_suspect,
        )
        self._live[(request.incarnation, request.request_id)] = placed
        self._tenants.add(request.tenant, request.tenant_weight)
        self._count_live(placed, 1)

    def _count_live(self, placed: _Placed, sign: int) -> None:
        """Add a request to its decode node's live work, or take it off."""
        node = self._members.nodes.get(placed.answer.decode.node_id)
        if node is None or node.ref.epoch != placed.answer.decode.epoch:
            return
        node.live.num_sequences += sign
        node.live.num_pages += sign * placed.num_pages
        node.live.num_suspects += sign * placed.is_suspect

    def _share(self, request: Place, node: NodeRecord, share: Share) -> None:
        node.recent[(request.request_id, request.incarnation)] = share
        node.num_placed += 1

    def ended(self, key: RequestKey, now: float) -> None:
        """A request ended: there is room for another."""
        if self.forget(key):
            self._flow.note_ended(now)

    def forget(self, key: RequestKey) -> bool:
        """A request is over or is placed anew: free its share of its nodes; False: not known."""
        known = self._live.pop(key, None)
        if known is None:
            return False
        self._tenants.remove(known.tenant)
        self._count_live(known, -1)
        for ref in (known.answer.prefill, known.answer.decode):
            node = None if ref is None else self._members.nodes.get(ref.node_id)
            if node is not None:
                node.recent.pop((key[1], key[0]), None)
        return True

    def forget_gateway(self, gateway_id: str) -> int:
        """A gateway is gone and its requests with it; returns how many."""
        gone = [key for key, placed in self._live.items() if placed.gateway_id == gateway_id]
        for key in gone:
            self.forget(key)
        return len(gone)


def _refused(request: Place, refusal: Refusal) -> PlaceRefused:
    return PlaceRefused(
        request_id=request.request_id,
        attempt=request.attempt,
        code=refusal.code,
        message=refusal.message,
        retry_after_s=refusal.retry_after_s,
    )
