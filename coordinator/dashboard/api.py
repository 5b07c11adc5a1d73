"""The dashboard's routes: the page, what operators see as JSON, and their orders."""

import re
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from coordinator.dashboard.assets import read_asset
from coordinator.dashboard.bodies import DrainBody, WeightsBody, read_body
from coordinator.dashboard.errors import ApiError
from coordinator.dashboard.replies import json_response, raw_json_response
from coordinator.dashboard.streaming import Streams
from tandem.messages.common import Name
from tandem.messages.membership import (
    DrainAnswer,
    DrainMember,
    RoleWeights,
    SetWeights,
    WeightsAnswer,
)
from tandem.messages.operations import WINDOWS_S, Series

MAX_RECORDS = 1000
REQUEST_ID = re.compile(r"[0-9a-f]{8,32}", re.IGNORECASE)
ANSWER_ID = re.compile(r"^(chat)?cmpl-")  # what callers of the HTTP API see before it
OUTCOMES = ("live", "stop", "length", "cancelled", "failed", "missed")


class Source(Protocol):
    """What the routes show; `orders` go to the coordinator as an operator's."""

    streams: Streams

    def snapshot_json(self, after_event: int | None) -> tuple[bytes, int]:
        """The snapshot with the events after that number, and the last one's number."""
        ...

    def series(self, window: str) -> Series:
        """Samples of a window."""
        ...

    def records_json(self, limit: int, outcome: str | None, sla_class: str | None) -> bytes:
        """Records of requests, the latest first."""
        ...

    def record_json(self, request_id: str) -> bytes | list[str]:
        """One request's; or the ids that begin so, where they are none or several."""
        ...

    async def metrics(self) -> Response:
        """All metrics, for Prometheus."""
        ...

    def is_healthy(self) -> bool:
        """Whether the coordinator makes progress."""
        ...

    def is_ready(self) -> bool:
        """Whether it knows its members by now."""
        ...

    def order(self, message: DrainMember | SetWeights) -> DrainAnswer | WeightsAnswer:
        """Give an order."""
        ...


Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """Answers GET and POST requests."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def routes(self) -> list[Route]:
        """All routes but the stream's."""
        get: dict[str, Handler] = {
            "/": self._page,
            "/favicon.ico": self._favicon,
            "/static/{name:path}": self._asset,
            "/api/snapshot": self._snapshot,
            "/api/series": self._series,
            "/api/requests": self._records,
            "/api/requests/{request_id}": self._record,
            "/metrics": self._metrics,
            "/health": self._health,
            "/ready": self._ready,
        }
        post: dict[str, Handler] = {
            "/api/nodes/{name:path}/drain": self._drain,
            "/api/nodes/{name:path}/weights": self._weights,
        }
        return [
            *(Route(path, handler, methods=["GET"]) for path, handler in get.items()),
            *(Route(path, handler, methods=["POST"]) for path, handler in post.items()),
        ]

    async def _page(self, request: Request) -> Response:
        return read_asset("index.html")

    async def _favicon(self, request: Request) -> Response:
        return read_asset("favicon.svg")

    async def _asset(self, request: Request) -> Response:
        return read_asset(request.path_params["name"])

    async def _snapshot(self, request: Request) -> Response:
        body, _ = self._source.snapshot_json(None)
        return raw_json_response(body)

    async def _series(self, request: Request) -> Response:
        window = request.query_params.get("window", "5m")
        if window not in WINDOWS_S:
            text = f"window {window[:20]!r} is none of {', '.join(WINDOWS_S)}"
            raise ApiError(400, text, code="invalid_value", param="window")
        return json_response(self._source.series(window))

    async def _records(self, request: Request) -> Response:
        limit = request.query_params.get("limit", "100")
        if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= MAX_RECORDS):
            text = f"limit is a number from 1 to {MAX_RECORDS}"
            raise ApiError(400, text, code="invalid_value", param="limit")
        outcome = request.query_params.get("outcome")
        if outcome is not None and outcome not in OUTCOMES:
            text = f"outcome {outcome[:20]!r} is none of {', '.join(OUTCOMES)}"
            raise ApiError(400, text, code="invalid_value", param="outcome")
        sla_class = request.query_params.get("sla_class")
        return raw_json_response(self._source.records_json(int(limit), outcome, sla_class))

    async def _record(self, request: Request) -> Response:
        given = request.path_params["request_id"].lower()
        request_id = ANSWER_ID.sub("", given).replace("-", "")
        if REQUEST_ID.fullmatch(request_id) is None:
            text = "a request id is 32 hexadecimal digits; the first 8 or more are enough"
            raise ApiError(400, text, code="invalid_value", param="id")
        found = self._source.record_json(request_id)
        if isinstance(found, bytes):
            return raw_json_response(found)
        if found:
            text = f"several requests begin with {request_id}: {', '.join(found)}; give more digits"
            raise ApiError(404, text, code="ambiguous", param="id")
        text = (
            f"no request {request_id} is known here: it never asked for nodes, or its record was "
            "given up for newer ones"
        )
        raise ApiError(404, text, code="not_found", param="id")

    async def _metrics(self, request: Request) -> Response:
        return await self._source.metrics()

    async def _health(self, request: Request) -> Response:
        return Response(status_code=200 if self._source.is_healthy() else 503)

    async def _ready(self, request: Request) -> Response:
        return Response(status_code=200 if self._source.is_ready() else 503)

    async def _drain(self, request: Request) -> Response:
        body = await read_body(request, DrainBody)
        order = DrainMember(name=_name(request), force=body.force)
        return _answered(self._source.order(order))

    async def _weights(self, request: Request) -> Response:
        body = await read_body(request, WeightsBody)
        weights = RoleWeights(prefill=body.prefill, decode=body.decode)
        order = SetWeights(name=_name(request), weights=weights, force=body.force)
        return _answered(self._source.order(order))


def _name(request: Request) -> str:
    """The member that an order names."""
    try:
        return msgspec.convert(request.path_params["name"], Name)
    except msgspec.ValidationError:
        raise ApiError(400, "this is no name of a node", code="invalid_value") from None


def _answered(answer: DrainAnswer | WeightsAnswer) -> Response:
    """An order that was refused is an answer like the other: it says why."""
    return json_response({"accepted": answer.accepted, "message": answer.message})
