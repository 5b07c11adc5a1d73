"""An owner's KV pool on a GPU, as a writer reaches it: copied slice by slice on a stream.

At most one slice is under way, so a stopped write is over as soon as the slice has ended, within
about a millisecond: after `stop` returns nothing touches the pages. A slice is begun only while the
owner's process holds its end of the door's connection; the memory of a dead owner may be gone, and
touching it would cost this process its device (`DeviceLost`, upon which the node ends).

What is written must be computed: source pages are offered once their step has been synchronised.
"""

import os
import time
from collections import deque
from dataclasses import dataclass
from socket import socket as Connection

import msgspec
import numpy as np
import zmq

from kv_transfer.actions import PagesRead, PagesWritten, ReadPages, TransferKey, WritePages
from kv_transfer.checksum import ChunkHasher
from kv_transfer.cuda_driver import CudaDriver, CudaStream, DeviceLost, Digests, coalesce
from kv_transfer.cuda_ipc import (
    MAGIC,
    MAX_OFFER_BYTES,
    MPS_ADVICE,
    CudaPages,
    PoolOffer,
    wait_idle,
)
from kv_transfer.handover import fetch, has_ended, say_released
from kv_transfer.transport import Failed, PeerEvent, PoolRequest, failed, pages_of, start_hash

LOOK_S = 0.0005  # how long one call waits for a slice
POLL_MS = 1  # between two looks at a slice that takes longer
PROBE_S = 0.02
PROBE_SLICES = 8
OWNER_ENDED = "the page owner's process has ended, or gave up its pool"


@dataclass(slots=True)
class _Copy:
    request: PoolRequest
    began_at: float
    hasher: ChunkHasher | None
    num_done: int = 0


@dataclass(frozen=True, slots=True)
class _Slice:
    copy: _Copy
    num_pages: int
    digests: Digests | None
    began_at: float


