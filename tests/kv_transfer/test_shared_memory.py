"""The shared pool: sealed, handed to the same user only, gone without a trace."""

import errno
import mmap
import os
import queue
import socket
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from kv_transfer.actions import OpenGrant, PagesVerified, VerifyPages
from kv_transfer.shared_memory import SharedPool, map_pool
from tandem.messages.handoff import ChunkSum

ROOT = Path(__file__).resolve().parents[2]
PAGE_BYTES = 8192
WRITER_PROCESS = """
import queue, sys
import numpy as np
from kv_transfer.actions import WritePages
from kv_transfer.bulk import BulkThread
from tandem.messages.common import NodeRef

transport, address, identity = sys.argv[1:]
pages = np.arange(6 * 8192, dtype=np.uint64).astype(np.uint8).reshape(6, 8192)
events = queue.Queue()
bulk = BulkThread(pages, identity=identity.encode(), host="127.0.0.1", post=events.put)
bulk.start()
bulk.open_peer("d0", 1, transport=transport, address=address, num_pages=8)
owner = NodeRef(node_id="d0", incarnation=1, epoch=1, control_address="tcp://d0")
bulk.submit(WritePages((b"k" * 16, 1), owner, 7, 0, (5, 0, 3), (1, 7, 2)))
print(events.get(timeout=15).chunk.checksum.hex())
bulk.close()
"""


def let_in(writer: bytes, pid: int, pidfd: int) -> bool:
    os.close(pidfd)
    return True


