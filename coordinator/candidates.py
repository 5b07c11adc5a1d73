"""The nodes as a placement policy sees them. Pure.

A node is described once, not per request: a thousand nodes take about 5 ms to describe, and a
request may take one. Who changes what a description rests on sets `NodeRecord.candidate` to None.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from coordinator.members import NodeRecord
from scheduling.routing.estimates import trusted, with_times
from scheduling.routing.placement import Candidate


class Candidates:
    """Candidates of all nodes; those with cached pages of a request are kept for the next one."""

    def __init__(self) -> None:
        self._hit: dict[str, tuple[Candidate, Candidate]] = {}  # without and with cached pages

    def of(self, records: Iterable[NodeRecord], num_cached: Mapping[str, int]) -> list[Candidate]:
        """All nodes for one request, of whose leading pages some have `num_cached`."""
        plain = [record.candidate or describe(record) for record in records]
        if not num_cached:
            return plain
        if len(self._hit) > len(plain):
            self._hit.clear()  # of nodes that are gone, for the most part
        return [
            self._with_pages(node, num_cached[node.node_id]) if node.node_id in num_cached else node
            for node in plain
        ]

    def _with_pages(self, node: Candidate, num_pages: int) -> Candidate:
        base, hit = self._hit.get(node.node_id, (None, node))
        if base is not node or hit.num_cached_pages != num_pages:
            hit = replace(node, num_cached_pages=num_pages)
            self._hit[node.node_id] = (node, hit)
        return hit


def describe(record: NodeRecord) -> Candidate:
    """A node as of its last heartbeat, plus what was placed on it since; kept in the record.

    What live requests were promised counts from their placement, even while the node has not begun
    with them or says that it has nothing: it will need that much.
    """
    hello, load, live = record.hello, record.load, record.live
    shares = record.recent.values()
    prefill_tokens = sum(share.num_prefill_tokens for share in shares)
    num_prompts = sum(share.num_prefill_tokens > 0 for share in shares)
    num_sequences = sum(share.num_sequences for share in shares)
    num_pages_held = sum(share.num_pages for share in shares)
    if load is not None:
        prefill_tokens += load.num_prefill_tokens_waiting
        num_prompts += load.num_prefill_waiting
        num_sequences += load.num_decode_running + load.num_decode_waiting + load.num_transfers
        num_pages_held += max(0, hello.num_pages - load.pages.free - load.pages.cached)
    # Weights are shares of one node: whatever their sum, a node is not more than one.
    weights = record.weights
    share = record.speed / (weights.prefill + weights.decode or 1.0)  # both closed: none of it
    num_sequences = max(num_sequences, live.num_sequences)
    candidate = Candidate(
        node_id=hello.node_id,
        prefill_weight=weights.prefill * share,
        decode_weight=weights.decode * share,
        draining=record.draining,
        num_pages=hello.num_pages,
        page_size=hello.layout.page_size,
        max_num_seqs=hello.max_num_seqs,
        num_prefill_tokens=prefill_tokens,
        num_sequences=num_sequences,
        num_pages_held=max(num_pages_held, live.num_pages),
        num_placed=record.num_placed,
        is_isolated=live.num_suspects > 0,
        num_prompts=num_prompts,
        num_decode_tokens=_num_decode_tokens(record, num_sequences),
        max_num_batched_tokens=hello.max_num_batched_tokens,
        page_bytes=hello.layout.page_bytes,
        tightest_tpot_s=min(live.num_by_tpot, default=math.inf),
        costs=None if load is None else trusted(load.costs),
    )
    record.candidate = with_times(candidate)
    return record.candidate


def _num_decode_tokens(record: NodeRecord, num_sequences: int) -> int:
    """Contexts of all its sequences: those that do not run yet are taken to be like the others."""
    load = record.load
    if load is None or load.num_decode_running == 0:
        return 0
    return round(load.num_decode_tokens / load.num_decode_running * num_sequences)
