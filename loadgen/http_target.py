"""Load over HTTP at any server that speaks OpenAI's API: ours, vLLM, SGLang, llama-server.

Completions are asked with token ids, so that prompts have exactly their lengths. A chat takes text:
one word per token, which most tokenizers make more of; the server's own usage says how many.
`ignore_eos` and `min_tokens` fix the answer's length where a server knows them.
"""

import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

import aiohttp
import msgspec

from loadgen.measure import RequestSample
from loadgen.target import Prompted
from tandem.errors import TandemError, error_from_code
from tandem.messages.common import ErrorCode, Timeline

Endpoint = Literal["completions", "chat"]
PATHS: dict[Endpoint, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
CODES: dict[int, ErrorCode] = {
    400: "invalid_request",
    404: "unknown_model",
    429: "overloaded",
    503: "unavailable",
    504: "deadline_exceeded",
}
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child")
LONGEST_LINE_BYTES = 1 << 20


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Error(msgspec.Struct):
    message: str = ""


class _Chunk(msgspec.Struct):
    id: str = ""
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | str | None = None


_DECODER = msgspec.json.Decoder(_Chunk)


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """A server at `url`; the session brings its headers and the limit of connections."""

    session: aiohttp.ClientSession
    url: str
    model: str
    endpoint: Endpoint = "completions"

    async def send(self, request: Prompted, since: float) -> RequestSample:
        """One greedy streamed request. Raises TandemError for whatever goes wrong."""
        received_unix_s = time.time()
        times: list[float] = []
        last = _Chunk()
        try:
            async for chunk in self._chunks(request):
                if _has_text(chunk):
                    times.append(time.perf_counter() - since)
                last = chunk if chunk.usage is not None else last
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            text = f"{self.url}: {type(error).__name__}: {error}"
            raise error_from_code("unavailable", text) from None
        if not times:
            raise error_from_code("internal", f"{self.url} ended a stream without any text")
        return _sample(request, times, last, received_unix_s)

    async def _chunks(self, request: Prompted) -> AsyncIterator[_Chunk]:
        async with self.session.post(
            self.url + PATHS[self.endpoint], json=self._body(request)
        ) as r:
            if r.status != 200:
                raise _refusal(r.status, r.headers.get("Retry-After"), await r.text())
            async for line in r.content:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                chunk = _DECODER.decode(data)
                if chunk.error:
                    text = chunk.error if isinstance(chunk.error, str) else chunk.error.message
                    raise error_from_code("internal", f"in the stream: {text}")
                yield chunk
            raise error_from_code("internal", f"{self.url} ended a stream without [DONE]")

    def _body(self, request: Prompted) -> dict[str, object]:
        body: dict[str, object] = {
            "model": self.model,
            "max_tokens": request.num_tokens,
            "min_tokens": request.num_tokens,
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.ttft_ms is not None and request.tpot_ms is not None:
            body |= {"ttft_ms": request.ttft_ms, "tpot_ms": request.tpot_ms}
        if self.endpoint == "completions":
            return body | {"prompt": list(request.prompt_ids)}
        words = " ".join(WORDS[each % len(WORDS)] for each in request.prompt_ids)
        return body | {"messages": [{"role": "user", "content": words}]}


def _has_text(chunk: _Chunk) -> bool:
    return any(c.text or (c.delta is not None and c.delta.content) for c in chunk.choices)


def _refusal(status: int, retry_after: str | None, body: str) -> TandemError:
    code = CODES.get(status, "internal")
    wait_s = float(retry_after) if retry_after is not None and retry_after.isdigit() else None
    return error_from_code(code, f"HTTP {status}: {body[:300]}", wait_s)


def _sample(
    request: Prompted, times: list[float], last: _Chunk, received_unix_s: float
) -> RequestSample:
    """Without usage in the stream the tokens are taken as as many as were asked for."""
    usage = last.usage or _Usage(completion_tokens=request.num_tokens)
    cached = usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens
    return RequestSample(
        num_tokens=usage.completion_tokens,
        ttft_s=times[0],
        gaps_s=tuple(b - a for a, b in itertools.pairwise(times)),
        end_s=times[-1],
        sla_attained=False,  # a server does not say; `--goodput` does
        request_id=last.id,
        timeline=Timeline(received_unix_s=received_unix_s),
        num_cached_tokens=cached or 0,
    )
