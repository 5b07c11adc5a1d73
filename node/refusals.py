"""Why a node does not take a command: it is wrong, or for a role that is closed here. Pure."""

from node.guest import DecodeRole, Guest, PrefillRole
from node.state import NodeIdentity
from tandem.frames import TokenIds
from tandem.messages.common import ErrorCode
from tandem.messages.membership import RoleWeights
from tandem.messages.serving import CommandRefused, Decode, Prefill
from tandem.sampling import validate

MAX_TEXT = 1000


def refusal(command: Prefill | Decode, code: ErrorCode, text: str) -> CommandRefused:
    """The answer to a command that is not taken."""
    return CommandRefused(
        command="prefill" if isinstance(command, Prefill) else "decode",
        request_id=command.spec.request_id,
        attempt=command.spec.attempt,
        code=code,
        message=text[:MAX_TEXT],
    )


def explain_invalid(command: Prefill | Decode, identity: NodeIdentity) -> str | None:
    """What is wrong with a command for any node like this; the gateway has checked it before."""
    spec, model = command.spec, identity.model
    num_prompt, max_tokens = len(spec.prompt_ids), spec.params.max_tokens
    if model.num_labels:
        return "this model has a classification head and generates nothing"
    if num_prompt == 0 or max_tokens is None or max_tokens < 1:
        return "a command needs at least one prompt token and max_tokens of 1 or more"
    if len(spec.output_ids) >= max_tokens:
        return f"{len(spec.output_ids)} tokens delivered, max_tokens is {max_tokens}"
    if num_prompt + max_tokens > model.max_model_len:
        return f"{num_prompt} + {max_tokens} tokens exceed the context, {model.max_model_len}"
    if not all(_are_tokens(ids, model.vocab_size) for ids in (spec.prompt_ids, spec.output_ids)):
        return f"token ids must be from 0 to {model.vocab_size - 1}"
    if isinstance(command, Prefill) and command.decode.node_id == identity.node_id:
        return "a node hands nothing over to itself: place the request without a prefill node"
    try:
        validate(spec.params, model.vocab_size, model.max_model_len)
    except ValueError as error:
        return str(error)
    return None


def explain_contradiction(
    command: Prefill | Decode, prefill: PrefillRole, decode: DecodeRole
) -> str | None:
    """Whether the node has, or had, the other part of the same attempt, and not this one."""
    mine: Guest = prefill
    other: Guest = decode
    if isinstance(command, Decode):
        mine, other = other, mine
    key = (command.spec.request_id, command.spec.attempt)
    if other.knows(key) and not mine.knows(key):
        return "a node is not both the prefill and the decode node of one attempt"
    return None


def explain_closed(
    command: Prefill | Decode, weights: RoleWeights, prefill: PrefillRole, decode: DecodeRole
) -> str | None:
    """Whether the command is new work of a role that is closed here.

    Attempts that are here go on, and grants are honoured. A decode node that a request leaves
    computes what its cache lacks of it, and a prompt that the decode guest computes itself needs
    no prefill role.
    """
    key = (command.spec.request_id, command.spec.attempt)
    if isinstance(command, Prefill):
        is_closed = weights.prefill == 0
        is_here = prefill.knows(key) or decode.has_had(key[0])
    else:
        is_closed = weights.decode == 0
        is_here = decode.knows(key) or decode.has(key)
    role = "prefill" if isinstance(command, Prefill) else "decode"
    return f"this node's {role} role is closed" if is_closed and not is_here else None


def _are_tokens(ids: TokenIds, vocab_size: int) -> bool:
    return len(ids) == 0 or (ids.array.min() >= 0 and ids.array.max() < vocab_size)
