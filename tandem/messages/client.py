"""Client <-> gateway: submit, stream, cancel. A client's own label names nothing in the cluster."""

from typing import Annotated, Literal

import msgspec

from tandem.frames import Blob, TokenIds
from tandem.messages.common import (
    Counter,
    Duration,
    ErrorCode,
    FinishReason,
    Message,
    Name,
    RequestId,
    Seed,
    ShortText,
    Timeline,
    TokenId,
    TokenLogprobs,
    Usage,
    Wire,
)
from tandem.sampling import SamplingParams

Label = Annotated[str, msgspec.Meta(max_length=128)]
Priority = Annotated[int, msgspec.Meta(ge=-100, le=100)]


class ChatMessage(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Submit(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Ask for a completion of exactly one of: text (UTF-8), token ids, or a conversation."""

    label: Label
    prompt: Blob | None = None
    prompt_ids: TokenIds | None = None
    chat: Annotated[tuple[ChatMessage, ...], msgspec.Meta(max_length=512)] = ()
    model: Name | None = None
    params: SamplingParams = SamplingParams()
    sla_class: Name | None = None
    ttft_ms: Duration | None = None
    tpot_ms: Duration | None = None
    priority: Priority = 0
    deadline_s: Duration | None = None


class Accepted(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The request is in the gateway's ledger; everything needed to resume it elsewhere."""

    label: Label
    request_id: RequestId
    seed: Seed
    model_fingerprint: Name
    num_prompt_tokens: Counter


class Refused(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The request was never admitted to the ledger."""

    label: Label
    code: ErrorCode
    message: ShortText
    retry_after_s: Duration | None = None


class Output(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Tokens `index, index + 1, ...` of a request and the text that they complete."""

    request_id: RequestId
    index: Counter
    token_ids: tuple[TokenId, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()


class Done(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The one terminal message of a request."""

    request_id: RequestId
    reason: FinishReason
    usage: Usage
    timeline: Timeline
    sla_class: Name
    sla_attained: bool
    stop_string: str | None = None
    code: ErrorCode | None = None
    message: ShortText | None = None
    retry_after_s: Duration | None = None


class CancelRequest(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Stop a request; its `Done` says how it ended."""

    request_id: RequestId


class ClientPing(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Ask whether the gateway serves, and what."""

    label: Label


class ClientPong(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """What this gateway serves; `ready` once prefill and decode nodes are known."""

    label: Label
    model: Name
    ready: bool
    max_model_len: Counter


class Malformed(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """A message of this peer could not be read; nothing else of it was used."""

    message: ShortText


ToGateway = Submit | CancelRequest | ClientPing
ToClient = Accepted | Refused | Output | Done | ClientPong | Malformed
