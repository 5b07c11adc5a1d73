"""The thread that hands pools over outlives what one connection costs it."""

import errno
import os
import socket
import threading

import pytest

from kv_transfer.handover import Handover, HandoverServer, fetch, make_address


def test_a_node_out_of_descriptors_serves_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    has_failed = threading.Event()
    accept = socket.socket.accept

    def accept_later(listener: socket.socket) -> tuple[socket.socket, object]:
        if not has_failed.is_set():
            has_failed.set()
            raise OSError(errno.EMFILE, "too many open files")
        return accept(listener)

    def admit(writer: bytes, pid: int, pidfd: int) -> bool:
        os.close(pidfd)
        return True

    monkeypatch.setattr(socket.socket, "accept", accept_later)
    address = make_address(f"tandem-test-{os.getpid()}", None)
    server = HandoverServer(address, Handover(b"test", b"here"), admit)
    try:
        assert has_failed.wait(5.0)
        received = fetch(address, b"node/p0/1", b"test", 16)
        assert received.message == b"here"
        received.connection.close()
    finally:
        server.close()
