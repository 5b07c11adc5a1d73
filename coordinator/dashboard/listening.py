"""The HTTP server in the coordinator's own loop: few connections, small requests, a quick end.

`uvicorn.Server` would take the signals and a third of a second to stop, so only its protocol is
used.
"""

import asyncio
import ipaddress
import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

MAX_CONNECTIONS = 128
MAX_HEAD_BYTES = 32 * 1024
HEAD_S = 10.0  # to send the head of a request
KEEP_ALIVE_S = 30
CLOSE_S = 1.0
BACKLOG = 64
ABORT = "tandem.abort"  # of a request's scope: ends the connection without waiting for the peer
TOO_LARGE = b"\r\n".join(
    [b"HTTP/1.1 431 Header Too Large", b"connection: close", b"content-length: 0", b"", b""]
)


class GuardedProtocol(HttpToolsProtocol):
    """Ends connections beyond the limits of this module, which uvicorn does not have."""

    _head_timer: asyncio.TimerHandle | None = None
    _is_in_head = True
    _num_head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller connects."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller is gone."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, of a body, or of both."""
        if self._is_in_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self.transport.write(TOO_LARGE)
                self.transport.close()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins; its scope can end the connection."""
        super().on_message_begin()
        self._expect_head()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope[ABORT] = self.transport.abort

    def on_headers_complete(self) -> None:
        """The head is here."""
        self._stop_timer()
        self._is_in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is here, too: what comes next is another head."""
        super().on_message_complete()
        self._is_in_head, self._num_head_bytes = True, 0

    def _expect_head(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class HttpServer:
    """Serves an application on one address until it is closed."""

    def __init__(self, app: ASGIApp, *, host: str, port: int) -> None:
        """Listens at once, and serves after `start`. Raises ValueError where it cannot listen."""
        self._socket = _listen(host, port)
        number = self._socket.getsockname()[1]
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{number}"
        self._config = uvicorn.Config(
            app,
            http=GuardedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._state = ServerState()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Take connections."""
        self._config.load()
        loop = asyncio.get_running_loop()

        def make() -> GuardedProtocol:
            return GuardedProtocol(self._config, self._state, {}, loop)

        self._server = await loop.create_server(make, sock=self._socket, backlog=BACKLOG)

    async def close(self) -> None:
        """Listen no more, and end what is open."""
        if self._server is not None:
            self._server.close()
        self._socket.close()
        for connection in list(self._state.connections):
            connection.transport.abort()
        tasks = list(self._state.tasks)
        if tasks:  # they see that their callers are gone
            _, late = await asyncio.wait(tasks, timeout=CLOSE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _listen(host: str, port: int) -> socket.socket:
    try:
        is_v6 = ":" in host and ipaddress.ip_address(host).version == 6
        listener = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET)
    except (OSError, ValueError) as error:
        raise ValueError(f"the dashboard cannot listen on {host}: {error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except (OSError, OverflowError) as error:
        listener.close()
        raise ValueError(
            f"the dashboard cannot listen on {host}:{port}: {error}; --dashboard-port 0 picks a "
            "free port, -1 goes without a dashboard"
        ) from None
    return listener
