"""litellm, by the provider that it has for servers like vLLM's."""

import asyncio
import json
from typing import Any

import litellm

from scripts.clients_test.programs.cases import run

MODEL = "hosted_vllm/demo"
ASK = [{"role": "user", "content": "write a function that adds two numbers"}]
COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "paint", "parameters": COLOUR}}


def where(gateway: str) -> dict[str, Any]:
    return {"model": MODEL, "api_base": f"{gateway}/v1", "api_key": "none", "num_retries": 0}


def chat(gateway: str) -> None:
    answer = litellm.completion(**where(gateway), messages=ASK, max_tokens=8, seed=1, top_k=20)
    assert answer.choices[0].message.content and answer.usage.completion_tokens == 8


def chat_streamed(gateway: str) -> None:
    stream = litellm.completion(
        **where(gateway),
        messages=ASK,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    whole = litellm.stream_chunk_builder(chunks, messages=ASK)
    assert whole.choices[0].message.content and whole.usage.completion_tokens == 8


def tools(gateway: str) -> None:
    answer = litellm.completion(
        **where(gateway), messages=ASK, tools=[TOOL], tool_choice="required", max_tokens=500
    )
    (call,) = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["colour"] in ("red", "blue")


def schema(gateway: str) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "c", "schema": COLOUR}}
    answer = litellm.completion(
        **where(gateway),
        messages=ASK,
        response_format=wanted,
        max_tokens=300,
        seed=2,  # a small model may fill all its tokens with the blanks that JSON allows
    )
    json.loads(answer.choices[0].message.content)


def text_completion(gateway: str) -> None:
    answer = litellm.text_completion(**where(gateway), prompt="def f(", max_tokens=4)
    assert answer.choices[0].text


def many_async(gateway: str) -> None:
    async def ask_all() -> None:
        calls = [
            litellm.acompletion(**where(gateway), messages=ASK, max_tokens=4) for _ in range(8)
        ]
        for answer in await asyncio.gather(*calls):
            assert answer.choices[0].finish_reason == "length"

    asyncio.run(ask_all())


def embedding(gateway: str) -> None:
    answer = litellm.embedding(**where(gateway), input=["a cat"])
    assert len(answer.data[0]["embedding"]) > 8


def rerank(gateway: str) -> None:
    answer = litellm.rerank(
        **{**where(gateway), "api_base": gateway}, query="a cat", documents=["cats", "cars"]
    )
    assert len(answer.results) == 2


def errors(gateway: str) -> None:
    try:
        litellm.completion(**where(gateway), messages=ASK, temperature=9000)
    except litellm.BadRequestError:
        return
    raise AssertionError("a temperature of 9000 was accepted")


if __name__ == "__main__":
    run(
        [
            chat,
            chat_streamed,
            tools,
            schema,
            text_completion,
            many_async,
            embedding,
            rerank,
            errors,
        ]
    )
