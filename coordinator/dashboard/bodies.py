"""Orders of operators as JSON, small and in time."""

import asyncio
from typing import Annotated, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from coordinator.dashboard.errors import ApiError
from coordinator.dashboard.replies import JSON

MAX_BODY_BYTES = 4096
BODY_S = 10.0


class DrainBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of POST /api/nodes/{id}/drain."""

    force: bool = False


class WeightsBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of POST /api/nodes/{id}/weights."""

    prefill: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    decode: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    force: bool = False


Body = TypeVar("Body", DrainBody, WeightsBody)


async def read_body(request: Request, kind: type[Body]) -> Body:
    """The body of an order. Raises ApiError for any other."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise ApiError(415, f"orders have Content-Type: {JSON}", code="unsupported_media_type")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    text = f"an order has at most {MAX_BODY_BYTES} bytes"
                    raise ApiError(413, text, code="body_too_large")
    except TimeoutError:
        text = f"the body did not come within {BODY_S:g} s"
        raise ApiError(408, text, code="timeout") from None
    except ClientDisconnect:
        raise ApiError(400, "the caller is gone", code="disconnected") from None
    try:
        return msgspec.json.decode(bytes(body) or b"{}", type=kind)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise ApiError(400, f"the body is no such order: {error}", code="invalid_json") from None
