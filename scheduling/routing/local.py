"""Conditional disaggregation: when the decode node had better compute a prompt itself. Pure.

Other systems disaggregate above a number of uncached tokens (llm-d, Dynamo). Here the measured
costs of both nodes decide: a hand-off pays where its queue, prefill and transfer take less time
than a local prefill, or where a local one would stall the requests that decode there.
"""

from dataclasses import dataclass, replace

import msgspec

from scheduling.costs import num_pairs
from scheduling.routing.estimates import hand_off_s, own_prefill_s
from scheduling.routing.placement import Candidate, Demand
from tandem.messages.common import NodeCosts


@dataclass(frozen=True, slots=True)
class LocalPrefill:
    """Local where it takes at most `share` of the remote time and every step keeps its TPOT.

    Any node may compute prompts of its own requests, also one whose prefill weight is 0: weights
    say what is placed there from elsewhere. `share` below 1 asks for a clear gain, since both times
    are estimates.
    """

    share: float = 0.8

    def explain(self, demand: Demand, decode: Candidate, prefill: Candidate | None) -> str | None:
        """Why the prompt should be computed on its decode node; None: it should not.

        prefill: the node that would compute it else; None where all are full.
        """
        if decode.costs is None or (prefill is not None and prefill.costs is None):
            return None
        if not knows_prefill(decode.costs):
            if prefill is None or prefill.costs is None:
                return None
            decode = replace(decode, costs=_with_prefill_of(decode.costs, prefill.costs))
        local_s = decode.queue_s + own_prefill_s(decode, demand)
        slowest_s, target_s = self._slowest_step_s(demand, decode), min_tpot_s(demand, decode)
        if decode.num_sequences > 0 and slowest_s > target_s:
            return None
        if prefill is None:
            return f"local: {local_s:.3f} s here, and every prefill node is full"
        remote_s = (
            prefill.queue_s + own_prefill_s(prefill, demand) + hand_off_s(prefill, decode, demand)
        )
        if local_s > self.share * remote_s:
            return None
        return (
            f"local: {local_s:.3f} s here, {remote_s:.3f} s by way of {prefill.node_id}, and the "
            f"slowest step takes {slowest_s:.3f} s of {target_s:g} s"
        )

    def _slowest_step_s(self, demand: Demand, decode: Candidate) -> float:
        """The step with the last and dearest chunk of the prompt beside all decode rows."""
        assert decode.costs is not None, "asked for a node with costs"
        num_new = min(decode.num_new_tokens(demand), decode.max_num_batched_tokens)
        pairs = num_pairs(num_new, max(0, demand.num_prefill_tokens - num_new))
        chunk_s = decode.costs.prefill_token_s * num_new + decode.costs.prefill_context_s * pairs
        return decode.step_s + chunk_s


def knows_prefill(costs: NodeCosts) -> bool:
    """Whether the node has computed prompts: one that has not would seem to do it for nothing."""
    return costs.prefill_token_s > 0 or costs.prefill_context_s > 0


def _with_prefill_of(costs: NodeCosts, others: NodeCosts) -> NodeCosts:
    """Until it has computed one, prompts are taken to cost what they cost on the other node."""
    return msgspec.structs.replace(
        costs,
        prefill_token_s=others.prefill_token_s,
        prefill_context_s=others.prefill_context_s,
    )


def min_tpot_s(demand: Demand, decode: Candidate) -> float:
    """The tightest time per token that the node must keep once it has this request."""
    return min(demand.tpot_s, decode.tightest_tpot_s)
