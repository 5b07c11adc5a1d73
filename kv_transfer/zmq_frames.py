"""What passes between the bulk sockets of two nodes, and how those sockets are set up.

A message is a version frame, a header, and for chunks of pages one frame of bytes. With keys, every
connection is encrypted and both ends know each other's key (CURVE).
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec
import zmq

from tandem.codec import MAGIC
from tandem.messages.common import Counter

CHUNK_BYTES = 512 * 1024
MAX_CHUNK_BYTES = 1 << 20
MAX_READ_PAGES = 128  # in one request
MAX_ANSWERED = 64  # chunks at once
MAX_HEADER_BYTES = 2048
NUM_CREDITS = 16  # chunks on their way: 8 MiB fill a 10 Gbit/s link with 6 ms of delay
NONCE_MARK = b"#"  # in no name, so what stands before it is the identity of the control link
DOMAIN = b"tandem-bulk"
NO_MORE, MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)

Header = TypeVar("Header")
PageIndex = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """An ephemeral key pair, Z85; made by one process for its bulk sockets."""

    public: bytes
    secret: bytes

    @classmethod
    def generate(cls) -> "CurveKeys":
        """A fresh pair."""
        return cls(*zmq.curve_keypair())


class _Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """Base of headers: an array that begins with the name."""


class PageChunk(_Frame, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """The bytes that follow belong at `start` of the grant's pages laid end to end."""

    grant_id: Counter
    start: Counter


