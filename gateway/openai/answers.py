"""What callers are answered with: whole answers, and chunks of streamed ones."""

import msgspec
from msgspec import UNSET, UnsetType

from gateway.openai.logprobs import ChatLogprobs, CompletionLogprobs


class PromptTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """`cached_tokens` were not recomputed."""

    cached_tokens: int = 0


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens; each prompt counts once, however many answers it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True):
    """In chunks after the first of a call there is no name."""

    name: str | UnsetType = UNSET
    arguments: str = ""


class AnsweredCall(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call of an answer."""

    id: str
    function: CalledFunction
    type: str = "function"


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The assistant's turn."""

    role: str = "assistant"
    content: str | None = None
    refusal: None = None
    tool_calls: list[AnsweredCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of a chat."""

    index: int
    message: ChatMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Of /v1/chat/completions."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None
    object: str = "chat.completion"
    prompt_token_ids: list[int] | UnsetType = UNSET


class CallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """The beginning of a call, with id and name, or more of its arguments."""

    index: int
    function: CalledFunction
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What is new of a message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: tuple[CallDelta, ...] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What is new of one answer; `finish_reason` is null until its last chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: tuple[int, ...] | UnsetType = UNSET


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """Of a streamed chat; `usage` is there where it was asked for, null but in the last."""

    id: str
    created: int
    model: str
    choices: tuple[ChatChunkChoice, ...]
    system_fingerprint: str | None
    object: str = "chat.completion.chunk"
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of a completion, or what is new of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: tuple[int, ...] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Of /v1/completions; streamed chunks have the same form."""

    id: str
    created: int
    model: str
    choices: tuple[CompletionChoice, ...]
    system_fingerprint: str | None
    object: str = "text_completion"
    usage: Usage | UnsetType | None = UNSET
