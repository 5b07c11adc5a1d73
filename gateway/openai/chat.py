"""POST /v1/chat/completions."""

import secrets
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from gateway.http.body import read_body
from gateway.http.errors import ApiError
from gateway.openai.answers import ChatAnswer
from gateway.openai.chat_answers import ChatChunks, WholeChat, make_parser, whole_chat
from gateway.openai.chunks import Head, Shape, Tally
from gateway.openai.conversation import (
    check_generation_prompt,
    conversation_of,
    template_kwargs_of,
)
from gateway.openai.parameters import chat_params, num_choices_of
from gateway.openai.reading import Begun, Ending, Piece
from gateway.openai.requests import ChatRequest
from gateway.openai.serving import Generation
from gateway.openai.telling import Told
from gateway.openai.tools import ToolPlan, plan_tools
from tandem.frames import TokenIds


class Chats:
    """See the module."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    async def answer(self, request: Request) -> Response:
        """A chat's answer. Raises ApiError."""
        body = await read_body(request, ChatRequest)
        generation = self._generation
        targets = generation.check(body, request)
        if body.model is None:  # conformance checks of other people ask for this error
            text = "model is missing: GET /v1/models lists what is served"
            raise ApiError(400, text, param="model")
        plan = plan_tools(body)
        params = chat_params(body, generation.services.offer(), plan.schema)
        shape = generation.shape(body, params)
        prompt = await self._render(body, plan)
        tally = Tally(num_choices_of(body))
        head = generation.head("chatcmpl")

        def tell() -> Told:
            return generation.tell(request, body, head, params, targets, [prompt], tally)

        async def make() -> ChatAnswer:
            return await _whole(tell(), head, shape, tally, plan, prompt)

        if not body.stream:
            return await generation.whole(request, body, make)
        parsers = [make_parser(plan, new_call_id) for _ in range(tally.num_choices)]
        return await generation.streamed(
            tell(), ChatChunks(head, shape, tally, plan, parsers, prompt)
        )

    async def _render(self, body: ChatRequest, plan: ToolPlan) -> TokenIds:
        """The prompt. Raises ApiError and Rejected."""
        check_generation_prompt(body)
        goes_on = bool(body.continue_final_message)
        begins = not goes_on if body.add_generation_prompt is None else body.add_generation_prompt
        return await self._generation.services.text.render(
            conversation_of(body),
            tools=plan.for_template or None,
            add_generation_prompt=begins,
            continue_final_message=goes_on,
            template_kwargs=template_kwargs_of(body),
        )


async def _whole(
    told: Told, head: Head, shape: Shape, tally: Tally, plan: ToolPlan, prompt: TokenIds
) -> ChatAnswer:
    wholes = [
        WholeChat(shape, plan, make_parser(plan, new_call_id)) for _ in range(tally.num_choices)
    ]
    made, fingerprint = [], None
    try:
        while (event := await told.next()) is not None:
            index, what = event
            match what:
                case Begun():
                    fingerprint = what.fingerprint
                case Piece():
                    wholes[index].piece(what)
                case Ending():
                    made.append(wholes[index].choice(index, what))
    finally:
        told.close()
    head = replace(head, fingerprint=fingerprint)
    return whole_chat(head, shape, tally, made, prompt)


def new_call_id() -> str:
    """Of a tool call."""
    return f"call_{secrets.token_hex(12)}"
