"""Which nodes serve a request: a pipeline of filters, a score per pool and a picker. Pure.

A policy sees immutable candidates and returns a placement or a refusal that says what to do; the
coordinator validates nothing beyond it, so a bad policy can be slow but cannot corrupt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tandem.messages.common import ErrorCode

NODE_RETRY_S = 5.0  # a node needs about this long to start, load a small model and join


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks of the pools, in tokens; `num_output_tokens` were already delivered."""

    num_prompt_tokens: int
    num_output_tokens: int
    max_output_tokens: int

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens whose KV prefill computes."""
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def num_total_tokens(self) -> int:
        """Tokens that the decode node's pool holds in the end."""
        return self.num_prompt_tokens + self.max_output_tokens


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as of its last heartbeat plus what was placed on it since.

    `num_placed` counts all placements ever; it rotates equal nodes.
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

    def num_pages_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)


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
    """Tokens to compute before this request's first token, per share of the node."""
    return (node.num_prefill_tokens + demand.num_prefill_tokens) / node.prefill_weight


def decode_occupancy(node: Candidate, demand: Demand) -> float:
    """The fuller of sequence slots and pages once the request is there, per share of the node."""
    slots = (node.num_sequences + 1) / node.max_num_seqs
    num_pages = node.num_pages_held + node.num_pages_for(demand.num_total_tokens)
    return max(slots, num_pages / node.num_pages) / node.decode_weight


def pick_lowest(nodes: Sequence[Candidate], score: Score, demand: Demand) -> Candidate:
    """The node of the lowest score; equal ones take turns, by name at first."""
    return min(nodes, key=lambda n: (score(n, demand), n.num_placed, n.node_id))


@dataclass(frozen=True, slots=True)
class LeastLoaded:
    """The least loaded node of each pool; a node with both weights above zero is in both."""

    prefill_score: Score = prefill_backlog
    decode_score: Score = decode_occupancy

    def route(self, demand: Demand, candidates: Sequence[Candidate]) -> Placement | Refusal:
        """See `PlacementPolicy`."""
        prefills = [n for n in candidates if n.prefill_weight > 0]
        decodes = [n for n in candidates if n.decode_weight > 0]
        missing = _missing("decode", decodes) or _missing("prefill", prefills)
        if missing is not None:
            return missing
        fits_decode = _fitting("decode", decodes, demand.num_total_tokens, demand)
        fits_prefill = _fitting("prefill", prefills, demand.num_prefill_tokens, demand)
        if isinstance(fits_decode, Refusal):
            return fits_decode
        if isinstance(fits_prefill, Refusal):
            return fits_prefill
        decode = pick_lowest(fits_decode, self.decode_score, demand)
        # Without pure prefill nodes a transfer between two mixed nodes would buy nothing.
        has_pure = any(n.decode_weight == 0 for n in fits_prefill)
        if not has_pure and decode.prefill_weight > 0:
            return Placement(prefill=None, decode=decode.node_id)
        prefill = pick_lowest(fits_prefill, self.prefill_score, demand)
        remote = None if prefill.node_id == decode.node_id else prefill.node_id
        return Placement(prefill=remote, decode=decode.node_id)


def _missing(role: str, nodes: Sequence[Candidate]) -> Refusal | None:
    if any(not node.draining for node in nodes):
        return None
    leaving = f" ({len(nodes)} draining)" if nodes else ""
    return Refusal(
        "no_prefill_node" if role == "prefill" else "no_decode_node",
        f"no {role} node is serving{leaving}: start one with scripts/launch_{role} and submit "
        "again",
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
    largest = max(serving, key=lambda n: n.num_pages * n.page_size)
    return Refusal(
        "too_few_pages",
        f"the request needs KV pages for {num_tokens} tokens ({demand.num_prompt_tokens} of "
        f"prompt, up to {demand.max_output_tokens} of output), and the largest {role} pool "
        f"({largest.node_id}) has {largest.num_pages} pages of {largest.page_size} tokens = "
        f"{largest.num_pages * largest.page_size}: shorten the prompt, lower max_tokens, or start "
        f"{role} nodes with more pages",
    )


POLICIES: dict[str, Callable[[], PlacementPolicy]] = {"least_loaded": LeastLoaded}


def make_policy(name: str) -> PlacementPolicy:
    """The policy registered as `name`. Raises ValueError listing those there are."""
    if name not in POLICIES:
        raise ValueError(f"no placement policy {name!r}: use one of {', '.join(sorted(POLICIES))}")
    return POLICIES[name]()
