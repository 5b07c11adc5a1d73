"""POST /v1/embeddings, /v1/score and /v1/rerank: work of prefill alone."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from gateway.http.body import read_body
from gateway.http.call import call_of
from gateway.http.endpoints import require_model
from gateway.http.errors import ApiError
from gateway.http.responses import json_response
from gateway.http.routes import Route
from gateway.http.services import Evaluated, EvaluationAsked, Services
from gateway.openai.evaluation_answers import (
    EmbeddingAnswer,
    PairScore,
    RerankAnswer,
    ScoreAnswer,
    check_labels,
    class_score,
    embedding,
    likelihood,
    ranking,
    score,
    usage_of,
)
from gateway.openai.evaluation_requests import (
    EmbeddingRequest,
    EvaluationRequest,
    Input,
    RerankRequest,
    ScoreRequest,
    inputs_of,
    pairs_of,
    refuse_truncation,
    texts_of,
)
from gateway.openai.targets import Targets, targets_of
from tandem.frames import TokenIds

MAX_IN_FLIGHT = 32  # inputs of one call
A = TypeVar("A")
B = TypeVar("B")


class Evaluation:
    """The handlers."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def embed(self, request: Request) -> Response:
        """An embedding of each input."""
        body = await read_body(request, EmbeddingRequest)
        targets = self._check(body, request)
        is_special = body.add_special_tokens is not False

        async def evaluate(given: Input) -> Evaluated:
            ids = given
            if isinstance(ids, str):
                ids = await self._services.text.encode(ids, add_special_tokens=is_special)
            asked = EvaluationAsked(task="embed", prompt_ids=ids, pooling=body.pooling)
            return await self._evaluate(request, asked, targets)

        evaluated = await _each(evaluate, inputs_of(body.input))
        data = []
        for index, each in enumerate(evaluated):
            assert each.vector is not None, "it was asked for"
            data.append(embedding(index, each.vector, body))
        answer = EmbeddingAnswer(
            id=f"embd-{secrets.token_hex(12)}",
            created=int(time.time()),
            model=self._services.offer().model,
            data=data,
            usage=usage_of(evaluated),
        )
        return json_response(answer)

    async def score(self, request: Request) -> Response:
        """How well each second text goes with its first."""
        body = await read_body(request, ScoreRequest)
        targets = self._check(body, request)
        evaluated, scores = await self._score(
            request, targets, pairs_of(body), is_activated=body.use_activation is not False
        )
        answer = ScoreAnswer(
            id=f"score-{secrets.token_hex(12)}",
            created=int(time.time()),
            model=self._services.offer().model,
            data=[score(index, pair) for index, pair in enumerate(scores)],
            usage=usage_of(evaluated),
        )
        return json_response(answer)

    async def rerank(self, request: Request) -> Response:
        """Documents by how well they fit a query.

        A head judges the query and the document; without one it is how likely the query is after
        the document.
        """
        body = await read_body(request, RerankRequest)
        targets = self._check(body, request)
        texts = texts_of(body)
        if self._services.offer().num_labels:
            pairs = [(body.query, text) for text in texts]
        else:
            pairs = [(f"{text}\n\n", body.query) for text in texts]
        evaluated, scores = await self._score(
            request, targets, pairs, is_activated=body.use_activation is not False
        )
        answer = RerankAnswer(
            id=f"rerank-{secrets.token_hex(12)}",
            model=self._services.offer().model,
            results=ranking(body, texts, scores),
            usage=usage_of(evaluated),
        )
        return json_response(answer)

    def _check(self, body: EvaluationRequest, request: Request) -> Targets:
        require_model(self._services, body.model)
        refuse_truncation(body)
        return targets_of(body, request.headers)

    async def _score(
        self,
        request: Request,
        targets: Targets,
        pairs: Sequence[tuple[str, str]],
        *,
        is_activated: bool,
    ) -> tuple[list[Evaluated], list[PairScore]]:
        num_labels = self._services.offer().num_labels
        check_labels(num_labels)

        async def evaluate(pair: tuple[str, str]) -> Evaluated:
            first, second = await self._encode(pair)
            ids = TokenIds(np.concatenate([first.array, second.array]))
            asked = EvaluationAsked(task="score", prompt_ids=ids, first_scored=len(first))
            if num_labels:
                asked = EvaluationAsked(task="classify", prompt_ids=ids)
            return await self._evaluate(request, asked, targets)

        evaluated = await _each(evaluate, pairs)
        scores = [
            likelihood(each)
            if each.vector is None
            else class_score(each.vector, is_activated=is_activated)
            for each in evaluated
        ]
        return evaluated, scores

    async def _encode(self, pair: tuple[str, str]) -> tuple[TokenIds, TokenIds]:
        """Apart, so that the first text's tokens do not depend on the second."""
        first = await self._services.text.encode(pair[0], add_special_tokens=True)
        second = await self._services.text.encode(pair[1], add_special_tokens=False)
        if not len(first) or not len(second):
            raise ApiError(400, "a text is empty: give at least one character", param="text_2")
        return first, second

    async def _evaluate(
        self, request: Request, asked: EvaluationAsked, targets: Targets
    ) -> Evaluated:
        asked = replace(
            asked,
            sla_class=targets.sla_class,
            ttft_ms=targets.ttft_ms,
            priority=targets.priority,
            deadline_s=targets.deadline_s,
        )
        return await self._services.evaluate(asked, key=call_of(request).key)


async def _each(run: Callable[[A], Awaitable[B]], items: Sequence[A]) -> list[B]:
    """All at once, but for a cap; the first failure ends the others, and is raised."""
    room = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def run_one(item: A) -> B:
        async with room:
            return await run(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run_one(item)) for item in items]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def evaluation_routes(services: Services) -> list[Route]:
    """The routes of this module."""
    evaluation = Evaluation(services)
    rerank = [
        Route(
            method="POST",
            path=path,
            handler=evaluation.rerank,
            summary="Order documents by how well they fit a query",
            request=RerankRequest,
            response=RerankAnswer,
        )
        for path in ("/v1/rerank", "/rerank")
    ]
    scores = [
        Route(
            method="POST",
            path=path,
            handler=evaluation.score,
            summary="How well texts go together",
            request=ScoreRequest,
            response=ScoreAnswer,
        )
        for path in ("/v1/score", "/score")
    ]
    embeddings = Route(
        method="POST",
        path="/v1/embeddings",
        handler=evaluation.embed,
        summary="Vectors of one or several texts",
        request=EmbeddingRequest,
        response=EmbeddingAnswer,
    )
    return [embeddings, *scores, *rerank]
