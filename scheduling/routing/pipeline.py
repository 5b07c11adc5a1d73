"""The placement policies: filters, a scorer per pool, and a picker. Pure.

Policies differ in their scorers only; `scheduling.routing.catalogue` has them by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from scheduling.routing.filters import (
    explain_missing,
    fitting,
    overloaded,
    preferred,
    taking_prompt,
    taking_sequence,
)
from scheduling.routing.local import LocalPrefill
from scheduling.routing.placement import Candidate, Demand, Placement, QueueLimits, Refusal
from scheduling.routing.scorers import Scorer


def pick_lowest(
    nodes: Sequence[Candidate], scorer: Scorer, demand: Demand
) -> tuple[Candidate, str]:
    """The node of the lowest score, and why; equal ones take turns, by name at first."""
    if len(nodes) == 1:
        return nodes[0], f"{nodes[0].node_id} is the only one open"
    scores = scorer(nodes, demand)
    lowest = min(scores)
    best = [n for n, score in zip(nodes, scores, strict=True) if score == lowest]
    chosen = min(best, key=lambda n: (n.num_placed, n.node_id))
    if len(best) == len(nodes):
        return chosen, f"it is the turn of {chosen.node_id} among {len(nodes)} equal ones"
    return chosen, (
        f"{chosen.node_id} scores {lowest:.4g}, the lowest of {len(nodes)} (up to "
        f"{max(scores):.4g})"
    )


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The best node of each pool; a node with both weights above zero is in both.

    `local` decides where prompts are computed on their decode node although there are prefill
    nodes; None: never.
    """

    limits: QueueLimits
    prefill_scorer: Scorer
    decode_scorer: Scorer
    local: LocalPrefill | None = None

    def route(self, demand: Demand, candidates: Sequence[Candidate]) -> Placement | Refusal:
        """See `PlacementPolicy`."""
        if demand.is_evaluation:
            return self._evaluation(demand, candidates)
        if demand.move_from is not None:
            source = next((n for n in candidates if n.node_id == demand.move_from), None)
            if source is not None:
                return self._move(demand, source, candidates)
        decodes = [n for n in candidates if n.decode_weight > 0]
        prefills = [n for n in candidates if n.prefill_weight > 0]
        missing = explain_missing("decode", decodes, demand)
        missing = missing or explain_missing("prefill", prefills, demand)
        if missing is not None:
            return missing
        fit_decode = fitting("decode", decodes, demand.num_total_tokens, demand)
        if isinstance(fit_decode, Refusal):
            return fit_decode
        fit_prefill = fitting("prefill", prefills, demand.num_prefill_tokens, demand)
        if isinstance(fit_prefill, Refusal):
            return fit_prefill
        return self._pair(demand, fit_prefill, fit_decode)

    def _evaluation(self, demand: Demand, candidates: Sequence[Candidate]) -> Placement | Refusal:
        """The best node of the prefill pool; no decode node is asked of."""
        prefills = [n for n in candidates if n.prefill_weight > 0]
        missing = explain_missing("prefill", prefills, demand)
        if missing is not None:
            return missing
        fit = fitting("prefill", prefills, demand.num_prefill_tokens, demand)
        if isinstance(fit, Refusal):
            return fit
        open_nodes = taking_prompt(fit, demand, self.limits)
        if not open_nodes:
            return overloaded("prefill", fit)
        node, why = pick_lowest(preferred(open_nodes, demand), self.prefill_scorer, demand)
        return Placement(prefill=None, decode=node.node_id, why=why)

    def _move(
        self, demand: Demand, source: Candidate, candidates: Sequence[Candidate]
    ) -> Placement | Refusal:
        """Its pages are the cheapest prefill there is, whatever the role of the node."""
        decodes = [n for n in candidates if n.decode_weight > 0 and n is not source]
        missing = explain_missing("decode", decodes, demand)
        if missing is not None:
            return missing
        fit = fitting("decode", decodes, demand.num_total_tokens, demand)
        if isinstance(fit, Refusal):
            return fit
        decode, why = pick_lowest(preferred(fit, demand), self.decode_scorer, demand)
        text = f"{source.node_id} has its KV; decode: {why}"
        return Placement(prefill=source.node_id, decode=decode.node_id, why=text)

    def _pair(
        self, demand: Demand, prefills: list[Candidate], decodes: list[Candidate]
    ) -> Placement | Refusal:
        """One node of each pool. Both lists have nodes that could hold the request."""
        open_decodes = taking_sequence(decodes, demand, self.limits)
        open_prefills = taking_prompt(prefills, demand, self.limits)
        # Without pure prefill nodes a transfer between two mixed nodes would buy nothing.
        has_pure = any(n.decode_weight == 0 for n in prefills)
        if not has_pure:
            # Then a mixed decode node computes the prompt as well, so it must have room for both.
            names = {n.node_id for n in open_prefills}
            open_decodes = [n for n in open_decodes if n.prefill_weight == 0 or n.node_id in names]
        if not open_decodes:
            return overloaded("decode", decodes)
        decode, why = pick_lowest(preferred(open_decodes, demand), self.decode_scorer, demand)
        why = f"decode: {why}"
        is_local = decode.prefill_weight > 0 and (not has_pure or demand.is_suspect)
        if is_local and any(n.node_id == decode.node_id for n in open_prefills):
            return Placement(prefill=None, decode=decode.node_id, why=f"both roles there; {why}")
        prefill = None
        if open_prefills:
            nodes = preferred(open_prefills, demand)
            prefill, first = pick_lowest(nodes, self.prefill_scorer, demand)
            why = f"prefill: {first}; {why}"
        local = None if self.local is None else self.local.explain(demand, decode, prefill)
        if local is not None:
            return Placement(prefill=None, decode=decode.node_id, why=local)
        if prefill is None:
            return overloaded("prefill", prefills)
        remote = None if prefill is decode else prefill.node_id
        return Placement(prefill=remote, decode=decode.node_id, why=why)
