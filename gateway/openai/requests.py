"""What callers send to /v1/chat/completions and /v1/completions, field by field.

Types only: ranges and what fields mean together are checked where they are read. Unknown fields are
accepted; the known ones that this system does not have are in `unsupported.py`.
"""

from typing import Annotated, Any

import msgspec

from gateway.openai.unsupported import Unsupported

MAX_CHOICES_PER_PROMPT = 128
MAX_PROMPTS = 512
MAX_CHOICES = 1024  # of all prompts of a call
MAX_MESSAGES = 4096
MAX_TOOLS = 128


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream counts tokens."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchemaFormat(msgspec.Struct, frozen=True, kw_only=True):
    """`response_format.json_schema`."""

    name: str | None = None
    schema_: dict[str, Any] | None = msgspec.field(default=None, name="schema")
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """`text`, `json_object` or `json_schema`."""

    type: str
    json_schema: JsonSchemaFormat | None = None


class ContentPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a message; only text is served."""

    type: str
    text: str | None = None


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the model made earlier; `arguments` is JSON text."""

    name: str
    arguments: str | None = None


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """One of an assistant message's tool calls."""

    function: FunctionCall
    id: str | None = None
    type: str = "function"


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], msgspec.Meta(max_length=MAX_TOOLS)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    function_call: Any = None
    audio: Any = None


class FunctionDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """What a function is called, is for, and takes (a JSON schema)."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call."""

    function: FunctionDefinition | None = None
    type: str = "function"


class GenerationRequest(Unsupported, frozen=True, kw_only=True):
    """What chat and completions have in common. `None` is the same as absent."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    best_of: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    # Beyond OpenAI, as vLLM names them.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    priority: int | None = None
    request_id: str | None = None
    cache_salt: str | None = None
    # Our own.
    sla_class: str | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    deadline_s: float | None = None


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], msgspec.Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Annotated[list[Tool], msgspec.Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: (
        Annotated[dict[str, str | int | float | bool | None], msgspec.Meta(max_length=64)] | None
    ) = None
    echo: bool | None = None


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
