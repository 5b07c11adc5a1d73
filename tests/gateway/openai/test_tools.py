"""What tools a caller offers, and which the model must call."""

import json
from typing import Any

import pytest

from gateway.http.body import decode
from gateway.http.errors import ApiError
from gateway.openai.requests import ChatRequest
from gateway.openai.tools import ToolPlan, plan_tools
from tandem.json_schema import require_compilable

POINT: dict[str, Any] = {
    "type": "object",
    "properties": {"at": {"$ref": "#/$defs/Point"}},
    "required": ["at"],
    "$defs": {"Point": {"type": "object", "properties": {"x": {"type": "integer"}}}},
}
TOOLS = [
    {"type": "function", "function": {"name": "move", "description": "go", "parameters": POINT}},
    {"type": "function", "function": {"name": "stop"}},
]


def plan(tools: Any = TOOLS, **fields: Any) -> ToolPlan:
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": tools, **fields}
    return plan_tools(decode(json.dumps(body).encode(), ChatRequest))


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def test_without_tools_or_with_none_chosen_there_is_no_plan() -> None:
    assert plan(None) == plan([]) == plan(tool_choice="none") == ToolPlan()
    assert plan(None, tool_choice="none") == ToolPlan()


def test_the_model_may_choose() -> None:
    made = plan(parallel_tool_calls=False)
    assert (made.mode, made.names, made.schema) == ("auto", ("move", "stop"), None)
    assert not made.is_parallel
    assert made.for_template[0] == TOOLS[0]
    assert made.for_template[1]["function"]["parameters"]["type"] == "object"
    assert plan(tool_choice="auto").is_parallel


def test_a_named_function_is_its_arguments() -> None:
    made = plan(tool_choice=named("move"))
    assert (made.mode, made.names, made.schema) == ("named", ("move",), POINT)


def test_a_required_call_is_one_of_all_and_references_still_lead_somewhere() -> None:
    made = plan(tool_choice="required")
    assert made.mode == "required" and made.schema is not None
    move, stop = made.schema["anyOf"]
    assert move["properties"]["name"] == {"const": "move"}
    target = move["properties"]["arguments"]["properties"]["at"]["$ref"]
    found: Any = made.schema
    for key in target.removeprefix("#/").split("/"):
        found = found[int(key) if isinstance(found, list) else key]
    assert found == POINT["$defs"]["Point"]
    assert stop["required"] == ["name", "arguments"]
    require_compilable(json.dumps(made.schema))


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "function"}]},
        {"tools": [TOOLS[0], TOOLS[0]]},
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"tools": [{"type": "function", "function": {"name": "x" * 100}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": "("}}]},
        {"tools": [TOOLS[1]] * 200},
        {"tools": None, "tool_choice": "auto"},
        {"tools": None, "tool_choice": "required"},
        {"tool_choice": "any"},
        {"tool_choice": named("other")},
        {"tool_choice": {"type": "function"}},
        {"tool_choice": {"type": "allowed_tools", "tools": []}},
        {"tool_choice": 5},
        {"tool_choice": "required", "response_format": {"type": "json_object"}},
    ],
)
def test_tools_that_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        plan(**{"tools": TOOLS, **fields})
    assert caught.value.status == 400
