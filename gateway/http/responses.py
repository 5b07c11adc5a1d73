"""JSON answers, and errors in their envelope."""

import math
from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from gateway.http.errors import ApiError

JSON = "application/json"
OVERLOAD = (429, 503)


def json_response(
    value: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A value as JSON; structs leave out what their definition says."""
    return Response(msgspec.json.encode(value), status, headers, JSON)


def error_response(error: ApiError) -> Response:
    """What went wrong, with when to try again where that makes sense."""
    headers = {**error.headers, **retry_headers(error)}
    return json_response(error.body, status=error.status, headers=headers)


def retry_headers(error: ApiError) -> dict[str, str]:
    """Whole seconds, at least one; clients of OpenAI's obey both headers."""
    if error.status not in OVERLOAD and error.retry_after_s is None:
        return {}
    seconds = max(1, math.ceil(error.retry_after_s or 1.0))
    return {"Retry-After": str(seconds), "x-should-retry": "true"}
