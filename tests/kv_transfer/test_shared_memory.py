"""The shared pool: sealed, handed to the same user only, gone without a trace."""

import errno
import mmap
import os
import socket
import stat
import subprocess
import sys
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


@pytest.mark.parametrize("transport", ["shared_memory", "zmq"])
def test_pages_cross_from_another_process(transport: str, make_node) -> None:
    from_array = np.arange(6 * PAGE_BYTES, dtype=np.uint64).astype(np.uint8)
    expected = from_array.reshape(6, PAGE_BYTES)[[5, 0, 3]]
    pool = SharedPool.create(8 * PAGE_BYTES)
    owner = make_node("d0", pool.pages(PAGE_BYTES, 8))
    address = pool.serve() if transport == "shared_memory" else owner.bulk.zmq_address
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
    mapped = map_pool(source, pool.serve(), 3)
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


def test_another_user_is_refused() -> None:
    pool = SharedPool.create(PAGE_BYTES)
    address = pool.serve(uid=os.getuid() + 1)
    with pytest.raises(ValueError, match="refused: does the node run as the same user"):
        map_pool(np.zeros((1, PAGE_BYTES), np.uint8), address, 1)
    assert pool.num_refused == 1
    pool.close()


def test_a_smaller_pool_than_announced_is_refused() -> None:
    pool = SharedPool.create(PAGE_BYTES)
    with pytest.raises(ValueError, match="has 8192 bytes"):
        map_pool(np.zeros((1, PAGE_BYTES), np.uint8), pool.serve(), 2)
    pool.close()


def test_an_unsealed_pool_is_refused(tmp_path: Path) -> None:
    """A foreign server hands out a descriptor that it could still shrink under us."""
    descriptor = os.memfd_create("tandem-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, PAGE_BYTES)
    path = str(tmp_path / "pool")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    answer = b"TDMP" + PAGE_BYTES.to_bytes(8, "little")
    with ThreadPoolExecutor(1) as executor:
        serving = executor.submit(serve_once, listener, descriptor, answer)
        with pytest.raises(ValueError, match="not sealed"):
            map_pool(np.zeros((1, PAGE_BYTES), np.uint8), f"unix:{path}", 1)
        serving.result(timeout=5)
    listener.close()
    os.close(descriptor)


def test_what_is_no_pool_server_is_refused(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    path = str(tmp_path / "pool")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    with ThreadPoolExecutor(1) as executor:
        serving = executor.submit(serve_once, listener, descriptor, b"HTTP/1.1 200 OK")
        with pytest.raises(ValueError, match="no KV pool"):
            map_pool(np.zeros((1, PAGE_BYTES), np.uint8), f"unix:{path}", 1)
        serving.result(timeout=5)
    listener.close()
    os.close(descriptor)


def serve_once(listener: socket.socket, descriptor: int, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        socket.send_fds(connection, [answer], [descriptor])


def test_a_mapping_that_the_host_refuses_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unadvisable(mmap.mmap):
        def madvise(self, *args: int) -> None:
            raise OSError(errno.EINVAL, "no such advice")

    pool = SharedPool.create(PAGE_BYTES)
    monkeypatch.setattr("kv_transfer.shared_memory.mmap.mmap", Unadvisable)
    with pytest.raises(ValueError, match="no such advice"):
        map_pool(np.zeros((1, PAGE_BYTES), np.uint8), pool.serve(), 1)
    pool.close()


def test_nobody_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot fetch the KV pool"):
        map_pool(np.zeros((1, 64), np.uint8), f"unix:{tmp_path}/gone", 1)


def test_a_socket_in_a_run_folder_is_removed(tmp_path: Path) -> None:
    pool = SharedPool.create(PAGE_BYTES)
    address = pool.serve(tmp_path)
    (path,) = tmp_path.iterdir()
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert address == f"unix:{path}"
    pool.close()
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    pool = SharedPool.create(PAGE_BYTES)
    with pytest.raises(ValueError, match="cannot listen on"):
        pool.serve(tmp_path / "missing")
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


def test_a_forked_child_has_no_mapping() -> None:
    pool = SharedPool.create(mmap.PAGESIZE)
    flags = Path("/proc/self/smaps").read_text().split("memfd:tandem-kv")[1].split("VmFlags:")[1]
    assert " dc " in flags.splitlines()[0] + " "
    pool.close()
