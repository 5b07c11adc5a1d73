"""Prediction-based early rejection: who cannot make it is told so at once. Pure.

Mooncake (arXiv 2407.00079): a request whose predicted time to first token or time per token breaks
its target is refused on arrival, before anything was computed for it. The decode load is the one
predicted for the end of its prefill; with today's load prefill and decode pools swing in
anti-phase.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from scheduling.routing.estimates import Prediction, is_feasible, own_prefill_s, predict
from scheduling.routing.placement import Candidate, Demand, Placement, Refusal

EndsIn = Callable[[str], Sequence[float]]  # of a decode node, see `estimates.predict`


@dataclass(frozen=True, slots=True)
class Admitted:
    """Where the request runs, and what it may expect there."""

    placement: Placement
    predicted: Prediction


@dataclass(frozen=True, slots=True)
class EarlyRejection:
    """Refuses above `tolerance` times a target, and only for a queue that is really there.

    Nobody is refused where costs are unknown, where the system is idle, or for a target that idle
    nodes would break as well: such a request is served as well as it can be.
    """

    tolerance: float = 1.0

    def judge(
        self,
        demand: Demand,
        placement: Placement,
        candidates: Sequence[Candidate],
        ends_in_s: EndsIn,
        num_output_tokens: float,
    ) -> Admitted | Refusal:
        """The placement, another prefill node where only that makes it, or a refusal."""
        decode = next(n for n in candidates if n.node_id == placement.decode)
        prefill = next(
            (n for n in candidates if n.node_id == placement.prefill), decode
        )  # None: local
        predicted = self._predict(demand, prefill, decode, ends_in_s, num_output_tokens)
        if demand.patience == math.inf or not self._is_late(demand, prefill, predicted):
            return self._unless_slow(demand, placement, decode, predicted)
        sooner = min(
            (n for n in candidates if _may_prefill(n, demand)),
            key=lambda n: n.queue_s + own_prefill_s(n, demand),
            default=prefill,
        )
        if sooner is not prefill and sooner is not decode and sooner.costs is not None:
            pair = sooner if demand.is_evaluation else decode
            other = self._predict(demand, sooner, pair, ends_in_s, num_output_tokens)
            if not self._is_late(demand, sooner, other):
                why = f"only {sooner.node_id} has the first token in time"
                chosen = replace(placement, prefill=sooner.node_id, why=why)
                if demand.is_evaluation:
                    chosen = replace(chosen, prefill=None, decode=sooner.node_id)
                return self._unless_slow(demand, chosen, pair, other)
            prefill, predicted = sooner, other
        return self._late(demand, prefill, predicted)

    def _predict(
        self,
        demand: Demand,
        prefill: Candidate,
        decode: Candidate,
        ends_in_s: EndsIn,
        num_output_tokens: float,
    ) -> Prediction:
        ends = ends_in_s(decode.node_id) if decode.costs is not None else ()
        return predict(demand, prefill, decode, ends, num_output_tokens)

    def _is_late(self, demand: Demand, prefill: Candidate, predicted: Prediction) -> bool:
        if predicted.ttft_s is None or prefill.num_prefill_tokens == 0:
            return False
        is_kept = predicted.ttft_s <= self.tolerance * demand.ttft_share * demand.ttft_s
        return not is_kept and is_feasible(predicted.alone_ttft_s, demand.ttft_s)

    def _late(self, demand: Demand, prefill: Candidate, predicted: Prediction) -> Refusal:
        assert predicted.ttft_s is not None, "it is late by it"
        return Refusal(
            "overloaded",
            f"the first token would come after {predicted.ttft_s:.2f} s, promised are "
            f"{demand.ttft_s:g} s{_crowding(demand)}: {prefill.num_prefill_tokens} prompt tokens "
            f"wait on {prefill.node_id}, the best prefill node, for {predicted.queue_s:.2f} s; try "
            "again later, ask for an SLA class with a longer TTFT, or start more with "
            "scripts/launch_prefill",
            retry_after_s=max(0.0, predicted.ttft_s - demand.ttft_share * demand.ttft_s),
            predicted_ttft_s=predicted.ttft_s,
        )

    def _unless_slow(
        self, demand: Demand, placement: Placement, decode: Candidate, predicted: Prediction
    ) -> Admitted | Refusal:
        """Refuse where tokens would come too slowly for the sequences that decode there by then."""
        admitted = Admitted(placement, predicted)
        if demand.is_evaluation or predicted.tpot_s is None:
            return admitted
        if decode.num_sequences == 0 or demand.patience == math.inf:
            return admitted
        is_kept = predicted.tpot_s <= self.tolerance * demand.tpot_s
        if is_kept or not is_feasible(predicted.alone_tpot_s, demand.tpot_s):
            return admitted
        return Refusal(
            "overloaded",
            f"a token would take {predicted.tpot_s * 1e3:.0f} ms, promised are "
            f"{demand.tpot_s * 1e3:g} ms: {decode.num_sequences} requests decode on "
            f"{decode.node_id}, and too many still will when the prompt is done; try again later, "
            "ask for an SLA class with a longer TPOT, or start more with scripts/launch_decode",
            predicted_ttft_s=predicted.ttft_s,
            can_wait=True,
        )


def _crowding(demand: Demand) -> str:
    if demand.ttft_share == 1.0:
        return ""
    return f", of which a tenant above its share may use {demand.ttft_share:.0%}"


def _may_prefill(node: Candidate, demand: Demand) -> bool:
    fits = node.num_pages * node.page_size >= demand.num_prefill_tokens
    is_wanted = node.node_id not in demand.avoid and not node.is_isolated
    return node.prefill_weight > 0 and not node.draining and fits and is_wanted
