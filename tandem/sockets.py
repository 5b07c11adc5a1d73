"""Control sockets over asyncio: a `Server` (ROUTER) for many peers, a `Link` (DEALER) to one.

Sends never block and never wait: a full queue is reported to the caller, who resends by protocol.
Bulk pages travel on sockets of their own (`kv_transfer`): behind 128 MB of KV a control message
was measured to wait 67-156 ms on a shared socket, and 1-6 ms on its own.

With keys every connection is encrypted and its peer known by name (CURVE, SECURITY.md).
"""

import asyncio
import ipaddress
import itertools
import logging
import socket
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import zmq
import zmq.asyncio

from tandem.access import Access
from tandem.codec import Decoder, ProtocolError, encode
from tandem.connection import Connection, configure, send_now
from tandem.keys import RELOAD_S, Keyring
from tandem.rates import Rate, TokenBuckets
from tandem.zap import DOMAIN, Authenticator

M = TypeVar("M")
BACKLOG = 512
FLOOD = 64  # messages taken between two looks at other tasks
REBIND_S = 0.02
DEFAULT_RATE = Rate(per_s=10_000, burst=20_000)
OLDEST_LIBZMQ = (4, 3, 5)
logger = logging.getLogger(__name__)


class RateLimited(ProtocolError):
    """A peer sends more messages than it may; returned once per second, the others are dropped."""


def require_libzmq(found: tuple[int, int, int]) -> None:
    """Raise ImportError for a libzmq with known holes (CVE-2019-13132, CVE-2020-15166)."""
    if found < OLDEST_LIBZMQ:
        raise ImportError(
            f"libzmq {'.'.join(map(str, found))} has known security holes, and Tandem needs "
            "4.3.5: pip install --upgrade pyzmq (its wheels bring libzmq along)"
        )


require_libzmq(zmq.zmq_version_info())


def require_loopback(host: str) -> None:
    """Raise ValueError where `host` is reachable from other machines: for sockets without keys."""
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except socket.gaierror as error:
        raise ValueError(f"host {host!r} does not resolve ({error}); use 127.0.0.1") from None
    if not all(ipaddress.ip_address(str(a)).is_loopback for a in addresses):
        raise ValueError(
            f"host {host!r} is reachable from other machines, and without keys every socket is "
            "open: use 127.0.0.1, or pass --keys FOLDER (`tandem keys init FOLDER` makes one), or "
            "--allow-unauthenticated on a network you trust"
        )


def keyring_or_loopback(
    folder: str | None, kind: str, name: str | None, *, host: str, allow_unauthenticated: bool
) -> Keyring | None:
    """The keys of a process that listens; without any it listens on loopback only.

    Raises ValueError with advice.
    """
    if folder is not None:
        return Keyring(Path(folder), kind, name)
    if allow_unauthenticated:
        logger.warning("no --keys: whoever reaches %s may use this process, unencrypted", host)
    else:
        require_loopback(host)
        logger.info("no --keys: for programs of this host only")
    return None


