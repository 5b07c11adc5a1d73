"""Which nodes serve a request: a pipeline of filters, a score per pool and a picker. Pure.

A policy sees immutable candidates and returns a placement or a refusal that says what to do; the
coordinator validates nothing beyond it, so a bad policy can be slow but cannot corrupt.

Filters are of two kinds. Some must hold: the role, room in the whole pool, a queue that is not
full. Others are wishes that give way where nothing else is left: nodes that failed this request,
nodes kept for a suspect, idle nodes for a suspect.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tandem.messages.common import ErrorCode

NODE_RETRY_S = 5.0  # a node needs about this long to start, load a small model and join


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks of the pools, in tokens; `num_output_tokens` were already delivered.

    patience: how many times the queue limits it may wait behind (infinite: it is never shed).
    avoid: nodes that failed earlier attempts. is_suspect: two nodes died of it, so it runs alone.
    move_from: a node that holds its KV and shall not decode it any longer.
    """

    num_prompt_tokens: int
    num_output_tokens: int
    max_output_tokens: int
    patience: float = 1.0
    avoid: tuple[str, ...] = ()
    is_suspect: bool = False
    move_from: str | None = None

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens whose KV prefill computes, where nothing is cached."""
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def num_total_tokens(self) -> int:
        """Tokens that the decode node's pool holds in the end."""
        return self.num_prompt_tokens + self.max_output_tokens


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as of its last heartbeat plus what was placed on it since.

    num_cached_pages: the leading pages of this demand that it has. is_isolated: a suspect runs
    there. `num_placed` counts all placements ever; it rotates equal nodes.
    """

    node_id: str
    prefill_weight: float
    decode_weight: float
    draining: bool
    num_pages: int
    page_size: int
    max_num_seqs: int
    num_prefill_tokens: int
    num_sequences: int
    num_pages_held: int
    num_placed: int
    num_cached_pages: int = 0
    is_isolated: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing computes or waits there."""
        return self.num_prefill_tokens == 0 and self.num_sequences == 0

    def num_pages_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)

    def num_new_tokens(self, demand: Demand) -> int:
        """Tokens to compute here; the last one always is, for its logits."""
        return max(1, demand.num_prefill_tokens - self.num_cached_pages * self.page_size)

    def num_new_pages(self, demand: Demand) -> int:
        """Pages that the request needs here beyond those that are cached."""
        return max(1, self.num_pages_for(demand.num_total_tokens) - self.num_cached_pages)


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may wait on one node before requests are shed: prompt tokens, and sequences."""

    num_tokens: int
    num_requests: int


@dataclass(frozen=True, slots=True)
class Placement:
    """`prefill` None: the decode node computes the prompt itself."""

    prefill: str | None
    decode: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request cannot be placed, what to do, and after how long to try again, if at all."""

    code: ErrorCode
    message: str
    retry_after_s: float | None = None


class PlacementPolicy(Protocol):
    """Decides where one request runs."""

    def route(self, demand: Demand, candidates: Sequence[Candidate]) -> Placement | Refusal:
        """A placement on the candidates, or why there is none."""
        ...


Score = Callable[[Candidate, Demand], float]


def prefill_backlog(node: Candidate, demand: Demand) -> float:
    """Tokens to compute until this request's first token, per share of the node.

    The queue and the request's own uncached tokens count alike, so a cached prefix is worth
    exactly the work that it saves: a node whose queue is longer by more than that loses.
    """
    return (node.num_prefill_tokens + node.num_new_tokens(demand)) / node.prefill_weight


def decode_occupancy(node: Candidate, demand: Demand) -> float:
    """How full the node gets, plus the part of its pool that must be sent, per share of the node.

    Fullness is that of sequence slots or of pages, whichever is scarcer. A hit of p % of the pool
    saves p % of transfer, and p % of fullness where pages are scarcer: a node that is fuller by
    more than twice that loses all the same.
    """
    num_new_pages = node.num_new_pages(demand)
    slots = (node.num_sequences + 1) / node.max_num_seqs
    pages = (node.num_pages_held + num_new_pages) / node.num_pages
    return (max(slots, pages) + num_new_pages / node.num_pages) / node.decode_weight


def pick_lowest(nodes: Sequence[Candidate], score: Score, demand: Demand) -> Candidate:
    """The node of the lowest score; equal ones take turns, by name at first."""
    return min(nodes, key=lambda n: (score(n, demand), n.num_placed, n.node_id))


