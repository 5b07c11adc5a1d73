"""How good each node is for a request: one number per node, lower is better. Pure.

A scorer sees its whole pool at once: some compare nodes with each other, and one call per pool
keeps a thousand nodes within a fraction of a millisecond.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scheduling.routing.placement import Candidate, Demand

Scorer = Callable[[Sequence[Candidate], Demand], list[float]]


def prefill_backlog(nodes: Sequence[Candidate], demand: Demand) -> list[float]:
    """Tokens to compute until this request's first token, per share of the node.

    The queue and the request's own uncached tokens count alike, so a cached prefix is worth
    exactly the work that it saves: a node whose queue is longer by more than that loses.
    """
    need = demand.num_prefill_tokens
    return [
        (n.num_prefill_tokens + max(1, need - n.num_cached_pages * n.page_size)) / n.prefill_weight
        for n in nodes
    ]


def decode_occupancy(nodes: Sequence[Candidate], demand: Demand) -> list[float]:
    """How full the node gets, plus the part of its pool that must be sent, per share of the node.

    Fullness is that of sequence slots or of pages, whichever is scarcer. A hit of p % of the pool
    saves p % of transfer, and p % of fullness where pages are scarcer: a node that is fuller by
    more than twice that loses all the same.
    """
    total = demand.num_total_tokens
    scores = []
    for n in nodes:
        num_new_pages = max(1, -(-total // n.page_size) - n.num_cached_pages)
        slots = (n.num_sequences + 1) / n.max_num_seqs
        pages = (n.num_pages_held + num_new_pages) / n.num_pages
        fullness = slots if slots > pages else pages
        scores.append((fullness + num_new_pages / n.num_pages) / n.decode_weight)
    return scores


def lmetric_prefill(nodes: Sequence[Candidate], demand: Demand) -> list[float]:
    """LMetric (arXiv 2603.15202): new prefill tokens if routed here, times the batch size then.

    The batch counts this request, so that an idle node does not score 0 whatever it must compute.
    """
    need = demand.num_prefill_tokens
    return [
        (n.num_prefill_tokens + max(1, need - n.num_cached_pages * n.page_size))
        * (n.num_prompts + 1)
        / n.prefill_weight
        for n in nodes
    ]


def lmetric_decode(nodes: Sequence[Candidate], demand: Demand) -> list[float]:
    """LMetric's product for decode: what the node is filled with, times the batch size then."""
    occupancies = decode_occupancy(nodes, demand)
    return [each * (n.num_sequences + 1) for each, n in zip(occupancies, nodes, strict=True)]


def turns(nodes: Sequence[Candidate], demand: Demand) -> list[float]:
    """Round robin: who was given least so far, whatever it has now."""
    del demand
    return [n.num_placed for n in nodes]


