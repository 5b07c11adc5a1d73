"""Counts HTTP calls: by route, method and status, how soon the first byte goes, open streams.

It also notes who calls (`gateway.tracing.CALLER`), for traces.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from gateway.metrics import GatewayMetrics
from gateway.tracing import CALLER, Caller
from tandem import metrics as m
from tandem.exposition import Histogram

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
EVENT_STREAM = b"text/event-stream"


class HttpMeter:
    """Around the HTTP app, as ASGI. `paths` are those of its routes, with `{name}` segments.

    A path that is none of them counts as `other`: what callers make up must not become labels.
    """

    def __init__(self, app: App, metrics: GatewayMetrics, paths: Iterable[str]) -> None:
        self._app = app
        self._metrics = metrics
        paths = tuple(dict.fromkeys(paths))[: m.MAX_ROUTES]
        self._exact = frozenset(path for path in paths if "{" not in path)
        self._prefixes = tuple((p.partition("{")[0], p) for p in paths if "{" in p)
        self._first_bytes: dict[str, Histogram] = {}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve a call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, route = time.perf_counter(), self.route_of(scope["path"])
        CALLER.set(Caller(route, _traceparent(scope)))
        method = scope["method"] if scope["method"] in METHODS else m.OTHER
        status, is_stream, has_body = 500, False, False

        async def counting(message: Message) -> None:
            nonlocal status, is_stream, has_body
            if not has_body:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    is_stream = _is_stream(message)
                    self._metrics.tally.add(m.HTTP_REQUESTS, (route, method, str(status)))
                    self._metrics.num_open_streams += is_stream
                elif message.get("body"):
                    has_body = True
                    self._first_byte(route, time.perf_counter() - began)
            await send(message)

        try:
            await self._app(scope, receive, counting)
        finally:
            self._metrics.num_open_streams -= is_stream

    def route_of(self, path: str) -> str:
        """The route's own path; `other` where there is none."""
        if path in self._exact:
            return path
        return next((route for start, route in self._prefixes if path.startswith(start)), m.OTHER)

    def _first_byte(self, route: str, seconds: float) -> None:
        if route not in self._first_bytes:
            self._first_bytes[route] = self._metrics.tally.histogram(m.HTTP_FIRST_BYTE, (route,))
        self._first_bytes[route].observe(seconds)


def _traceparent(scope: MutableMapping[str, Any]) -> str | None:
    values = [value for name, value in scope["headers"] if name == b"traceparent"]
    return values[0].decode("latin-1") if len(values) == 1 else None


def _is_stream(start: Message) -> bool:
    return any(
        name == b"content-type" and value.startswith(EVENT_STREAM)
        for name, value in start.get("headers", ())
    )
