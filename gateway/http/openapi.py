"""/openapi.json: the API's description, made from its routes and the types of their bodies."""

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.http.responses import json_response
from gateway.http.routes import Route

REFERENCES = "#/components/schemas/{name}"
CONVERTER = re.compile(r"\{(\w+)(?::\w+)?\}")


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong; `param` names the field, `code` is a slug."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """Every answer that is no success."""

    error: ErrorDetail


ERRORS = {
    "400": "The request is wrong: the message says how",
    "401": "No key, or one that is not accepted",
    "404": "There is no such thing",
    "413": "The body is too large",
    "429": "Too much at once: Retry-After says when to try again",
    "500": "The gateway failed: its log says why",
    "503": "Nothing can serve it now: Retry-After says when to try again",
    "504": "The deadline that it came with has passed",
}


def with_description(routes: Sequence[Route]) -> list[Route]:
    """The routes, and the one that describes them all."""
    document: dict[str, Any] = {}

    async def get_openapi(request: Request) -> Response:
        return json_response(document)

    own = Route(
        method="GET",
        path="/openapi.json",
        handler=get_openapi,
        summary="This description",
        response=dict[str, Any],
    )
    together = [*routes, own]
    document.update(describe(together))
    return together


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """The document, in OpenAPI 3.1."""
    types = [ErrorEnvelope]
    for route in routes:
        types += [kind for kind in (route.request, route.response) if kind is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=REFERENCES)
    of_type = list(zip(types, schemas, strict=True))

    def schema(kind: Any) -> Any:  # noqa: ANN401  a type expression, and its JSON schema
        return next(found for each, found in of_type if each == kind)

    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = CONVERTER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schema)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tandem", "version": version("tandem-serve")},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, schema: Any) -> dict[str, Any]:  # noqa: ANN401  a function
    content: dict[str, Any] = {}
    if route.response is not None:
        content["application/json"] = {"schema": schema(route.response)}
    if route.is_streamed:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"application/json": {"schema": schema(ErrorEnvelope)}}
    responses: dict[str, Any] = {"200": {"description": "Success", "content": content}}
    responses |= {
        status: {"description": text, "content": error} for status, text in ERRORS.items()
    }
    operation: dict[str, Any] = {"summary": route.summary, "responses": responses}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in CONVERTER.findall(route.path)
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.role is not None:
        operation["security"] = [{"key": []}]
    if route.request is not None:
        body = {"application/json": {"schema": schema(route.request)}}
        operation["requestBody"] = {"required": True, "content": body}
    return operation
