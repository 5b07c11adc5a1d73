"""The HTTP door: every call passes here. Whose it is, whether it may, who serves it, what failed.

Nothing is decided by a path but by the route that it leads to: what leads to no route needs a key,
too, where there are keys.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Message, Receive, Scope, Send

from gateway.admission import Rejected
from gateway.http.call import SCOPE_KEY, BodyRoom, Call, CallLimits
from gateway.http.errors import ApiError, explain
from gateway.http.responses import error_response
from gateway.http.routes import Route
from tandem.bearer import BearerKeys, Role

HARMLESS_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
TRACE_PARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
MAX_PATH_ECHO = 200
logger = logging.getLogger(__name__)


class Door:
    """An ASGI application of `Route`s. Without `keys` everybody is let in."""

    def __init__(
        self,
        routes: Iterable[Route],
        *,
        keys: BearerKeys | None,
        limits: CallLimits,
        max_bodies_bytes: int,
    ) -> None:
        self._table = _Table(routes)
        self._keys = keys
        self._limits = limits
        self._room = BodyRoom(max_bodies_bytes)
        # One: what large bodies become takes ten times their bytes for a moment.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bodies")
        self.num_calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call."""
        request = Request(scope, receive)
        call = self._call(request)
        scope[SCOPE_KEY] = call
        answer = _Answer(send, call.request_id)
        self.num_calls += 1
        try:
            response = await self._respond(request, call)
            await response(scope, receive, answer)
        except ClientDisconnect:
            pass  # before its body was whole
        except asyncio.CancelledError:
            if not call.is_gone:
                raise
        finally:
            self.num_calls -= 1
            call.end()

    @property
    def held_bytes(self) -> int:
        """Of the bodies of calls that are being served."""
        return self._room.num_bytes

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _call(self, request: Request) -> Call:
        own_id = request.headers.get("x-request-id", "")
        parent = request.headers.get("traceparent", "")
        return Call(
            request_id=own_id if HARMLESS_ID.fullmatch(own_id) else secrets.token_hex(16),
            traceparent=parent if TRACE_PARENT.fullmatch(parent) else None,
            limits=self._limits,
            room=self._room,
            thread=self._thread,
        )

    async def _respond(self, request: Request, call: Call) -> Response:
        try:
            return await self._handle(request, call)
        except ApiError as error:
            return error_response(error)
        except Rejected as rejected:
            return error_response(explain(rejected))
        except ClientDisconnect:
            raise
        except Exception:  # one call must not end everybody's service
            logger.exception("call %s failed", call.request_id)
            text = f"the gateway failed on this call: its log says why (call {call.request_id})"
            return error_response(ApiError(500, text, code="internal"))

    async def _handle(self, request: Request, call: Call) -> Response:
        route, methods = self._table.find(request)
        if route is None or route.role is not None:
            call.key = self._key(request, None if route is None else route.role)
        if route is None:
            raise _no_route(request, methods)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise ApiError(415, "compressed bodies are not taken: leave out Content-Encoding")
        if route.request is None:
            call.watch(request.receive)
        return await route.handler(request)

    def _key(self, request: Request, role: Role | None) -> str | None:
        """The caller's key, `client/NAME`. Raises ApiError."""
        if self._keys is None:
            return None
        given = [value for name, value in request.scope["headers"] if name == b"authorization"]
        found = self._keys.find(given[0] if len(given) == 1 else None)
        if found is None:
            text = "send `Authorization: Bearer KEY` with a key of this deployment"
            headers = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, text, code="invalid_api_key", headers=headers)
        name, has = found
        if role is not None and has != role:
            text = f"this needs a key of the role {role}, and yours has the role {has}"
            raise ApiError(403, text, code="wrong_role")
        return f"{has}/{name}"


class _Table:
    """Which route a call is for."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._fixed: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], Route]] = []
        for route in routes:
            if "{" in route.path:
                self._patterns.append((compile_path(route.path)[0], route))
            else:
                self._fixed.setdefault(route.path, {})[route.method] = route

    def find(self, request: Request) -> tuple[Route | None, list[str]]:
        """The route, or the methods that the path has."""
        path = request.scope["path"]
        method = "GET" if request.method == "HEAD" else request.method
        found = dict(self._fixed.get(path, {}))
        for pattern, route in self._patterns:
            match = pattern.match(path)
            if match is not None and route.method not in found:
                found[route.method] = route
                if route.method == method:
                    request.scope["path_params"] = match.groupdict()
        return found.get(method), sorted(found)


class _Answer:
    """`send` of one call, with its id among the headers."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._header = (b"x-request-id", request_id.encode())

    async def __call__(self, message: Message) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], self._header]
        await self._send(message)


def _no_route(request: Request, methods: list[str]) -> ApiError:
    path = request.scope["path"][:MAX_PATH_ECHO]
    if methods:
        text = f"{path} takes {' and '.join(methods)}, not {request.method}"
        return ApiError(405, text, headers={"Allow": ", ".join(methods)})
    return ApiError(404, f"there is nothing at {path}: GET /openapi.json lists what there is")
