"""Control sockets over asyncio: a `Server` (ROUTER) for many peers, a `Link` (DEALER) to one.

Sends never block and never wait: a full queue is reported to the caller, who resends by protocol.
Bulk pages travel on sockets of their own (`kv_transfer`): behind 128 MB of KV a control message
was measured to wait 67-156 ms on a shared socket, and 1-6 ms on its own.
"""

import ipaddress
import socket
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar

import msgspec
import zmq
import zmq.asyncio

from tandem.codec import MAX_BINARY_BYTES, Decoder, ProtocolError, encode

M = TypeVar("M")
QUEUED_MESSAGES = 10_000
HANDSHAKE_MS = 3_000


def _configure(sock: zmq.asyncio.Socket) -> None:
    sock.set(zmq.LINGER, 0)
    sock.set(zmq.MAXMSGSIZE, MAX_BINARY_BYTES)
    sock.set(zmq.SNDHWM, QUEUED_MESSAGES)
    sock.set(zmq.RCVHWM, QUEUED_MESSAGES)
    sock.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    sock.set(zmq.IPV6, 1)


def _send_now(sock: zmq.asyncio.Socket, frames: list[bytes]) -> bool:
    """Send without waiting. With NOBLOCK pyzmq's future is done when the call returns."""
    future: Any = sock.send_multipart(frames, flags=zmq.NOBLOCK)
    return future.exception() is None


def require_loopback(host: str) -> None:
    """Raise ValueError where `host` is reachable from other machines: there are no keys yet."""
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except socket.gaierror as error:
        raise ValueError(f"host {host!r} does not resolve ({error}); use 127.0.0.1") from None
    if not all(ipaddress.ip_address(str(a)).is_loopback for a in addresses):
        raise ValueError(
            f"host {host!r} is reachable from other machines, and without keys every socket is "
            "open: use 127.0.0.1, or pass --allow-unauthenticated on a network you trust"
        )


class Server(Generic[M]):
    """Many peers, each known by the routing identity it chose; replies go by identity."""

    def __init__(self, context: zmq.asyncio.Context, union: Any) -> None:  # noqa: ANN401
        self._socket: zmq.asyncio.Socket = context.socket(zmq.ROUTER)
        _configure(self._socket)
        # A send to a peer that is gone must be an error that we count, not a silent drop.
        self._socket.set(zmq.ROUTER_MANDATORY, 1)
        self._socket.set(zmq.ROUTER_HANDOVER, 1)
        self._decoder: Decoder[M] = Decoder(union)
        self.num_malformed = 0
        self.num_unsent = 0

    def bind(self, host: str, port: int) -> str:
        """Listen; port 0 picks one. Returns `tcp://host:port`. Raises ValueError when in use."""
        try:
            self._socket.bind(f"tcp://{host}:{port or '*'}")
        except zmq.ZMQError as error:
            raise ValueError(
                f"cannot listen on {host}:{port}: {error}; is another process using the port?"
            ) from None
        bound = self._socket.get_string(zmq.LAST_ENDPOINT)
        return f"tcp://{host}:{bound.rsplit(':', 1)[1]}"

    async def receive(self) -> tuple[bytes, M | ProtocolError]:
        """The next message and its sender; a malformed one is returned as its error."""
        identity, *frames = await self._socket.recv_multipart()
        try:
            return identity, self._decoder.decode(frames)
        except ProtocolError as error:
            self.num_malformed += 1
            return identity, error

    def send(self, identity: bytes, message: msgspec.Struct) -> bool:
        """Queue a message for a peer; False where the peer is gone or its queue is full."""
        sent = _send_now(self._socket, [identity, *encode(message)])
        self.num_unsent += not sent
        return sent

    def close(self) -> None:
        """Close at once; queued messages are dropped."""
        self._socket.close(linger=0)


class Link(Generic[M]):
    """One peer that this process dials; reconnects by itself under the same identity."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        union: Any,  # noqa: ANN401  a type expression
        *,
        identity: bytes,
        address: str,
    ) -> None:
        self._socket: zmq.asyncio.Socket = context.socket(zmq.DEALER)
        _configure(self._socket)
        self._socket.set(zmq.IDENTITY, identity)
        self._socket.set(zmq.RECONNECT_IVL, 50)
        self._socket.set(zmq.RECONNECT_IVL_MAX, 1_000)
        self._decoder: Decoder[M] = Decoder(union)
        self.address = address
        self.num_malformed = 0
        self.num_unsent = 0
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self._socket.close(linger=0)
            raise ValueError(f"cannot dial {address!r}: {error}; use tcp://host:port") from None

    async def messages(self) -> AsyncIterator[M]:
        """Messages as they arrive; malformed ones are counted and dropped."""
        while True:
            frames = await self._socket.recv_multipart()
            try:
                message = self._decoder.decode(frames)
            except ProtocolError:
                self.num_malformed += 1
                continue
            yield message

    def send(self, message: msgspec.Struct) -> bool:
        """Queue a message; False where the queue is full."""
        sent = _send_now(self._socket, encode(message))
        self.num_unsent += not sent
        return sent

    def close(self) -> None:
        """Close at once; queued messages are dropped."""
        self._socket.close(linger=0)


def peer_identity(kind: str, name: str, incarnation: int) -> bytes:
    """A routing identity that no earlier incarnation of the peer had."""
    return f"{kind}/{name}/{incarnation:x}".encode()[:255]