class Server(Generic[M]):
    """Many peers, each known by the routing identity it chose; replies go by identity.

    With `keys`, made and used inside one running event loop: `allowed` says which messages each
    kind of key may send, and an identity begins with kind and name of its key. `rate` is per peer.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        union: Any,  # noqa: ANN401  a type expression
        *,
        keys: Keyring | None = None,
        allowed: Mapping[str, Any] | None = None,
        rate: Rate = DEFAULT_RATE,
    ) -> None:
        self._context = context
        self._decoder: Decoder[M] = Decoder(union)
        self._buckets = TokenBuckets(rate)
        self._keys = keys
        self._access: Access[M] | None = None
        if keys is not None:
            if not allowed:
                raise ValueError("with keys, say which messages each kind of key may send")
            self._access = Access(keys, allowed)
        self._authenticator: Authenticator | None = None
        self._watch: asyncio.Task[None] | None = None
        self._secret = ""
        self._num_taken = 0
        self.num_malformed = 0
        self.num_unsent = 0
        self.num_limited = 0
        self._socket: zmq.asyncio.Socket = context.socket(zmq.ROUTER)
        self._arrived: zmq.Socket[bytes] = zmq.Socket.shadow(self._socket.underlying)
        configure(self._socket)
        self._socket.set(zmq.BACKLOG, BACKLOG)
        # A send to a peer that is gone must be an error that we count, not a silent drop.
        self._socket.set(zmq.ROUTER_MANDATORY, 1)
        # Whoever names an identity takes it over: without keys that is how a peer comes back; with
        # keys it would be theft, and `Access` finds the newest connection of the same key.
        self._socket.set(zmq.ROUTER_HANDOVER, int(keys is None))

    @property
    def num_unauthorized(self) -> int:
        """Messages whose identity or content was not for the sender's key to use."""
        return 0 if self._access is None else self._access.num_refused

    def bind(self, host: str, port: int) -> str:
        """Listen; port 0 picks one. Returns `tcp://host:port`. Raises ValueError when in use."""
        if self._keys is not None and self._access is not None:
            self._authenticator = Authenticator(self._context, self._keys, self._access.kinds)
            self._socket.set(zmq.CURVE_SERVER, 1)
            self._socket.set(zmq.ZAP_DOMAIN, DOMAIN)
            self._socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
            self._use_secret(self._keys)
        try:
            self._socket.bind(f"tcp://{host}:{port or '*'}")
        except zmq.ZMQError as error:
            raise ValueError(
                f"cannot listen on {host}:{port}: {error}; is another process using the port?"
            ) from None
        bound = self._socket.get_string(zmq.LAST_ENDPOINT)
        if self._keys is not None:
            self._watch = asyncio.create_task(self._watch_keys(self._keys, bound))
        return f"tcp://{host}:{bound.rsplit(':', 1)[1]}"

    def _use_secret(self, keys: Keyring) -> None:
        self._secret = keys.secret_key
        self._socket.set(zmq.CURVE_SECRETKEY, self._secret.encode())

    async def _watch_keys(self, keys: Keyring, endpoint: str) -> None:
        """Listen anew under a new key. That cuts all connections; their peers dial and resend."""
        told = None
        while True:
            await asyncio.sleep(RELOAD_S)
            problem = keys.reload()
            if problem not in (None, told):
                logger.warning("the own key stays as it was: %s", problem)
            told = problem
            if keys.secret_key == self._secret:
                continue
            logger.info("%s has a new key: listening anew", keys.own_name)
            self._socket.unbind(endpoint)
            self._use_secret(keys)
            while True:
                try:  # the old socket closes in the background
                    self._socket.bind(endpoint)
                    break
                except zmq.ZMQError as error:
                    logger.debug("not yet listening: %s", error)
                    await asyncio.sleep(REBIND_S)

    async def receive(self) -> tuple[bytes, M | ProtocolError]:
        """The next message and its sender; a malformed one is returned as its error."""
        while True:
            self._num_taken += 1
            if self._num_taken % FLOOD == 0:
                await asyncio.sleep(0)  # a receive that need not wait lets nobody else run
            taken = await self._receive_authentic()
            if taken is None:
                continue
            identity, peer, decoder, frames = taken
            verdict = self._buckets.judge(peer, time.monotonic())
            if verdict == "take":
                return identity, self._decode(identity, decoder, frames)
            self.num_limited += 1
            if verdict == "tell":
                rate = self._buckets.rate.per_s
                return identity, RateLimited(f"over {rate:g} messages per second: some are dropped")

    async def _receive_authentic(
        self,
    ) -> tuple[bytes, object, Decoder[M], list[bytes]] | None:
        """Identity, the peer whose rate it counts for, decoder, frames; None for who may not."""
        access = self._access
        if access is None:
            identity, *frames = await _next_frames(self._socket, self._arrived, copy=True)
            return identity, identity, self._decoder, frames
        raw, *parts = await _next_frames(self._socket, self._arrived, copy=False)
        if not parts:
            return None
        admitted = access.admit(raw.bytes, _user_id(parts[-1]))
        if admitted is None:
            return None
        identity, owner = admitted
        return identity, owner, access.decoder(owner), [part.bytes for part in parts]

    def _decode(
        self, identity: bytes, decoder: Decoder[M], frames: list[bytes]
    ) -> M | ProtocolError:
        try:
            message = decoder.decode(frames)
            if self._access is not None:
                self._access.check_name(identity, message)
        except ProtocolError as error:
            self.num_malformed += 1
            return error
        return message

    def key_name(self, identity: bytes) -> str | None:
        """`client/alice`: whose key the peer has; None without keys, and for strangers."""
        return None if self._access is None else self._access.key_name(identity)

    def send(self, identity: bytes, message: msgspec.Struct) -> bool:
        """Queue a message for a peer; False where the peer is gone or its queue is full."""
        route = identity if self._access is None else self._access.route(identity)
        sent = route is not None and send_now(self._socket, [route, *encode(message)])
        self.num_unsent += not sent
        return sent

    def close(self) -> None:
        """Close at once; queued messages are dropped."""
        if self._watch is not None:
            self._watch.cancel()
        if self._authenticator is not None:
            self._authenticator.close()
        self._socket.close(linger=0)


