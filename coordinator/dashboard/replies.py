"""Answers as JSON."""

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

JSON = "application/json"


def json_response(
    value: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A value as JSON."""
    return raw_json_response(msgspec.json.encode(value), status=status, headers=headers)


def raw_json_response(
    body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """What is JSON already. Nobody keeps it: it is of this second, and may need a key."""
    return Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, JSON)
