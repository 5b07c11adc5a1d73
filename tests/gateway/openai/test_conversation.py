"""Messages as templates take them."""

import json
from typing import Any

import pytest

from gateway.http.body import decode
from gateway.http.errors import ApiError
from gateway.openai.conversation import (
    check_generation_prompt,
    conversation_of,
    template_kwargs_of,
)
from gateway.openai.requests import ChatRequest


def chat(*messages: Any, **fields: Any) -> ChatRequest:
    body = {"messages": messages or [{"role": "user", "content": "hi"}], **fields}
    return decode(json.dumps(body).encode(), ChatRequest)


def test_a_conversation_with_tools() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = conversation_of(
        chat(
            {"role": "developer", "content": "be brief", "name": "boss"},
            {"role": "user", "content": parts},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "5"},
            {"role": "assistant", "content": "so", "reasoning_content": "hm"},
        )
    )
    parsed = {"name": "f", "arguments": {"a": [1]}}
    assert turns == [
        {"role": "system", "content": "be brief", "name": "boss"},
        {"role": "user", "content": "a\nb"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "type": "function", "function": parsed}],
        },
        {"role": "tool", "content": "5", "tool_call_id": "c1"},
        {"role": "assistant", "content": "so", "reasoning_content": "hm"},
    ]


IMAGE = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "root", "content": "x"},
        {"role": "function", "content": "x"},
        {"content": "x"},
        {"role": "user"},
        {"role": "user", "content": 5},
        {"role": "user", "content": [IMAGE]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]},
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "assistant", "content": "x", "function_call": {"name": "f"}},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 9999}}]},
    ],
)
def test_messages_that_are_refused(message: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        conversation_of(chat(message))
    assert caught.value.status == 400
    assert (caught.value.param or "").startswith("messages[0]")


def test_template_kwargs_are_scalars_of_free_names() -> None:
    given = {"enable_thinking": False, "depth": 3, "style": "dry", "x": None}
    assert template_kwargs_of(chat(chat_template_kwargs=given)) == {
        "enable_thinking": False,
        "depth": 3,
        "style": "dry",
    }
    for wrong in ({"tokenize": True}, {"chat_template": "{{ 1 }}"}, {"a b": 1}, {"messages": "x"}):
        with pytest.raises(ApiError):
            template_kwargs_of(chat(chat_template_kwargs=wrong))
    for no_scalar in ({"a": []}, {"a": {"b": 1}}, [], "x"):
        with pytest.raises(ApiError):
            chat(chat_template_kwargs=no_scalar)


def test_an_answer_begins_anew_or_goes_on() -> None:
    said = {"role": "assistant", "content": "Once"}
    check_generation_prompt(chat(said, continue_final_message=True))
    for wrong in (
        chat(said, continue_final_message=True, add_generation_prompt=True),
        chat(continue_final_message=True),
        chat(echo=True),
    ):
        with pytest.raises(ApiError):
            check_generation_prompt(wrong)