class ChunkAnswer(_Frame, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """The chunks that begin there are in the pool, or why not."""

    grant_id: Counter
    starts: Annotated[tuple[Counter, ...], msgspec.Meta(min_length=1, max_length=MAX_ANSWERED)]
    error: str | None


class PageRead(_Frame, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """Send me these pages, which the grant lets me read, as it names them.

    Pages larger than a chunk come one by one and in parts: then `offset` is where the part begins.
    """

    ticket: Counter
    grant_id: Counter
    pages: Annotated[tuple[PageIndex, ...], msgspec.Meta(min_length=1, max_length=MAX_READ_PAGES)]
    offset: Counter


class ReadAnswer(_Frame, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """The bytes that follow are what was asked for, with their checksum; or why there are none."""

    ticket: Counter
    checksum: bytes | None
    error: str | None


class Probe(_Frame, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """The bytes that follow only measure the way: discard and answer."""

    number: Counter


class ProbeAnswer(_Frame, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """They came."""

    number: Counter


ToOwner = PageChunk | PageRead | Probe
ToWriter = ChunkAnswer | ReadAnswer | ProbeAnswer
_TO_OWNER: msgspec.msgpack.Decoder[ToOwner] = msgspec.msgpack.Decoder(ToOwner)
_TO_WRITER: msgspec.msgpack.Decoder[ToWriter] = msgspec.msgpack.Decoder(ToWriter)


def encode(header: ToOwner | ToWriter) -> list[bytes]:
    """The first two frames."""
    return [MAGIC, msgspec.msgpack.encode(header)]


def decode_to_owner(frames: list[zmq.Frame]) -> tuple[ToOwner, zmq.Frame | None]:
    """A writer's message and its payload. Raises ValueError for anything else."""
    header = _TO_OWNER.decode(_header_of(frames))
    if (len(frames) == 3) == isinstance(header, PageRead):
        raise ValueError("a chunk without bytes, or a request with some")
    return header, frames[2] if len(frames) == 3 else None


def decode_to_writer(frames: list[zmq.Frame]) -> tuple[ToWriter, zmq.Frame | None]:
    """An owner's message and its payload. Raises ValueError for anything else."""
    header = _TO_WRITER.decode(_header_of(frames))
    has_bytes = isinstance(header, ReadAnswer) and header.error is None
    if (len(frames) == 3) != has_bytes:
        raise ValueError("bytes where none belong, or none")
    return header, frames[2] if has_bytes else None


def _header_of(frames: list[zmq.Frame]) -> bytes:
    if not 2 <= len(frames) <= 3 or len(frames[1]) > MAX_HEADER_BYTES:
        raise ValueError("not a message of this link")
    if len(frames[0]) != len(MAGIC) or frames[0].bytes != MAGIC:
        raise ValueError("not a frame of this version")
    return frames[1].bytes


def send_frames(socket: "zmq.Socket[bytes]", frames: Sequence[bytes | zmq.Frame]) -> None:
    """Without waiting: raises zmq.Again where nothing of it can be sent now.

    pyzmq's own way of sending several parts computes with flags part by part: 8 us for three.
    """
    for part in frames[:-1]:
        socket.send(part, MORE)
    socket.send(frames[-1], NO_MORE)


def receive_frames(socket: "zmq.Socket[bytes]") -> list[zmq.Frame]:
    """A message, not copied, without waiting: raises zmq.Again where there is none."""
    frames = [socket.recv(NO_MORE, copy=False)]
    while frames[-1].more:
        frames.append(socket.recv(NO_MORE, copy=False))
    return frames


def configure(socket: "zmq.Socket[bytes]") -> None:
    """Options that bound what a peer can make us hold, and how long we wait for a dead one."""
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.MAXMSGSIZE, MAX_CHUNK_BYTES + 4096)
    socket.set(zmq.SNDHWM, 2 * NUM_CREDITS)
    socket.set(zmq.RCVHWM, 2 * NUM_CREDITS)
    socket.set(zmq.HANDSHAKE_IVL, 3_000)
    socket.set(zmq.HEARTBEAT_IVL, 1_000)
    socket.set(zmq.HEARTBEAT_TIMEOUT, 3_000)
    socket.set(zmq.HEARTBEAT_TTL, 3_000)
    socket.set(zmq.BACKLOG, 512)
    socket.set(zmq.IPV6, 1)


def dial(
    context: "zmq.Context[zmq.Socket[bytes]]",
    identity: bytes,
    address: str,
    keys: CurveKeys | None,
    server_key: str | None,
) -> "zmq.Socket[bytes]":
    """A socket towards an owner. ValueError for no address, or while the context is closed.

    Nobody can guess the routing identity that it takes, so nobody can take its place.
    """
    if (keys is None) != (server_key is None):
        raise ValueError(f"{address}: one side wants encrypted pages and the other has no key")
    socket: zmq.Socket[bytes] | None = None
    try:
        socket = context.socket(zmq.DEALER)
        configure(socket)
        socket.set(zmq.IDENTITY, identity[:238] + NONCE_MARK + secrets.token_hex(8).encode())
        socket.set(zmq.IMMEDIATE, 1)  # queue nothing for a peer that is not there
        socket.set(zmq.RECONNECT_IVL, 50)
        socket.set(zmq.RECONNECT_IVL_MAX, 1_000)
        if keys is not None and server_key is not None:
            socket.set(zmq.CURVE_SERVERKEY, server_key.encode())
            socket.set(zmq.CURVE_PUBLICKEY, keys.public)
            socket.set(zmq.CURVE_SECRETKEY, keys.secret)
        socket.connect(address)
    except zmq.ZMQError as error:
        if socket is not None:
            socket.close(linger=0)
        raise ValueError(f"cannot dial {address!r} for pages: {error}") from None
    return socket


def listen(
    context: "zmq.Context[zmq.Socket[bytes]]", host: str, keys: CurveKeys | None
) -> tuple["zmq.Socket[bytes]", str]:
    """An owner's socket and its address. With keys only whom the door lets in: it must be there."""
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    configure(socket)
    socket.set(zmq.ROUTER_MANDATORY, 1)
    socket.set(zmq.ROUTER_HANDOVER, 1)  # a reconnecting writer takes its own place
    if keys is not None:
        socket.set(zmq.ZAP_DOMAIN, DOMAIN)
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without a door nobody gets in
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.CURVE_SECRETKEY, keys.secret)
    try:
        port = socket.bind_to_random_port(f"tcp://{host}")
    except zmq.ZMQError as error:
        socket.close(linger=0)
        raise ValueError(f"cannot listen for pages on {host}: {error}") from None
    return socket, f"tcp://{host}:{port}"


def control_identity(routing_id: bytes) -> bytes:
    """The identity of the control link of whoever dialled under this one."""
    return routing_id.partition(NONCE_MARK)[0]
