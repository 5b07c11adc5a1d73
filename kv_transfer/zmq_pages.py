"""Pages over ZeroMQ, for any two hosts: sockets of their own, chunks, a window of credit.

The writer's end. Chunks are staged copies, so no pool page is ever referenced by a socket's queue;
a copy's memory is used again once its chunk was acknowledged, never after a write was stopped. An
acknowledgement means "in the pool"; a write is answered when all its chunks are. Malformed frames
are counted and dropped. `zmq_receiver.py` is the owner's end.
"""

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import zmq

from kv_transfer.actions import PagesWritten, ReadPages, TransferKey, WriteFailed, WritePages
from kv_transfer.checksum import ChunkHasher, PageArray
from kv_transfer.gather import gather_into
from kv_transfer.staging import Staged, Staging
from kv_transfer.transport import Failed, PeerEvent, PoolRequest, start_hash
from kv_transfer.zmq_frames import (
    CHUNK_BYTES,
    NUM_CREDITS,
    ChunkAnswer,
    CurveKeys,
    PageChunk,
    Probe,
    ProbeAnswer,
    ReadAnswer,
    decode_to_writer,
    dial,
    encode,
    receive_frames,
    send_frames,
)
from kv_transfer.zmq_reads import Reads

STALL_S = 10.0  # without any acknowledgement, a peer's requests fail
ANSWER_MS = 1_000  # how often a peer that owes answers is checked for a stall
BLOCKED_MS = 5  # between two attempts to send to a peer that is not connected
MAX_SENDS = 2  # chunks between two looks at requests and sockets: 1 MiB
MAX_ANSWERS = 4  # of which each may bring a chunk
PROBE_PATIENCE_S = 1.0
PROBE_S = 0.02
PROBE_CHUNKS = 4  # 2 MiB in each round
PROBE_ROUNDS = 4


@dataclass(slots=True)
class _Write:
    request: WritePages
    hasher: ChunkHasher
    num_sent: int = 0  # bytes
    unacked: dict[int, Staged] = field(default_factory=dict)  # by start


