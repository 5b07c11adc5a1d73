"""Reading an owner's pages over ZeroMQ: what to ask for next, and where answers belong. No socket.

A part is copied into this node's pages only where its checksum says that it is what was asked for.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import zmq

from kv_transfer.actions import PagesRead, ReadFailed, ReadPages, TransferKey
from kv_transfer.checksum import PageArray, read_sum
from kv_transfer.zmq_frames import CHUNK_BYTES, MAX_READ_PAGES, PageRead, ReadAnswer


@dataclass(slots=True)
class _Read:
    request: ReadPages
    began_at: float
    num_asked: int = 0  # bytes, of the pages laid end to end
    tickets: set[int] = field(default_factory=set)


class Reads:
    """The reads of one owner's pool into `own` pages."""

    def __init__(self, own: PageArray) -> None:
        self._own = own
        self._page_bytes = int(own.shape[1])
        self._reads: list[_Read] = []
        self._asked: dict[int, tuple[_Read, PageRead, int]] = {}  # with the position of its first
        self._next_ticket = 0

    @property
    def num_asked(self) -> int:
        """Parts on their way."""
        return len(self._asked)

    @property
    def is_idle(self) -> bool:
        """Whether no read is unanswered."""
        return not self._reads

    def add(self, request: ReadPages, now: float) -> None:
        """Begin a read."""
        self._reads.append(_Read(request, now))

    def next_request(self) -> PageRead | None:
        """What to ask for next; None where everything was asked for. Call `asked` once it is."""
        read = self._unasked()
        if read is None:
            return None
        position, offset = divmod(read.num_asked, self._page_bytes)
        num_pages = min(max(1, CHUNK_BYTES // self._page_bytes), MAX_READ_PAGES)
        pages = read.request.owner_pages[position : position + num_pages]
        return PageRead(self._next_ticket, read.request.grant_id, pages, offset)

    def asked(self, request: PageRead) -> None:
        """The request is on its way."""
        read = self._unasked()
        assert read is not None, "nothing was to be asked"
        position = read.num_asked // self._page_bytes
        self._next_ticket += 1
        self._asked[request.ticket] = (read, request, position)
        read.tickets.add(request.ticket)
        read.num_asked += self._num_bytes(request)

    def take(self, answer: ReadAnswer, payload: zmq.Frame | None) -> PagesRead | ReadFailed | None:
        """A part came, or not; the event that ends its read, if this does."""
        if answer.ticket not in self._asked:
            return None  # of a read that was stopped
        read, request, position = self._asked.pop(answer.ticket)
        read.tickets.discard(answer.ticket)
        problem = self._store(read, request, position, answer, payload)
        if problem is not None:
            return self._drop(read, problem)
        if read.tickets or read.num_asked < len(read.request.own_pages) * self._page_bytes:
            return None
        self._reads.remove(read)
        return PagesRead(read.request.key, time.monotonic() - read.began_at)

    def stop(self, key: TransferKey | None, reason: str) -> list[ReadFailed]:
        """Give up a transfer's reads, or all: what still arrives of them is dropped."""
        stopped = [read for read in self._reads if key is None or read.request.key == key]
        return [self._drop(read, reason) for read in stopped]

    def _unasked(self) -> _Read | None:
        for read in self._reads:
            if read.num_asked < len(read.request.own_pages) * self._page_bytes:
                return read
        return None

    def _num_bytes(self, request: PageRead) -> int:
        if self._page_bytes > CHUNK_BYTES:
            return min(CHUNK_BYTES, self._page_bytes - request.offset)
        return len(request.pages) * self._page_bytes

    def _store(
        self,
        read: _Read,
        request: PageRead,
        position: int,
        answer: ReadAnswer,
        payload: zmq.Frame | None,
    ) -> str | None:
        if answer.error is not None or payload is None:
            return f"the page owner refused: {(answer.error or 'no bytes')[:500]}"
        part = np.frombuffer(payload.buffer, dtype=np.uint8)
        num_bytes = self._num_bytes(request)
        if len(part) != num_bytes:
            return f"{len(part)} bytes came where {num_bytes} were asked for"
        if read_sum(request.grant_id, request.pages, request.offset, part) != answer.checksum:
            return f"checksum of {len(request.pages)} pages read from the owner differs"
        own = read.request.own_pages[position : position + len(request.pages)]
        if num_bytes < self._page_bytes:
            self._own[own[0], request.offset : request.offset + num_bytes] = part
        else:
            self._own[list(own)] = part.reshape(-1, self._page_bytes)
        return None

    def _drop(self, read: _Read, reason: str) -> ReadFailed:
        self._reads.remove(read)
        for ticket in read.tickets:
            del self._asked[ticket]
        return ReadFailed(read.request.key, reason)
