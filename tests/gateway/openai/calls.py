"""Calls of the endpoints in this process, with played services."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx

from gateway.http.call import CallLimits
from gateway.http.door import Door
from gateway.openai.routes import generation_routes
from tests.gateway.openai.ledger_script import Played

HI = [{"role": "user", "content": "abc"}]
CHAT: dict[str, Any] = {"model": "demo", "messages": HI}


@contextlib.asynccontextmanager
async def talking(played: Played) -> AsyncIterator[httpx.AsyncClient]:
    door = Door(
        generation_routes(played.services()),
        keys=None,
        limits=CallLimits(),
        max_bodies_bytes=1 << 20,
    )
    transport = httpx.ASGITransport(door)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


def post(path: str, played: Played | None = None, **body: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        async with talking(played or Played()) as client:
            return await client.post(path, json=body)

    return asyncio.run(run())


def chat(played: Played | None = None, **body: Any) -> dict[str, Any]:
    answer = post("/v1/chat/completions", played, **{**CHAT, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def complete(played: Played | None = None, **body: Any) -> dict[str, Any]:
    answer = post("/v1/completions", played, **{"prompt": "abc", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def chunks_of(path: str, played: Played | None = None, **body: Any) -> list[dict[str, Any]]:
    answer = post(path, played, stream=True, **body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = answer.text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


def chat_chunks(played: Played | None = None, **body: Any) -> list[dict[str, Any]]:
    return chunks_of("/v1/chat/completions", played, **{**CHAT, **body})


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not happen within 10 s")
