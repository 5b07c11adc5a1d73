"""A node's KV pool in a sealed memfd, mapped by writers of the same user on the same host.

The descriptor travels over a Unix socket to peers whose uid the kernel vouches for. The seals fix
the size for good, so no mapper can be killed by SIGBUS; MADV_DONTFORK keeps children of a mapper
from writing after it died.
"""

import fcntl
import mmap
import os
import secrets
import socket
import struct
import threading
from pathlib import Path

import numpy as np

from kv_transfer.checksum import PageArray
from kv_transfer.transport import MappedPool

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
CONNECT_S = 2.0
_OFFER = struct.Struct("<4sQ")  # magic, bytes of the pool
_MAGIC = b"TDMP"
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid: struct ucred


class SharedPool:
    """Memory for a KV pool that other processes may map. Anonymous: it dies with its mappers."""

    def __init__(self, descriptor: int, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._descriptor = descriptor
        self._map: mmap.mmap | None = mmap.mmap(descriptor, num_bytes, mmap.MAP_SHARED)
        self._map.madvise(mmap.MADV_DONTFORK)
        self._server: _DescriptorServer | None = None

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

    def serve(self, run_dir: Path | None = None, *, uid: int | None = None) -> str:
        """Hand the descriptor to processes of `uid` (this user by default); returns the address.

        With `run_dir` (mode 0700) the socket is a file there, else it has an abstract name.
        """
        assert self._server is None, "served once"
        name = f"tandem-kv-{secrets.token_hex(8)}"
        address = f"unix:@{name}" if run_dir is None else f"unix:{run_dir / name}"
        wanted_uid = os.getuid() if uid is None else uid
        offer = _OFFER.pack(_MAGIC, self.num_bytes)
        self._server = _DescriptorServer(address, self._descriptor, offer, wanted_uid)
        return address

    @property
    def num_refused(self) -> int:
        """Processes of other users that asked for the pool."""
        return 0 if self._server is None else self._server.num_refused

    def close(self) -> None:
        """End the server; the memory goes with the last array on it. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._map is not None:
            self._map = None  # not map.close(): the engine's tensor may still refer to it
            os.close(self._descriptor)


class _DescriptorServer:
    """One thread that sends a descriptor to whoever connects and has the right uid."""

    def __init__(self, address: str, descriptor: int, offer: bytes, uid: int) -> None:
        self._address = _socket_address(address)
        self._descriptor = descriptor
        self._offer = offer
        self._uid = uid
        self.num_refused = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(self._address)
        except OSError as error:
            self._socket.close()
            raise ValueError(f"cannot listen on {address}: {error}") from None
        self._socket.listen(64)
        self._thread = threading.Thread(target=self._run, name="kv-descriptor", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # shut down by `close`
            with connection:
                if _peer_uid(connection) != self._uid:
                    self.num_refused += 1
                    continue
                try:
                    socket.send_fds(connection, [self._offer], [self._descriptor])
                except OSError:
                    continue  # it left meanwhile

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self._thread.join()
        self._socket.close()
        if not self._address.startswith("\0"):
            Path(self._address).unlink(missing_ok=True)


def map_pool(source: PageArray, address: str, num_pages: int) -> MappedPool:
    """Map the pool at an address for writing, in at most 2 s. ValueError where it cannot."""
    num_bytes = num_pages * source.shape[1]
    try:
        descriptor = _fetch_descriptor(address)
    except OSError as error:
        raise ValueError(f"cannot fetch the KV pool at {address}: {error}") from None
    try:
        size = os.fstat(descriptor).st_size
        if size < num_bytes or fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SEALS != SEALS:
            raise ValueError(f"the KV pool at {address} has {size} bytes or is not sealed")
        mapping = mmap.mmap(descriptor, num_bytes, mmap.MAP_SHARED)
        mapping.madvise(mmap.MADV_DONTFORK)
    except OSError as error:
        raise ValueError(f"cannot map the KV pool at {address}: {error}") from None
    finally:
        os.close(descriptor)
    target = np.frombuffer(mapping, dtype=np.uint8).reshape(num_pages, source.shape[1])
    return MappedPool(source, target, unmap=mapping.close)


def _fetch_descriptor(address: str) -> int:
    """One descriptor from the pool's server. OSError where it is not there, or not ours."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT_S)
        connection.connect(_socket_address(address))
        if _peer_uid(connection) != os.getuid():
            raise PermissionError("it belongs to another user")
        # Not socket.recv_fds: in Python 3.11 it drops the flag that closes descriptors on exec.
        message, ancillary, _, _ = connection.recvmsg(
            _OFFER.size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
        )
    descriptors = [
        struct.unpack_from("i", data)[0]
        for level, kind, data in ancillary
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
    ]
    if not descriptors:
        raise PermissionError("it was refused: does the node run as the same user?")
    descriptor = int(descriptors[0])
    if len(message) != _OFFER.size or _OFFER.unpack(message)[0] != _MAGIC:
        os.close(descriptor)
        raise PermissionError("what answered is no KV pool")
    return descriptor


def _peer_uid(connection: socket.socket) -> int:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])


def _socket_address(address: str) -> str:
    name = address.removeprefix("unix:")
    return "\0" + name[1:] if name.startswith("@") else name
