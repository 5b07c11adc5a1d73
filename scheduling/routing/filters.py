"""Which nodes may serve a request, and the refusals where none may. Pure.

Filters are of two kinds. Some must hold: the role, room in the whole pool, a queue that is not
full. Others are wishes that give way where nothing else is left: nodes that failed this request,
nodes kept for a suspect, idle nodes for a suspect. All take a list and return those that pass:
one call per pool, since a pool may have a thousand nodes and a request a millisecond.
"""

from collections.abc import Sequence

from scheduling.routing.placement import Candidate, Demand, QueueLimits, Refusal

NODE_RETRY_S = 5.0  # a node needs about this long to start, load a small model and join


def explain_missing(role: str, nodes: Sequence[Candidate], demand: Demand) -> Refusal | None:
    """Why none of the nodes of a role takes work; None: one does."""
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


def fitting(
    role: str, nodes: Sequence[Candidate], num_tokens: int, demand: Demand
) -> list[Candidate] | Refusal:
    """Nodes that take work and whose whole pool would hold the request."""
    serving = [n for n in nodes if not n.draining]
    fit = [n for n in serving if n.num_pages * n.page_size >= num_tokens]
    if fit:
        return fit
    largest = max(serving, key=lambda n: (n.num_pages * n.page_size, n.node_id))
    return Refusal(
        "too_few_pages",
        f"the request needs KV pages for {num_tokens} tokens ({demand.num_prompt_tokens} of "
        f"prompt, up to {demand.max_output_tokens} of output), and the largest {role} pool "
        f"({largest.node_id}) has {largest.num_pages} pages of {largest.page_size} tokens = "
        f"{largest.num_pages * largest.page_size}: shorten the prompt, lower max_tokens, or start "
        f"{role} nodes with more pages",
    )


def taking_prompt(
    nodes: Sequence[Candidate], demand: Demand, limits: QueueLimits
) -> list[Candidate]:
    """Nodes whose prompts would wait no longer than the limit; an idle node takes any."""
    limit = limits.num_tokens * demand.patience
    num_tokens = demand.num_prefill_tokens
    roomy = limit - num_tokens  # what may wait already, where nothing of this prompt is cached
    return [
        n
        for n in nodes
        if n.num_prefill_tokens <= roomy
        or n.num_prefill_tokens == 0
        or n.num_prefill_tokens + n.num_new_tokens(demand) <= limit
    ]


def taking_sequence(
    nodes: Sequence[Candidate], demand: Demand, limits: QueueLimits
) -> list[Candidate]:
    """Nodes where no more sequences than the limit would wait, for a slot or for pages."""
    limit = limits.num_requests * demand.patience
    total = demand.num_total_tokens
    return [
        n
        for n in nodes
        if n.num_sequences == 0
        or (
            n.num_sequences < n.max_num_seqs + limit
            and (
                (n.num_pages - n.num_pages_held) * n.page_size >= total
                or num_waiting_for_pages(n, demand) <= limit
            )
        )
    ]


def num_waiting_for_pages(node: Candidate, demand: Demand) -> int:
    """Requests that would wait for pages, this one included: the missing ones, in its size."""
    num_new_pages = node.num_new_pages(demand)
    num_missing = max(0, node.num_pages_held + num_new_pages - node.num_pages)
    return -(-num_missing // num_new_pages)


def preferred(nodes: list[Candidate], demand: Demand) -> list[Candidate]:
    """The wishes of the module's docstring, each only where it leaves a node."""
    if demand.avoid:
        nodes = [n for n in nodes if n.node_id not in demand.avoid] or nodes
    nodes = [n for n in nodes if not n.is_isolated] or nodes
    if demand.is_suspect:
        nodes = [n for n in nodes if n.is_idle] or nodes
    return nodes


def overloaded(role: str, nodes: Sequence[Candidate]) -> Refusal:
    """The coordinator adds after how long to try again: it knows how fast requests end."""
    num_tokens = sum(n.num_prefill_tokens for n in nodes)
    num_sequences = sum(n.num_sequences for n in nodes)
    return Refusal(
        "overloaded",
        f"the queues of all {role} nodes are full ({num_sequences} requests and {num_tokens} "
        f"prompt tokens on {len(nodes)}): try again later, or start more with "
        f"scripts/launch_{role}",
        can_wait=True,
    )
