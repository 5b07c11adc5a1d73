"""Chats and completions from HTTP to the ledger's words and back, with played services."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from gateway.http.call import CallLimits
from gateway.http.door import Door
from gateway.openai import serving
from gateway.openai.routes import generation_routes
from tandem.messages.client import Output
from tests.gateway.openai.ledger_script import Played, failing, saying

HI = [{"role": "user", "content": "abc"}]
CHAT: dict[str, Any] = {"model": "demo", "messages": HI}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


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


def test_a_chat() -> None:
    answer = chat()
    assert answer["id"].startswith("chatcmpl-") and answer["object"] == "chat.completion"
    assert (answer["model"], answer["system_fingerprint"]) == ("demo", "fp_0123456789abcdef")
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "0cba", "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"], choice["index"]) == ("stop", None, 0)
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_a_streamed_chat_keeps_every_rule() -> None:
    chunks = chat_chunks()
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [c["choices"][0]["delta"] for c in chunks[1:-1]]
    assert [delta["content"] for delta in deltas] == ["0", "c", "b", "a"]
    reasons = [c["choices"][0]["finish_reason"] for c in chunks]
    assert reasons == [None] * 5 + ["stop"]
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert all("usage" not in c for c in chunks)


@pytest.mark.parametrize("is_continuous", [False, True])
def test_usage_of_a_stream(is_continuous: bool) -> None:
    options = {"include_usage": True, "continuous_usage_stats": is_continuous}
    chunks = chat_chunks(stream_options=options)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 4
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    if is_continuous:
        counts = [c["usage"]["completion_tokens"] for c in chunks[:-1]]
        assert counts == [0, 1, 2, 3, 4, 4]
    else:
        assert [c["usage"] for c in chunks[:-1]] == [None] * 6
    lone = {"continuous_usage_stats": True}
    assert all("usage" not in c for c in chat_chunks(stream_options=lone))


def test_several_choices_count_their_prompt_once() -> None:
    answer = chat(n=3)
    assert [c["message"]["content"] for c in answer["choices"]] == ["0cba", "1cba", "2cba"]
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (3, 12)
    chunks = chat_chunks(n=3, stream_options={"include_usage": True})
    for index in range(3):
        own = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(c["delta"].get("content", "") for c in own) == f"{index}cba"
        assert [c["finish_reason"] for c in own].count("stop") == 1
    assert chunks[-1]["usage"] == answer["usage"]


def test_list_prompts_of_different_lengths() -> None:
    answer = complete(prompt=["ab", "cde"], n=2)
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == ["0ba", "1ba", "0edc", "1edc"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 5
    assert complete(prompt=[[97, 98], [99]])["choices"][1]["text"] == "0c"
    assert complete(prompt=[97, 98])["choices"][0]["text"] == "0ba"


def test_a_chats_logprobs() -> None:
    (choice,) = chat(logprobs=True, top_logprobs=2)["choices"]
    first = choice["logprobs"]["content"][0]
    assert (first["token"], first["bytes"], first["logprob"]) == ("0", [48], -0.5)
    assert [top["token"] for top in first["top_logprobs"]] == ["0", "1"]
    assert len(choice["logprobs"]["content"]) == 4
    chunks = chat_chunks(logprobs=True)
    told = [c["choices"][0]["logprobs"] for c in chunks]
    assert [each and each["content"][0]["token"] for each in told] == [
        None, "0", "c", "b", "a", None,
    ]  # fmt: skip


def test_a_completions_logprobs() -> None:
    (choice,) = complete(logprobs=1)["choices"]
    assert choice["logprobs"] == {
        "tokens": ["0", "c", "b", "a"],
        "token_logprobs": [-0.5] * 4,
        "top_logprobs": [{"0": -0.5}, {"c": -0.5}, {"b": -0.5}, {"a": -0.5}],
        "text_offset": [0, 1, 2, 3],
    }
    (named,) = complete(logprobs=1, return_tokens_as_token_ids=True)["choices"]
    assert named["logprobs"]["tokens"][0] == "token_id:48"


@pytest.mark.parametrize("max_tokens", [0, 1, 16])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_echo_with_logprobs(max_tokens: int, is_streamed: bool) -> None:
    played = Played()
    asked: dict[str, Any] = {"prompt": ["abc", "x"], "echo": True, "logprobs": 2}
    asked["max_tokens"] = max_tokens
    if is_streamed:
        chunks = [c["choices"][0] for c in chunks_of("/v1/completions", played, **asked)]
        choices: list[dict[str, Any]] = []
        for index in range(2):
            own = [c for c in chunks if c["index"] == index]
            parts = [c["logprobs"] for c in own if c["logprobs"]]
            joined = {key: [x for part in parts for x in part[key]] for key in parts[0]}
            choices.append({"text": "".join(c["text"] for c in own), "logprobs": joined})
    else:
        choices = complete(played, **asked)["choices"]
    first, second = choices
    answer = "0cba"[:max_tokens]
    assert first["text"] == "abc" + answer
    assert first["logprobs"]["tokens"] == list("abc" + answer)
    assert first["logprobs"]["token_logprobs"] == [None] + [-0.5] * (2 + len(answer))
    assert first["logprobs"]["top_logprobs"][1] == {"b": -0.5, "c": -1.5}
    assert first["logprobs"]["text_offset"] == list(range(3 + len(answer)))
    assert second["logprobs"]["token_logprobs"][0] is None
    assert [len(each.prompt_ids) for each in played.evaluated] == [3]  # nothing to score in one
    assert len(played.submits) == (2 if max_tokens else 0)


def test_echo_alone_evaluates_nothing() -> None:
    played = Played()
    answer = complete(played, prompt=[97, 98], echo=True, max_tokens=0, n=2)
    assert [choice["text"] for choice in answer["choices"]] == ["ab", "ab"]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length"] * 2
    assert answer["usage"]["prompt_tokens"] == 2 and not played.evaluated


def test_token_ids_where_they_are_asked_for() -> None:
    (choice,) = complete(return_token_ids=True)["choices"]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == ([97, 98, 99], [48, 99, 98, 97])
    whole = chat(return_token_ids=True)
    assert whole["prompt_token_ids"] == [97, 98, 99]
    assert whole["choices"][0]["token_ids"] == [48, 99, 98, 97]
    chunks = chat_chunks(return_token_ids=True)
    assert [c.get("prompt_token_ids") for c in chunks[:2]] == [[97, 98, 99], None]
    ids = [each for c in chunks for each in c["choices"][0].get("token_ids", [])]
    assert ids == [48, 99, 98, 97]


def test_special_tokens_and_stops_as_the_caller_wants_them() -> None:
    def script(submit):  # the ledger ends at the special token and shows nothing of it
        words = saying("ok")(submit)
        last = words[-1]
        eos = Output(request_id=bytes(16), index=2, token_ids=(0,), text="")
        more = Output(request_id=bytes(16), index=3, token_ids=(120,), text="x")
        return [*words[:-1], eos, more, last]

    shown = chat(Played(script), skip_special_tokens=False, ignore_eos=True)
    assert shown["choices"][0]["message"]["content"] == "ok<end>x"
    hidden = chat(Played(script), skip_special_tokens=False)
    assert hidden["choices"][0]["message"]["content"] == "okx"
    played = Played(script)
    cut = chat(played, skip_special_tokens=False, ignore_eos=True, stop="<end>")
    assert cut["choices"][0]["message"]["content"] == "ok"
    assert cut["choices"][0]["stop_reason"] == "<end>"
    assert cut["usage"]["completion_tokens"] == 3
    assert played.streams[0].is_cancelled
    wanted = {"stop": "<end>", "include_stop_str_in_output": True, "ignore_eos": True}
    kept = chat(Played(script), skip_special_tokens=False, **wanted)
    assert kept["choices"][0]["message"]["content"] == "ok<end>"


CALL = 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"at": "Rome"}}\n</tool_call>'


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_tool_call_that_the_model_chose(size: int) -> None:
    played = Played(saying(CALL, size))
    (choice,) = chat(played, tools=[WEATHER])["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    (call,) = choice["message"]["tool_calls"]
    assert call["id"].startswith("call_") and call["type"] == "function"
    assert call["function"] == {"name": "weather", "arguments": '{"at": "Rome"}'}
    assert played.text.rendered[0]["tools"] == (WEATHER,)
    deltas = [
        c["choices"][0]["delta"] for c in chat_chunks(Played(saying(CALL, size)), tools=[WEATHER])
    ]
    told = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert told[0]["function"] == {"name": "weather", "arguments": ""}
    assert told[0]["id"].startswith("call_") and told[0]["index"] == 0
    assert all("id" not in each and "name" not in each["function"] for each in told[1:])
    assert "".join(each["function"]["arguments"] for each in told) == '{"at": "Rome"}'
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me see."


def test_forced_tool_calls() -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    played = Played(saying('{"at": 1}'))
    (choice,) = chat(played, tools=[WEATHER], tool_choice=named)["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"at": 1}'
    assert json.loads(played.submits[0].params.json_schema) == {"type": "object"}
    played = Played(saying('{"name": "weather", "arguments": {"at": 1}}'))
    (choice,) = chat(played, tools=[WEATHER], tool_choice="required")["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"at": 1}'
    assert "anyOf" in json.loads(played.submits[0].params.json_schema)
    played = Played(saying(CALL))
    (choice,) = chat(played, tools=[WEATHER], tool_choice="none")["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
    assert played.text.rendered[0]["tools"] is None


def test_what_a_request_asks_reaches_the_ledger() -> None:
    played = Played()
    chat(
        played,
        seed=-1,
        sla_class="batch",
        ttft_ms=100,
        priority=3,
        deadline_s=9,
        n=2,
        max_completion_tokens=2,
        response_format={"type": "json_object"},
        user="me",
    )
    first, second = played.submits
    assert (first.choice, second.choice) == (0, 1)
    assert (first.sla_class, first.ttft_ms, first.priority, first.deadline_s) == (
        "batch",
        100,
        3,
        9,
    )
    assert first.params == second.params
    assert (first.params.seed, first.params.max_tokens) == (2**64 - 1, 2)
    assert first.params.json_schema == '{"type":"object"}'
    assert first.label != second.label


def test_refusals_and_failures_before_the_first_token_have_a_status() -> None:
    overloaded = failing(code="overloaded", message="too much", retry_after_s=3.2)
    for is_streamed in (False, True):
        answer = post("/v1/chat/completions", Played(overloaded), **CHAT, stream=is_streamed, n=2)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "4"
        assert answer.json()["error"]["code"] == "overloaded"
    nameless = post("/v1/chat/completions", messages=HI)
    assert (nameless.status_code, nameless.json()["error"]["param"]) == (400, "model")
    unknown = post("/v1/completions", prompt="a" * 600)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "context_too_long")


def test_one_choices_failure_ends_the_whole_in_band() -> None:
    def script(submit):
        fails = failing(2, code="node_failed", message="node gone")
        return (fails if submit.choice == 1 else saying("endless" * 50))(submit)

    played = Played(script)
    chunks = chat_chunks(played, n=3)
    assert chunks[-1]["error"]["message"] == "node gone"
    assert chunks[-1]["error"]["type"] == "service_unavailable_error"
    assert all(stream.is_cancelled for stream in played.streams)
    answer = post("/v1/chat/completions", Played(script), **CHAT, n=3)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "node_failed")


def test_errors_of_ours_end_a_stream_too() -> None:
    def without_an_end(submit):
        return saying("abcdef")(submit)[:-1]

    played = Played(without_an_end)
    assert chat_chunks(played)[-1]["error"]["code"] == "internal"
    assert chat_chunks(Played(played.script), n=2)[-1]["error"]["code"] == "internal"


def test_a_slow_first_token_does_not_hold_the_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "SETTLE_S", 0.05)

    async def run() -> None:
        played = Played()
        played.gate.clear()
        async with talking(played) as client:
            body = {**CHAT, "stream": True}
            asked = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            await asyncio.sleep(0.2)
            played.gate.set()
            answer = await asked
        assert answer.text.endswith("data: [DONE]\n\n") and '"c"' in answer.text

    asyncio.run(run())


def test_others_follow_when_the_first_token_is_there() -> None:
    async def run() -> None:
        played = Played()
        played.gate.clear()
        async with talking(played) as client:
            body = {"prompt": ["ab", "cd"], "n": 3}
            asked = asyncio.create_task(client.post("/v1/completions", json=body))
            await until(lambda: len(played.submits) > 1)
            assert [submit.choice for submit in played.submits] == [0, 0]
            played.gate.set()
            answer = await asked
        assert len(answer.json()["choices"]) == 6
        assert sorted(submit.choice for submit in played.submits) == [0, 0, 1, 1, 2, 2]

    asyncio.run(run())


def test_a_repeated_call_runs_once() -> None:
    async def run() -> None:
        played = Played()
        played.gate.clear()
        headers = {"Idempotency-Key": "k1"}
        async with talking(played) as client:

            async def ask(**body: Any) -> httpx.Response:
                body = {"prompt": "ab", **body}
                return await client.post("/v1/completions", json=body, headers=headers)

            first, second = asyncio.create_task(ask()), asyncio.create_task(ask())
            await until(lambda: len(played.submits) > 0)
            played.gate.set()
            answers = {(await first).text, (await second).text, (await ask()).text}
            assert len(answers) == 1 and len(played.submits) == 1
            other = await ask(prompt="cd")
            assert other.status_code == 400
            assert other.json()["error"]["code"] == "idempotency_key_reused"
            headers["Idempotency-Key"] = "k2"
            played.script = failing(code="overloaded", message="no")
            assert (await ask()).status_code == 429
            played.script = Played().script
            assert (await ask()).status_code == 200

    asyncio.run(run())


def test_who_hangs_up_cancels_all() -> None:
    async def run() -> None:
        played = Played()
        played.gate.clear()

        async def opened(num_streams: int) -> None:
            await until(lambda: len(played.streams) == num_streams)

        async with talking(played) as client:
            calls = itertools.product(({}, {"Idempotency-Key": "k"}), (False, True))
            for number, (headers, is_streamed) in enumerate(calls, 1):
                body = {"prompt": ["a", "b"], "n": 2, "stream": is_streamed}
                asked = asyncio.create_task(
                    client.post("/v1/completions", json=body, headers=headers)
                )
                await opened(2 * number)
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)
                await until(lambda: all(stream.is_cancelled for stream in played.streams))

    asyncio.run(run())
