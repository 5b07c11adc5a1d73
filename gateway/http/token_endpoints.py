"""POST /tokenize and /detokenize, as vLLM has them."""

from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.http.body import read_body
from gateway.http.endpoints import require_model
from gateway.http.errors import ApiError
from gateway.http.responses import json_response
from gateway.http.routes import Route
from gateway.http.services import Services
from gateway.openai.conversation import (
    check_generation_prompt,
    conversation_of,
    template_kwargs_of,
)
from gateway.openai.requests import MAX_MESSAGES, MAX_TOOLS, ChatRequest, Message, Tool
from gateway.openai.tools import plan_tools
from tandem.frames import TokenIds

CONTEXTS, MIN_COUNTABLE = 8, 65_536


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: (
        Annotated[list[Message], msgspec.Meta(min_length=1, max_length=MAX_MESSAGES)] | None
    ) = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: Any = None
    chat_template_kwargs: (
        Annotated[dict[str, str | int | float | bool | None], msgspec.Meta(max_length=64)] | None
    ) = None
    tools: Annotated[list[Tool], msgspec.Meta(max_length=MAX_TOOLS)] | None = None


class Tokenized(msgspec.Struct, frozen=True, kw_only=True):
    """Token ids, and what each stands for where that was asked."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Token ids."""

    tokens: list[int]
    model: str | None = None


class Detokenized(msgspec.Struct, frozen=True, kw_only=True):
    """Their text, special tokens included."""

    prompt: str


def token_routes(services: Services) -> list[Route]:
    """The routes of this module."""

    async def tokenize(request: Request) -> Response:
        asked = await read_body(request, TokenizeRequest)
        require_model(services, asked.model)
        ids = (await _ids(asked, services)).array.tolist()
        texts = [services.text.token_text(i) for i in ids] if asked.return_token_strs else None
        limit = services.offer().max_model_len
        return json_response(
            Tokenized(count=len(ids), max_model_len=limit, tokens=ids, token_strs=texts)
        )

    async def detokenize(request: Request) -> Response:
        asked = await read_body(request, DetokenizeRequest)
        require_model(services, asked.model)
        _check_ids(asked.tokens, services.offer().vocab_size)
        text = services.text.decode(asked.tokens, skip_special_tokens=False)
        return json_response(Detokenized(prompt=text))

    return [
        Route(
            method="POST",
            path="/tokenize",
            handler=tokenize,
            summary="Token ids of a prompt or a conversation",
            request=TokenizeRequest,
            response=Tokenized,
        ),
        Route(
            method="POST",
            path="/detokenize",
            handler=detokenize,
            summary="Text of token ids",
            request=DetokenizeRequest,
            response=Detokenized,
        ),
    ]


async def _ids(asked: TokenizeRequest, services: Services) -> TokenIds:
    if (asked.prompt is None) == (asked.messages is None):
        raise ApiError(400, "give one of prompt and messages", code="invalid_request")
    if asked.prompt is not None:
        return await services.text.encode(
            asked.prompt,
            add_special_tokens=asked.add_special_tokens,
            # Who counts tokens may want to know how much to leave out.
            at_most=max(MIN_COUNTABLE, CONTEXTS * services.offer().max_model_len),
        )
    if asked.chat_template is not None:
        text = "a request may not bring a chat template: the model's own is used"
        raise ApiError(400, text, param="chat_template", code="invalid_request")
    assert asked.messages is not None, "one of the two is given"
    chat = ChatRequest(
        messages=asked.messages,
        tools=asked.tools,
        add_generation_prompt=asked.add_generation_prompt,
        continue_final_message=asked.continue_final_message,
        chat_template_kwargs=asked.chat_template_kwargs,
    )
    check_generation_prompt(chat)
    goes_on = bool(asked.continue_final_message)
    return await services.text.render(
        conversation_of(chat),
        tools=plan_tools(chat).for_template or None,
        add_generation_prompt=not goes_on and asked.add_generation_prompt is not False,
        continue_final_message=goes_on,
        template_kwargs=template_kwargs_of(chat),
    )


def _check_ids(ids: list[int], vocab_size: int) -> None:
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        text = f"tokens must be ids of this model, 0 to {vocab_size - 1}"
        raise ApiError(400, text, param="tokens", code="invalid_request")
