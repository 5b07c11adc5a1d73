"""What every transport of pages offers to the bulk thread, and mapped memory, which three share.

Everything here runs on one thread: between two calls no copy is running, so a stopped write can be
answered at once. Pools are `[pages, page_bytes]` arrays of bytes.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import zmq

from kv_transfer.actions import (
    PagesRead,
    PagesWritten,
    ReadFailed,
    ReadPages,
    TransferKey,
    WriteFailed,
    WritePages,
)
from kv_transfer.backing import Backing
from kv_transfer.checksum import LARGE_PAGE_BYTES, ChunkHasher, PageArray
from kv_transfer.gather import gathered

SLICE_BYTES = 1 << 20  # copied between two looks at requests and sockets: about 0.2 ms
PROBE_S = 0.02  # what measuring a mapping may take
PROBE_SLICES = 8

PoolRequest = WritePages | ReadPages
Failed = WriteFailed | ReadFailed
PeerEvent = PagesWritten | PagesRead | Failed


class PeerPool(Protocol):
    """An owner's pool as this writer reaches it. Each request is answered by exactly one event."""

    @property
    def socket(self) -> "zmq.Socket[bytes] | None":
        """What to poll for readability before `advance`; None where nothing is waited for."""

    @property
    def patience_ms(self) -> int | None:
        """How long `advance` may wait, unless the socket gets readable; None while idle."""

    def submit(self, request: PoolRequest, now: float) -> None:
        """Queue a write or a read of pages that both pools have (`explain_request`)."""

    def stop(self, key: TransferKey, reason: str) -> list[Failed]:
        """Give up a transfer's requests: no page of it is touched after this returns."""

    def advance(self, now: float) -> list[PeerEvent]:
        """Do a slice of work."""

    def measure(self) -> float:
        """Bytes per second of a short trial; before the first request, on the opening thread.

        Raises ValueError where nothing comes through.
        """

    def close(self, reason: str) -> list[Failed]:
        """Give everything up and release the connection or mapping."""


def failed(request: PoolRequest, reason: str) -> Failed:
    """The event that answers a request which will not complete."""
    if isinstance(request, ReadPages):
        return ReadFailed(request.key, reason)
    return WriteFailed(request.key, request.first, reason)


def start_hash(request: WritePages) -> ChunkHasher:
    """The hasher that belongs to a write."""
    return ChunkHasher(request.key, request.grant_id, request.first, len(request.source_pages))


def copy_pages(
    target: PageArray,
    target_pages: Sequence[int],
    source: PageArray,
    source_pages: Sequence[int],
    hasher: ChunkHasher | None,
) -> None:
    """Copy page by page, or small ones together: `LARGE_PAGE_BYTES` says why."""
    if source.shape[1] < LARGE_PAGE_BYTES:
        staged = gathered(source, source_pages)
        if hasher is not None:
            hasher.update(staged)
        target[list(target_pages)] = staged.reshape(-1, source.shape[1])
        return
    for source_page, target_page in zip(source_pages, target_pages, strict=True):
        target[target_page] = source[source_page]
        if hasher is not None:
            hasher.update(source[source_page])


