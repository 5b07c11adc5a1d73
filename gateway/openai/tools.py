"""Tools that a caller offers to the model, and which of them it must call. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gateway.http.errors import ApiError
from gateway.openai.requests import ChatRequest, FunctionDefinition, Tool

FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
Mode = Literal["none", "auto", "required", "named"]


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """`mode` none: the answer is text. auto: calls may be in it. required: it is one call. named:
    it is the arguments of `names[0]`. `schema` is what the answer must keep, where it must."""

    mode: Mode = "none"
    names: tuple[str, ...] = ()
    for_template: tuple[dict[str, Any], ...] = ()
    schema: dict[str, Any] | None = None
    is_parallel: bool = True


def plan_tools(request: ChatRequest) -> ToolPlan:
    """Raises ApiError."""
    functions = [_function(tool, at) for at, tool in enumerate(request.tools or ())]
    names = [function.name for function in functions]
    if len(set(names)) != len(names):
        raise ApiError(400, "two tools have the same name", param="tools")
    mode, chosen = _choice(request.tool_choice, names)
    if mode == "none":  # what the model is not told of it does not call
        return ToolPlan()
    if mode != "auto" and request.response_format is not None:
        text = "a forced tool call is the whole answer: leave response_format out"
        raise ApiError(400, text, param="response_format")
    schema = None
    if mode == "named":
        schema = _parameters(next(each for each in functions if each.name == chosen))
    elif mode == "required":
        schema = call_schema(functions)
    return ToolPlan(
        mode=mode,
        names=(chosen,) if chosen is not None else tuple(names),
        for_template=tuple(_for_template(function) for function in functions),
        schema=schema,
        is_parallel=request.parallel_tool_calls is not False,
    )


def _function(tool: Tool, at: int) -> FunctionDefinition:
    place = f"tools[{at}]"
    if tool.type != "function" or tool.function is None:
        text = f"a tool of type {tool.type[:50]!r} is not supported: use functions"
        raise ApiError(400, text, param=place)
    if not FUNCTION_NAME.fullmatch(tool.function.name):
        text = "a function's name has 1 to 64 letters, digits and . _ -"
        raise ApiError(400, text, param=f"{place}.function.name")
    return tool.function


def _choice(given: str | Mapping[str, Any] | None, names: Sequence[str]) -> tuple[Mode, str | None]:
    """How the model chooses, and the function that it must call, where that is one."""
    if given is None or given == "none":
        return ("auto" if names and given is None else "none"), None
    if not names:
        raise ApiError(400, "tool_choice needs tools", param="tool_choice")
    if given == "auto":
        return "auto", None
    if given == "required":
        return "required", None
    function = given.get("function") if isinstance(given, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(given, Mapping) or given.get("type") != "function" or name is None:
        text = 'tool_choice is "none", "auto", "required" or {"type": "function", "function": ...}'
        raise ApiError(400, text, param="tool_choice")
    if name not in names:
        text = f"tool_choice names {str(name)[:64]!r}, which is none of the tools"
        raise ApiError(400, text, param="tool_choice")
    return "named", str(name)


def _parameters(function: FunctionDefinition) -> dict[str, Any]:
    """Arguments are an object, also where the schema forgets to say so."""
    return {"type": "object", **(function.parameters or NO_PARAMETERS)}


def call_schema(functions: Sequence[FunctionDefinition]) -> dict[str, Any]:
    """Of one call, `{"name": ..., "arguments": ...}`, of any of the functions."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function.name},
                "arguments": _moved(
                    _parameters(function), f"#/anyOf/{position}/properties/arguments"
                ),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for position, function in enumerate(functions)
    ]
    return {"anyOf": calls}


def _moved(schema: Any, place: str) -> Any:  # noqa: ANN401
    """A schema whose references to its own root hold where it is part of another."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {name: _moved(value, place) for name, value in schema.items()}
    target = schema.get("$ref")
    if isinstance(target, str) and target.startswith("#"):
        moved["$ref"] = place + target[1:]
    return moved


def _for_template(function: FunctionDefinition) -> dict[str, Any]:
    """As templates expect tools: OpenAI's own form."""
    given: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        given["description"] = function.description
    given["parameters"] = _parameters(function)
    return {"type": "function", "function": given}
