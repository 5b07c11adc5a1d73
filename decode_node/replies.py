"""What the decode guest answers and asks gateways, in words and messages."""

from kv_transfer.actions import Arrived
from node.resident import Resident
from node.state import NodeState
from scheduling.views import RequestKey
from tandem.messages.common import ErrorCode
from tandem.messages.serving import CommandRefused, MoveWanted


def refusal(key: RequestKey, code: ErrorCode, message: str) -> CommandRefused:
    """A `Decode` that is not taken."""
    return CommandRefused(
        command="decode", request_id=key[0], attempt=key[1], code=code, message=message
    )


def explain_too_few(resident: Resident, num_pages: int) -> str:
    """Why a pool of `num_pages` can never hold it."""
    return (
        f"{resident.max_total_tokens} tokens need {resident.num_final_pages} KV pages and the "
        f"decode node has {num_pages}: shorten the prompt, lower max_tokens, or start the node "
        "with more --num-pages"
    )


def explain_misfit(arrived: Arrived, resident: Resident, state: NodeState) -> str | None:
    """Why this KV is not the request's: a prefill node is believed nothing that can be seen."""
    hashes = state.hashes(resident, resident.num_tokens)
    if arrived.num_tokens != resident.num_tokens:
        return f"KV of {arrived.num_tokens} tokens came for {resident.num_tokens}"
    if arrived.cached_hashes != tuple(hashes[: arrived.num_cached]):
        return "the prefill node reserved for the prefix of another prompt"
    if arrived.first_token.token_id >= state.identity.model.vocab_size:
        return f"the prefill node's first token is {arrived.first_token.token_id}"
    # The emitter keeps as many logprobs as tokens, or none.
    has_logprobs = arrived.first_token.logprobs is not None
    if has_logprobs != (resident.spec.params.logprobs is not None):
        return f"the first token came {'with' if has_logprobs else 'without'} logprobs"
    num_growth = arrived.num_promised + state.pool.growth.num_unpromised(arrived.key)
    num_pages = len(arrived.pages) + num_growth
    if num_pages < resident.num_final_pages:
        return f"{num_pages} pages were reserved, {resident.num_final_pages} are needed"
    return None


def move_wanted(key: RequestKey) -> MoveWanted:
    """A request that would be better off elsewhere."""
    return MoveWanted(request_id=key[0], attempt=key[1])
