"""From an evaluation's numbers to embeddings, scores and rankings. Pure."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET, UnsetType

from gateway.http.errors import ApiError
from gateway.http.services import Evaluated
from gateway.openai.evaluation_requests import EmbeddingRequest, RerankRequest

Vector = npt.NDArray[np.float32]


class EvaluationUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing is generated, so all tokens are of prompts."""

    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """Of one input: numbers, or their little-endian float32 bytes in base64."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Of all inputs, in their order."""

    id: str
    created: int
    model: str
    data: list[Embedding]
    usage: EvaluationUsage
    object: str = "list"


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """Of one pair. Without a classification head `score` is the mean logprob of the tokens of
    text_2, `sum_logprob` their sum."""

    index: int
    score: float
    object: str = "score"
    sum_logprob: float | UnsetType = UNSET
    num_tokens: int | UnsetType = UNSET


class ScoreAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Of all pairs, in their order."""

    id: str
    created: int
    model: str
    data: list[Score]
    usage: EvaluationUsage
    object: str = "list"


class RankedDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A document's text."""

    text: str


class Ranked(msgspec.Struct, frozen=True, kw_only=True):
    """A document by its index in the request; the relevance is between 0 and 1."""

    index: int
    relevance_score: float
    document: RankedDocument | UnsetType = UNSET


class RerankAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The best document first."""

    id: str
    model: str
    results: list[Ranked]
    usage: EvaluationUsage


@dataclass(frozen=True, slots=True)
class PairScore:
    """How well two texts fit; `num_tokens` None: by a classification head."""

    value: float
    sum_logprob: float | None = None
    num_tokens: int | None = None


def usage_of(evaluated: Sequence[Evaluated]) -> EvaluationUsage:
    """Tokens of all prompts."""
    num_tokens = sum(each.num_prompt_tokens for each in evaluated)
    return EvaluationUsage(prompt_tokens=num_tokens, total_tokens=num_tokens)


def embedding(index: int, vector: Vector, asked: EmbeddingRequest) -> Embedding:
    """Cut, normalised and encoded as asked. Raises ApiError."""
    if asked.dimensions is not None:
        if asked.dimensions > len(vector):
            text = f"dimensions is {asked.dimensions}, and this model gives {len(vector)}"
            raise ApiError(400, text, param="dimensions")
        vector = vector[: asked.dimensions]
    if asked.normalize is not False:
        vector = normalised(vector)
    if asked.encoding_format == "base64":
        encoded = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return Embedding(index=index, embedding=encoded)
    return Embedding(index=index, embedding=vector.tolist())


def normalised(vector: Vector) -> Vector:
    """Of length 1, unless it has none."""
    length = math.sqrt(float(np.square(vector, dtype=np.float64).sum()))
    return vector if length == 0 else (vector / length).astype(np.float32)


def check_labels(num_labels: int) -> None:
    """Whether a classification head, if there is one, scores pairs. Raises ApiError."""
    if num_labels > 2:
        text = (
            f"this model tells {num_labels} classes apart, and a score needs a head with one "
            "output, or two of which the second is for what fits"
        )
        raise ApiError(400, text, code="invalid_request")


def class_score(logits: Vector, *, is_activated: bool) -> PairScore:
    """The probability that a pair fits, or its logit."""
    logit = float(logits[0]) if len(logits) == 1 else float(logits[1]) - float(logits[0])
    return PairScore(sigmoid(logit) if is_activated else logit)


def sigmoid(logit: float) -> float:
    """Without overflow on either side."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    weight = math.exp(logit)
    return weight / (1.0 + weight)


def likelihood(evaluated: Evaluated) -> PairScore:
    """Of the second text after the first."""
    logprobs = [each.logprob for each in evaluated.logprobs]
    total = math.fsum(logprobs)
    return PairScore(total / len(logprobs), total, len(logprobs))


def score(index: int, pair: PairScore) -> Score:
    """As /v1/score answers."""
    if pair.sum_logprob is None or pair.num_tokens is None:
        return Score(index=index, score=pair.value)
    return Score(
        index=index,
        score=pair.value,
        sum_logprob=pair.sum_logprob,
        num_tokens=pair.num_tokens,
    )


def ranking(
    asked: RerankRequest, texts: Sequence[str], scores: Sequence[PairScore]
) -> list[Ranked]:
    """The best first, of equal ones the first in the request."""
    relevance = [s.value if s.num_tokens is None else math.exp(s.value) for s in scores]
    order = sorted(range(len(texts)), key=lambda i: (-relevance[i], i))
    return [
        Ranked(
            index=i,
            relevance_score=relevance[i],
            document=UNSET if asked.return_documents is False else RankedDocument(text=texts[i]),
        )
        for i in order[: asked.top_n]
    ]
