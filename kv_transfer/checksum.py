"""Checksums of pages and of whose they are: right bytes under a wrong identity do not verify.

The writer hashes its source pages, the owner the pages of its own pool: equal only where the copy
is. xxh3-64 finds faults (18 GB/s), not attackers.
"""

import struct

import numpy as np
import xxhash
from numpy.typing import NDArray

from kv_transfer.actions import TransferKey
from tandem.messages.handoff import ChunkSum

PageArray = NDArray[np.uint8]  # [pages, page_bytes]
_IDENTITY = struct.Struct("<16sQQQQ")


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


def explain_mismatch(
    pages: PageArray,
    indices: tuple[int, ...],
    chunks: tuple[ChunkSum, ...],
    key: TransferKey,
    grant_id: int,
) -> str | None:
    """The first chunk whose bytes in the pool are not what the writer hashed; None where all are.

    `indices[i]` is the page at position `i` of the grant; the chunks cover the positions.
    """
    for chunk in chunks:
        hasher = ChunkHasher(key, grant_id, chunk.first, chunk.num_pages)
        for index in indices[chunk.first : chunk.first + chunk.num_pages]:
            hasher.update(pages[index])
        if hasher.chunk_sum() != chunk:
            last = chunk.first + chunk.num_pages - 1
            return f"checksum of pages {chunk.first} to {last} differs from the writer's"
    return None
