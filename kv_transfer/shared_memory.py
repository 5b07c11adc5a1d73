"""A node's KV pool in a sealed memfd, mapped by writers of the same user on the same host.

`handover.py` hands the descriptor over. The seals fix the size for good, so no mapper can be killed
by SIGBUS; MADV_DONTFORK keeps children of a mapper from writing after it died.

Whoever maps the pool can read and write every page of it, all tenants' alike: the nodes that share
memory are one trust domain, and grants bind only the honest among them. `--transport zmq` buys
isolation for one copy more. What a mapper cannot do is outlive its fence: before the descriptor is
handed over, this node takes a pidfd of the process that asks, and through it can end the process
and know that it has ended.
"""

import fcntl
import mmap
import os
import secrets
import struct
from pathlib import Path

import numpy as np

from kv_transfer.checksum import PageArray
from kv_transfer.handover import AdmitProcess, Handover, HandoverServer, fetch, make_address
from kv_transfer.transport import MappedPool

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_OFFER = struct.Struct("<Q")  # bytes of the pool
_MAGIC = b"TDMP"


class SharedPool:
    """Memory for a KV pool that other processes may map. Anonymous: it dies with its mappers."""

    def __init__(self, descriptor: int, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._descriptor = descriptor
        self._map: mmap.mmap | None = mmap.mmap(descriptor, num_bytes, mmap.MAP_SHARED)
        self._map.madvise(mmap.MADV_DONTFORK)
        self._server: HandoverServer | None = None

    @classmethod
    def create(cls, num_bytes: int) -> "SharedPool":
        """Allocate zeroed memory. Raises ValueError where the host has too little."""
        descriptor = os.memfd_create("tandem-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, num_bytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
            return cls(descriptor, num_bytes)
        except (OSError, ValueError) as error:
            os.close(descriptor)
            raise ValueError(
                f"cannot share {num_bytes / 2**20:.0f} MiB of KV pages ({error}): "
                "ask for fewer pages"
            ) from None

    @property
    def buffer(self) -> memoryview:
        """The memory, writable; the engine builds its pool tensor on it."""
        assert self._map is not None, "closed"
        return memoryview(self._map)

    def pages(self, page_bytes: int, num_pages: int) -> PageArray:
        """The first pages as an array [num_pages, page_bytes]."""
        flat = np.frombuffer(self.buffer, dtype=np.uint8, count=num_pages * page_bytes)
        return flat.reshape(num_pages, page_bytes)

    def serve(self, admit: AdmitProcess, run_dir: Path | None = None) -> str:
        """Hand the descriptor to processes of this user that `admit` agrees to; the address.

        With `run_dir` (mode 0700) the socket is a file there, else it has an abstract name.
        """
        assert self._server is None, "served once"
        address = make_address(f"tandem-kv-{secrets.token_hex(16)}", run_dir)
        handover = Handover(_MAGIC, _OFFER.pack(self.num_bytes), self._descriptor)
        self._server = HandoverServer(address, handover, admit)
        return address

    @property
    def num_refused(self) -> int:
        """Processes that asked for the pool and did not get it."""
        return 0 if self._server is None else self._server.num_refused

    def close(self) -> None:
        """End the server; the memory goes with the last array on it. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._map is not None:
            self._map = None  # not map.close(): the engine's tensor may still refer to it
            os.close(self._descriptor)


def map_pool(own: PageArray, address: str, num_pages: int, identity: bytes) -> MappedPool:
    """Map the pool at an address for writing, in about a second at most; `identity` asks for it.

    Raises ValueError where it cannot be had, or is no sealed memory for `num_pages` pages and the
    scratch page behind them.
    """
    page_bytes = own.shape[1]
    num_bytes = (num_pages + 1) * page_bytes
    try:
        descriptor = _fetch_descriptor(address, identity)
    except OSError as error:
        raise ValueError(f"cannot fetch the KV pool at {address}: {error}") from None
    try:
        size = os.fstat(descriptor).st_size
        if size < num_bytes or fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SEALS != SEALS:
            raise ValueError(
                f"the KV pool at {address} has {size} bytes where {num_bytes} were announced, or "
                "is not sealed"
            )
        mapping = mmap.mmap(descriptor, num_bytes, mmap.MAP_SHARED)
        mapping.madvise(mmap.MADV_DONTFORK)
    except OSError as error:
        raise ValueError(f"cannot map the KV pool at {address}: {error}") from None
    finally:
        os.close(descriptor)
    pages = np.frombuffer(mapping, dtype=np.uint8).reshape(num_pages + 1, page_bytes)
    return MappedPool(own, pages[:num_pages], scratch=pages[num_pages:], unmap=mapping.close)


def _fetch_descriptor(address: str, identity: bytes) -> int:
    """One descriptor from the pool's server. OSError where it is not there, or not ours."""
    received = fetch(address, identity, _MAGIC, _OFFER.size)
    received.connection.close()
    if received.descriptor is None or len(received.message) != _OFFER.size:
        if received.descriptor is not None:
            os.close(received.descriptor)
        raise PermissionError("what answered is no KV pool")
    return received.descriptor
