"""JSON schemas whose texts end soon, and a plain reading of what they ask."""

import json
import re
from typing import Any

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 12},
        "kind": {"enum": ["Käse", "日本", "🙂 smile", 7, None, True]},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string", "pattern": "^[A-Z][a-z]{1,8} [0-9]{1,3}$"},
                "zip": {"type": "integer", "minimum": 10000, "maximum": 99999},
            },
            "required": ["street", "zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "kind", "address"],
    "additionalProperties": False,
}
NUMBERS = {
    "type": "array",
    "items": {"type": "integer", "minimum": -50, "maximum": 1000},
    "minItems": 3,
    "maxItems": 6,
}
SHAPES = {
    "$defs": {
        "circle": {
            "type": "object",
            "properties": {"kind": {"const": "circle"}, "radius": {"enum": [1.5, 2]}},
            "required": ["kind", "radius"],
            "additionalProperties": False,
        },
        "label": {
            "type": "object",
            "properties": {"kind": {"const": "label"}, "text": {"type": "string", "maxLength": 6}},
            "required": ["kind", "text"],
            "additionalProperties": False,
        },
    },
    "type": "array",
    "items": {"anyOf": [{"$ref": "#/$defs/circle"}, {"$ref": "#/$defs/label"}]},
    "minItems": 1,
    "maxItems": 3,
}
WORD = {"type": "string", "maxLength": 8}
ALL: dict[str, dict[str, Any]] = {
    "nested": PERSON,
    "array": NUMBERS,
    "references": SHAPES,
    "string": WORD,
    "boolean": {"type": ["boolean", "null"]},
}


def text_of(schema: dict[str, Any]) -> str:
    """As it travels."""
    return json.dumps(schema, ensure_ascii=False)


def breach(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None) -> str | None:
    """The first thing in which a value breaks a schema of the keywords above; None: it keeps it."""
    root = root or schema
    if "$ref" in schema:
        return breach(value, root["$defs"][schema["$ref"].split("/")[-1]], root)
    if "anyOf" in schema:
        found = [breach(value, each, root) for each in schema["anyOf"]]
        return None if None in found else str(found)
    if "const" in schema or "enum" in schema:
        allowed = schema.get("enum", [schema.get("const")])
        is_there = any(value == each and type(value) is type(each) for each in allowed)
        return None if is_there else f"{value!r} is not one of {allowed}"
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if _kind(value) not in kinds:
        return f"{value!r} is not of {kinds}"
    match value:
        case str():
            return _breach_of_text(value, schema)
        case list():
            return _breach_of_list(value, schema, root)
        case dict():
            return _breach_of_object(value, schema, root)
        case int() if not isinstance(value, bool):
            low, high = schema.get("minimum", value), schema.get("maximum", value)
            return None if low <= value <= high else f"{value} is not within {low} to {high}"
    return None


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "boolean", str: "string", int: "integer", float: "number"}
    return {**names, list: "array", dict: "object"}[type(value)]


def _breach_of_text(value: str, schema: dict[str, Any]) -> str | None:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9):
        return f"{value!r} has {len(value)} characters"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return f"{value!r} does not match {schema['pattern']}"
    return None


def _breach_of_list(value: list[Any], schema: dict[str, Any], root: dict[str, Any]) -> str | None:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9):
        return f"{len(value)} items"
    return next((b for each in value if (b := breach(each, schema["items"], root))), None)


def _breach_of_object(
    value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any]
) -> str | None:
    properties = schema["properties"]
    if set(schema["required"]) - set(value) or set(value) - set(properties):
        return f"the properties are {sorted(value)}"
    parts = ((value[name], properties[name]) for name in value)
    return next((b for each, part in parts if (b := breach(each, part, root))), None)
