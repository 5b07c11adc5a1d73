"""One outgoing connection: a DEALER that reconnects, and with keys dials anew by itself.

`tandem/dialing.py` decides when; this follows the socket's monitor and does it.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from tandem.codec import MAX_BINARY_BYTES
from tandem.dialing import Dialing, LinkEvent
from tandem.keys import RELOAD_S, Keyring

QUEUED_MESSAGES = 10_000
# A frame over this ends the connection. Encryption makes frames longer, so it is above the codec's
# own limit, over which a message is refused and the connection goes on.
MAX_FRAME_BYTES = MAX_BINARY_BYTES + 64 * 1024
HANDSHAKE_MS = 3_000
HEARTBEAT_MS = 1_000
SILENT_MS = 3_000
RECONNECT_MS = 50
MAX_RECONNECT_MS = 1_000
MAX_IDENTITY_BYTES = 240
EVENTS: dict[int, LinkEvent] = {
    zmq.EVENT_HANDSHAKE_SUCCEEDED: LinkEvent.SUCCEEDED,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: LinkEvent.REFUSED,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: LinkEvent.BROKEN,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: LinkEvent.HUNG_UP,
    zmq.EVENT_DISCONNECTED: LinkEvent.DISCONNECTED,
}
logger = logging.getLogger(__name__)


def configure(sock: zmq.asyncio.Socket) -> None:
    """Options of all control sockets: they bound what a peer can make us hold, and for how long."""
    sock.set(zmq.LINGER, 0)
    sock.set(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    sock.set(zmq.SNDHWM, QUEUED_MESSAGES)
    sock.set(zmq.RCVHWM, QUEUED_MESSAGES)
    sock.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    # A peer that froze, or whose network did, sends no FIN.
    sock.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    sock.set(zmq.HEARTBEAT_TIMEOUT, SILENT_MS)
    sock.set(zmq.HEARTBEAT_TTL, SILENT_MS)
    sock.set(zmq.IPV6, 1)


def send_now(sock: zmq.asyncio.Socket, frames: list[bytes]) -> bool:
    """Send without waiting. With NOBLOCK pyzmq's future is done when the call returns."""
    future: Any = sock.send_multipart(frames, flags=zmq.NOBLOCK)
    return future.exception() is None