@dataclass(frozen=True, slots=True)
class LeastLoaded:
    """The least loaded node of each pool; a node with both weights above zero is in both."""

    limits: QueueLimits
    prefill_score: Score = prefill_backlog
    decode_score: Score = decode_occupancy

    def route(self, demand: Demand, candidates: Sequence[Candidate]) -> Placement | Refusal:
        """See `PlacementPolicy`."""
        source = next((n for n in candidates if n.node_id == demand.move_from), None)
        decodes = [n for n in candidates if n.decode_weight > 0 and n is not source]
        prefills = [n for n in candidates if n.prefill_weight > 0]
        missing = _missing("decode", decodes, demand)
        if missing is None and source is None:
            missing = _missing("prefill", prefills, demand)
        if missing is not None:
            return missing
        fits_decode = _fitting("decode", decodes, demand.num_total_tokens, demand)
        if isinstance(fits_decode, Refusal):
            return fits_decode
        if source is not None:  # its pages are the cheapest prefill there is, whatever its role
            decode = pick_lowest(_preferred(fits_decode, demand), self.decode_score, demand)
            return Placement(prefill=source.node_id, decode=decode.node_id)
        fits_prefill = _fitting("prefill", prefills, demand.num_prefill_tokens, demand)
        if isinstance(fits_prefill, Refusal):
            return fits_prefill
        return self._pair(demand, fits_prefill, fits_decode)

    def _pair(
        self, demand: Demand, prefills: list[Candidate], decodes: list[Candidate]
    ) -> Placement | Refusal:
        """One node of each pool. Both lists have nodes that could hold the request."""
        open_decodes = [n for n in decodes if self._takes_sequence(n, demand)]
        open_prefills = [n for n in prefills if self._takes_prompt(n, demand)]
        # Without pure prefill nodes a transfer between two mixed nodes would buy nothing.
        has_pure = any(n.decode_weight == 0 for n in prefills)
        if not has_pure:
            # Then a mixed decode node computes the prompt as well, so it must have room for both.
            names = {n.node_id for n in open_prefills}
            open_decodes = [n for n in open_decodes if n.prefill_weight == 0 or n.node_id in names]
        if not open_decodes:
            return _overloaded("decode", decodes)
        if not open_prefills:
            return _overloaded("prefill", prefills)
        decode = pick_lowest(_preferred(open_decodes, demand), self.decode_score, demand)
        is_local = decode.prefill_weight > 0 and (not has_pure or demand.is_suspect)
        if is_local and any(n.node_id == decode.node_id for n in open_prefills):
            return Placement(prefill=None, decode=decode.node_id)
        prefill = pick_lowest(_preferred(open_prefills, demand), self.prefill_score, demand)
        remote = None if prefill.node_id == decode.node_id else prefill.node_id
        return Placement(prefill=remote, decode=decode.node_id)

    def _takes_prompt(self, node: Candidate, demand: Demand) -> bool:
        """Whether its prompts would wait no longer than the limit; an idle node takes any."""
        num_tokens = node.num_prefill_tokens + node.num_new_tokens(demand)
        is_free = node.num_prefill_tokens == 0
        return is_free or num_tokens <= self.limits.num_tokens * demand.patience

    def _takes_sequence(self, node: Candidate, demand: Demand) -> bool:
        """Whether no more sequences than the limit would wait, for a slot or for pages.

        Waiting for pages are as many as the pages that are missing, in requests of this size.
        """
        num_new_pages = node.num_new_pages(demand)
        num_missing = max(0, node.num_pages_held + num_new_pages - node.num_pages)
        for_pages = -(-num_missing // num_new_pages)
        for_slots = node.num_sequences + 1 - node.max_num_seqs
        limit = self.limits.num_requests * demand.patience
        return node.num_sequences == 0 or max(for_pages, for_slots) <= limit


def _preferred(nodes: list[Candidate], demand: Demand) -> list[Candidate]:
    """The wishes of the module's docstring, each only where it leaves a node."""
    wishes: list[Callable[[Candidate], bool]] = [
        lambda n: n.node_id not in demand.avoid,
        lambda n: not n.is_isolated,
    ]
    if demand.is_suspect:
        wishes.append(lambda n: n.is_idle)
    for wish in wishes:
        nodes = [n for n in nodes if wish(n)] or nodes
    return nodes


def _missing(role: str, nodes: Sequence[Candidate], demand: Demand) -> Refusal | None:
    if any(not node.draining for node in nodes):
        return None
    leaving = f" ({len(nodes)} draining)" if nodes else ""
    besides = f" besides {demand.move_from}" if demand.move_from else ""
    return Refusal(
        "no_prefill_node" if role == "prefill" else "no_decode_node",
        f"no {role} node{besides} is serving{leaving}: start one with scripts/launch_{role} and "
        "submit again",
        NODE_RETRY_S,
    )


def _fitting(
    role: str, nodes: Sequence[Candidate], num_tokens: int, demand: Demand
) -> list[Candidate] | Refusal:
    """Nodes that take work and whose whole pool would hold the request."""
    serving = [n for n in nodes if not n.draining]
    fitting = [n for n in serving if n.num_pages_for(num_tokens) <= n.num_pages]
    if fitting:
        return fitting
    largest = max(serving, key=lambda n: (n.num_pages * n.page_size, n.node_id))
    return Refusal(
        "too_few_pages",
        f"the request needs KV pages for {num_tokens} tokens ({demand.num_prompt_tokens} of "
        f"prompt, up to {demand.max_output_tokens} of output), and the largest {role} pool "
        f"({largest.node_id}) has {largest.num_pages} pages of {largest.page_size} tokens = "
        f"{largest.num_pages * largest.page_size}: shorten the prompt, lower max_tokens, or start "
        f"{role} nodes with more pages",
    )


def _overloaded(role: str, nodes: Sequence[Candidate]) -> Refusal:
    """The coordinator adds after how long to try again: it knows how fast requests end."""
    num_tokens = sum(n.num_prefill_tokens for n in nodes)
    num_sequences = sum(n.num_sequences for n in nodes)
    return Refusal(
        "overloaded",
        f"the queues of all {role} nodes are full ({num_sequences} requests and {num_tokens} "
        f"prompt tokens on {len(nodes)}): try again later, or start more with "
        f"scripts/launch_{role}",
    )


POLICIES: dict[str, Callable[[QueueLimits], PlacementPolicy]] = {"least_loaded": LeastLoaded}


def make_policy(name: str, limits: QueueLimits) -> PlacementPolicy:
    """The policy registered as `name`. Raises ValueError listing those there are."""
    if name not in POLICIES:
        raise ValueError(f"no placement policy {name!r}: use one of {', '.join(sorted(POLICIES))}")
    return POLICIES[name](limits)
