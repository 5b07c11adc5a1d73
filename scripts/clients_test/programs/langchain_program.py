"""langchain-openai: messages, streams with usage, tools, structured output, embeddings."""

import asyncio
from typing import Literal

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from scripts.clients_test.programs.cases import run

ASK = [SystemMessage("be brief"), HumanMessage("add two numbers")]


class Colour(BaseModel):
    """A colour."""

    colour: Literal["red", "blue"]


@tool  # type: ignore[untyped-decorator]
def paint(colour: Literal["red", "blue"]) -> str:
    """Paint it."""
    return f"painted {colour}"


def model(gateway: str, **options: object) -> ChatOpenAI:
    return ChatOpenAI(
        model="demo", base_url=f"{gateway}/v1", api_key="none", max_retries=0, **options
    )


def invoke(gateway: str) -> None:
    answer = model(gateway, max_tokens=8).invoke(ASK)
    assert answer.content and answer.usage_metadata["output_tokens"] == 8
    assert answer.response_metadata["finish_reason"] == "length"


def stream(gateway: str) -> None:
    chunks = list(model(gateway, max_tokens=8, stream_usage=True).stream(ASK))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.content and whole.usage_metadata["output_tokens"] == 8


def batch(gateway: str) -> None:
    answers = asyncio.run(model(gateway, max_tokens=4).abatch([ASK] * 4))
    assert all(answer.content for answer in answers)


def tools(gateway: str) -> None:
    bound = model(gateway, max_tokens=500).bind_tools([paint], tool_choice="required")
    answer = bound.invoke(ASK)
    (call,) = answer.tool_calls
    assert call["name"] == "paint" and call["args"]["colour"] in ("red", "blue")
    turns = [*ASK, answer, ToolMessage("painted", tool_call_id=call["id"])]
    assert isinstance(model(gateway, max_tokens=4).bind_tools([paint]).invoke(turns), AIMessage)


def structured_output(gateway: str) -> None:
    for method in ("json_schema", "function_calling"):
        asked = model(gateway, max_tokens=500).with_structured_output(Colour, method=method)
        assert asked.invoke(ASK).colour in ("red", "blue")


def logprobs(gateway: str) -> None:
    answer = model(gateway, max_tokens=4, logprobs=True, top_logprobs=1).invoke(ASK)
    assert len(answer.response_metadata["logprobs"]["content"]) == 4


def completion(gateway: str) -> None:
    made = OpenAI(model="demo", base_url=f"{gateway}/v1", api_key="none", max_tokens=4)
    assert made.invoke("def f(")


def embeddings(gateway: str) -> None:
    made = OpenAIEmbeddings(
        model="demo", base_url=f"{gateway}/v1", api_key="none", check_embedding_ctx_length=False
    )
    assert len(made.embed_documents(["a cat", "a dog"])) == 2


if __name__ == "__main__":
    run([invoke, stream, batch, tools, structured_output, logprobs, completion, embeddings])