def pages_of(request: PoolRequest) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Pages of this node and of the owner."""
    if isinstance(request, ReadPages):
        return request.own_pages, request.owner_pages
    return request.source_pages, request.target_pages


def explain_request(request: PoolRequest, num_own: int, num_theirs: int) -> str | None:
    """Why pools of these sizes cannot serve it (numpy counts negative indices from the end)."""
    own, theirs = pages_of(request)
    if len(own) != len(theirs) or not own:
        return f"{len(own)} pages here for {len(theirs)} there"
    later = request.later_pages if isinstance(request, WritePages) else ()
    for pages, limit in ((own, num_own), (theirs + later, num_theirs)):
        for page in (min(pages), max(pages)):
            if not 0 <= page < limit:
                return f"page {page} of a pool of {limit}"
    return None


@dataclass(slots=True)
class _Copy:
    request: PoolRequest
    began_at: float
    hasher: ChunkHasher | None
    num_done: int = 0


class MappedPool:
    """A pool in this process's address space: its own, another's in `inproc`, a shared mapping.

    `scratch` is the owner's page that holds nothing: what is measured goes there. `unmap` is called
    at the end, when no array refers to the mapping any more.
    """

    socket: "zmq.Socket[bytes] | None" = None

    def __init__(
        self,
        own: PageArray,
        theirs: PageArray,
        *,
        scratch: PageArray | None = None,
        unmap: Callable[[], None] | None = None,
    ) -> None:
        if own.shape[1] != theirs.shape[1]:
            raise ValueError(f"pages of {own.shape[1]} and of {theirs.shape[1]} bytes")
        self._own = own
        self._theirs: PageArray | None = theirs
        self._backing = Backing(theirs)
        self._scratch = scratch
        self._unmap = unmap
        self._copies: deque[_Copy] = deque()

    @property
    def patience_ms(self) -> int | None:
        """Memory never makes us wait."""
        return 0 if self._copies or not self._backing.is_idle else None

    def submit(self, request: PoolRequest, now: float) -> None:
        """Queue a copy."""
        hasher = start_hash(request) if isinstance(request, WritePages) else None
        if isinstance(request, WritePages):
            self._backing.want(request.later_pages)
        self._copies.append(_Copy(request, now, hasher))

    def stop(self, key: TransferKey, reason: str) -> list[Failed]:
        """Forget the transfer's copies."""
        stopped = [copy for copy in self._copies if copy.request.key == key]
        self._copies = deque(copy for copy in self._copies if copy.request.key != key)
        return [failed(copy.request, reason) for copy in stopped]

    def advance(self, now: float) -> list[PeerEvent]:
        """Copy up to a slice of the oldest request, hashing writes; else prepare for later ones."""
        theirs = self._theirs
        if theirs is None:
            return []
        if not self._copies:
            self._backing.advance()
            return []
        copy = self._copies[0]
        end = copy.num_done + max(1, SLICE_BYTES // self._own.shape[1])
        ours, others = (pages[copy.num_done : end] for pages in pages_of(copy.request))
        if isinstance(copy.request, ReadPages):
            copy_pages(self._own, ours, theirs, others, None)
        else:
            self._backing.ask(others)
            copy_pages(theirs, others, self._own, ours, copy.hasher)
        copy.num_done += len(ours)
        if copy.num_done < len(pages_of(copy.request)[0]):
            return []
        self._copies.popleft()
        if copy.hasher is None:
            return [PagesRead(copy.request.key, time.monotonic() - copy.began_at)]
        return [PagesWritten(copy.request.key, copy.hasher.chunk_sum())]

    def measure(self) -> float:
        """Copies zeros with their checksums; the best slice, as others use the processor too.

        An upper bound: the scratch page stays in the cache, where a pool's pages do not.
        """
        if self._scratch is None:
            raise ValueError("a pool without a scratch page cannot be measured")
        num_pages = max(1, SLICE_BYTES // self._own.shape[1])
        zeros = np.empty((num_pages, self._own.shape[1]), np.uint8)
        zeros.fill(0)  # pages of memory of its own, where np.zeros shares one that the cache holds
        hasher = ChunkHasher((bytes(16), 1), 0, 0, num_pages)
        began_at, best_s = time.perf_counter(), float("inf")
        for _ in range(PROBE_SLICES):
            slice_at = time.perf_counter()
            copy_pages(self._scratch, [0] * num_pages, zeros, range(num_pages), hasher)
            best_s = min(best_s, time.perf_counter() - slice_at)
            if time.perf_counter() - began_at > PROBE_S:
                break
        return zeros.nbytes / max(best_s, 1e-9)

    def close(self, reason: str) -> list[Failed]:
        """Forget all copies, then the mapping."""
        unfinished = [failed(copy.request, reason) for copy in self._copies]
        self._copies.clear()
        self._backing.forget()
        self._theirs = self._scratch = None  # a mapping cannot be closed under a numpy view of it
        if self._unmap is not None:
            self._unmap()
            self._unmap = None
        return unfinished
