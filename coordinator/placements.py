"""Answers `Place` once per (gateway incarnation, request, attempt), and keeps the load. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.members import Members, NodeRecord, Share
from scheduling.placement import (
    Candidate,
    Demand,
    Placement,
    PlacementPolicy,
    Refusal,
)
from scheduling.sla import SlaTable, UnknownSlaClass
from tandem.messages.common import SlaTargets
from tandem.messages.placement import Place, Placed, PlaceRefused

RequestKey = tuple[int, bytes]  # gateway incarnation, request id


@dataclass(slots=True)
class _Placed:
    """The latest attempt of a live request and the share it has of its nodes."""

    gateway_id: str
    attempt: int
    answer: Placed


class Placements:
    """Live placements. `sequence` (a request's age) is kept over its attempts and only grows."""

    def __init__(
        self, members: Members, policy: PlacementPolicy, sla: SlaTable, *, first_sequence: int
    ) -> None:
        self._members = members
        self._policy = policy
        self._sla = sla
        self._next_sequence = first_sequence
        self._live: dict[RequestKey, _Placed] = {}

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
        demand = Demand(
            num_prompt_tokens=request.num_prompt_tokens,
            num_output_tokens=request.num_output_tokens,
            max_output_tokens=request.max_output_tokens,
        )
        too_long = self._explain_context(demand)
        if too_long is not None:
            return _refused(request, too_long)
        chosen = self._policy.route(demand, self.candidates())
        if isinstance(chosen, Refusal):
            return _refused(request, chosen)
        self.forget(key)
        sequence = self._take_sequence() if known is None else known.answer.sequence
        answer = self._commit(request, demand, chosen, targets, sequence, now)
        self._live[key] = _Placed(request.gateway_id, request.attempt, answer)
        return answer

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

    def _commit(
        self,
        request: Place,
        demand: Demand,
        chosen: Placement,
        targets: SlaTargets,
        sequence: int,
        now: float,
    ) -> Placed:
        decode = self._members.nodes[chosen.decode]
        prefill = decode if chosen.prefill is None else self._members.nodes[chosen.prefill]
        self._share(request, prefill, Share(now, demand.num_prefill_tokens, 0, 0))
        num_pages = -(-demand.num_total_tokens // decode.hello.layout.page_size)
        own_prefill = demand.num_prefill_tokens if prefill is decode else 0
        self._share(request, decode, Share(now, own_prefill, 1, num_pages))
        return Placed(
            request_id=request.request_id,
            attempt=request.attempt,
            prefill=None if chosen.prefill is None else prefill.ref,
            decode=decode.ref,
            targets=targets,
            sequence=sequence,
        )

    def _share(self, request: Place, node: NodeRecord, share: Share) -> None:
        node.recent[(request.request_id, request.incarnation)] = share
        node.num_placed += 1

    def forget(self, key: RequestKey) -> None:
        """A request ended or is placed anew: free its share of its nodes."""
        known = self._live.pop(key, None)
        if known is None:
            return
        for ref in (known.answer.prefill, known.answer.decode):
            node = None if ref is None else self._members.nodes.get(ref.node_id)
            if node is not None:
                node.recent.pop((key[1], key[0]), None)

    def forget_gateway(self, gateway_id: str) -> int:
        """A gateway is gone and its requests with it; returns how many."""
        gone = [key for key, placed in self._live.items() if placed.gateway_id == gateway_id]
        for key in gone:
            self.forget(key)
        return len(gone)

    def candidates(self) -> Sequence[Candidate]:
        """The nodes as a policy sees them."""
        return [_candidate(record) for record in self._members.nodes.values()]


def _candidate(record: NodeRecord) -> Candidate:
    hello, load = record.hello, record.load
    shares = record.recent.values()
    prefill_tokens = sum(share.num_prefill_tokens for share in shares)
    num_sequences = sum(share.num_sequences for share in shares)
    num_pages_held = sum(share.num_pages for share in shares)
    if load is not None:
        prefill_tokens += load.num_prefill_tokens_waiting
        num_sequences += load.num_decode_running + load.num_decode_waiting + load.num_transfers
        num_pages_held += max(0, hello.num_pages - load.pages.free - load.pages.cached)
    return Candidate(
        node_id=hello.node_id,
        prefill_weight=hello.weights.prefill,
        decode_weight=hello.weights.decode,
        draining=record.draining,
        num_pages=hello.num_pages,
        page_size=hello.layout.page_size,
        max_num_seqs=hello.max_num_seqs,
        num_prefill_tokens=prefill_tokens,
        num_sequences=num_sequences,
        num_pages_held=num_pages_held,
        num_placed=record.num_placed,
    )


def _refused(request: Place, refusal: Refusal) -> PlaceRefused:
    return PlaceRefused(
        request_id=request.request_id,
        attempt=request.attempt,
        code=refusal.code,
        message=refusal.message,
        retry_after_s=refusal.retry_after_s,
    )
