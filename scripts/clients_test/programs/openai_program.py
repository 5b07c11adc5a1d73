"""openai, 2.x and 3.x: what its users do."""

import asyncio
import base64
import json
from typing import Any

import openai

from scripts.clients_test.programs.cases import run

MODEL = "demo"
ASK = [{"role": "user", "content": "write a function that adds two numbers"}]
COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "paint", "parameters": COLOUR, "strict": True}}


def connect(gateway: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway}/v1", api_key="none", max_retries=0)


def models(gateway: str) -> None:
    with connect(gateway) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).owned_by


def chat(gateway: str) -> None:
    with connect(gateway) as client:
        turns = [
            {"role": "system", "content": "be brief"},
            *ASK,
            {"role": "assistant", "content": "def add"},
            {"role": "user", "content": [{"type": "text", "text": "go on"}]},
        ]
        answer = client.chat.completions.create(model=MODEL, messages=turns, max_tokens=8, n=2)
        assert len(answer.choices) == 2 and answer.usage.total_tokens > 8
        assert answer.choices[0].message.role == "assistant"


def chat_streamed(gateway: str) -> None:
    with connect(gateway) as client:
        options = {"include_usage": True}
        chunks = list(
            client.chat.completions.create(
                model=MODEL, messages=ASK, max_tokens=8, stream=True, stream_options=options
            )
        )
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].usage.completion_tokens == 8 and not chunks[-1].choices
        reasons = [c.choices[0].finish_reason for c in chunks[:-1]]
        assert reasons[-1] == "length" and not any(reasons[:-1])


def stream_helper(gateway: str) -> None:
    with connect(gateway) as client:
        # The helper raises where an answer ends by its length.
        with client.chat.completions.stream(model=MODEL, messages=ASK, stop=["\n", " "]) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion()
        assert {"chunk", "content.delta", "content.done"} <= kinds
        assert final.choices[0].finish_reason == "stop"


def parsed_schema(gateway: str) -> None:
    with connect(gateway) as client:
        wanted = {"type": "json_schema", "json_schema": {"name": "c", "schema": COLOUR}}
        answer = client.chat.completions.create(
            model=MODEL, messages=ASK, response_format=wanted, max_tokens=300
        )
        assert json.loads(answer.choices[0].message.content)["colour"] in ("red", "blue")


def json_object(gateway: str) -> None:
    with connect(gateway) as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=ASK, response_format={"type": "json_object"}, max_tokens=50
        )
        assert answer.choices[0].message.content.lstrip().startswith("{")


def tools(gateway: str) -> None:
    with connect(gateway) as client:
        named = {"type": "function", "function": {"name": "paint"}}
        turns: list[dict[str, Any]] = []
        for choice, reason in (("required", "tool_calls"), (named, "stop")):
            asked = {"model": MODEL, "messages": ASK, "tools": [TOOL], "max_tokens": 500}
            answer = client.chat.completions.create(**asked, tool_choice=choice)
            (whole,) = answer.choices[0].message.tool_calls
            assert answer.choices[0].finish_reason == reason
            assert json.loads(whole.function.arguments)["colour"] in ("red", "blue")
            with client.chat.completions.stream(**asked, tool_choice=choice) as stream:
                message = stream.get_final_completion().choices[0].message
            (call,) = message.tool_calls
            assert call.function.name == "paint"
            json.loads(call.function.arguments)
            turns = [
                *ASK,
                {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
                {"role": "tool", "tool_call_id": call.id, "content": "done"},
            ]
        client.chat.completions.create(model=MODEL, messages=turns, tools=[TOOL], max_tokens=4)


def completions(gateway: str) -> None:
    with connect(gateway) as client:
        answer = client.completions.create(
            model=MODEL, prompt=["def f(", "import"], n=2, max_tokens=4, seed=-3, logprobs=2
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert len(answer.choices[0].logprobs.tokens) == 4
        echoed = client.completions.create(
            model=MODEL, prompt=[10, 20, 30], max_tokens=0, echo=True, logprobs=1
        )
        assert echoed.choices[0].logprobs.token_logprobs[0] is None
        streamed = client.completions.create(model=MODEL, prompt="a", max_tokens=4, stream=True)
        assert [chunk.choices[0].finish_reason for chunk in streamed][-1] == "length"


def chat_logprobs(gateway: str) -> None:
    with connect(gateway) as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=ASK, max_tokens=4, logprobs=True, top_logprobs=2
        )
        (first, *_) = answer.choices[0].logprobs.content
        assert len(first.top_logprobs) == 2 and bytes(first.bytes).decode() == first.token


def embeddings(gateway: str) -> None:
    with connect(gateway) as client:
        answer = client.embeddings.create(model=MODEL, input=["a cat", "a dog"])
        assert len(answer.data) == 2 and len(answer.data[0].embedding) > 8
        raw = client.embeddings.create(model=MODEL, input="a cat", encoding_format="base64")
        assert len(base64.b64decode(raw.data[0].embedding)) % 4 == 0


def errors(gateway: str) -> None:
    with connect(gateway) as client:
        for fields, kind in (
            ({"model": "other"}, openai.NotFoundError),
            ({"temperature": 9000}, openai.BadRequestError),
            ({"messages": []}, openai.BadRequestError),
            ({"tool_choice": "required"}, openai.BadRequestError),
        ):
            try:
                client.chat.completions.create(**{"model": MODEL, "messages": ASK, **fields})
            except kind as error:
                is_told = bool(error.message and error.type)
            else:
                is_told = False
            assert is_told, fields


def raw_headers(gateway: str) -> None:
    with connect(gateway) as client:
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=ASK, max_tokens=2, extra_headers={"X-Request-Id": "mine"}
        )
        assert raw.headers["x-request-id"] == "mine" and raw.parse().choices


def many_async(gateway: str) -> None:
    async def ask_all() -> None:
        async with openai.AsyncOpenAI(base_url=f"{gateway}/v1", api_key="none") as client:

            async def one() -> int:
                stream = await client.chat.completions.create(
                    model=MODEL, messages=ASK, max_tokens=8, stream=True
                )
                return len([chunk async for chunk in stream])

            assert min(await asyncio.gather(*(one() for _ in range(16)))) > 2

    asyncio.run(ask_all())


if __name__ == "__main__":
    run(
        [
            models,
            chat,
            chat_streamed,
            stream_helper,
            parsed_schema,
            json_object,
            tools,
            completions,
            chat_logprobs,
            embeddings,
            errors,
            raw_headers,
            many_async,
        ]
    )