class Connection:
    """Made inside the running event loop; `socket` is for reading and writing by its user."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        *,
        identity: bytes,
        address: str,
        keys: Keyring | None,
        server: str | None,
    ) -> None:
        if keys is not None and not identity.startswith(f"{keys.own_name}/".encode()):
            raise ValueError(f"{identity!r} is no identity for the key of {keys.own_name}")
        self._identity = identity
        self._address = address
        self._keys = keys
        self._server = server or "a server without a name"
        self._dialing = Dialing(address, None if keys is None else keys.own_name, self._server)
        self._secret = ""
        self._server_key = ""
        self._told: str | None = None
        self._is_hung_up = False
        self._waiting: list[list[bytes]] = []
        self._broke = asyncio.Event()
        self.socket: zmq.asyncio.Socket = context.socket(zmq.DEALER)
        configure(self.socket)
        self.socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
        self.socket.set(zmq.RECONNECT_IVL_MAX, MAX_RECONNECT_MS)
        self._monitor: zmq.asyncio.Socket = self.socket.get_monitor_socket(sum(EVENTS))
        try:
            self._dial()
        except zmq.ZMQError as error:
            self._close_sockets()
            raise ValueError(f"cannot dial {address!r}: {error}; use tcp://host:port") from None
        except ValueError:
            self._close_sockets()
            raise
        self._watch = asyncio.create_task(self._follow())

    @property
    def trouble(self) -> str | None:
        """Why there is no connection, where keys are why."""
        return self._dialing.trouble

    def _dial(self) -> None:
        """Connect; with keys under a routing identity that no connection had before."""
        identity = self._identity
        if self._keys is not None:
            identity = identity[:MAX_IDENTITY_BYTES] + b"~" + secrets.token_hex(4).encode()
            self._use_keys(self._keys)
        self.socket.set(zmq.IDENTITY, identity)
        self.socket.connect(self._address)
        self._is_hung_up = False
        waiting, self._waiting = self._waiting, []
        for frames in waiting:
            self.send(frames)

    def send(self, frames: list[bytes]) -> bool:
        """Queue a message, without waiting; False where the queue is full."""
        if not self._is_hung_up:
            return send_now(self.socket, frames)
        has_room = len(self._waiting) < QUEUED_MESSAGES
        if has_room:
            self._waiting.append(frames)
        return has_room

    def _use_keys(self, keys: Keyring) -> None:
        """Raises ValueError where the folder has no key of the server."""
        keys.reload()
        known = self._known_keys(keys)
        self._server_key = ""
        if not known:
            kind, _, name = self._server.partition("/")
            raise ValueError(f"{keys.folder} has no public key of {kind}/{name}: copy it there")
        # While a server has not taken up its new key, the previous one is right.
        server_key = known[self._dialing.num_failures % len(known)]
        self.socket.set(zmq.CURVE_SERVERKEY, server_key.encode())
        self.socket.set(zmq.CURVE_PUBLICKEY, keys.public_key.encode())
        self.socket.set(zmq.CURVE_SECRETKEY, keys.secret_key.encode())
        self._secret, self._server_key = keys.secret_key, server_key

    def _known_keys(self, keys: Keyring) -> tuple[str, ...]:
        """What the server may have for a key now."""
        kind, _, name = self._server.partition("/")
        return keys.keys_of(kind, name)

    def _is_over(self, keys: Keyring) -> bool:
        """Whether the connection was made with a key, ours or the server's, that is none now."""
        is_rotated = keys.secret_key != self._secret
        is_removed = self._server_key != "" and self._server_key not in self._known_keys(keys)
        return is_rotated or is_removed

    async def _follow(self) -> None:
        """Follow the connection's fate; dial anew where libzmq would not, or not with our keys."""
        while True:
            await self._wait_for_event()
            now = time.monotonic()
            is_over = False
            if self._keys is not None:
                self._keys.refresh()
                is_over = self._is_over(self._keys)
            if is_over or self._dialing.is_due(now):
                self._redial()
            if is_over:
                self._broke.set()
            trouble = self._dialing.trouble
            if trouble is not None and trouble != self._told:
                logger.warning("%s", trouble)
            self._told = trouble

    async def _wait_for_event(self) -> None:
        """Until the monitor reports something, it is time to dial, or to look at the keys."""
        waits_s = [] if self._keys is None else [RELOAD_S]
        if self._dialing.due_at is not None:
            waits_s.append(max(0.0, self._dialing.due_at - time.monotonic()))
        timeout_ms = round(1000 * min(waits_s)) + 1 if waits_s else None
        if not await self._monitor.poll(timeout_ms):
            return
        event = EVENTS.get((await recv_monitor_message(self._monitor))["event"])
        if event is not None:
            num_before = self._dialing.num_disconnections
            self._dialing.take(event, time.monotonic())
            if self._dialing.due_at is not None:
                self._hang_up()  # or libzmq dials every 50 ms, as it did before
            if self._dialing.num_disconnections > num_before:
                self._broke.set()

    def _hang_up(self) -> None:
        with contextlib.suppress(zmq.ZMQError):  # libzmq may have given the connection up
            self.socket.disconnect(self._address)
        self._is_hung_up = True

    def _redial(self) -> None:
        self._hang_up()
        self._dialing.dialled()
        try:
            self._dial()
        except (zmq.ZMQError, ValueError) as error:
            logger.warning("cannot dial %s: %s", self._address, error)
            self._dialing.take(LinkEvent.HUNG_UP, time.monotonic())

    async def disconnections(self) -> AsyncIterator[None]:
        """One item after a connection broke: what was on its way is lost."""
        while True:
            await self._broke.wait()
            self._broke.clear()
            yield None

    def close(self) -> None:
        """Close at once; what is queued is dropped."""
        self._watch.cancel()
        self._close_sockets()

    def _close_sockets(self) -> None:
        if self.socket.closed:
            return
        self.socket.disable_monitor()
        self._monitor.close(linger=0)
        self.socket.close(linger=0)
