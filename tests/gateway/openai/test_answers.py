"""Chats and completions from HTTP to the ledger's words and back: what answers look like."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.openai.answers import ChatChunk, ChatChunkChoice, Delta
from gateway.openai.chunks import TextFrames, frame
from tandem.messages.client import Output
from tests.gateway.openai.calls import chat, chat_chunks, chunks_of, complete
from tests.gateway.openai.ledger_script import Played, saying

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


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


@given(st.text(), st.sampled_from(["demo", '"content":""', '\\"content\\":\\"\\"']))
def test_frames_that_differ_in_their_text_are_encoded_but_once(text: str, model: str) -> None:
    def encoded(content: str) -> bytes:
        choice = ChatChunkChoice(index=3, delta=Delta(content=content))
        chunk = ChatChunk(
            id="x", created=1, model=model, choices=(choice,), system_fingerprint=None
        )
        return frame(chunk)

    assert TextFrames(encoded(""), "content").frame(text) == encoded(text)
    assert msgspec.json.decode(encoded(text)[6:])["choices"][0]["delta"]["content"] == text