class CudaPeerPool:
    """The writer's side; see the module and `PeerPool`."""

    socket: "zmq.Socket[bytes] | None" = None

    def __init__(
        self,
        own: CudaPages,
        theirs: int,
        scratch_page: int,
        connection: Connection,
    ) -> None:
        """`theirs` is the owner's pool as it is mapped here; the connection says how it fares."""
        self._own = own
        self._driver: CudaDriver = own.driver
        self._theirs = theirs
        self._scratch_page = scratch_page
        self._connection = connection
        self._stream: CudaStream = own.driver.stream()
        self._copies: deque[_Copy] = deque()
        self._slice: _Slice | None = None

    @property
    def patience_ms(self) -> int | None:
        """A look every millisecond at a slice that is under way."""
        if self._slice is not None:
            return POLL_MS
        return 0 if self._copies else None

    def submit(self, request: PoolRequest, now: float) -> None:
        """Queue a copy."""
        hasher = start_hash(request) if isinstance(request, WritePages) else None
        self._copies.append(_Copy(request, now, hasher))

    def stop(self, key: TransferKey, reason: str) -> list[Failed]:
        """Forget the transfer's copies, once what is under way of them has ended."""
        if self._slice is not None and self._slice.copy.request.key == key:
            self._await_slice()
        stopped = [copy for copy in self._copies if copy.request.key == key]
        self._copies = deque(copy for copy in self._copies if copy.request.key != key)
        return [failed(copy.request, reason) for copy in stopped]

    def advance(self, now: float) -> list[PeerEvent]:
        """Begin a slice of the oldest request, or see whether the one under way has ended."""
        if self._slice is None:
            if not self._copies:
                return []
            if has_ended(self._connection):
                return [*self._drop_all(OWNER_ENDED)]
            self._slice = self._begin(self._copies[0])
        part = self._slice
        if not wait_idle(self._stream, since=part.began_at, patience_s=LOOK_S):
            return []
        self._slice = None
        return self._landed(part)

    def _begin(self, copy: _Copy) -> _Slice:
        end = copy.num_done + self._own.slice_pages
        ours, others = (pages[copy.num_done : end] for pages in pages_of(copy.request))
        page_bytes, digests = self._own.page_bytes, None
        began_at = time.perf_counter()
        if isinstance(copy.request, ReadPages):
            runs = coalesce(others, ours)
            self._stream.copy_runs(self._theirs, self._own.base, runs, page_bytes)
        else:
            runs = coalesce(ours, others)
            self._stream.copy_runs(self._own.base, self._theirs, runs, page_bytes)
            digests = self._own.digest(self._stream, ours)
        return _Slice(copy, len(ours), digests, began_at)

    def _landed(self, part: _Slice) -> list[PeerEvent]:
        copy = part.copy
        if copy.hasher is not None and part.digests is not None:
            copy.hasher.update(part.digests.view(np.uint8))
        copy.num_done += part.num_pages
        if copy.num_done < len(pages_of(copy.request)[0]):
            return []
        self._copies.popleft()
        if copy.hasher is None:
            return [PagesRead(copy.request.key, time.monotonic() - copy.began_at)]
        return [PagesWritten(copy.request.key, copy.hasher.chunk_sum())]

    def _await_slice(self) -> None:
        if self._slice is not None:
            wait_idle(self._stream, since=self._slice.began_at)
            self._slice = None

    def _drop_all(self, reason: str) -> list[Failed]:
        dropped = [failed(copy.request, reason) for copy in self._copies]
        self._copies.clear()
        return dropped

    def measure(self) -> float:
        """Writes the scratch page over the owner's, with digests; the best slice.

        An upper bound: one page stays in the cache, where a pool's pages do not.
        """
        num_pages = self._own.slice_pages
        runs = [(self._own.num_pages, self._scratch_page, 1)] * num_pages
        began_at, best_s = time.perf_counter(), float("inf")
        for _ in range(PROBE_SLICES):
            slice_at = time.perf_counter()
            if has_ended(self._connection):
                raise ValueError(OWNER_ENDED)
            page_bytes = self._own.page_bytes
            self._stream.copy_runs(self._own.base, self._theirs, runs, page_bytes)
            self._own.digest(self._stream, [self._own.num_pages] * num_pages)
            wait_idle(self._stream, since=slice_at)
            best_s = min(best_s, time.perf_counter() - slice_at)
            if time.perf_counter() - began_at > PROBE_S:
                break
        return num_pages * self._own.page_bytes / max(best_s, 1e-9)

    def close(self, reason: str) -> list[Failed]:
        """Begin nothing more, wait for the slice, unmap the pool, then tell the owner so."""
        try:
            self._await_slice()
            self._stream.close()
            self._driver.close(self._theirs)
            say_released(self._connection)
        finally:
            self._connection.close()  # without the device this process ends, and is seen to
        return self._drop_all(reason)


def open_cuda_pool(own: CudaPages, address: str, num_pages: int, identity: bytes) -> CudaPeerPool:
    """Open the pool at an address for writing; `identity` asks for it.

    Raises ValueError where it cannot be had, lies on a device out of reach, or has other pages.
    """
    if own.driver.is_mps:
        raise ValueError(MPS_ADVICE)
    try:
        received = fetch(address, identity, MAGIC, MAX_OFFER_BYTES)
    except OSError as error:
        raise ValueError(f"cannot fetch the KV pool at {address}: {error}") from None
    if received.descriptor is not None:
        os.close(received.descriptor)  # of a pool of another kind
    try:
        offer = msgspec.msgpack.decode(received.message, type=PoolOffer)
        problem = _explain_offer(own, offer, num_pages)
        if problem is not None:
            raise ValueError(problem)
        base = own.driver.open(offer.handle)
    except (ValueError, DeviceLost) as error:
        received.connection.close()
        if isinstance(error, msgspec.MsgspecError):
            raise ValueError(f"what answered at {address} is no KV pool") from None
        raise
    return CudaPeerPool(own, base, num_pages, received.connection)


def _explain_offer(own: CudaPages, offer: PoolOffer, num_pages: int) -> str | None:
    """Why a pool cannot be used from here, with both values."""
    if offer.page_bytes != own.page_bytes:
        return f"pages of {own.page_bytes} bytes here, of {offer.page_bytes} there"
    if offer.num_pages < num_pages + 1:
        return (
            f"the KV pool has {offer.num_pages} pages where {num_pages} and the scratch page were "
            "announced"
        )
    return own.driver.explain_unreachable(offer.uuid)
