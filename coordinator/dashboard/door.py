"""The application behind the dashboard's address: keys first, strict headers, errors in JSON."""

import logging

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.dashboard.access import Access
from coordinator.dashboard.api import Api, Source
from coordinator.dashboard.errors import ApiError

SECURITY_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        b"object-src 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
STREAM_PATH = "/api/stream"
logger = logging.getLogger(__name__)


def make_app(source: Source, access: Access) -> ASGIApp:
    """Everything that is served; whoever may not ask is told so before anything else."""
    router = Router(Api(source).routes(), redirect_slashes=False)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        access.check(request)
        if scope["path"] == STREAM_PATH and request.method == "GET":
            await source.streams.serve(scope, receive, send)
        else:
            await router({**scope, "app": router}, receive, send)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        guarded = _Guarded(send)
        try:
            await answer(scope, receive, guarded)
            return
        except ApiError as known:
            error = known
        except HTTPException as refused:
            error = ApiError(refused.status_code, refused.detail, code="not_found")
        except Exception:  # one bad request must not be the last
            logger.exception("cannot answer %s", scope["path"])
            error = ApiError(500, "an error of ours: the coordinator's log has it")
        if not guarded.has_begun:
            await error.response()(scope, receive, guarded)

    return serve


class _Guarded:
    """Sends on, with the headers that keep browsers from harm."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            message = {**message, "headers": [*message.get("headers", []), *SECURITY_HEADERS]}
        await self._send(message)
