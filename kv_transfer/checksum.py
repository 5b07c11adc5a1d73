"""Checksums of pages and of whose they are: right bytes under a wrong identity do not verify.

The writer hashes its source pages, the owner the pages of its own pool: equal only where the copy
is. xxh3-64 finds faults (18 GB/s), not attackers. Pages on a device are digested there, and the
digests are hashed in place of the bytes.
"""

import struct
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from kv_transfer.actions import TransferKey, VerifyPages
from kv_transfer.gather import gathered
from tandem.messages.handoff import ChunkSum

PageArray = NDArray[np.uint8]  # [pages, page_bytes]
# xxhash keeps the interpreter lock below 100 kB: a loop over smaller pages makes every other thread
# wait for 5 ms at each turn (measured), so small pages are gathered before they are hashed.
LARGE_PAGE_BYTES = 128 * 1024
_IDENTITY = struct.Struct("<16sQQQQ")
_READ_IDENTITY = struct.Struct("<QQQ")


class ChunkHasher:
    """Hash of pages `first, first + 1, ...` of a grant, fed in that order."""

    def __init__(self, key: TransferKey, grant_id: int, first: int, num_pages: int) -> None:
        self._first = first
        self._num_pages = num_pages
        self._hash = xxhash.xxh3_64()
        self._hash.update(_IDENTITY.pack(key[0], key[1], grant_id, first, num_pages))

    def update(self, part: NDArray[np.uint8]) -> None:
        """The next bytes: whole pages or a part of one; C-contiguous."""
        self._hash.update(part.data)

    def chunk_sum(self) -> ChunkSum:
        """The checksum for the Commit."""
        return ChunkSum(first=self._first, num_pages=self._num_pages, checksum=self._hash.digest())


def read_sum(grant_id: int, pages: tuple[int, ...], offset: int, part: NDArray[np.uint8]) -> bytes:
    """Checksum of bytes read under a grant: those of whole pages, or of one from `offset` on."""
    hasher = xxhash.xxh3_64(_READ_IDENTITY.pack(grant_id, offset, len(pages)))
    hasher.update(np.array(pages, dtype="<u4").data)
    hasher.update(part.data)
    return hasher.digest()


class OwnPages(Protocol):
    """This node's pages, in host memory or on a device, hashed where they lie."""

    @property
    def num_pages(self) -> int:
        """Usable ones."""

    @property
    def slice_pages(self) -> int:
        """How many to hash between two looks at other work."""

    def feed(self, hasher: ChunkHasher, pages: tuple[int, ...]) -> None:
        """Feed pages in this order: their bytes, or digests of them, as the transport has it."""

    def settle(self) -> None:
        """Return when nothing that a process which has ended had begun is still under way here."""


@dataclass(frozen=True, slots=True)
class HostPages:
    """Pages in host memory, hashed by their bytes; see `OwnPages`."""

    pages: PageArray
    slice_bytes: int

    @property
    def num_pages(self) -> int:
        """All of them."""
        return len(self.pages)

    @property
    def slice_pages(self) -> int:
        """About `slice_bytes`."""
        return max(1, self.slice_bytes // int(self.pages.shape[1]))

    def feed(self, hasher: ChunkHasher, pages: tuple[int, ...]) -> None:
        """Feed their bytes."""
        hash_pages(hasher, self.pages, pages)

    def settle(self) -> None:
        """What a process copies, it copies itself."""


class Verification:
    """Compares the chunks of one `VerifyPages` with this node's pages, a slice at a time.

    `error` names the first chunk that is not what the writer hashed.
    """

    def __init__(self, pages: OwnPages, request: VerifyPages) -> None:
        self.request = request
        self.error: str | None = None
        self._pages = pages
        self._chunks = list(reversed(request.chunks))
        self._hasher: ChunkHasher | None = None
        self._num_done = 0  # pages of the last of `_chunks`

    def advance(self) -> bool:
        """Hash a slice more; True where the outcome is known."""
        if not self._chunks:
            return True
        chunk = self._chunks[-1]
        if self._hasher is None:
            request = self.request
            self._hasher = ChunkHasher(request.key, request.grant_id, chunk.first, chunk.num_pages)
        begin = chunk.first + self._num_done
        end = min(begin + self._pages.slice_pages, chunk.first + chunk.num_pages)
        self._pages.feed(self._hasher, self.request.pages[begin:end])
        self._num_done += end - begin
        if self._num_done < chunk.num_pages:
            return False
        if self._hasher.chunk_sum() != chunk:
            last = chunk.first + chunk.num_pages - 1
            self.error = f"checksum of pages {chunk.first} to {last} differs from the writer's"
            return True
        self._chunks.pop()
        self._hasher, self._num_done = None, 0
        return not self._chunks


def hash_pages(hasher: ChunkHasher, pages: PageArray, indices: tuple[int, ...]) -> None:
    """Feed pages in this order, without keeping other threads from the interpreter."""
    if pages.shape[1] < LARGE_PAGE_BYTES:
        hasher.update(gathered(pages, indices))
        return
    for index in indices:
        hasher.update(pages[index])
