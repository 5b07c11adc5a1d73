"""Routing prefixes: by which the coordinator finds the nodes that have a prompt's pages. Pure.

The first 8 bytes of each page's hash, made as nodes make them (node/state.py); never tokens.
Hashing 8,192 tokens in pages of 16 takes 0.4 ms, so it is done where it is needed.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scheduling.page_hash import PageHasher
from tandem.frames import Blob

PREFIX_BYTES = 8
MAX_PAGES = 4096


@dataclass(slots=True)
class PrefixChain:
    """Prefixes of a request's full pages so far, and the last page's whole hash."""

    hasher: PageHasher
    layout: tuple[int, str]
    parent: bytes | None = None
    num_pages: int = 0
    prefixes: bytearray = field(default_factory=bytearray)

    def extend(self, token_ids: NDArray[np.int32]) -> Blob:
        """The prefixes of all full pages of `token_ids`; only those after the known are hashed."""
        begin, end = self.num_pages * self.layout[0], MAX_PAGES * self.layout[0]
        hashes = self.hasher.chain(token_ids[begin:end], self.parent)
        for page_hash in hashes:
            self.prefixes += page_hash[:PREFIX_BYTES]
        self.num_pages += len(hashes)
        self.parent = hashes[-1] if hashes else self.parent
        return Blob(bytes(self.prefixes))


class RoutingPrefixes:
    """Starts chains for the nodes' page size and KV type, once the coordinator has told them."""

    def __init__(self, *, key: bytes, weights_fingerprint: str) -> None:
        """An empty `key`: the weights' fingerprint keys the hashes, as at the nodes."""
        self._key = key or weights_fingerprint.encode()
        self._weights_fingerprint = weights_fingerprint
        self._layout: tuple[int, str] | None = None

    def set_layout(self, page_size: int | None, kv_dtype: str | None) -> None:
        """What a welcome says; None before the first node."""
        self._layout = (page_size, kv_dtype) if page_size and kv_dtype else None

    def chain(self, tenant: str, known: PrefixChain | None) -> PrefixChain | None:
        """A chain for one request: the known one, a new one, or none where no node is known."""
        if self._layout is None or (known is not None and known.layout == self._layout):
            return known
        page_size, kv_dtype = self._layout
        hasher = PageHasher(
            key=self._key,
            tenant=tenant,
            weights_fingerprint=self._weights_fingerprint,
            dtype=kv_dtype,
            page_size=page_size,
        )
        return PrefixChain(hasher, self._layout)
