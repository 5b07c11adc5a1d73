"""A chat's messages as templates take them: plain maps of text. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway.http.errors import ApiError
from gateway.openai.requests import ChatRequest, ContentPart, Message, ToolCall

ROLES = ("system", "developer", "user", "assistant", "tool")
KWARG_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# What the gateway itself hands to a template, and what its renderer takes for options.
TAKEN_KWARGS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


def conversation_of(request: ChatRequest) -> list[dict[str, Any]]:
    """Raises ApiError for roles and contents that are not served."""
    return [_turn(message, f"messages[{at}]") for at, message in enumerate(request.messages)]


def _turn(message: Message, place: str) -> dict[str, Any]:
    if message.role not in ROLES:
        text = f"the role {message.role[:50]!r} is none of {', '.join(ROLES)}"
        raise ApiError(400, text, param=f"{place}.role")
    for name in ("function_call", "audio"):
        if getattr(message, name) is not None:
            text = f"{name} in a message is not supported: use tool_calls and text"
            raise ApiError(400, text, param=f"{place}.{name}")
    if message.content is None and not (message.role == "assistant" and message.tool_calls):
        raise ApiError(400, "a message needs content", param=f"{place}.content")
    turn: dict[str, Any] = {
        # Few templates know OpenAI's newer name.
        "role": "system" if message.role == "developer" else message.role,
        "content": _text(message.content, place),
    }
    if message.tool_calls:
        turn["tool_calls"] = [_call(call, f"{place}.tool_calls") for call in message.tool_calls]
    for name in ("name", "tool_call_id", "reasoning_content"):
        if getattr(message, name) is not None:
            turn[name] = getattr(message, name)
    return turn


def _text(content: str | Sequence[ContentPart] | None, place: str) -> str:
    """Parts become lines."""
    if content is None or isinstance(content, str):
        return content or ""
    for at, part in enumerate(content):
        if part.type != "text" or part.text is None:
            text = (
                f"content of type {part.type[:50]!r} is not supported: this model reads text alone"
            )
            raise ApiError(400, text, param=f"{place}.content[{at}]")
    return "\n".join(part.text or "" for part in content)


def _call(call: ToolCall, place: str) -> dict[str, Any]:
    """Templates write arguments as JSON, so they get the value, not its text."""
    try:
        arguments = msgspec.json.decode(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        text = "function.arguments must be a JSON object, as text"
        raise ApiError(400, text, param=place) from None
    if not isinstance(arguments, dict):
        raise ApiError(400, "function.arguments must be a JSON object, as text", param=place)
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def template_kwargs_of(request: ChatRequest) -> dict[str, str | int | float | bool]:
    """Raises ApiError for names that would reach beyond the template's own variables."""
    given: Mapping[str, str | int | float | bool | None] = request.chat_template_kwargs or {}
    for name in given:
        if name in TAKEN_KWARGS or not KWARG_NAME.fullmatch(name):
            text = f"chat_template_kwargs may not set {name[:64]!r}"
            raise ApiError(400, text, param="chat_template_kwargs")
    return {name: value for name, value in given.items() if value is not None}


def check_generation_prompt(request: ChatRequest) -> None:
    """Of the two ways in which an answer begins only one is possible. Raises ApiError."""
    if request.echo:
        raise ApiError(400, "echo is for /v1/completions alone", param="echo")
    if not request.continue_final_message:
        return
    if request.add_generation_prompt:
        text = "continue_final_message goes on with the last message: set add_generation_prompt "
        raise ApiError(400, f"{text}to false", param="continue_final_message")
    last = request.messages[-1]
    if last.role != "assistant" or not last.content:
        text = "continue_final_message needs a last message of the assistant, with text"
        raise ApiError(400, text, param="continue_final_message")
