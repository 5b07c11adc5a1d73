"""Gateway <-> node: commands down, tokens up. Commands are idempotent and resent until answered."""

from typing import Literal

from tandem.frames import TokenIds
from tandem.messages.common import (
    Attempt,
    Counter,
    DecodeReport,
    Duration,
    ErrorCode,
    FinishReason,
    Int64,
    LengthPrediction,
    Message,
    Name,
    NodeRef,
    PrefillReport,
    RequestId,
    Seed,
    ShortText,
    SlaTargets,
    TokenId,
    TokenLogprobs,
    Wire,
)
from tandem.messages.evaluation import EvaluationAnswer, EvaluationCommand
from tandem.sampling import SamplingParams

CommandKind = Literal["prefill", "decode", "cancel"]


class RequestSpec(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One attempt at a request; the same in the prefill and the decode command.

    `output_ids` were already delivered by earlier attempts (empty on the first); token indices
    are absolute. `params.max_tokens` is resolved by the gateway, never None.
    `sequence` is the coordinator's placement order, the request's age. `waited_s` is how long the
    request had waited before this attempt was commanded, so that nodes know when its first token
    is due.
    """

    request_id: RequestId
    attempt: Attempt
    prompt_ids: TokenIds
    output_ids: TokenIds
    params: SamplingParams
    seed: Seed
    choice: Counter
    tenant: Name
    priority: Int64
    targets: SlaTargets
    deadline_s: Duration | None
    sequence: Counter
    waited_s: Duration = 0.0
    tenant_weight: Duration = 1.0
    prediction: LengthPrediction | None = None


class Prefill(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Compute the prompt's KV and token 0, and hand both to `decode`."""

    spec: RequestSpec
    decode: NodeRef


class Decode(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Expect KV from `prefill` (None: compute it here), then generate the rest."""

    spec: RequestSpec
    prefill: NodeRef | None


class Cancel(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """End this attempt and all earlier ones, whether or not their commands have arrived."""

    request_id: RequestId
    attempt: Attempt


class CommandAck(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The command was taken, or had been before."""

    command: CommandKind
    request_id: RequestId
    attempt: Attempt


class CommandRefused(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The command was not taken; the attempt cannot run here."""

    command: CommandKind
    request_id: RequestId
    attempt: Attempt
    code: ErrorCode
    message: ShortText


class TokenDelta(
    Wire, frozen=True, kw_only=True, forbid_unknown_fields=True, array_like=True, gc=False
):
    """Tokens `start, start + 1, ...` of an attempt; `logprobs` is empty or as long as `ids`."""

    request_id: RequestId
    attempt: Attempt
    start: Counter
    ids: tuple[TokenId, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()


class Ending(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an attempt ended on this node; tokens below `end_index` exist."""

    request_id: RequestId
    attempt: Attempt
    end_index: Counter
    reason: FinishReason
    code: ErrorCode | None = None
    message: ShortText | None = None
    prefill: PrefillReport | None = None
    decode: DecodeReport | None = None


class Emission(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """All new tokens and endings of one gateway's requests; kept by the node until acknowledged."""

    node_id: Name
    incarnation: Counter
    epoch: Counter
    deltas: tuple[TokenDelta, ...]
    endings: tuple[Ending, ...]
    prefills: tuple[tuple[RequestId, Attempt, PrefillReport], ...] = ()


class TokensTaken(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True, array_like=True):
    """The gateway has, or never again wants, all tokens of the attempt below `next_index`."""

    request_id: RequestId
    attempt: Attempt
    next_index: Counter


class EmissionAck(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """What the node may forget."""

    taken: tuple[TokensTaken, ...]
    ended: tuple[tuple[RequestId, Attempt], ...]


class AskAttempt(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Is the attempt still there? Asked of a decode node whose prefill node is lost, and of nodes
    that have said nothing for long."""

    request_id: RequestId
    attempt: Attempt


class AttemptStatus(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Answer to `AskAttempt`: with its KV (or its end) there, the attempt goes on.

    `is_here`: the node waits for it, computes it, or sends it.
    """

    request_id: RequestId
    attempt: Attempt
    has_kv: bool
    is_here: bool = False


class Adopt(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """A decode node granted pages to an attempt whose command it has not seen: is it wanted?"""

    request_id: RequestId
    attempt: Attempt


class Adopted(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Answer to `Adopt`; an attempt that is not wanted is over."""

    request_id: RequestId
    attempt: Attempt
    is_wanted: bool


class MoveWanted(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The attempt would be better off on another node; it goes on here until it is there."""

    request_id: RequestId
    attempt: Attempt


class PeerBeat(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The gateway lives; renews its lease at the node."""

    gateway_id: Name
    incarnation: Counter


FromGatewayToNode = (
    Prefill | Decode | Cancel | EmissionAck | AskAttempt | Adopted | PeerBeat | EvaluationCommand
)
FromNodeToGateway = (
    CommandAck | CommandRefused | Emission | AttemptStatus | Adopt | MoveWanted | EvaluationAnswer
)
