"""What callers send to /v1/embeddings, /v1/score and /v1/rerank, and the prompts in it. Pure.

The shapes are OpenAI's, vLLM's, and those that Cohere and Jina share. Unknown fields are accepted.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from gateway.http.errors import ApiError
from tandem.frames import TokenIds

MAX_INPUTS = 2048
MAX_TOKEN_ID = 2**31 - 1
Input = str | TokenIds
Inputs = Annotated[list[str | int | list[int]], msgspec.Meta(min_length=1)]
Texts = str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_INPUTS)]


class EvaluationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What all of them have."""

    model: str | None = None
    sla_class: str | None = None
    priority: int | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    deadline_s: float | None = None
    user: Any = None
    truncate_prompt_tokens: Any = None


class EmbeddingRequest(EvaluationRequest, frozen=True, kw_only=True):
    """`dimensions`: so many of the first numbers; `normalize` false: not brought to length 1.

    `pooling`: the hidden state of the last token, or the mean over all.
    """

    input: str | Inputs
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    normalize: bool | None = None
    pooling: Literal["last", "mean"] = "last"
    add_special_tokens: bool | None = None


class ScoreRequest(EvaluationRequest, frozen=True, kw_only=True):
    """One text against one or several, or as many against as many in pairs.

    `use_activation` false: the logits of a classification head as they are.
    """

    text_1: Texts
    text_2: Texts
    use_activation: bool | None = None


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A text to rank; other keys are ignored."""

    text: str


class RerankRequest(EvaluationRequest, frozen=True, kw_only=True):
    """Documents to rank for a query; the best `top_n` are told of, with their texts unless
    `return_documents` is false."""

    query: str
    documents: Annotated[list[str | Document], msgspec.Meta(min_length=1, max_length=MAX_INPUTS)]
    top_n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    return_documents: bool | None = None
    use_activation: bool | None = None


def refuse_truncation(request: EvaluationRequest) -> None:
    """Raises ApiError."""
    if request.truncate_prompt_tokens is not None:
        text = "truncate_prompt_tokens is not supported: shorten the text, nothing is cut silently"
        raise ApiError(400, text, param="truncate_prompt_tokens")


def inputs_of(given: str | Sequence[str | int | Sequence[int]]) -> list[Input]:
    """One or several inputs, as text or token ids. Raises ApiError."""
    if isinstance(given, str):
        return [_text(given)]
    if all(isinstance(each, int) for each in given):
        return [_ids([each for each in given if isinstance(each, int)])]
    if len(given) > MAX_INPUTS:
        text = f"input has {len(given)} entries, and may have {MAX_INPUTS}: send several requests"
        raise ApiError(400, text, param="input")
    inputs: list[Input] = []
    for each in given:
        if isinstance(each, int):
            text = "input mixes token ids with other inputs: send lists of ids"
            raise ApiError(400, text, param="input")
        inputs.append(_text(each) if isinstance(each, str) else _ids(each))
    return inputs


def _text(text: str) -> str:
    if not text:
        raise ApiError(400, "an input is empty: give at least one character", param="input")
    return text


def _ids(ids: Sequence[int]) -> TokenIds:
    if not ids:
        raise ApiError(400, "an input is empty: give at least one token", param="input")
    if min(ids) < 0 or max(ids) > MAX_TOKEN_ID:
        raise ApiError(400, "token ids must be those of this model's tokenizer", param="input")
    return TokenIds(ids)


def pairs_of(request: ScoreRequest) -> list[tuple[str, str]]:
    """One against each, or pair by pair. Raises ApiError."""
    ones = [request.text_1] if isinstance(request.text_1, str) else request.text_1
    twos = [request.text_2] if isinstance(request.text_2, str) else request.text_2
    if len(ones) == 1:
        ones = ones * len(twos)
    if len(ones) != len(twos):
        text = (
            f"text_1 has {len(ones)} texts and text_2 {len(twos)}: give one text_1 for all, or as "
            "many as of text_2"
        )
        raise ApiError(400, text, param="text_2")
    return list(zip(ones, twos, strict=True))


def texts_of(request: RerankRequest) -> list[str]:
    """The documents' texts."""
    return [each if isinstance(each, str) else each.text for each in request.documents]
