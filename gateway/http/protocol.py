"""uvicorn's HTTP/1.1 connections with the limits that it lacks: heads, time, stuck readers.

uvicorn takes heads of any size and for ever, queues pipelined requests behind a stream and then
misses the caller's end, appends trailers to the headers, and answers garbage in plain text.
"""

import asyncio
from asyncio import TimerHandle
from dataclasses import dataclass
from typing import Any

import httptools
import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from gateway.http.direct import BODY, EXTENSION
from gateway.http.errors import ApiError
from gateway.http.responses import retry_headers


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one connection, and all of them, may cost."""

    max_connections: int = 4096
    max_head_bytes: int = 64 << 10
    max_headers: int = 128
    head_timeout_s: float = 10.0
    stuck_s: float = 10.0  # how long an answer may wait for its reader


class HeadTooLargeError(Exception):
    """A request line or header over the limits."""


class UnreadableHeadError(Exception):
    """A head that is HTTP, but not what this server reads."""


class CycleBody:
    """`DirectBody` of one answer: writes as the cycle's own `send` does."""

    __slots__ = ("_cycle", "_flow", "_transport")

    def __init__(
        self, cycle: RequestResponseCycle, flow: FlowControl, transport: asyncio.Transport
    ) -> None:
        self._cycle = cycle
        self._flow = flow
        self._transport = transport

    @property
    def is_ready(self) -> bool:
        """See `DirectBody`."""
        cycle = self._cycle
        is_open = cycle.response_started and not cycle.response_complete
        return (
            is_open
            and cycle.chunked_encoding is True
            and not cycle.disconnected
            and not self._flow.write_paused
        )

    def write(self, part: bytes) -> None:
        """See `DirectBody`."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(part), part))


class GuardedProtocol(HttpToolsProtocol):
    """See the module. One request at a time: what is pipelined behind one that runs is dropped, and
    the connection closed after the answer, so that the caller asks again."""

    def __init__(self, config: Config, server_state: ServerState, limits: ConnectionLimits) -> None:
        super().__init__(config, server_state, {})
        self._limits = limits
        self._head_timer: TimerHandle | None = None
        self._stuck_timer: TimerHandle | None = None
        self._is_head_open = False
        self._num_head_bytes = 0  # of what is parsed
        self._num_open_bytes = 0  # of what came since the head began, parsed or not
        self._is_deaf = False
        self._has_begun = False  # some request, so that there is a cycle

    # --- the connection ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """One more, or one too many."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            text = (
                f"this gateway holds {self._limits.max_connections} connections "
                "(--max-http-connections): try again, or use another"
            )
            self._refuse(ApiError(503, text, code="overloaded", retry_after_s=1.0))
            return
        self._arm_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller is gone."""
        self._disarm_head_timer()
        self._disarm_stuck_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The caller does not read as fast as we write."""
        super().pause_writing()
        if self._stuck_timer is None:
            self._stuck_timer = self.loop.call_later(self._limits.stuck_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The caller has read most of it."""
        super().resume_writing()
        self._disarm_stuck_timer()

    def _arm_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.head_timeout_s, self._head_is_late)

    def _disarm_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _disarm_stuck_timer(self) -> None:
        if self._stuck_timer is not None:
            self._stuck_timer.cancel()
            self._stuck_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        text = f"no whole request head came within {self._limits.head_timeout_s:g} s"
        self._refuse(ApiError(408, text))

    # --- what comes in ----------------------------------------------------------------------

    @property
    def _is_serving(self) -> bool:
        return self._has_begun and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Some bytes of the caller's."""
        self._unset_keepalive_if_required()
        if self._is_deaf or self.transport.is_closing():
            return
        if not self._is_serving:
            self._arm_head_timer()
        was_open = self._is_head_open
        try:
            self.parser.feed_data(data)
            if was_open and self._is_head_open:
                self._num_open_bytes += len(data)
                self._check_head(self._num_open_bytes)
        except httptools.HttpParserUpgrade:
            self._is_deaf = True  # no other protocol is spoken: the request itself is served
        except (httptools.HttpParserError, HeadTooLargeError) as error:
            self._cannot_read(error)

    def _cannot_read(self, error: Exception) -> None:
        if isinstance(error, HeadTooLargeError) or isinstance(
            error.__context__ or error.__cause__, HeadTooLargeError
        ):
            limits = self._limits
            text = (
                f"the request's head is over {limits.max_head_bytes >> 10} KiB, or has more than "
                f"{limits.max_headers} headers"
            )
            refusal = ApiError(431, text)
        else:
            refusal = ApiError(400, "this is no HTTP/1.1 request that this server reads")
        if not self._is_serving or (self.cycle.more_body and not self.cycle.response_started):
            self._refuse(refusal)
        elif self.cycle.more_body:
            self.transport.abort()
        else:  # what came behind a whole request
            self._turn_deaf()

    def _turn_deaf(self) -> None:
        self._is_deaf = True
        self.cycle.keep_alive = False

    def _check_head(self, num_bytes: int) -> None:
        if num_bytes > self._limits.max_head_bytes:
            raise HeadTooLargeError

    def _count_head(self, num_bytes: int) -> None:
        self._num_head_bytes += num_bytes
        self._check_head(self._num_head_bytes)

    # --- the parser's callbacks -------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self._is_head_open = True
        self._num_head_bytes = self._num_open_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the request line."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; after the head, a trailer, which nobody needs."""
        if not self._is_head_open:
            return
        self._count_head(len(name) + len(value) + 4)
        if len(self.headers) >= self._limits.max_headers:
            raise HeadTooLargeError
        if name.lower() == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise UnreadableHeadError  # others would take the body for compressed
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The request is known but for its body."""
        self._is_head_open = False
        self._disarm_head_timer()
        if self._is_deaf:
            return
        if self._is_serving:
            self._turn_deaf()
            return
        super().on_headers_complete()
        self._has_begun = True
        body = CycleBody(self.cycle, self.flow, self.transport)
        self.scope["extensions"] = {EXTENSION: {BODY: body}}
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if not self._is_deaf:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The body's end."""
        if not self._is_deaf:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is out; a caller that still sends the body is not waited for."""
        super().on_response_complete()
        if self.cycle.more_body:
            self.transport.close()

    # --- refusals that no call stands behind ------------------------------------------------

    def _refuse(self, error: ApiError) -> None:
        self._is_deaf = True
        self._disarm_head_timer()
        body = msgspec.json.encode(error.body)
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            **retry_headers(error),
        }
        lines = [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
        self.transport.write(b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body]))
        self.transport.close()


def make_config(app: Any, *, keep_alive_s: float) -> Config:  # noqa: ANN401  an ASGI app
    """uvicorn's settings: HTTP/1.1 by httptools and nothing else; its log says nothing."""
    config = Config(
        app,
        http="httptools",
        ws="none",
        loop="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        # Fractions are taken, whatever the annotation says.
        timeout_keep_alive=keep_alive_s,  # type: ignore[arg-type]
    )
    config.load()
    return config
