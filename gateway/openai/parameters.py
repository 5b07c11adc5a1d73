"""From a request's fields to `SamplingParams`; what is out of range is refused by name. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.admission import Offer
from gateway.http.errors import ApiError
from gateway.openai.requests import (
    MAX_CHOICES,
    MAX_CHOICES_PER_PROMPT,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    ResponseFormat,
)
from tandem.sampling import (
    MAX_SEED,
    MAX_TOP_LOGPROBS,
    SamplingParams,
    validate,
)

COMPLETION_MAX_TOKENS = 16
MAX_ID_CHARS = 256
JSON_OBJECT: dict[str, Any] = {"type": "object"}


def check_common(request: GenerationRequest, offer: Offer) -> None:
    """What no sampling parameter holds. Raises ApiError."""
    if request.model is not None and request.model != offer.model:
        text = f"this deployment serves {offer.model}, not {request.model[:100]}"
        raise ApiError(404, text, code="unknown_model", param="model")
    for name in ("request_id", "cache_salt"):
        if len(getattr(request, name) or "") > MAX_ID_CHARS:
            raise ApiError(400, f"{name} is longer than {MAX_ID_CHARS} characters", param=name)
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options needs stream: true", param="stream_options")
    num_choices = num_choices_of(request)
    if request.best_of is not None and request.best_of != num_choices:
        text = f"best_of is {request.best_of} and n is {num_choices}: no answers are ranked here"
        raise ApiError(400, f"{text}, so leave best_of out", param="best_of")


def num_choices_of(request: GenerationRequest, num_prompts: int = 1) -> int:
    """`n`. Raises ApiError."""
    num_choices = 1 if request.n is None else request.n
    if not 1 <= num_choices <= MAX_CHOICES_PER_PROMPT:
        text = f"n is {num_choices}, but must be from 1 to {MAX_CHOICES_PER_PROMPT}"
        raise ApiError(400, text, param="n")
    if num_choices * num_prompts > MAX_CHOICES:
        text = f"n is {num_choices} for {num_prompts} prompts each, but one call may ask for "
        raise ApiError(400, f"{text}{MAX_CHOICES} answers: send several calls", param="n")
    return num_choices


def chat_params(
    request: ChatRequest, offer: Offer, forced_schema: Mapping[str, Any] | None
) -> SamplingParams:
    """Of a chat; `forced_schema` is that of a tool call that must come. Raises ApiError."""
    max_tokens = request.max_completion_tokens
    if max_tokens is None:
        max_tokens = request.max_tokens
    schema = _schema_of(request.response_format) if forced_schema is None else forced_schema
    return _checked(request, offer, max_tokens, _num_chat_logprobs(request), schema)


def completion_params(request: CompletionRequest, offer: Offer) -> SamplingParams:
    """Of a completion. `max_tokens` 0, which needs `echo`, becomes 1. Raises ApiError."""
    max_tokens = COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    if max_tokens == 0:
        if not request.echo:
            raise ApiError(400, "max_tokens 0 needs echo: true", param="max_tokens")
        max_tokens = 1
    schema = _schema_of(request.response_format)
    return _checked(request, offer, max_tokens, request.logprobs, schema)


def _num_chat_logprobs(request: ChatRequest) -> int | None:
    if not request.logprobs:
        if request.top_logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        return None
    num_top = request.top_logprobs or 0
    if not 0 <= num_top <= MAX_TOP_LOGPROBS:
        text = f"top_logprobs is {num_top}, but must be from 0 to {MAX_TOP_LOGPROBS}"
        raise ApiError(400, text, param="top_logprobs")
    return num_top


def _checked(
    request: GenerationRequest,
    offer: Offer,
    max_tokens: int | None,
    logprobs: int | None,
    schema: Mapping[str, Any] | None,
) -> SamplingParams:
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=request.temperature,
        top_k=0 if request.top_k == -1 else request.top_k,  # vLLM's "off"
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=_logit_bias(request.logit_bias or {}),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        ignore_eos=bool(request.ignore_eos),
        min_tokens=request.min_tokens or 0,
        logprobs=logprobs,
        seed=_seed(request.seed),
        json_schema=None if schema is None else msgspec.json.encode(schema).decode(),
    )
    try:
        validate(params, offer.vocab_size, offer.max_model_len)
    except ValueError as error:
        raise ApiError(400, str(error), param=_field_named_in(str(error))) from None
    return params


def _seed(seed: int | None) -> int | None:
    """OpenAI's seeds are signed: negative ones are taken as the same 64 bits."""
    if seed is None:
        return None
    if not -(2**63) <= seed <= MAX_SEED:
        raise ApiError(400, "seed must be a whole number of 64 bits", param="seed")
    return seed % 2**64


def _logit_bias(given: Mapping[str, float]) -> dict[int, float]:
    if any(not (key.isascii() and key.isdigit() and len(key) <= 10) for key in given):
        text = "the keys of logit_bias are token ids, written as strings of digits"
        raise ApiError(400, text, param="logit_bias")
    return {int(key): bias for key, bias in given.items()}


def _field_named_in(text: str) -> str | None:
    """`validate` names the field in its first words; the schema may be a tool's as well."""
    for name in SamplingParams.__struct_fields__:
        if text.startswith((f"{name} ", f"{name}[", f"a token id in {name} ")):
            return None if name == "json_schema" else name
    return "stop" if text.startswith("a stop string") else None


def _schema_of(asked: ResponseFormat | None) -> Mapping[str, Any] | None:
    """The JSON schema that the answer must keep."""
    match None if asked is None else asked.type:
        case None | "text":
            return None
        case "json_object":
            return JSON_OBJECT
        case "json_schema":
            given = None if asked is None else asked.json_schema
            if given is None or given.schema_ is None:
                text = "response_format json_schema needs json_schema.schema"
                raise ApiError(400, text, param="response_format")
            return given.schema_
        case other:
            text = f"response_format {str(other)[:50]!r} is not supported: use json_schema"
            raise ApiError(400, text, param="response_format")