@pytest.mark.parametrize("transport", ["shared_memory", "zmq"])
def test_pages_cross_from_another_process(transport: str, make_node) -> None:
    from_array = np.arange(6 * PAGE_BYTES, dtype=np.uint64).astype(np.uint8)
    expected = from_array.reshape(6, PAGE_BYTES)[[5, 0, 3]]
    pool = SharedPool.create(9 * PAGE_BYTES)
    owner = make_node("d0", pool.pages(PAGE_BYTES, 8))
    address = pool.serve(let_in) if transport == "shared_memory" else owner.bulk.zmq_address
    owner.bulk.admit_writer(b"node/p0/9", transport)
    owner.bulk.submit(OpenGrant(7, b"node/p0/9", (1, 7, 2)))
    writer = subprocess.run(
        [sys.executable, "-c", WRITER_PROCESS, transport, address, "node/p0/9"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert writer.returncode == 0, writer.stderr
    chunk = ChunkSum(first=0, num_pages=3, checksum=bytes.fromhex(writer.stdout.strip()))
    owner.bulk.submit(VerifyPages((b"k" * 16, 1), 7, (1, 7, 2), (chunk,)))
    assert owner.event() == PagesVerified((b"k" * 16, 1), 7, None)
    assert np.array_equal(owner.pages[[1, 7, 2]], expected)
    pool.close()


def test_the_size_is_sealed_for_good() -> None:
    pool = SharedPool.create(3 * PAGE_BYTES)
    source = np.zeros((1, PAGE_BYTES), np.uint8)
    mapped = map_pool(source, pool.serve(let_in), 2, b"w")
    descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    memfds = [fd for fd in descriptors if is_memfd(fd)]
    assert memfds
    for size in (0, 9 * PAGE_BYTES):
        with pytest.raises(OSError) as refused:
            os.ftruncate(memfds[0], size)
        assert refused.value.errno == errno.EPERM
    assert mapped.close("done") == []
    pool.close()


def is_memfd(descriptor: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith("/memfd:tandem-kv")
    except OSError:
        return False


def test_w21_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    uid, told = os.getuid(), queue.SimpleQueue[bytes]()

    def admit(writer: bytes, pid: int, pidfd: int) -> bool:
        told.put(writer)
        return False

    def getuid() -> int:
        is_server = threading.current_thread().name == "kv-descriptor"
        return uid + 1 if is_server else uid

    pool = SharedPool.create(PAGE_BYTES)
    address = pool.serve(admit)
    monkeypatch.setattr(os, "getuid", getuid)
    with pytest.raises(ValueError, match="refused: does the node run as the same user"):
        map_pool(np.zeros((1, PAGE_BYTES), np.uint8), address, 0, b"w")
    assert pool.num_refused == 1
    assert told.empty()
    pool.close()


def test_w21_another_users_pool_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes the name of a pool's socket would be given our pages to keep."""
    uid, told = os.getuid(), queue.SimpleQueue[bytes]()

    def admit(writer: bytes, pid: int, pidfd: int) -> bool:
        told.put(writer)
        return False

    def getuid() -> int:
        is_server = threading.current_thread().name == "kv-descriptor"
        return uid if is_server else uid + 1

    pool = SharedPool.create(PAGE_BYTES)
    address = pool.serve(admit)
    monkeypatch.setattr(os, "getuid", getuid)
    with pytest.raises(ValueError, match="it belongs to another user"):
        map_pool(np.zeros((1, PAGE_BYTES), np.uint8), address, 0, b"w")
    pool.close()
    assert told.empty()


def test_the_process_that_asks_is_named_before_it_is_served() -> None:
    told: list[tuple[bytes, int]] = []

    def refuse(writer: bytes, pid: int, pidfd: int) -> bool:
        told.append((writer, pid))
        os.fstat(pidfd)
        return False

    pool = SharedPool.create(PAGE_BYTES)
    with pytest.raises(ValueError, match="it was refused"):
        map_pool(np.zeros((1, PAGE_BYTES), np.uint8), pool.serve(refuse), 0, b"node/p0/1")
    assert told == [(b"node/p0/1", os.getpid())]
    pool.close()


@pytest.mark.parametrize("says", [b"", b"w" * 300])
def test_a_peer_that_names_nobody_gets_nothing(says: bytes) -> None:
    pool = SharedPool.create(PAGE_BYTES)
    address = pool.serve(let_in)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(5)
        peer.connect("\0" + address.removeprefix("unix:@"))
        assert peer.recv(64) == b"TDMP"
        if says:
            peer.send(says)
        _, descriptors, _, _ = socket.recv_fds(peer, 64, 1)
    assert descriptors == []
    mapped = map_pool(np.zeros((1, PAGE_BYTES), np.uint8), address, 0, b"w")  # it serves on
    assert mapped.close("done") == []
    assert pool.num_refused == 1
    pool.close()


@pytest.mark.parametrize(
    "address", ["unix:../../etc/passwd", "unix:/etc/passwd", "/etc/passwd", "unix:@", "tcp://x:1"]
)
def test_w21_an_address_that_is_no_pool_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="cannot fetch the KV pool at"):
        map_pool(np.zeros((1, PAGE_BYTES), np.uint8), address, 1, b"w")


def test_w21_a_smaller_pool_than_announced_is_refused() -> None:
    pool = SharedPool.create(PAGE_BYTES)
    with pytest.raises(ValueError, match="has 8192 bytes"):
        map_pool(np.zeros((1, PAGE_BYTES), np.uint8), pool.serve(let_in), 1, b"w")
    pool.close()


def test_w21_an_unsealed_pool_is_refused(tmp_path: Path) -> None:
    """A foreign server hands out a descriptor that it could still shrink under us."""
    descriptor = os.memfd_create("tandem-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, PAGE_BYTES)
    path = str(tmp_path / "pool")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    answer = b"TDMP" + PAGE_BYTES.to_bytes(8, "little")
    with ThreadPoolExecutor(1) as executor:
        serving = executor.submit(serve_once, listener, descriptor, answer)
        with pytest.raises(ValueError, match="not sealed"):
            map_pool(np.zeros((1, PAGE_BYTES), np.uint8), f"unix:{path}", 0, b"w")
        serving.result(timeout=5)
    listener.close()
    os.close(descriptor)


def test_what_is_no_pool_server_is_refused(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    path = str(tmp_path / "pool")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    with ThreadPoolExecutor(1) as executor:
        serving = executor.submit(serve_once, listener, descriptor, b"HTTP/1.1 200 OK")
        with pytest.raises(ValueError, match="no KV pool"):
            map_pool(np.zeros((1, PAGE_BYTES), np.uint8), f"unix:{path}", 0, b"w")
        serving.result(timeout=5)
    listener.close()
    os.close(descriptor)


def serve_once(listener: socket.socket, descriptor: int, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.send(b"TDMP")
        connection.recv(255)
        socket.send_fds(connection, [answer], [descriptor])


def test_a_mapping_that_the_host_refuses_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unadvisable(mmap.mmap):
        def madvise(self, *args: int) -> None:
            raise OSError(errno.EINVAL, "no such advice")

    pool = SharedPool.create(PAGE_BYTES)
    monkeypatch.setattr("kv_transfer.shared_memory.mmap.mmap", Unadvisable)
    with pytest.raises(ValueError, match="no such advice"):
        map_pool(np.zeros((1, PAGE_BYTES), np.uint8), pool.serve(let_in), 0, b"w")
    pool.close()


def test_nobody_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot fetch the KV pool"):
        map_pool(np.zeros((1, 64), np.uint8), f"unix:{tmp_path}/gone", 1, b"w")


def test_a_socket_in_a_run_folder_is_removed(tmp_path: Path) -> None:
    pool = SharedPool.create(PAGE_BYTES)
    address = pool.serve(let_in, tmp_path)
    (path,) = tmp_path.iterdir()
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert address == f"unix:{path}"
    pool.close()
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    pool = SharedPool.create(PAGE_BYTES)
    with pytest.raises(ValueError, match="cannot listen on"):
        pool.serve(let_in, tmp_path / "missing")
    pool.close()


def test_more_memory_than_there_can_be_is_refused_with_advice() -> None:
    with pytest.raises(ValueError, match="ask for fewer pages"):
        SharedPool.create(1 << 62)


def test_arrays_outlive_the_pool() -> None:
    """The engine's tensor may live until the process ends; closing must not pull its memory."""
    pool = SharedPool.create(2 * PAGE_BYTES)
    pages = pool.pages(PAGE_BYTES, 2)
    pool.close()
    pages[1, 5] = 9
    assert pages[1, 5] == 9


def flags_of_mappings() -> list[str]:
    """What the kernel knows of each mapping of a pool in this process; dc: not for children."""
    parts = Path("/proc/self/smaps").read_text().split("memfd:tandem-kv")[1:]
    return [part.split("VmFlags:")[1].splitlines()[0] + " " for part in parts]


def test_a_forked_child_has_no_mapping() -> None:
    pool = SharedPool.create(2 * mmap.PAGESIZE)
    (of_owner,) = flags_of_mappings()
    own = np.zeros((1, mmap.PAGESIZE), np.uint8)
    mapped = map_pool(own, pool.serve(let_in), 1, b"w")
    assert " dc " in of_owner
    assert [" dc " in flags for flags in flags_of_mappings()] == [True, True]
    mapped.close("done")
    pool.close()
