"""The owner's end of pages over ZeroMQ: one socket for all writers, who reach what grants say.

Only this writes into the pool, after checking each chunk against the open grant of the very peer
that sent it: closing a grant here is proof that it receives nothing more. What is read was copied
before it is sent, so no pool page is ever referenced by a socket's queue.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import zmq

from kv_transfer.actions import OpenGrant
from kv_transfer.checksum import PageArray, read_sum
from kv_transfer.door import Door
from kv_transfer.gather import gathered
from kv_transfer.zmq_frames import (
    CHUNK_BYTES,
    ChunkAnswer,
    CurveKeys,
    PageChunk,
    PageRead,
    Probe,
    ProbeAnswer,
    ReadAnswer,
    ToWriter,
    control_identity,
    decode_to_owner,
    encode,
    listen,
    receive_frames,
    send_frames,
)

MAX_RECEIVES = 4  # chunks taken between two looks at requests: 2 MiB


@dataclass(slots=True)
class _Reception:
    grant: OpenGrant
    readable: frozenset[int]
    num_received: int = 0  # bytes
    starts: set[int] = field(default_factory=set)


class ZmqReceiver:
    """Takes chunks, answers reads and probes. With keys, `door` says whose key a peer has."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        pages: PageArray,
        host: str,
        keys: CurveKeys | None = None,
    ) -> None:
        self._pages = pages
        self._page_bytes = int(pages.shape[1])
        self._open: dict[int, _Reception] = {}
        self.num_malformed = 0
        self.num_refused = 0
        self.door = None if keys is None else Door(context)
        try:
            self.socket, self.address = listen(context, host, keys)
        except ValueError:
            if self.door is not None:
                self.door.close()
            raise

    def open_grant(self, grant: OpenGrant) -> None:
        """Take chunks of its writer into its pages."""
        self._open[grant.grant_id] = _Reception(grant, frozenset(grant.readable_pages))

    def close_grant(self, grant_id: int) -> str | None:
        """Take nothing more for the grant; returns what was missing, None where all had come."""
        reception = self._open.pop(grant_id, None)
        if reception is None:
            return "the grant was not open"
        num_bytes = len(reception.grant.pages) * self._page_bytes
        if reception.num_received == num_bytes:
            return None
        return f"{reception.num_received} of {num_bytes} bytes were received"

    def receive(self) -> list[tuple[bytes, list[zmq.Frame]]]:
        """Frames that have arrived, not yet looked into."""
        arrived: list[tuple[bytes, list[zmq.Frame]]] = []
        while len(arrived) < MAX_RECEIVES:
            try:
                identity, *frames = receive_frames(self.socket)
            except zmq.Again:
                break
            arrived.append((identity.bytes, frames))
        return arrived

    def take(self, arrived: Sequence[tuple[bytes, list[zmq.Frame]]]) -> None:
        """Check messages, do what they ask, answer; chunks that were taken with one answer."""
        taken: dict[tuple[bytes, int], list[int]] = {}  # starts, by peer and grant
        for routing_id, frames in arrived:
            try:
                header, payload = decode_to_owner(frames)
            except (ValueError, msgspec.MsgspecError):
                self.num_malformed += 1
                continue
            writer = self._authenticated(routing_id, frames[1])
            if isinstance(header, PageRead):
                self._read(routing_id, writer, header)
            elif isinstance(header, Probe):
                self._send(routing_id, ProbeAnswer(header.number))
            elif payload is not None:
                error = self._store(writer, header, np.frombuffer(payload.buffer, dtype=np.uint8))
                if error is None:
                    taken.setdefault((routing_id, header.grant_id), []).append(header.start)
                else:
                    self.num_refused += 1
                    self._send(routing_id, ChunkAnswer(header.grant_id, (header.start,), error))
        for (routing_id, grant_id), starts in taken.items():
            self._send(routing_id, ChunkAnswer(grant_id, tuple(starts), None))

    def _authenticated(self, routing_id: bytes, frame: zmq.Frame) -> bytes | None:
        """The control identity of the sender; None where its key belongs to another."""
        writer = control_identity(routing_id)
        if self.door is None:
            return writer
        try:
            key = str(frame.get("User-Id"))
        except zmq.ZMQError:
            return None
        return writer if self.door.writer_of(key) == writer else None

    def _send(self, routing_id: bytes, header: ToWriter, payload: PageArray | None = None) -> None:
        parts = [] if payload is None else [zmq.Frame(payload.data, copy=False)]
        try:
            send_frames(self.socket, [routing_id, *encode(header), *parts])
        except zmq.ZMQError:
            self.num_refused += 1  # the writer is gone, or does not read: it will see a stall

    def _store(
        self,
        writer: bytes | None,
        chunk: PageChunk,
        payload: "np.ndarray[tuple[int], np.dtype[np.uint8]]",
    ) -> str | None:
        reception = self._open.get(chunk.grant_id)
        if reception is None or reception.grant.writer != writer:
            return f"grant {chunk.grant_id} is not open for this writer"
        pages = reception.grant.pages
        position, offset = divmod(chunk.start, self._page_bytes)
        num_bytes = len(payload)
        is_run = offset == 0 and num_bytes % self._page_bytes == 0
        is_part = offset + num_bytes <= self._page_bytes
        end = chunk.start + num_bytes
        if not (is_run or is_part) or num_bytes == 0 or end > len(pages) * self._page_bytes:
            return f"bytes {chunk.start} to {end} are no pages of the grant"
        if is_run:
            indices = pages[position : position + num_bytes // self._page_bytes]
            self._pages[list(indices)] = payload.reshape(-1, self._page_bytes)
        else:
            self._pages[pages[position], offset : offset + num_bytes] = payload
        if chunk.start not in reception.starts:
            reception.starts.add(chunk.start)
            reception.num_received += num_bytes
        return None

    def _read(self, routing_id: bytes, writer: bytes | None, request: PageRead) -> None:
        error = self._explain_read(writer, request)
        if error is not None:
            self.num_refused += 1
            self._send(routing_id, ReadAnswer(request.ticket, None, error))
            return
        if self._page_bytes > CHUNK_BYTES:
            end = request.offset + CHUNK_BYTES
            part = self._pages[request.pages[0], request.offset : end].copy()
        else:
            part = gathered(self._pages, request.pages)
        checksum = read_sum(request.grant_id, request.pages, request.offset, part)
        self._send(routing_id, ReadAnswer(request.ticket, checksum, None), part)

    def _explain_read(self, writer: bytes | None, request: PageRead) -> str | None:
        reception = self._open.get(request.grant_id)
        if reception is None or reception.grant.writer != writer:
            return f"grant {request.grant_id} is not open for this writer"
        foreign = [page for page in request.pages if page not in reception.readable]
        if foreign:
            return f"page {foreign[0]} is not readable under grant {request.grant_id}"
        num_bytes = len(request.pages) * self._page_bytes
        is_part = self._page_bytes > CHUNK_BYTES and len(request.pages) == 1
        is_run = num_bytes <= CHUNK_BYTES and request.offset == 0
        if not (is_run or (is_part and request.offset < self._page_bytes)):
            return f"{len(request.pages)} pages from byte {request.offset} are no chunk"
        return None

    def close(self) -> None:
        """Close the sockets."""
        self.socket.close(linger=0)
        if self.door is not None:
            self.door.close()
