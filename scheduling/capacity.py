"""What traffic needs of each role at its targets, in nodes, by the cost model. Pure.

A node's prefill rate is that of the mean prompt computed alone; its decode rate that of the largest
batch whose step keeps the TPOT target, as slots and pages allow (the rule of DOPD, arXiv
2511.20982: n_p / n_d ~ prompt tokens x time per token over output tokens x time per token at the
batch of the SLA). Needs are for 70 % utilisation, so that queues stay short: at 70 % a prompt waits
for about one other (M/D/1), and a decode batch has room for the variance of arrivals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scheduling.costs import decode_step_s, prefill_s
from tandem.messages.common import NodeCosts

UTILISATION = 0.7
TPOT_SHARE = 0.9  # of the target that a step may take: steps vary, and tokens travel


@dataclass(frozen=True, slots=True)
class Traffic:
    """Arrivals as of now, all rates per second.

    `num_requests_s`; of their prompts `num_prefill_tokens_s` are cached nowhere useful. Means are
    over requests: prompt, its part that is computed, and output, in tokens. Targets in seconds.
    """

    num_requests_s: float = 0.0
    num_prefill_tokens_s: float = 0.0
    mean_prompt: float = 0.0
    mean_computed: float = 0.0
    mean_output: float = 0.0
    ttft_s: float = math.inf
    tpot_s: float = math.inf


@dataclass(frozen=True, slots=True)
class NodeSupply:
    """A node as of its last heartbeat. Weights are those that it has or shall have.

    num_prefill_tokens, num_prompts: waiting or running there. num_sequences: those that decode or
    have their KV and wait for a row. `costs` None: not known well enough. busy: share of the last
    seconds in steps. may_change: it is healthy, warm, has obeyed, and nobody holds it.
    """

    node_id: str
    prefill_weight: float
    decode_weight: float
    max_num_seqs: int
    max_num_batched_tokens: int
    num_total_tokens: int
    num_prefill_tokens: int = 0
    num_prompts: int = 0
    num_sequences: int = 0
    busy: float = 0.0
    costs: NodeCosts | None = None
    may_change: bool = True


@dataclass(frozen=True, slots=True)
class Needs:
    """Nodes that each role needs. `infeasible` says which target no number of them keeps.

    `predicted_ttft_s`: of a mean prompt that arrives now. is_guess: costs are not known.
    """

    prefill: float
    decode: float
    predicted_ttft_s: float = 0.0
    infeasible: str | None = None
    is_guess: bool = False

    @property
    def total(self) -> float:
        """Nodes of both roles."""
        return self.prefill + self.decode


@dataclass(frozen=True, slots=True)
class PrefillRate:
    """Tokens per second of a node that only prefills, and how long the mean prompt takes alone."""

    tokens_s: float
    prompt_s: float


@dataclass(frozen=True, slots=True)
class DecodeRate:
    """Of a node that only decodes: rows that keep the target, their tokens per second together, and
    a step of one row alone."""

    num_rows: int
    tokens_s: float
    row_s: float


def prefill_rate(costs: NodeCosts, node: NodeSupply, traffic: Traffic) -> PrefillRate:
    """What a node of these costs computes of these prompts, one after the other."""
    num_computed = max(1, round(traffic.mean_computed))
    num_cached = max(0, round(traffic.mean_prompt) - num_computed)
    prompt_s = max(1e-9, prefill_s(costs, num_computed, num_cached, node.max_num_batched_tokens))
    return PrefillRate(num_computed / prompt_s, prompt_s)


def decode_rate(costs: NodeCosts, node: NodeSupply, traffic: Traffic) -> DecodeRate:
    """The largest batch whose step keeps the target; steps grow with rows."""
    context = max(1.0, traffic.mean_prompt + traffic.mean_output / 2)
    most = min(node.max_num_seqs, max(1, int(node.num_total_tokens / context)))
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if decode_step_s(costs, middle, round(middle * context)) <= traffic.tpot_s * TPOT_SHARE:
            low = middle
        else:
            high = middle - 1
    row_s = max(1e-9, decode_step_s(costs, 1, round(context)))
    batch_s = row_s if low == 0 else decode_step_s(costs, low, round(low * context))
    return DecodeRate(low, low / max(1e-9, batch_s), row_s)


def needs(nodes: Sequence[NodeSupply], traffic: Traffic) -> Needs:
    """Nodes per role for this traffic and for what waits already.

    Costs are the mean of those nodes that have measured the role: a cold node, or one that never
    did it, says nothing. Where none has, the need is guessed from how busy and full nodes are.
    """
    if traffic.mean_prompt == 0:
        return guess(nodes)
    prefills = [
        prefill_rate(node.costs, node, traffic)
        for node in nodes
        if node.costs is not None and _knows_prefill(node.costs)
    ]
    decodes = [
        decode_rate(node.costs, node, traffic)
        for node in nodes
        if node.costs is not None and _knows_decode(node.costs)
    ]
    guessed = guess(nodes)
    prefill, ttft_s = guessed.prefill, 0.0
    if prefills:
        prefill, ttft_s = _prefill_need(nodes, traffic, prefills)
    return Needs(
        prefill=prefill,
        decode=_decode_need(nodes, traffic, decodes) if decodes else guessed.decode,
        predicted_ttft_s=ttft_s,
        infeasible=_explain_infeasible(traffic, prefills, decodes),
        is_guess=not (prefills and decodes),
    )


def _prefill_need(
    nodes: Sequence[NodeSupply], traffic: Traffic, known: Sequence[PrefillRate]
) -> tuple[float, float]:
    """Nodes, and the TTFT of a mean prompt that arrives now."""
    tokens_s = sum(rate.tokens_s for rate in known) / len(known)
    prompt_s = min(rate.prompt_s for rate in known)
    backlog = sum(node.num_prefill_tokens for node in nodes)
    # What waits shall be computed within one TTFT, besides what arrives meanwhile.
    wanted_s = traffic.num_prefill_tokens_s + backlog / max(traffic.ttft_s, prompt_s)
    num_prefill = sum(node.prefill_weight > 0 for node in nodes)
    return wanted_s / tokens_s / UTILISATION, backlog / tokens_s / max(1, num_prefill) + prompt_s


def _decode_need(
    nodes: Sequence[NodeSupply], traffic: Traffic, known: Sequence[DecodeRate]
) -> float:
    """By the rate of tokens, and by the rows that are here: longer answers show there first.

    A target that one row misses is kept by no batch, and says nothing of how many nodes it takes.
    """
    by_rate = by_rows = 0.0
    num_rows = sum(rate.num_rows for rate in known) / len(known)
    tokens_s = sum(rate.tokens_s for rate in known) / len(known)
    if tokens_s > 0:
        by_rate = traffic.num_requests_s * traffic.mean_output / tokens_s
        by_rows = sum(node.num_sequences for node in nodes) / num_rows
    return max(by_rate, by_rows) / UTILISATION


def _knows_prefill(costs: NodeCosts) -> bool:
    return costs.prefill_token_s > 0 or costs.prefill_context_s > 0


def _knows_decode(costs: NodeCosts) -> bool:
    return costs.decode_row_s > 0 or costs.decode_context_s > 0


def guess(nodes: Sequence[NodeSupply]) -> Needs:
    """Needs without costs: how busy prefill nodes are, how full decode nodes are, what waits."""
    prefill = decode = 0.0
    for node in nodes:
        if node.prefill_weight > 0:
            share = 1.0 if node.decode_weight == 0 else 0.5
            prefill += node.busy * share + max(0, node.num_prompts - 1) / 4
        decode += node.num_sequences / node.max_num_seqs
    return Needs(prefill / UTILISATION, decode / UTILISATION, is_guess=True)


def _explain_infeasible(
    traffic: Traffic, prefills: Sequence[PrefillRate], decodes: Sequence[DecodeRate]
) -> str | None:
    """Which target a single request on an idle system misses, with its numbers."""
    prompt_s = min((rate.prompt_s for rate in prefills), default=0.0)
    row_s = min((rate.row_s for rate in decodes), default=0.0)
    if prompt_s > traffic.ttft_s:
        return (
            f"TTFT {traffic.ttft_s:.3g} s cannot be kept: a prompt of {traffic.mean_computed:.0f} "
            f"tokens takes {prompt_s:.3g} s on an idle node"
        )
    if row_s > traffic.tpot_s:
        return (
            f"TPOT {traffic.tpot_s * 1e3:.3g} ms cannot be kept: a step of one row takes "
            f"{row_s * 1e3:.3g} ms"
        )
    return None
