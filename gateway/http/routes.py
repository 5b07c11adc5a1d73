"""One route of the HTTP API: the door serves it, /openapi.json describes it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from tandem.bearer import Role

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """See the module.

    `handler` gets a request whose key was checked; it may raise ApiError, and is cancelled when
    the caller hangs up (after `read_body`, or at once where there is no body). `request` and
    `response` are the types of the JSON bodies. `role` None: no key is asked for. `is_streamed`:
    the answer may be server-sent events of `response`'s chunks.
    """

    method: Literal["GET", "POST"]
    path: str  # "{name}" is one segment, "{name:path}" the rest
    handler: Handler
    summary: str
    request: Any = None  # a type expression
    response: Any = None
    role: Role | None = "client"
    is_streamed: bool = False
