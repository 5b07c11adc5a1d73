"""What heartbeats carry of a node's work. Pure."""

from node.guest import DecodeRole, PrefillRole
from node.state import NodeState
from tandem.messages.membership import NodeLoad


def node_load(
    state: NodeState, prefill: PrefillRole, decode: DecodeRole, num_steps: int, step_age_s: float
) -> NodeLoad:
    """The load of a node that has run so many steps."""
    work = prefill.work()
    rows, arrived = decode.running(), decode.waiting()
    running = len(rows)
    waiting = len(arrived) + len(decode.swapped())
    num_requests = prefill.num_requests + decode.num_requests
    return NodeLoad(
        num_steps=num_steps,
        step_age_s=step_age_s,
        num_prefill_waiting=work.num_prompts,
        num_prefill_tokens_waiting=work.num_tokens,
        num_decode_running=running,
        num_decode_waiting=waiting,
        num_transfers=max(0, num_requests - work.num_prompts - running - waiting),
        num_requests=num_requests + state.emitter.num_unacknowledged,
        num_tokens_out=state.emitter.num_tokens,
        pages=state.ledger.counts(),
        num_preempted=decode.num_preempted,
        num_wasted_tokens=state.num_wasted_tokens,
        num_decode_tokens=sum(row.num_tokens for row in rows),
        busy_s=state.costs.busy_s,
        costs=state.costs.learned,
        num_held_tokens=work.num_held_tokens + sum(r.num_computed for r in (*rows, *arrived)),
        num_held_pages=work.num_held_pages + sum(r.num_pages for r in (*rows, *arrived)),
        num_prompt_tokens=state.num_prompt_tokens,
        num_cached_tokens=state.num_cached_tokens,
        num_transfers_done=state.num_handoffs,
        num_transfers_failed=state.num_handoffs_failed,
        transfer_bytes=state.num_handoff_pages * state.identity.layout.page_bytes,
    )
