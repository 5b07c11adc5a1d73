"""Hands the key to a pool (a descriptor, a CUDA handle) to processes that may have it.

Over a Unix socket of unguessable name, to peers whose uid the kernel vouches for and whom this node
has welcomed on its control link. Before anything is handed over, a pidfd of the process that asks
is taken: through it the owner can end that process and know that it has ended.
"""

import contextlib
import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CONNECT_S = 0.5
MAX_IDENTITY_BYTES = 255
MAGIC_BYTES = 4
RELEASED = b"\x01"
RETRY_S = 0.2  # after an accept that failed: descriptors may have run out
log = logging.getLogger("tandem.kv_transfer")
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid: struct ucred

# Told of a writer's identity, pid and pidfd before it gets anything. True: it may have it, and the
# pidfd is the callee's. Called on the server's thread.
AdmitProcess = Callable[[bytes, int, int], bool]


@dataclass(frozen=True, slots=True)
class Handover:
    """What is handed over: four bytes that name its kind, then the rest, and a descriptor.

    With `is_held` the connection stays open until the other process has let go of the pool, and
    says so (`say_released`), or has ended.
    """

    magic: bytes
    message: bytes
    descriptor: int | None = None
    is_held: bool = False


class HandoverServer:
    """One thread that hands over to whoever connects and may have it."""

    def __init__(self, address: str, handover: Handover, admit: AdmitProcess) -> None:
        self._address = _socket_address(address)
        self._handover = handover
        self._admit = admit
        self._held: list[socket.socket] = []
        self._is_closing = threading.Event()
        self._num_unreleased = 0  # connections that ended without a word
        self.num_refused = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
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
            except OSError as error:
                if self._is_closing.wait(RETRY_S):
                    return
                log.warning("cannot take a connection at %s: %s", self._address, error)
                continue
            self._forget_ended()
            try:
                is_served = self._converse(connection)
            except OSError:  # it left, was too slow, or its process cannot be watched
                is_served = False
            self.num_refused += not is_served
            if is_served and self._handover.is_held:
                self._held.append(connection)
            else:
                connection.close()

    def _converse(self, connection: socket.socket) -> bool:
        """Ask who it is, hand over; False where it may not have it."""
        pid, uid = _peer(connection)
        if uid != os.getuid():
            return False
        connection.settimeout(CONNECT_S)
        pidfd = os.pidfd_open(pid)
        is_taken = False
        try:
            # It answers a question that was asked after the pidfd was opened, so it lived then, and
            # the pidfd is not that of a later process with its number.
            connection.send(self._handover.magic)
            identity = connection.recv(MAX_IDENTITY_BYTES + 1)
            if not 0 < len(identity) <= MAX_IDENTITY_BYTES:
                return False
            is_taken = self._admit(identity, pid, pidfd)
        finally:
            if not is_taken:
                os.close(pidfd)
        if is_taken:
            descriptor = self._handover.descriptor
            answer = [self._handover.magic + self._handover.message]
            socket.send_fds(connection, answer, [] if descriptor is None else [descriptor])
        return is_taken

    def _forget_ended(self) -> None:
        for connection in [c for c in self._held if has_ended(c)]:
            self._held.remove(connection)
            try:
                self._num_unreleased += connection.recv(1) != RELEASED
            except OSError:
                self._num_unreleased += 1
            connection.close()

    def close(self) -> int:
        """Hand over nothing more; how many processes have not said that they let go of the pool."""
        self._is_closing.set()
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self._thread.join()
        self._socket.close()
        self._forget_ended()
        num_holders = len(self._held) + self._num_unreleased
        for connection in self._held:
            connection.close()
        self._held.clear()
        if not self._address.startswith("\0"):
            Path(self._address).unlink(missing_ok=True)
        return num_holders


@dataclass(frozen=True, slots=True)
class Received:
    """What a server handed over. Descriptor and connection are the receiver's."""

    message: bytes
    descriptor: int | None
    connection: socket.socket


def fetch(address: str, identity: bytes, magic: bytes, max_bytes: int) -> Received:
    """Ask a server. OSError where it is not there, not ours, or will not."""
    if not address.startswith("unix:"):
        raise PermissionError("it is no Unix socket")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        return _fetch(connection, _socket_address(address), identity, magic, max_bytes)
    except OSError:
        connection.close()
        raise


def _fetch(
    connection: socket.socket, address: str, identity: bytes, magic: bytes, max_bytes: int
) -> Received:
    connection.settimeout(CONNECT_S)
    connection.connect(address)
    if _peer(connection)[1] != os.getuid():
        raise PermissionError("it belongs to another user")
    greeting = connection.recv(64)
    if greeting not in (magic, b""):
        raise PermissionError("what answered is no KV pool")
    if greeting:
        connection.send(identity)
    # Not socket.recv_fds: in Python 3.11 it drops the flag that closes descriptors on exec.
    message, ancillary, _, _ = connection.recvmsg(
        MAGIC_BYTES + max_bytes, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
    )
    descriptors = [
        struct.unpack_from("i", data)[0]
        for level, kind, data in ancillary
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
    ]
    if not message and not descriptors:
        raise PermissionError("it was refused: does the node run as the same user?")
    descriptor = int(descriptors[0]) if descriptors else None
    if message[:MAGIC_BYTES] != magic:
        if descriptor is not None:
            os.close(descriptor)
        raise PermissionError("what answered is no KV pool")
    return Received(message[MAGIC_BYTES:], descriptor, connection)


def has_ended(connection: socket.socket) -> bool:
    """Whether the other end of a held connection, over which nothing is said, was closed."""
    look = select.poll()
    look.register(connection, 0)  # POLLHUP alone
    return bool(look.poll(0))


def say_released(connection: socket.socket) -> None:
    """Tell the server that this process has let go of the pool, and close the connection."""
    with connection, contextlib.suppress(OSError):  # the server may have ended
        connection.send(RELEASED)


def make_address(name: str, run_dir: Path | None) -> str:
    """Of a socket file in `run_dir` (mode 0700), or an abstract one."""
    return f"unix:@{name}" if run_dir is None else f"unix:{run_dir / name}"


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Pid and uid of the process that connected, or that listened."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return int(pid), int(uid)


def _socket_address(address: str) -> str:
    name = address.removeprefix("unix:")
    return "\0" + name[1:] if name.startswith("@") else name
