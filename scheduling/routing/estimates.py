"""What a request may expect of two nodes: time to first token, time per token. Pure.

From the nodes' fitted costs, as in Mooncake: TTFT = queue + prefill + transfer, and the decode load
is that of the time when the prefill will have ended (prediction-based early rejection).
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scheduling.costs import decode_step_s, num_pairs, transfer_s
from scheduling.routing.placement import Candidate, Demand
from tandem.messages.common import NodeCosts

# A fit of fewer steps has seen few shapes; one that is off by half decides no better than tokens.
MIN_STEPS = 50
MAX_ERROR = 0.5


def trusted(costs: NodeCosts | None) -> NodeCosts | None:
    """The costs where they rest on enough steps and fit well enough to decide by, else None."""
    if costs is None or costs.num_steps < MIN_STEPS or costs.error > MAX_ERROR:
        return None
    return costs


def with_times(node: Candidate) -> Candidate:
    """The node with `step_s` and `queue_s` by its costs; as it is where they are unknown."""
    if node.costs is None:
        return node
    num_rows = min(node.num_sequences, node.max_num_seqs)
    step_s = decode_step_s(node.costs, num_rows, node.num_decode_tokens)
    return replace(node, step_s=step_s, queue_s=_queue_s(node, node.costs, step_s))


def _queue_s(node: Candidate, costs: NodeCosts, step_s: float) -> float:
    """Until those that wait or run there are done, taken as equally long and uncached."""
    num_tokens = node.num_prefill_tokens
    pairs = num_tokens * num_tokens / (2 * max(1, node.num_prompts))
    return _chunks_s(costs, num_tokens, pairs, node.max_num_batched_tokens, step_s)


def _chunks_s(
    costs: NodeCosts, num_new: int, pairs: float, chunk_tokens: int, step_s: float
) -> float:
    """Seconds of prefill in chunks, in steps that take `step_s` without it."""
    num_steps = -(-num_new // chunk_tokens)
    return num_steps * step_s + costs.prefill_token_s * num_new + costs.prefill_context_s * pairs


def own_prefill_s(node: Candidate, demand: Demand, *, is_alone: bool = False) -> float:
    """Seconds of the request's own prefill there, beside the node's decode rows unless alone.

    0 where costs are unknown.
    """
    costs = node.costs
    if costs is None:
        return 0.0
    num_new = node.num_new_tokens(demand)
    pairs = num_pairs(num_new, max(0, demand.num_prefill_tokens - num_new))
    step_s = costs.step_s if is_alone else node.step_s
    return _chunks_s(costs, num_new, pairs, node.max_num_batched_tokens, step_s)


def hand_off_s(prefill: Candidate, decode: Candidate, demand: Demand) -> float:
    """Seconds until the pages that the decode node lacks are there; 0 where costs are unknown."""
    if prefill.costs is None:
        return 0.0
    num_pages = prefill.num_pages_for(demand.num_prefill_tokens) - decode.num_cached_pages
    return transfer_s(prefill.costs, max(0, num_pages) * decode.page_bytes)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a placement would give; `alone_` what it would with nothing else on its nodes.

    Seconds; None where the costs of its node are unknown. ends_after_s: until the last token,
    infinite where nothing says when.
    """

    ttft_s: float | None
    alone_ttft_s: float | None
    tpot_s: float | None
    alone_tpot_s: float | None
    queue_s: float
    ends_after_s: float = math.inf


def predict(
    demand: Demand,
    prefill: Candidate,
    decode: Candidate,
    ends_in_s: Sequence[float] = (),
    num_output_tokens: float | None = None,
) -> Prediction:
    """The prediction for a pair; `prefill is decode` computes the prompt locally.

    ends_in_s: when sequences of the decode node should end, ascending. num_output_tokens: how long
    the answer should become, if not as long as it may.
    """
    ttft_s = alone_ttft_s = tpot_s = alone_tpot_s = None
    own_s, ends_after_s = 0.0, math.inf
    if prefill.costs is not None:
        sent_s = 0.0 if prefill is decode else hand_off_s(prefill, decode, demand)
        own_s = own_prefill_s(prefill, demand) + sent_s
        ttft_s = demand.waited_s + prefill.queue_s + own_s
        alone_ttft_s = own_prefill_s(prefill, demand, is_alone=True) + sent_s
    if decode.costs is not None:
        num_tokens = num_output_tokens or demand.max_output_tokens
        begins_in_s = prefill.queue_s + own_s
        tpot_s = _tpot_s(demand, decode, begins_in_s, ends_in_s, num_tokens)
        ends_after_s = begins_in_s + tpot_s * num_tokens
        alone_tpot_s = decode_step_s(decode.costs, 1, demand.num_total_tokens)
    return Prediction(ttft_s, alone_ttft_s, tpot_s, alone_tpot_s, prefill.queue_s, ends_after_s)


def _tpot_s(
    demand: Demand,
    decode: Candidate,
    begins_in_s: float,
    ends_in_s: Sequence[float],
    num_output_tokens: float,
) -> float:
    """Mean seconds per token: the step then, and the wait for a slot spread over the answer."""
    assert decode.costs is not None, "asked for a node with costs"
    num_ended = bisect_right(ends_in_s, begins_in_s)
    num_rows = max(0, decode.num_sequences - num_ended)
    mean_context = decode.num_decode_tokens / max(1, decode.num_sequences)
    num_beside = min(num_rows, decode.max_num_seqs - 1)
    context = mean_context * num_beside + demand.num_prefill_tokens
    step_s = decode_step_s(decode.costs, num_beside + 1, round(context))
    num_ahead = num_rows + 1 - decode.max_num_seqs
    if num_ahead <= 0:
        return step_s
    slot = num_ended + num_ahead - 1  # the ending that frees its slot
    if slot >= len(ends_in_s):
        return step_s  # nobody knows when: the queue limits decide
    wait_s = max(0.0, ends_in_s[slot] - begins_in_s)
    return step_s + wait_s / max(1.0, num_output_tokens - 1)


def is_feasible(alone_s: float | None, target_s: float) -> bool:
    """Whether idle nodes would keep the target; what nobody can keep refuses nobody."""
    return alone_s is not None and alone_s <= target_s and math.isfinite(target_s)
