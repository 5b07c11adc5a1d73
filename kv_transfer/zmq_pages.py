"""Pages over ZeroMQ, for any two hosts: sockets of their own, chunks, a window of credit.

Only the owner's receiver writes into its pool, after checking each chunk against the open grant of
the very peer that sent it: closing a grant there is proof that it receives nothing more. Chunks are
staged copies, so no pool page is ever referenced by a socket's queue. An acknowledgement means
"in the pool"; a write is answered when all its chunks are. Malformed frames are counted, dropped.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
import numpy as np
import zmq

from kv_transfer.actions import PagesWritten, TransferKey, WriteFailed, WritePages
from kv_transfer.checksum import ChunkHasher, PageArray
from kv_transfer.transport import WriteEvent, start_hash
from tandem.codec import MAGIC
from tandem.messages.common import Counter

CHUNK_BYTES = 512 * 1024
MAX_CHUNK_BYTES = 1 << 20
NUM_CREDITS = 16  # chunks on their way: 8 MiB fill a 10 Gbit/s link with 6 ms of delay
STALL_S = 10.0  # without any acknowledgement, a peer's writes fail
ANSWER_MS = 1_000  # how often a peer that owes answers is checked for a stall
BLOCKED_MS = 5  # between two attempts to send to a peer that is not connected
MAX_RECEIVES = 32  # chunks taken between two looks at requests

Header = TypeVar("Header")


class PageChunk(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Header of a chunk: its bytes belong at `start` of the grant's pages laid end to end."""

    grant_id: Counter
    start: Counter