async def _next_frames(
    waiting: zmq.asyncio.Socket, arrived: "zmq.Socket[bytes]", *, copy: bool
) -> Any:  # noqa: ANN401  bytes, or frames
    """What has arrived is taken directly: a future for each costs five times as much, and a flood
    must be dropped faster than it comes. Both are the same socket."""
    try:
        return arrived.recv_multipart(zmq.NOBLOCK, copy=copy)
    except zmq.Again:
        return await waiting.recv_multipart(copy=copy)


def _user_id(frame: zmq.Frame) -> str:
    """What the authenticator said of the connection that a frame came over."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


class Link(Generic[M]):
    """One peer that this process dials; reconnects by itself under the same identity.

    Made inside the running event loop. With `keys`, `server` names the peer ("node/decode-0").
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        union: Any,  # noqa: ANN401  a type expression
        *,
        identity: bytes,
        address: str,
        keys: Keyring | None = None,
        server: str | None = None,
    ) -> None:
        self._decoder: Decoder[M] = Decoder(union)
        self.address = address
        self.num_malformed = 0
        self.num_unsent = 0
        self._connection = Connection(
            context, identity=identity, address=address, keys=keys, server=server
        )
        self._socket = self._connection.socket
        self._arrived: zmq.Socket[bytes] = zmq.Socket.shadow(self._socket.underlying)

    @property
    def trouble(self) -> str | None:
        """Why there is no connection, where keys are why; known after a second or two."""
        return self._connection.trouble

    def disconnections(self) -> AsyncIterator[None]:
        """One item after a connection broke: what was on its way is lost."""
        return self._connection.disconnections()

    async def messages(self) -> AsyncIterator[M]:
        """Messages as they arrive; malformed ones are counted and dropped."""
        for num_taken in itertools.count(1):
            if num_taken % FLOOD == 0:
                await asyncio.sleep(0)  # as for a `Server`
            frames = await _next_frames(self._socket, self._arrived, copy=True)
            try:
                message = self._decoder.decode(frames)
            except ProtocolError:
                self.num_malformed += 1
                continue
            yield message

    def send(self, message: msgspec.Struct) -> bool:
        """Queue a message; False where the queue is full."""
        sent = self._connection.send(encode(message))
        self.num_unsent += not sent
        return sent

    def close(self) -> None:
        """Close at once; queued messages are dropped."""
        self._connection.close()


def peer_identity(kind: str, name: str, incarnation: int) -> bytes:
    """A routing identity that no earlier incarnation of the peer had."""
    return f"{kind}/{name}/{incarnation:x}".encode()[:255]