def first_token_s(nodes: Sequence[Candidate], demand: Demand) -> list[float]:
    """Mooncake (FAST'25, algorithm 1): predicted queue and prefill; tokens where a node has no
    costs.

    The transfer is left out: of one request it is the same from every node. Mixing seconds and
    tokens would compare nothing, so one node without costs makes tokens decide among all.
    """
    if any(n.costs is None for n in nodes):
        return prefill_backlog(nodes, demand)
    need = demand.num_prefill_tokens
    scores = []
    for n in nodes:  # `own_prefill_s` written out: it halves the time for a thousand nodes
        costs = n.costs
        assert costs is not None, "all have costs"
        new = max(1, need - n.num_cached_pages * n.page_size)
        work_s = new * (costs.prefill_token_s + costs.prefill_context_s * (need - new / 2))
        scores.append(n.queue_s + -(-new // n.max_num_batched_tokens) * n.step_s + work_s)
    return scores


def token_s(nodes: Sequence[Candidate], demand: Demand) -> list[float]:
    """Predicted time per output token once it decodes here; occupancy where a node has no costs."""
    if any(n.costs is None for n in nodes):
        return decode_occupancy(nodes, demand)
    return [_token_s(n, demand) / n.decode_weight for n in nodes]


def _token_s(node: Candidate, demand: Demand) -> float:
    """A step with this request; where slots are taken, in as many turns as there are."""
    costs = node.costs
    assert costs is not None, "asked for a node with costs"
    step_s = node.step_s + costs.decode_row_s + costs.decode_context_s * demand.num_prefill_tokens
    return step_s * max(1.0, (node.num_sequences + 1) / node.max_num_seqs)


@dataclass(frozen=True, slots=True)
class DynamoPrefill:
    """Dynamo's KV router: blocks to prefill, weighted; here for the pool that only prefills."""

    overlap_weight: float = 1.0

    def __call__(self, nodes: Sequence[Candidate], demand: Demand) -> list[float]:
        """See the class."""
        backlog = prefill_backlog(nodes, demand)
        return [
            self.overlap_weight * tokens / n.page_size
            for tokens, n in zip(backlog, nodes, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class DynamoDecode:
    """Dynamo's KV router: weighted blocks to fill plus blocks in use, this request's included."""

    overlap_weight: float = 1.0

    def __call__(self, nodes: Sequence[Candidate], demand: Demand) -> list[float]:
        """See the class."""
        scores = []
        for n in nodes:
            num_new = n.num_new_pages(demand)
            blocks = self.overlap_weight * num_new + n.num_pages_held + num_new
            scores.append(blocks / n.decode_weight)
        return scores


@dataclass(frozen=True, slots=True)
class PrefixAffinity:
    """SGLang's cache-aware router: the longest match, if long enough and the pool is in balance.

    Out of balance is a pool whose longest queue exceeds its shortest by `imbalance_tokens` and is
    more than `imbalance_ratio` times as long; then the shortest queue wins.
    """

    min_match: float = 0.5
    imbalance_tokens: int = 8192
    imbalance_ratio: float = 1.5

    def __call__(self, nodes: Sequence[Candidate], demand: Demand) -> list[float]:
        """See the class."""
        backlog = prefill_backlog(nodes, demand)
        queues = [n.num_prefill_tokens for n in nodes]
        spread = max(queues) - min(queues)
        is_skewed = spread > self.imbalance_tokens and max(queues) > self.imbalance_ratio * min(
            queues
        )
        if is_skewed:
            return [float(each) for each in queues]
        num_tokens = demand.num_prefill_tokens
        matches = [min(1.0, n.num_cached_pages * n.page_size / num_tokens) for n in nodes]
        if max(matches) < self.min_match:
            return backlog
        # Of equal matches the shorter queue; a backlog is far below 1e12 tokens.
        return [tokens * 1e-12 - match for match, tokens in zip(matches, backlog, strict=True)]


@dataclass(frozen=True, slots=True)
class Packed:
    """PolyServe: the fullest node that still keeps the time per token; else the emptiest.

    A load gradient over the pool leaves nodes that can be given another role.
    """

    fullest: float = 0.9

    def __call__(self, nodes: Sequence[Candidate], demand: Demand) -> list[float]:
        """See the class."""
        occupancies = decode_occupancy(nodes, demand)
        return [
            -each if self._keeps(n, each, demand) else each
            for each, n in zip(occupancies, nodes, strict=True)
        ]

    def _keeps(self, node: Candidate, occupancy: float, demand: Demand) -> bool:
        if occupancy * node.decode_weight > self.fullest:
            return False
        target_s = min(demand.tpot_s, node.tightest_tpot_s)
        return node.costs is None or _token_s(node, demand) <= target_s


@dataclass(frozen=True, slots=True)
class Weighted:
    """Several scorers, each brought to 0 (best) to 1 (worst) over the pool, times its weight.

    The shape of llm-d's scheduler: filters, weighted scorers, a picker.
    """

    parts: tuple[tuple[float, Scorer], ...]

    def __call__(self, nodes: Sequence[Candidate], demand: Demand) -> list[float]:
        """See the class."""
        totals = [0.0] * len(nodes)
        for weight, scorer in self.parts:
            if weight == 0:
                continue
            for index, each in enumerate(normalised(scorer(nodes, demand))):
                totals[index] += weight * each
        return totals


def normalised(scores: Sequence[float]) -> list[float]:
    """Scores between 0 and 1; all 0 where they are equal."""
    lowest, highest = min(scores), max(scores)
    if lowest == highest:
        return [0.0] * len(scores)
    span = highest - lowest
    return [(each - lowest) / span for each in scores]


def missing_prefix(nodes: Sequence[Candidate], demand: Demand) -> list[float]:
    """The share of the prompt that the node would have to compute."""
    num_tokens = demand.num_prefill_tokens
    return [n.num_new_tokens(demand) / max(1, num_tokens) for n in nodes]


def queued_tokens(nodes: Sequence[Candidate], demand: Demand) -> list[float]:
    """Prompt tokens that wait or run, per share of the node."""
    del demand
    return [n.num_prefill_tokens / n.prefill_weight for n in nodes]


def pages_used(nodes: Sequence[Candidate], demand: Demand) -> list[float]:
    """The share of the pool that is in use."""
    del demand
    return [n.num_pages_held / n.num_pages for n in nodes]


def sequences(nodes: Sequence[Candidate], demand: Demand) -> list[float]:
    """Requests that decode there or will, per share of the node."""
    del demand
    return [n.num_sequences / n.decode_weight for n in nodes]
