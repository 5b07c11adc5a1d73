"""Answers `Place` once per (gateway incarnation, request, attempt), and keeps the load. Pure."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from coordinator.cache_index import PREFIX_BYTES, CacheIndex, split
from coordinator.candidates import Candidates
from coordinator.forecast import Forecast
from coordinator.members import Members, NodeRecord, Share
from coordinator.shedding import TenantShares
from scheduling.migration import Movable
from scheduling.routing.early_rejection import Admitted, EarlyRejection
from scheduling.routing.estimates import own_prefill_s, predict
from scheduling.routing.placement import Candidate, Demand, Placement, PlacementPolicy, Refusal
from scheduling.sla import SlaTable, UnknownSlaClass
from tandem.messages.common import SlaTargets
from tandem.messages.placement import Place, Placed

RequestKey = tuple[int, bytes]  # gateway incarnation, request id
SUSPECT_DEATHS = 2
# A tenant below its share is still admitted until queues are this many times their limits.
ENTITLED_PATIENCE = 2.0
# A tenant above its share is refused when its first token would come after this share of its TTFT:
# the rest is for the others. At five times the capacity a tenant that asks for a quarter of it got
# 24 % of that without this, 50 % at 0.8 (a placement may count twice for one heartbeat, so that
# predictions jump by a quarter of the target), 92 % at 0.7.
CROWDING_SHARE = 0.7


@dataclass(slots=True)
class _Placed:
    """The latest attempt of a live request and the share it has of its nodes."""

    gateway_id: str
    attempt: int
    answer: Placed
    tenant: str
    num_pages: int
    is_suspect: bool
    tpot_s: float
    ends_at: float
    admitted: Admitted
    is_evaluation: bool = False  # nothing of it is counted for a decode pool


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
        early_rejection: EarlyRejection | None = None,
    ) -> None:
        self._members = members
        self._caches = caches
        self._policy = policy
        self._sla = sla
        self._next_sequence = first_sequence
        self._early_rejection = early_rejection
        self._live: dict[RequestKey, _Placed] = {}
        self._tenants = TenantShares()
        self._candidates = Candidates()
        self._forecast = Forecast()

    def __len__(self) -> int:
        return len(self._live)

    def place(self, request: Place, now: float) -> Placed | Refusal | None:
        """The answer; None for an attempt that a later one has replaced."""
        key = key_of(request)
        known = self._live.get(key)
        if known is not None and request.attempt <= known.attempt:
            return known.answer if request.attempt == known.attempt else None
        try:
            targets = self._sla.resolve(request.sla_class, request.ttft_ms, request.tpot_ms)
        except UnknownSlaClass as error:
            return Refusal("unknown_sla_class", str(error))
        demand = self._demand(request, targets)
        too_long = self._explain_context(demand)
        if too_long is not None:
            return too_long
        hits = self._caches.matches(self._prefixes(request, demand))
        candidates = self._candidates.of(self._members.nodes.values(), hits)
        chosen = self._policy.route(demand, candidates)
        if isinstance(chosen, Refusal):
            return chosen
        admitted = self._admit(demand, chosen, candidates, now)
        if isinstance(admitted, Refusal):
            return admitted
        self.forget(key)
        by_id = {n.node_id: n for n in candidates if n.node_id in _names(admitted.placement)}
        return self._commit(request, demand, targets, admitted, by_id, known, now)

    def _admit(
        self, demand: Demand, chosen: Placement, candidates: list[Candidate], now: float
    ) -> Admitted | Refusal:
        predicted = None if demand.prediction is None else demand.prediction.q50
        num_tokens = self._forecast.num_output_tokens(predicted, demand.max_output_tokens)
        if self._early_rejection is not None:
            return self._early_rejection.judge(
                demand,
                chosen,
                candidates,
                lambda node_id: self._forecast.ends_in_s(node_id, now),
                num_tokens,
            )
        by_id = {n.node_id: n for n in candidates if n.node_id in _names(chosen)}
        decode = by_id[chosen.decode]
        prefill = by_id[chosen.prefill or chosen.decode]
        return Admitted(chosen, predict(demand, prefill, decode, (), num_tokens))

    def _commit(
        self,
        request: Place,
        demand: Demand,
        targets: SlaTargets,
        admitted: Admitted,
        by_id: dict[str, Candidate],
        known: _Placed | None,
        now: float,
    ) -> Placed:
        """Note the placement and charge its nodes."""
        chosen = admitted.placement
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
        num_tokens = by_id[prefill.ref.node_id].num_new_tokens(demand)
        num_pages = by_id[decode.ref.node_id].num_new_pages(demand)
        if demand.is_evaluation:
            self._share(request, prefill, Share(now, num_tokens, 0, 0))
        elif prefill is decode:
            self._share(request, decode, Share(now, num_tokens, 1, num_pages))
        else:
            self._share(request, prefill, Share(now, num_tokens, 0, 0))
            self._share(request, decode, Share(now, 0, 1, num_pages))
        placed = _Placed(
            gateway_id=request.gateway_id,
            attempt=request.attempt,
            answer=answer,
            tenant=request.tenant,
            num_pages=num_pages,
            is_suspect=demand.is_suspect,
            tpot_s=demand.tpot_s,
            ends_at=now + admitted.predicted.ends_after_s,
            admitted=admitted,
            is_evaluation=demand.is_evaluation,
        )
        self._live[key_of(request)] = placed
        self._tenants.add(request.tenant, request.tenant_weight)
        if not placed.is_evaluation:
            self._count_live(placed, 1)
            self._forecast.add(chosen.decode, placed.ends_at)
        return answer

    def is_known(self, request: Place) -> bool:
        """Whether some attempt of it was placed and is not over."""
        return key_of(request) in self._live

    def admitted(self, key: RequestKey) -> Admitted | None:
        """Why its latest attempt is where it is, and what was predicted of it."""
        placed = self._live.get(key)
        return None if placed is None else placed.admitted

    def slack_s(self, request: Place) -> float | None:
        """How long it may wait for a node so that its first token is in time; None: no such class.

        Its own prefill is taken as on the fastest node, alone and uncached.
        """
        try:
            targets = self._sla.resolve(request.sla_class, request.ttft_ms, request.tpot_ms)
        except UnknownSlaClass:
            return None
        demand = self._demand(request, targets)
        nodes = self._candidates.of(self._members.nodes.values(), {})
        own_s = min(
            (own_prefill_s(n, demand, is_alone=True) for n in nodes if n.costs is not None),
            default=0.0,
        )
        return demand.ttft_s - demand.waited_s - own_s

    def _demand(self, request: Place, targets: SlaTargets) -> Demand:
        """What the request asks for. Fail-overs and moves are never shed: their work is begun."""
        patience = 1.0
        if request.attempt > 1 or request.move_from is not None:
            patience = math.inf
        elif self.is_entitled(request):
            patience = ENTITLED_PATIENCE
        is_crowding = self._tenants.is_above(request.tenant, request.tenant_weight)
        return Demand(
            num_prompt_tokens=request.num_prompt_tokens,
            num_output_tokens=request.num_output_tokens,
            max_output_tokens=request.max_output_tokens,
            patience=patience,
            avoid=request.avoid,
            is_suspect=request.num_deaths >= SUSPECT_DEATHS,
            move_from=request.move_from,
            ttft_share=CROWDING_SHARE if is_crowding else 1.0,
            ttft_s=targets.ttft_ms / 1e3,
            tpot_s=targets.tpot_ms / 1e3,
            waited_s=request.waited_s,
            prediction=request.prediction,
            is_evaluation=request.is_evaluation,
        )

    def is_entitled(self, request: Place) -> bool:
        """Whose tenant has less than its share; and who goes on from another gateway, as they say:
        a claim, so it buys no more than that."""
        is_below = self._tenants.is_below(request.tenant, request.tenant_weight)
        return is_below or request.num_output_tokens > 0

    def _prefixes(self, request: Place, demand: Demand) -> list[bytes]:
        deployment = self._members.deployment
        if deployment is None or deployment.layout is None:
            return []
        num_pages = demand.num_prefill_tokens // deployment.layout.page_size
        return split(request.prefix_hashes.data[: num_pages * PREFIX_BYTES])

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

    def _count_live(self, placed: _Placed, sign: int) -> None:
        """Add a request to its decode node's live work, or take it off."""
        node = self._members.nodes.get(placed.answer.decode.node_id)
        if node is None or node.ref.epoch != placed.answer.decode.epoch:
            return
        node.live.num_sequences += sign
        node.live.num_pages += sign * placed.num_pages
        node.live.num_suspects += sign * placed.is_suspect
        node.candidate = None
        num_left = node.live.num_by_tpot.pop(placed.tpot_s, 0) + sign
        if num_left > 0:
            node.live.num_by_tpot[placed.tpot_s] = num_left

    def _share(self, request: Place, node: NodeRecord, share: Share) -> None:
        node.recent[(request.request_id, request.incarnation)] = share
        node.num_placed += 1
        node.candidate = None

    def note_length(self, num_output_tokens: int) -> None:
        """A request ended with that many tokens: a hint for those without a prediction."""
        self._forecast.note_length(num_output_tokens)

    def forget(self, key: RequestKey) -> bool:
        """A request is over or is placed anew: free its share of its nodes; False: not known."""
        known = self._live.pop(key, None)
        if known is None:
            return False
        self._tenants.remove(known.tenant)
        if not known.is_evaluation:
            self._forecast.remove(known.answer.decode.node_id, known.ends_at)
            self._count_live(known, -1)
        for ref in (known.answer.prefill, known.answer.decode):
            node = None if ref is None else self._members.nodes.get(ref.node_id)
            if node is not None:
                node.recent.pop((key[1], key[0]), None)
                node.candidate = None
        return True

    def decoding_on(self, node_id: str) -> Iterator[tuple[str, Movable]]:
        """Live requests of a decode node, each with its gateway; some may not have begun."""
        for (_, request_id), placed in self._live.items():
            is_fixed = placed.is_suspect or placed.is_evaluation
            if placed.answer.decode.node_id == node_id and not is_fixed:
                yield placed.gateway_id, Movable(request_id, placed.attempt, placed.num_pages)

    def forget_gateway(self, gateway_id: str) -> int:
        """A gateway is gone and its requests with it; returns how many."""
        gone = [key for key, placed in self._live.items() if placed.gateway_id == gateway_id]
        for key in gone:
            self.forget(key)
        return len(gone)


def key_of(request: Place) -> RequestKey:
    """What stays the same over a request's attempts."""
    return (request.incarnation, request.request_id)


def _names(placement: Placement) -> tuple[str | None, str]:
    return (placement.prefill, placement.decode)
