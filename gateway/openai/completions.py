"""POST /v1/completions."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from gateway.admission import check_prompt_ids
from gateway.http.body import read_body
from gateway.http.call import call_of
from gateway.http.services import EvaluationAsked
from gateway.openai.answers import CompletionAnswer
from gateway.openai.chunks import Head, Shape, Tally
from gateway.openai.completion_answers import (
    CompletionChunks,
    PromptShown,
    WholeCompletion,
    answer,
)
from gateway.openai.parameters import completion_params, num_choices_of
from gateway.openai.prompts import Prompt, prompts_of
from gateway.openai.reading import Begun, Ending, Piece
from gateway.openai.requests import CompletionRequest
from gateway.openai.serving import Generation
from gateway.openai.targets import Targets, targets_of
from gateway.openai.telling import Silence, Told
from tandem.frames import TokenIds
from tandem.messages.common import TokenLogprobs

MAX_EVALUATIONS = 32  # of one call at once


class Completions:
    """See the module."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    async def answer(self, request: Request) -> Response:
        """A completion. Raises ApiError."""
        body = await read_body(request, CompletionRequest)
        generation = self._generation
        offer = generation.services.offer()
        targets = generation.check(body, request)
        prompts = prompts_of(body, offer)
        params = completion_params(body, offer)
        shape = generation.shape(body, params)
        tally = Tally(num_choices_of(body, len(prompts)))
        encoded = await self._encode(body, prompts)
        head = generation.head("cmpl")

        def tell() -> Told:
            if body.max_tokens == 0:
                return Silence([len(ids) for ids in encoded], tally)
            return generation.tell(request, body, head, params, targets, encoded, tally)

        async def make() -> CompletionAnswer:
            shown = await self._shown(request, body, prompts, encoded)
            return await _whole(tell(), head, shape, tally, shown)

        if not body.stream:
            return await generation.whole(request, body, make)
        shown = await self._shown(request, body, prompts, encoded)
        return await generation.streamed(tell(), CompletionChunks(head, shape, tally, shown))

    async def _encode(self, body: CompletionRequest, prompts: Sequence[Prompt]) -> list[TokenIds]:
        """Raises Rejected."""
        text, offer = self._generation.services.text, self._generation.services.offer()
        with_special = body.add_special_tokens is not False

        async def encode(prompt: Prompt) -> TokenIds:
            ids = prompt
            if isinstance(ids, str):
                ids = await text.encode(ids, add_special_tokens=with_special)
            check_prompt_ids(ids, offer)
            return ids

        if len(prompts) == 1:
            return [await encode(prompts[0])]
        return list(await asyncio.gather(*(encode(prompt) for prompt in prompts)))

    async def _shown(
        self,
        request: Request,
        body: CompletionRequest,
        prompts: Sequence[Prompt],
        encoded: Sequence[TokenIds],
    ) -> list[PromptShown]:
        """What is echoed; its logprobs are computed before the answer, which finds the prompts'
        pages cached. Raises ApiError."""
        if not body.echo:
            shows_ids = bool(body.return_token_ids)
            return [PromptShown(tuple(ids.array.tolist()) if shows_ids else ()) for ids in encoded]
        scored: Sequence[tuple[TokenLogprobs, ...]] = [()] * len(encoded)
        if body.logprobs is not None:
            targets = targets_of(body, request.headers)
            scored = await self._score(request, body.logprobs, targets, encoded)
        skips = body.skip_special_tokens is not False
        decode = self._generation.services.text.decode
        shown = []
        for prompt, ids, logprobs in zip(prompts, encoded, scored, strict=True):
            as_list = ids.array.tolist()
            text = prompt if isinstance(prompt, str) else decode(as_list, skip_special_tokens=skips)
            shown.append(PromptShown(tuple(as_list), text, logprobs))
        return shown

    async def _score(
        self, request: Request, num_top: int, targets: Targets, encoded: Sequence[TokenIds]
    ) -> list[tuple[TokenLogprobs, ...]]:
        """Of every prompt, the logprobs of its tokens but the first."""
        key, room = call_of(request).key, asyncio.Semaphore(MAX_EVALUATIONS)
        evaluate = self._generation.services.evaluate

        async def score(ids: TokenIds) -> tuple[TokenLogprobs, ...]:
            if len(ids) == 1:
                return ()
            async with room:
                asked = EvaluationAsked(
                    task="score",
                    prompt_ids=ids,
                    num_top=num_top,
                    sla_class=targets.sla_class,
                    ttft_ms=targets.ttft_ms,
                    priority=targets.priority,
                    deadline_s=targets.deadline_s,
                )
                return (await evaluate(asked, key=key)).logprobs

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(score(ids)) for ids in encoded]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]


async def _whole(
    told: Told, head: Head, shape: Shape, tally: Tally, shown: Sequence[PromptShown]
) -> CompletionAnswer:
    num_choices = tally.num_choices
    wholes = [
        WholeCompletion(index, shape, shown[index // num_choices])
        for index in range(len(shown) * num_choices)
    ]
    made, fingerprint = {}, None
    try:
        while (event := await told.next()) is not None:
            index, what = event
            match what:
                case Begun():
                    fingerprint = what.fingerprint
                case Piece():
                    wholes[index].piece(what)
                case Ending():
                    made[index] = wholes[index].choice(what)
    finally:
        told.close()
    return answer(
        replace(head, fingerprint=fingerprint),
        [made[index] for index in sorted(made)],
        tally.usage(),
    )