class ZmqPool:
    """Writer's side: one DEALER per owner, under the identity of the control link."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        source: PageArray,
        *,
        identity: bytes,
        address: str,
        keys: CurveKeys | None = None,
        server_key: str | None = None,
    ) -> None:
        self._source = source
        self._page_bytes = int(source.shape[1])
        self._writes: OrderedDict[tuple[int, int], _Write] = OrderedDict()  # (grant, first)
        self._owner_of: dict[tuple[int, int], tuple[int, int]] = {}  # (grant, start) -> write
        self._reads = Reads(source)
        self._chunk_pages = max(1, CHUNK_BYTES // self._page_bytes)
        self._staging = Staging(min(self._chunk_pages * self._page_bytes, CHUNK_BYTES))
        self._progress_at = 0.0
        self._is_blocked = False
        self._address = address
        self.num_malformed = 0
        self._socket: zmq.Socket[bytes] = dial(context, identity, address, keys, server_key)

    @property
    def socket(self) -> "zmq.Socket[bytes] | None":
        """Readable when acknowledgements came."""
        return self._socket

    @property
    def patience_ms(self) -> int | None:
        """Zero with bytes and credits, short while unconnected, else until answers come."""
        if not self._is_busy():
            return None
        if not self._has_credit() or not self._has_unsent():
            return ANSWER_MS
        return BLOCKED_MS if self._is_blocked else 0

    def submit(self, request: PoolRequest, now: float) -> None:
        """Queue a write or a read."""
        if not self._is_busy():
            self._progress_at = now
        if isinstance(request, ReadPages):
            self._reads.add(request, now)
            return
        write = _Write(request, start_hash(request))
        self._writes[(request.grant_id, request.first)] = write

    def stop(self, key: TransferKey, reason: str) -> list[Failed]:
        """Send no further chunk; those under way are copies, which the owner's receiver judges."""
        stopped = [write for write in self._writes.values() if write.request.key == key]
        return [*(self._drop(write, reason) for write in stopped), *self._reads.stop(key, reason)]

    def advance(self, now: float) -> list[PeerEvent]:
        """Take answers, send while there is credit, give up a silent peer."""
        events = self._take_answers(now)
        self._is_blocked = False
        for _ in range(MAX_SENDS):
            if not self._has_credit() or not self._send_next():
                break
        if self._is_busy() and now - self._progress_at > STALL_S:
            reason = f"no acknowledgement from the page owner for {STALL_S:g} s"
            events += self._drop_all(reason)
        return events

    def measure(self) -> float:
        """Sends zeros that the owner discards; the best of a few rounds."""
        zeros = np.empty(CHUNK_BYTES, np.uint8)
        zeros.fill(0)
        hasher = ChunkHasher((bytes(16), 1), 0, 0, 1)
        self._probe(np.empty(1, np.uint8))  # connecting is not what is measured
        began_at, best_s = time.perf_counter(), float("inf")
        for _ in range(PROBE_ROUNDS):
            round_at = time.perf_counter()
            chunks = [zeros.copy() for _ in range(PROBE_CHUNKS)]
            for chunk in chunks:
                hasher.update(chunk)
            self._probe(*chunks)
            best_s = min(best_s, time.perf_counter() - round_at)
            if time.perf_counter() - began_at > PROBE_S:
                break
        return PROBE_CHUNKS * CHUNK_BYTES / best_s

    def close(self, reason: str) -> list[Failed]:
        """Close the socket; what was queued is dropped."""
        self._socket.close(linger=0)
        return self._drop_all(reason)

    def _probe(self, *payloads: PageArray) -> None:
        """Send them all, wait for all answers. ValueError where that takes too long."""
        ends_at = time.monotonic() + PROBE_PATIENCE_S
        unanswered = set(range(len(payloads)))
        for number, payload in enumerate(payloads):
            self._await(zmq.POLLOUT, ends_at)
            self._socket.send_multipart([*encode(Probe(number)), payload.data], copy=False)
        while unanswered:
            self._await(zmq.POLLIN, ends_at)
            header, _ = decode_to_writer(self._socket.recv_multipart(copy=False))
            if isinstance(header, ProbeAnswer):
                unanswered.discard(header.number)

    def _await(self, event: int, ends_at: float) -> None:
        left_ms = int((ends_at - time.monotonic()) * 1000)
        if not self._socket.poll(max(0, left_ms), event):
            raise ValueError(
                f"no answer from {self._address} within {PROBE_PATIENCE_S:g} s: "
                "is the port open, and are the keys of both nodes of one folder?"
            )

    def _is_busy(self) -> bool:
        return bool(self._writes) or not self._reads.is_idle

    def _has_credit(self) -> bool:
        return len(self._owner_of) + self._reads.num_asked < NUM_CREDITS

    def _has_unsent(self) -> bool:
        return self._unsent() is not None or self._reads.next_request() is not None

    def _unsent(self) -> _Write | None:
        for write in self._writes.values():
            if write.num_sent < len(write.request.source_pages) * self._page_bytes:
                return write
        return None

    def _send_next(self) -> bool:
        """Ask for a part or send a chunk; False where there is none, or the socket takes none."""
        read = self._reads.next_request()
        if read is not None:
            is_sent = self._send(encode(read))
            if is_sent:
                self._reads.asked(read)
        else:
            write = self._unsent()
            if write is None:
                return False
            is_sent = self._send_chunk(write)
        self._is_blocked = not is_sent  # not connected, or its queue is full
        return is_sent

    def _send(self, frames: Sequence[bytes | zmq.Frame]) -> bool:
        try:
            send_frames(self._socket, frames)
        except zmq.Again:
            return False
        return True

    def _send_chunk(self, write: _Write) -> bool:
        request = write.request
        position, offset = divmod(write.num_sent, self._page_bytes)
        pages = request.source_pages[position : position + self._chunk_pages]
        num_bytes = min(len(pages) * self._page_bytes - offset, CHUNK_BYTES)
        staged = self._staging.take(num_bytes)
        if len(pages) == 1:
            staged.chunk[:] = self._source[pages[0], offset : offset + num_bytes]
        else:
            gather_into(staged.chunk, self._source, pages)
        start = request.first * self._page_bytes + write.num_sent
        if not self._send([*encode(PageChunk(request.grant_id, start)), staged.frame]):
            self._staging.give_back(staged)
            return False
        write.hasher.update(staged.chunk)
        write.num_sent += num_bytes
        write.unacked[start] = staged
        self._owner_of[(request.grant_id, start)] = (request.grant_id, request.first)
        return True

    def _take_answers(self, now: float) -> list[PeerEvent]:
        events: list[PeerEvent] = []
        for _ in range(MAX_ANSWERS):
            try:
                frames = receive_frames(self._socket)
            except zmq.Again:
                break
            events += self._take_answer(frames, now)
        return events

    def _take_answer(self, frames: list[zmq.Frame], now: float) -> list[PeerEvent]:
        try:
            answer, payload = decode_to_writer(frames)
        except (ValueError, msgspec.MsgspecError):
            self.num_malformed += 1
            return []
        events: list[PeerEvent | None] = []
        if isinstance(answer, ReadAnswer):
            self._progress_at = now
            events = [self._reads.take(answer, payload)]
        elif isinstance(answer, ChunkAnswer):
            grant_id, error = answer.grant_id, answer.error
            events = [self._take_ack(grant_id, start, error, now) for start in answer.starts]
        return [event for event in events if event is not None]  # none of a trial that was late

    def _take_ack(
        self, grant_id: int, start: int, error: str | None, now: float
    ) -> PeerEvent | None:
        owner = self._owner_of.pop((grant_id, start), None)
        write = None if owner is None else self._writes.get(owner)
        if owner is None or write is None:
            return None  # of a write that was stopped
        self._progress_at = now
        self._staging.give_back(write.unacked.pop(start))
        if error is not None:
            return self._drop(write, f"the page owner refused: {error[:500]}")
        num_bytes = len(write.request.source_pages) * self._page_bytes
        if write.unacked or write.num_sent < num_bytes:
            return None
        del self._writes[owner]
        return PagesWritten(write.request.key, write.hasher.chunk_sum())

    def _drop_all(self, reason: str) -> list[Failed]:
        writes = [self._drop(write, reason) for write in list(self._writes.values())]
        return [*writes, *self._reads.stop(None, reason)]

    def _drop(self, write: _Write, reason: str) -> WriteFailed:
        request = write.request
        del self._writes[(request.grant_id, request.first)]
        for start in write.unacked:
            del self._owner_of[(request.grant_id, start)]
        return WriteFailed(request.key, request.first, reason)
