"""What every transport of pages offers to the bulk thread, and mapped memory, which three share.

Everything here runs on one thread: between two calls no copy is running, so a stopped write can be
answered at once. Pools are `[pages, page_bytes]` arrays of bytes.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import zmq

from kv_transfer.actions import PagesWritten, TransferKey, WriteFailed, WritePages
from kv_transfer.checksum import ChunkHasher, PageArray

SLICE_BYTES = 1 << 20  # copied between two looks at requests and sockets: about 0.2 ms

WriteEvent = PagesWritten | WriteFailed


class PeerPool(Protocol):
    """An owner's pool as this writer reaches it. Each write is answered by exactly one event."""

    @property
    def socket(self) -> "zmq.Socket[bytes] | None":
        """What to poll for readability before `advance`; None where nothing is waited for."""

    @property
    def patience_ms(self) -> int | None:
        """How long `advance` may wait, unless the socket gets readable; None while idle."""

    def write(self, request: WritePages, now: float) -> None:
        """Queue a write; its pages are within the grant, which the owner checks."""

    def stop(self, key: TransferKey, reason: str) -> list[WriteFailed]:
        """Give up a transfer's writes: no page of it is touched after this returns."""

    def advance(self, now: float) -> list[WriteEvent]:
        """Do a slice of work."""

    def close(self, reason: str) -> list[WriteFailed]:
        """Give everything up and release the connection or mapping."""


@dataclass(slots=True)
class _Copy:
    request: WritePages
    hasher: ChunkHasher
    num_done: int = 0


def start_hash(request: WritePages) -> ChunkHasher:
    """The hasher that belongs to a write."""
    return ChunkHasher(request.key, request.grant_id, request.first, len(request.source_pages))


class MappedPool:
    """A pool in this process's address space: its own, another's in `inproc`, a shared mapping.

    `unmap` is called at the end, when no array refers to the mapping any more.
    """

    socket: "zmq.Socket[bytes] | None" = None

    def __init__(
        self, source: PageArray, target: PageArray, *, unmap: Callable[[], None] | None = None
    ) -> None:
        if source.shape[1] != target.shape[1]:
            raise ValueError(f"pages of {source.shape[1]} and of {target.shape[1]} bytes")
        self._source = source
        self._target: PageArray | None = target
        self._unmap = unmap
        self._copies: deque[_Copy] = deque()

    @property
    def patience_ms(self) -> int | None:
        """Memory never makes us wait."""
        return 0 if self._copies else None

    def write(self, request: WritePages, now: float) -> None:
        """Queue a copy."""
        self._copies.append(_Copy(request, start_hash(request)))

    def stop(self, key: TransferKey, reason: str) -> list[WriteFailed]:
        """Forget the transfer's copies."""
        stopped = [copy for copy in self._copies if copy.request.key == key]
        self._copies = deque(copy for copy in self._copies if copy.request.key != key)
        return [WriteFailed(key, copy.request.first, reason) for copy in stopped]

    def advance(self, now: float) -> list[WriteEvent]:
        """Copy and hash up to a slice of the oldest write."""
        target = self._target
        if not self._copies or target is None:
            return []
        copy = self._copies[0]
        request = copy.request
        if max(request.target_pages) >= len(target):
            self._copies.popleft()
            reason = f"page {max(request.target_pages)} of a pool of {len(target)}"
            return [WriteFailed(request.key, request.first, reason)]
        end = copy.num_done + max(1, SLICE_BYTES // self._source.shape[1])
        sources = request.source_pages[copy.num_done : end]
        targets = request.target_pages[copy.num_done : end]
        for source_page, target_page in zip(sources, targets, strict=True):
            target[target_page] = self._source[source_page]
            copy.hasher.update(self._source[source_page])
        copy.num_done += len(sources)
        if copy.num_done < len(request.source_pages):
            return []
        self._copies.popleft()
        return [PagesWritten(request.key, copy.hasher.chunk_sum())]

    def close(self, reason: str) -> list[WriteFailed]:
        """Forget all copies, then the mapping."""
        failed = [WriteFailed(c.request.key, c.request.first, reason) for c in self._copies]
        self._copies.clear()
        self._target = None  # a mapping cannot be closed under a numpy view of it
        if self._unmap is not None:
            self._unmap()
            self._unmap = None
        return failed
