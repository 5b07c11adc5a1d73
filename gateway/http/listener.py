"""The HTTP port: uvicorn's connections on the gateway's own event loop."""

import asyncio
import contextlib
import socket
import ssl
from dataclasses import dataclass, field
from email.utils import formatdate

from starlette.types import ASGIApp
from uvicorn.server import ServerState

from gateway.http.protocol import ConnectionLimits, GuardedProtocol, make_config

BACKLOG = 1024
# What a caller leaves unread is held by the kernel up to this (doubled there), then by us up to
# 64 KiB, then its request waits.
SEND_BUFFER_BYTES = 256 << 10
DATE_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSettings:
    """Where to listen, and for how long an idle connection stays open."""

    host: str
    port: int
    keep_alive_s: float = 60.0
    tls_cert: str | None = None
    tls_key: str | None = None
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)


class HttpListener:
    """See the module. `start` and `close` belong to one running loop."""

    def __init__(self, app: ASGIApp, settings: ListenerSettings) -> None:
        self._settings = settings
        self._config = make_config(app, keep_alive_s=settings.keep_alive_s)
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._clock: asyncio.Task[None] | None = None

    @property
    def num_connections(self) -> int:
        """Connections that are open."""
        return len(self._state.connections)

    async def start(self) -> str:
        """Listen; returns the address. Raises ValueError where that cannot be."""
        listening = self._bind()
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: GuardedProtocol(self._config, self._state, self._settings.limits),
                sock=listening,
                ssl=self._tls(),
                backlog=BACKLOG,
            )
        except BaseException:
            listening.close()
            raise
        self._set_date()
        self._clock = asyncio.create_task(self._tick())
        scheme = "http" if self._settings.tls_cert is None else "https"
        host = self._settings.host
        host = f"[{host}]" if ":" in host else host
        return f"{scheme}://{host}:{listening.getsockname()[1]}"

    def _bind(self) -> socket.socket:
        host, port = self._settings.host, self._settings.port
        try:
            family, _, _, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listening = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise ValueError(f"cannot listen on {host} (--http-host): {error.strerror}") from None
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            listening.bind(address)
        except OSError as error:
            listening.close()
            raise ValueError(
                f"cannot listen on {host}:{port} for HTTP ({error.strerror}): is another process "
                "using the port? Name another with --http-port, or -1 for no HTTP"
            ) from None
        listening.setblocking(False)
        return listening

    def _tls(self) -> ssl.SSLContext | None:
        if self._settings.tls_cert is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self._settings.tls_cert, self._settings.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(
                f"cannot use --http-tls-cert {self._settings.tls_cert}: {error}"
            ) from None
        return context

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(DATE_EVERY_S)
            self._set_date()

    def _set_date(self) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]

    async def close(self) -> None:
        """Stop listening, hang up; calls that still run are cancelled."""
        if self._clock is not None:
            self._clock.cancel()
            await asyncio.gather(self._clock, return_exceptions=True)
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        for task in list(self._state.tasks):
            task.cancel()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)
        for connection in list(self._state.connections):
            with contextlib.suppress(RuntimeError):
                connection.transport.abort()
        await self._server.wait_closed()
