"""The nodes as a placement policy sees them, for one request. Pure."""

from coordinator.members import NodeRecord
from scheduling.routing.placement import Candidate


def make_candidate(record: NodeRecord, num_cached_pages: int) -> Candidate:
    """A node as of its last heartbeat, plus what was placed on it since.

    What live requests were promised counts from their placement, even while the node has not begun
    with them or says that it has nothing: it will need that much.
    """
    hello, load, live = record.hello, record.load, record.live
    shares = record.recent.values()
    prefill_tokens = sum(share.num_prefill_tokens for share in shares)
    num_sequences = sum(share.num_sequences for share in shares)
    num_pages_held = sum(share.num_pages for share in shares)
    if load is not None:
        prefill_tokens += load.num_prefill_tokens_waiting
        num_sequences += load.num_decode_running + load.num_decode_waiting + load.num_transfers
        num_pages_held += max(0, hello.num_pages - load.pages.free - load.pages.cached)
    # Weights are shares of one node: whatever their sum, a node is not more than one.
    weights = hello.weights
    share = record.speed / (weights.prefill + weights.decode)
    return Candidate(
        node_id=hello.node_id,
        prefill_weight=weights.prefill * share,
        decode_weight=weights.decode * share,
        draining=record.draining,
        num_pages=hello.num_pages,
        page_size=hello.layout.page_size,
        max_num_seqs=hello.max_num_seqs,
        num_prefill_tokens=prefill_tokens,
        num_sequences=max(num_sequences, live.num_sequences),
        num_pages_held=max(num_pages_held, live.num_pages),
        num_placed=record.num_placed,
        num_cached_pages=num_cached_pages,
        is_isolated=live.num_suspects > 0,
    )
