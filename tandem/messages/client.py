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
Choice = Annotated[int, msgspec.Meta(ge=0, le=127)]
Priority = Annotated[int, msgspec.Meta(ge=-100, le=100)]


class ChatMessage(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class ResumePoint(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client already has of a request that another gateway had accepted."""

    output_ids: TokenIds
    num_chars: Counter


class Submit(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Ask for a completion of exactly one of: text (UTF-8), token ids, or a conversation.

    With `resume` (and the seed that the first gateway drew) the answer continues after what the
    client has. Sent again under its label it is answered again and runs once: an identity needs
    another label for every request, until the end of the one before is confirmed. Of one prompt
    and seed each `choice` is another answer.
    """

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
    resume: ResumePoint | None = None
    choice: Choice = 0


class Accepted(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The request is in the gateway's ledger; everything needed to resume it elsewhere.

    A client that says nothing of the request (`Received`) for `silence_s` loses it; None: it need
    not say anything. Sent again as the answer to `Resume`, before what is replayed.
    """

    label: Label
    request_id: RequestId
    seed: Seed
    model_fingerprint: Name
    num_prompt_tokens: Counter
    silence_s: Duration | None = None


class Refused(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The request was never admitted to the ledger."""

    label: Label
    code: ErrorCode
    message: ShortText
    retry_after_s: Duration | None = None


class Output(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Tokens `index, index + 1, ...` of a request and the text that they complete.

    Comes again, always in the same pieces, where an acknowledgement was late: drop an index below
    what you have, ask `Resume` for one above. Without tokens it is the text that was held back at
    the end; keep the last such piece until `Done`.
    """

    request_id: RequestId
    index: Counter
    token_ids: tuple[TokenId, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()


class Done(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The one terminal message of a request; resent until `Received` with `is_done`.

    `num_chars` are the characters of all its `Output` on this gateway: with fewer of them, or of
    tokens (`usage.num_output_tokens`), something was lost on the way: ask `Resume`.
    """

    request_id: RequestId
    reason: FinishReason
    usage: Usage
    timeline: Timeline
    sla_class: Name
    sla_attained: bool
    num_chars: Counter | None = None
    stop_string: str | None = None
    code: ErrorCode | None = None
    message: ShortText | None = None
    retry_after_s: Duration | None = None


class CancelRequest(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Stop a request; its `Done` says how it ended."""

    request_id: RequestId


class Received(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The client has all tokens below `next_index` (and, with `is_done`, the `Done`).

    Every client says it for every stream, at least every third of `Accepted.silence_s`; a stream
    of which too much is unacknowledged pauses, and after 10 s without progress the request is cut.
    """

    request_id: RequestId
    next_index: Counter
    is_done: bool = False


class Resume(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """From now on send this request's stream to me, from token `next_index` on.

    Whoever knows the request id may ask (with keys: only under the key that submitted it). The
    answer is `Accepted` or `ResumeRefused`; without one, ask again after a second.
    """

    request_id: RequestId
    next_index: Counter


class ResumeRefused(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """This gateway does not know the request, or not any more: submit it with `resume`."""

    request_id: RequestId
    message: ShortText


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
    """A message of this peer could not be read, or was one too many; nothing of it was used."""

    message: ShortText
    is_rate_limited: bool = False


ToGateway = Submit | CancelRequest | Received | Resume | ClientPing
ToClient = Accepted | Refused | Output | Done | ResumeRefused | ClientPong | Malformed