class ChunkAnswer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The chunk is in the pool, or why not."""

    grant_id: Counter
    start: Counter
    error: str | None


def configure(socket: "zmq.Socket[bytes]") -> None:
    """Options that bound what a peer can make us hold, and how long we wait for a dead one."""
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.MAXMSGSIZE, MAX_CHUNK_BYTES + 4096)
    socket.set(zmq.SNDHWM, 4 * NUM_CREDITS)
    socket.set(zmq.RCVHWM, 4 * NUM_CREDITS)
    socket.set(zmq.HANDSHAKE_IVL, 3_000)
    socket.set(zmq.HEARTBEAT_IVL, 1_000)
    socket.set(zmq.HEARTBEAT_TIMEOUT, 3_000)
    socket.set(zmq.IPV6, 1)


@dataclass(slots=True)
class _Write:
    request: WritePages
    hasher: ChunkHasher
    num_sent: int = 0  # bytes
    unacked: set[int] = field(default_factory=set)


class ZmqPool:
    """Writer's side: one DEALER per owner, under the identity of the control link."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        source: PageArray,
        *,
        identity: bytes,
        address: str,
    ) -> None:
        self._source = source
        self._page_bytes = int(source.shape[1])
        self._writes: OrderedDict[tuple[int, int], _Write] = OrderedDict()  # (grant, first)
        self._owner_of: dict[tuple[int, int], tuple[int, int]] = {}  # (grant, start) -> write
        self._progress_at = 0.0
        self._is_blocked = False
        self.num_malformed = 0
        self._socket: zmq.Socket[bytes] = _dial(context, identity, address)

    @property
    def socket(self) -> "zmq.Socket[bytes] | None":
        """Readable when acknowledgements came."""
        return self._socket

    @property
    def patience_ms(self) -> int | None:
        """Zero with bytes and credits, short while unconnected, else until answers come."""
        if not self._writes:
            return None
        if not self._has_credit() or self._unsent() is None:
            return ANSWER_MS
        return BLOCKED_MS if self._is_blocked else 0

    def write(self, request: WritePages, now: float) -> None:
        """Queue a write."""
        if not self._writes:
            self._progress_at = now
        write = _Write(request, start_hash(request))
        self._writes[(request.grant_id, request.first)] = write

    def stop(self, key: TransferKey, reason: str) -> list[WriteFailed]:
        """Send no further chunk; those under way are copies, which the owner's receiver judges."""
        stopped = [write for write in self._writes.values() if write.request.key == key]
        return [self._drop(write, reason) for write in stopped]

    def advance(self, now: float) -> list[WriteEvent]:
        """Take acknowledgements, send while there is credit, give up a silent peer."""
        events = self._take_answers(now)
        self._is_blocked = False
        while self._has_credit() and (write := self._unsent()) is not None:
            if not self._send_chunk(write):
                self._is_blocked = True  # not connected, or its queue is full
                break
        if self._writes and now - self._progress_at > STALL_S:
            reason = f"no acknowledgement from the page owner for {STALL_S:g} s"
            events += [self._drop(write, reason) for write in list(self._writes.values())]
        return events

    def close(self, reason: str) -> list[WriteFailed]:
        """Close the socket; what was queued is dropped."""
        self._socket.close(linger=0)
        return [self._drop(write, reason) for write in list(self._writes.values())]

    def _has_credit(self) -> bool:
        return len(self._owner_of) < NUM_CREDITS

    def _unsent(self) -> _Write | None:
        for write in self._writes.values():
            if write.num_sent < len(write.request.source_pages) * self._page_bytes:
                return write
        return None

    def _send_chunk(self, write: _Write) -> bool:
        request = write.request
        position, offset = divmod(write.num_sent, self._page_bytes)
        if self._page_bytes > CHUNK_BYTES:
            page = request.source_pages[position]
            chunk = self._source[page, offset : offset + CHUNK_BYTES].copy()
        else:
            end = position + CHUNK_BYTES // self._page_bytes
            chunk = self._source[list(request.source_pages[position:end])].reshape(-1)
        start = request.first * self._page_bytes + write.num_sent
        header = msgspec.msgpack.encode(PageChunk(request.grant_id, start))
        try:
            self._socket.send_multipart([MAGIC, header, chunk.data], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        write.hasher.update(chunk)
        write.num_sent += len(chunk)
        write.unacked.add(start)
        self._owner_of[(request.grant_id, start)] = (request.grant_id, request.first)
        return True

    def _take_answers(self, now: float) -> list[WriteEvent]:
        events: list[WriteEvent] = []
        for _ in range(4 * NUM_CREDITS):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            event = self._take_answer(frames, now)
            if event is not None:
                events.append(event)
        return events

    def _take_answer(self, frames: list[bytes], now: float) -> WriteEvent | None:
        try:
            answer = _decode(frames, ChunkAnswer)
        except ValueError:
            self.num_malformed += 1
            return None
        owner = self._owner_of.pop((answer.grant_id, answer.start), None)
        write = None if owner is None else self._writes.get(owner)
        if owner is None or write is None:
            return None  # of a write that was stopped
        self._progress_at = now
        write.unacked.discard(answer.start)
        if answer.error is not None:
            return self._drop(write, f"the page owner refused: {answer.error[:500]}")
        num_bytes = len(write.request.source_pages) * self._page_bytes
        if write.unacked or write.num_sent < num_bytes:
            return None
        del self._writes[owner]
        return PagesWritten(write.request.key, write.hasher.chunk_sum())

    def _drop(self, write: _Write, reason: str) -> WriteFailed:
        request = write.request
        del self._writes[(request.grant_id, request.first)]
        for start in write.unacked:
            del self._owner_of[(request.grant_id, start)]
        return WriteFailed(request.key, request.first, reason)


def _dial(
    context: "zmq.Context[zmq.Socket[bytes]]", identity: bytes, address: str
) -> "zmq.Socket[bytes]":
    """A socket towards an owner. ValueError for no address, or while the context is closed."""
    socket: zmq.Socket[bytes] | None = None
    try:
        socket = context.socket(zmq.DEALER)
        configure(socket)
        socket.set(zmq.IDENTITY, identity)
        socket.set(zmq.IMMEDIATE, 1)  # queue nothing for a peer that is not there
        socket.set(zmq.RECONNECT_IVL, 50)
        socket.set(zmq.RECONNECT_IVL_MAX, 1_000)
        socket.connect(address)
    except zmq.ZMQError as error:
        if socket is not None:
            socket.close(linger=0)
        raise ValueError(f"cannot dial {address!r} for pages: {error}") from None
    return socket


@dataclass(slots=True)
class _Reception:
    writer: bytes
    pages: tuple[int, ...]
    num_received: int = 0  # bytes
    starts: set[int] = field(default_factory=set)


class ZmqReceiver:
    """Owner's side: one ROUTER for all writers."""

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", pages: PageArray, host: str
    ) -> None:
        self._pages = pages
        self._page_bytes = int(pages.shape[1])
        self._open: dict[int, _Reception] = {}
        self.num_malformed = 0
        self.num_refused = 0
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        configure(self.socket)
        self.socket.set(zmq.ROUTER_MANDATORY, 1)
        self.socket.set(zmq.ROUTER_HANDOVER, 1)  # a reconnecting writer takes its own place
        try:
            port = self.socket.bind_to_random_port(f"tcp://{host}")
        except zmq.ZMQError as error:
            self.socket.close(linger=0)
            raise ValueError(f"cannot listen for pages on {host}: {error}") from None
        self.address = f"tcp://{host}:{port}"

    def open_grant(self, grant_id: int, writer: bytes, pages: tuple[int, ...]) -> None:
        """Take chunks of this writer into these pages."""
        self._open[grant_id] = _Reception(writer, pages)

    def close_grant(self, grant_id: int) -> str | None:
        """Take nothing more for the grant; returns what was missing, None where all had come."""
        reception = self._open.pop(grant_id, None)
        if reception is None:
            return "the grant was not open"
        num_bytes = len(reception.pages) * self._page_bytes
        if reception.num_received == num_bytes:
            return None
        return f"{reception.num_received} of {num_bytes} bytes were received"

    def receive(self) -> list[tuple[bytes, list[zmq.Frame]]]:
        """Frames that have arrived, not yet looked into."""
        arrived: list[tuple[bytes, list[zmq.Frame]]] = []
        while len(arrived) < MAX_RECEIVES:
            try:
                identity, *frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            arrived.append((identity.bytes, frames))
        return arrived

    def take(self, identity: bytes, frames: list[zmq.Frame]) -> None:
        """Check one chunk, write it into the pool, answer."""
        try:
            if len(frames) != 3 or len(frames[1]) > 64:
                raise ValueError("not a chunk")
            chunk = _decode([frames[0].bytes, frames[1].bytes], PageChunk)
        except ValueError:
            self.num_malformed += 1
            return
        error = self._store(identity, chunk, np.frombuffer(frames[2].buffer, dtype=np.uint8))
        self.num_refused += error is not None
        answer = msgspec.msgpack.encode(ChunkAnswer(chunk.grant_id, chunk.start, error))
        try:
            self.socket.send_multipart([identity, MAGIC, answer], zmq.NOBLOCK)
        except zmq.ZMQError:
            self.num_refused += 1  # the writer is gone, or does not read: its write will stall

    def _store(
        self,
        identity: bytes,
        chunk: PageChunk,
        payload: "np.ndarray[tuple[int], np.dtype[np.uint8]]",
    ) -> str | None:
        reception = self._open.get(chunk.grant_id)
        if reception is None or reception.writer != identity:
            return f"grant {chunk.grant_id} is not open for this writer"
        position, offset = divmod(chunk.start, self._page_bytes)
        num_bytes = len(payload)
        is_run = offset == 0 and num_bytes % self._page_bytes == 0
        is_part = offset + num_bytes <= self._page_bytes
        end = chunk.start + num_bytes
        if not (is_run or is_part) or num_bytes == 0 or end > self._bytes_of(reception):
            return f"bytes {chunk.start} to {end} are no pages of the grant"
        if is_run:
            indices = reception.pages[position : position + num_bytes // self._page_bytes]
            self._pages[list(indices)] = payload.reshape(-1, self._page_bytes)
        else:
            self._pages[reception.pages[position], offset : offset + num_bytes] = payload
        if chunk.start not in reception.starts:
            reception.starts.add(chunk.start)
            reception.num_received += num_bytes
        return None

    def _bytes_of(self, reception: _Reception) -> int:
        return len(reception.pages) * self._page_bytes

    def close(self) -> None:
        """Close the socket."""
        self.socket.close(linger=0)


def _decode(frames: list[bytes], kind: type[Header]) -> Header:
    """A header behind the version frame. Raises ValueError for anything else."""
    if len(frames) != 2 or frames[0] != MAGIC:
        raise ValueError("not a frame of this version")
    return msgspec.msgpack.decode(frames[1], type=kind)
