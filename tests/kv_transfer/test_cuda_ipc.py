"""Pools on GPUs that others write into, over a pretended CUDA: bytes, order, ends, refusals."""

import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from kv_transfer import cuda_ipc
from kv_transfer.actions import (
    PagesRead,
    PagesWritten,
    ReadFailed,
    ReadPages,
    VerifyPages,
    WriteFailed,
    WritePages,
)
from kv_transfer.checksum import ChunkHasher, Verification
from kv_transfer.cuda_driver import DeviceLost, coalesce
from kv_transfer.cuda_ipc import CudaPages, CudaPool
from kv_transfer.cuda_peer import CudaPeerPool, open_cuda_pool
from tandem.messages.common import NodeRef
from tests.kv_transfer.fake_cuda import NEVER, FakeDriver, FakeGpus

PAGE_BYTES, NUM_PAGES = 512, 8
OWNER = NodeRef(node_id="d0", incarnation=1, epoch=1, control_address="tcp://d0")
KEY, OTHER_KEY = (b"k" * 16, 1), (b"o" * 16, 1)


@dataclass
class Process:
    """A node's device side."""

    driver: FakeDriver
    pool: CudaPool
    pages: CudaPages
    memory: np.ndarray

    def verify(self, key, grant_id: int, pages: tuple[int, ...], chunk) -> str | None:
        verification = Verification(self.pages, VerifyPages(key, grant_id, pages, (chunk,)))
        while not verification.advance():
            continue
        return verification.error


@pytest.fixture
def gpus() -> FakeGpus:
    return FakeGpus()


@pytest.fixture
def start(gpus: FakeGpus) -> Iterator[Callable[..., Process]]:
    """`start(name, ...)`: a process with a pool of random bytes on a device."""
    processes: list[Process] = []

    def run(
        name: str, page_bytes: int = PAGE_BYTES, num_pages: int = NUM_PAGES, **options
    ) -> Process:
        driver = gpus.driver(name, **options)
        pool = CudaPool(driver, (num_pages + 1) * page_bytes)
        memory = gpus.pages(pool.base, page_bytes)
        memory[:] = np.random.default_rng(len(processes)).integers(0, 256, memory.shape)
        processes.append(Process(driver, pool, pool.pages(page_bytes, num_pages), memory))
        return processes[-1]

    yield run
    for process in reversed(processes):
        process.pool.close()


@pytest.fixture
def owner(start) -> Process:
    return start("d0")


@pytest.fixture
def writer(start) -> Process:
    return start("p0")


def let_in(writer: bytes, pid: int, pidfd: int) -> bool:
    os.close(pidfd)
    return True


def connect(writer: Process, owner: Process, num_pages: int = NUM_PAGES) -> CudaPeerPool:
    address = owner.pool.serve(let_in, owner.pages.page_bytes)
    return open_cuda_pool(writer.pages, address, num_pages, b"node/p0/1")


@pytest.fixture
def peer(writer: Process, owner: Process) -> Iterator[CudaPeerPool]:
    """The owner's pool, opened by the writer."""
    peer = connect(writer, owner)
    yield peer
    if writer.driver.lost is None:
        peer.close("the test is over")


def write(sources: tuple[int, ...], targets: tuple[int, ...], key=KEY, first=0) -> WritePages:
    return WritePages(key, OWNER, 7, first, sources, targets)


def run(peer: CudaPeerPool) -> list:
    """All events until nothing is left to do."""
    events: list = []
    while peer.patience_ms is not None:
        events += peer.advance(0.0)
    return events


def test_pages_are_written_and_their_digests_verify(writer, owner, peer) -> None:
    before = owner.memory.copy()
    peer.submit(write((5, 0, 3), (1, 7, 2)), 0.0)
    (event,) = run(peer)
    assert isinstance(event, PagesWritten)
    assert np.array_equal(owner.memory[[1, 7, 2]], writer.memory[[5, 0, 3]])
    untouched = [0, 3, 4, 5, 6, 8]
    assert np.array_equal(owner.memory[untouched], before[untouched])
    assert owner.verify(KEY, 7, (1, 7, 2), event.chunk) is None


@pytest.mark.parametrize("wrong", ["byte", "request", "grant", "order"])
def test_what_differs_does_not_verify(writer, owner, peer, wrong: str) -> None:
    peer.submit(write((5, 0), (1, 7)), 0.0)
    (event,) = run(peer)
    pages = (7, 1) if wrong == "order" else (1, 7)
    owner.memory[7, 100] ^= wrong == "byte"
    error = owner.verify(
        OTHER_KEY if wrong == "request" else KEY, 8 if wrong == "grant" else 7, pages, event.chunk
    )
    assert error == "checksum of pages 0 to 1 differs from the writer's"


def test_pages_are_read(writer, owner, peer) -> None:
    peer.submit(ReadPages(KEY, OWNER, 7, (4, 5, 1), (0, 1, 2)), 0.0)
    (event,) = run(peer)
    assert isinstance(event, PagesRead)
    assert np.array_equal(writer.memory[[0, 1, 2]], owner.memory[[4, 5, 1]])


def test_pages_in_a_row_on_both_sides_are_one_copy(gpus, peer) -> None:
    assert coalesce((3, 4, 5, 7, 8), (0, 1, 2, 3, 5)) == [(3, 0, 3), (7, 3, 1), (8, 5, 1)]
    assert coalesce((), ()) == []
    peer.submit(write((2, 3, 4), (5, 6, 7)), 0.0)
    run(peer)
    assert gpus.runs == [[(2, 5, 3)]]


def test_a_write_of_many_slices_has_the_checksum_of_one(writer, owner, peer, monkeypatch) -> None:
    """However it was cut, the owner need not cut it the same way."""
    monkeypatch.setattr(cuda_ipc, "SLICE_BYTES", 3 * PAGE_BYTES)
    peer.submit(write(tuple(range(8)), tuple(range(8))), 0.0)
    (event,) = run(peer)
    assert len(writer.driver.gpus.runs) == 3
    monkeypatch.setattr(cuda_ipc, "MAX_SLICE_PAGES", 2)
    assert owner.verify(KEY, 7, tuple(range(8)), event.chunk) is None
    hasher = ChunkHasher(KEY, 7, 0, 8)
    monkeypatch.undo()
    writer.pages.feed(hasher, tuple(range(8)))
    assert hasher.chunk_sum() == event.chunk


def test_one_slice_is_under_way_at_most(gpus, peer, monkeypatch) -> None:
    gpus.num_looks = NEVER
    monkeypatch.setattr(cuda_ipc, "SLICE_BYTES", PAGE_BYTES)
    patience = [peer.patience_ms]
    peer.submit(write((0, 1), (0, 1)), 0.0)
    peer.submit(write((2,), (2,), OTHER_KEY), 0.0)
    patience.append(peer.patience_ms)
    for _ in range(3):
        assert peer.advance(0.0) == []
    assert gpus.runs == [[(0, 0, 1)]]
    assert [*patience, peer.patience_ms] == [None, 0, 1]
    gpus.num_looks = 1
    assert [type(event) for event in run(peer)] == [PagesWritten, PagesWritten]


def test_stop_returns_when_the_slice_under_way_has_ended(gpus, writer, owner, peer) -> None:
    gpus.num_looks = NEVER
    before = owner.memory.copy()
    peer.submit(write((0, 1), (0, 1)), 0.0)
    peer.submit(write((2,), (2,), OTHER_KEY), 0.0)
    peer.advance(0.0)
    answers: queue.Queue[list] = queue.Queue()
    stopping = threading.Thread(target=lambda: answers.put(peer.stop(KEY, "stopped")))
    stopping.start()
    with pytest.raises(queue.Empty):
        answers.get(timeout=0.1)
    assert np.array_equal(owner.memory, before), "the copy was still under way"
    for stream in writer.driver.streams:
        stream.finish()
    assert answers.get(timeout=10) == [WriteFailed(KEY, 0, "stopped")]
    stopping.join()
    assert np.array_equal(owner.memory[:2], writer.memory[:2])
    gpus.num_looks = 1
    assert [event.key for event in run(peer)] == [OTHER_KEY]


def test_stop_of_another_transfer_waits_for_nothing(gpus, peer) -> None:
    gpus.num_looks = NEVER
    peer.submit(write((0,), (0,)), 0.0)
    peer.submit(ReadPages(OTHER_KEY, OWNER, 7, (2,), (3,)), 0.0)
    peer.advance(0.0)
    assert peer.stop(OTHER_KEY, "stopped") == [ReadFailed(OTHER_KEY, "stopped")]
    gpus.num_looks = 1
    assert [event.key for event in run(peer)] == [KEY]


def test_a_pool_is_closed_in_order(gpus, writer, owner) -> None:
    """Stop, wait, unmap, tell the owner: only then may it free the memory."""
    peer = connect(writer, owner)
    peer.submit(write((0,), (0,)), 0.0)
    gpus.num_looks = NEVER
    peer.advance(0.0)
    gpus.num_looks = 3
    assert peer.close("the link was given up") == [WriteFailed(KEY, 0, "the link was given up")]
    assert np.array_equal(owner.memory[0], writer.memory[0]), "what was under way has ended"
    owner.pool.close()
    owner.pool.close()
    assert gpus.log == ["p0 closes", "d0 frees"]


def test_memory_that_somebody_has_open_is_not_freed(gpus, writer, owner, caplog) -> None:
    peer = connect(writer, owner)
    with caplog.at_level("INFO", "tandem.kv_transfer"):
        owner.pool.close()
    assert gpus.log == []
    assert "the KV pool may be open elsewhere (1)" in caplog.text
    peer.submit(write((0,), (0,)), 0.0)
    (event,) = peer.advance(0.0)
    assert isinstance(event, WriteFailed)
    assert "gave up its pool" in event.reason
    assert gpus.runs == [], "nothing is begun once the owner has gone"
    peer.close("done")


def test_a_link_that_was_opened_again_counts_once(gpus, writer, owner) -> None:
    address = owner.pool.serve(let_in, PAGE_BYTES)
    for _ in range(3):
        open_cuda_pool(writer.pages, address, NUM_PAGES, b"w").close("again")
    owner.pool.close()
    assert gpus.log == ["p0 closes"] * 3 + ["d0 frees"]


def test_an_owner_that_ended_between_slices_costs_only_the_transfer(
    gpus, writer, owner, peer, monkeypatch
) -> None:
    monkeypatch.setattr(cuda_ipc, "SLICE_BYTES", PAGE_BYTES)
    peer.submit(write((0, 1), (0, 1)), 0.0)
    peer.submit(write((2,), (2,), OTHER_KEY), 0.0)
    gpus.num_looks = 1
    assert peer.advance(0.0) == []
    owner.pool.close()  # as the kernel closes the sockets of a killed process
    gpus.kill(owner.driver)
    events = peer.advance(0.0)
    assert [(type(event), event.key) for event in events] == [
        (WriteFailed, KEY),
        (WriteFailed, OTHER_KEY),
    ]
    assert writer.driver.lost is None
    assert len(gpus.runs) == 1


def test_an_owner_that_ended_under_a_slice_costs_the_device(gpus, writer, owner, peer) -> None:
    gpus.num_looks = NEVER
    peer.submit(write((0,), (0,)), 0.0)
    peer.advance(0.0)
    gpus.kill(owner.driver)
    gpus.num_looks = 1
    with pytest.raises(DeviceLost, match="illegal memory access"):
        peer.advance(0.0)
    with pytest.raises(DeviceLost):
        peer.close("the thread died of it")  # and releases the connection


def test_a_slice_that_never_ends_costs_the_device(gpus, writer, peer, monkeypatch) -> None:
    monkeypatch.setattr(cuda_ipc, "STUCK_S", 0.05)
    gpus.num_looks = NEVER
    peer.submit(write((0,), (0,)), 0.0)
    peer.advance(0.0)
    with pytest.raises(DeviceLost, match="has not ended a slice of pages"):
        peer.stop(KEY, "stopped")
    gpus.num_looks = 1


def test_measuring_touches_the_scratch_pages_only(writer, owner, peer) -> None:
    before = owner.memory.copy()
    assert peer.measure() > 0
    assert np.array_equal(owner.memory[:NUM_PAGES], before[:NUM_PAGES])
    assert np.array_equal(owner.memory[NUM_PAGES], writer.memory[NUM_PAGES])


def test_an_owner_that_ended_cannot_be_measured(owner, peer) -> None:
    owner.pool.close()
    with pytest.raises(ValueError, match="gave up its pool"):
        peer.measure()


def test_a_process_cannot_open_its_own_pool(owner) -> None:
    with pytest.raises(ValueError, match="its own handle"):
        connect(owner, owner)


def test_other_pages_are_refused_with_both_sizes(start, owner) -> None:
    with pytest.raises(ValueError, match="pages of 256 bytes here, of 512 there"):
        connect(start("p1", page_bytes=256), owner)


def test_a_smaller_pool_than_announced_is_refused(writer, owner) -> None:
    with pytest.raises(ValueError, match="has 9 pages where 9 and the scratch page"):
        connect(writer, owner, num_pages=NUM_PAGES + 1)


def test_a_device_out_of_sight_is_refused_by_both_names(start, owner) -> None:
    other = start("p1", uuid="GPU-1", visible=("GPU-1",))
    with pytest.raises(ValueError, match=r"GPU GPU-0 is not visible here \(GPU-1 are\)"):
        connect(other, owner)


def test_a_device_without_peer_access_is_refused_by_both_names(start, owner) -> None:
    other = start("p1", uuid="GPU-1", visible=("GPU-0", "GPU-1"))
    with pytest.raises(ValueError, match="GPU GPU-1 has no peer access to GPU-0"):
        connect(other, owner)


def test_peers_may_lie_on_different_devices(start, owner) -> None:
    other = start("p1", uuid="GPU-1", visible=("GPU-0", "GPU-1"), peers=("GPU-0",))
    peer = connect(other, owner)
    peer.submit(write((0,), (3,)), 0.0)
    (event,) = run(peer)
    assert isinstance(event, PagesWritten)
    assert np.array_equal(owner.memory[3], other.memory[0])
    peer.close("done")


def test_mps_is_refused_with_advice_on_both_sides(gpus, owner, writer) -> None:
    with pytest.raises(ValueError, match="nvidia-cuda-mps-control"):
        CudaPool(gpus.driver("d1", is_mps=True), PAGE_BYTES)
    writer.driver.is_mps = True
    with pytest.raises(ValueError, match="MPS server"):
        connect(writer, owner)


def test_whoever_is_not_admitted_gets_no_handle(writer, owner) -> None:
    address = owner.pool.serve(lambda *peer: False, PAGE_BYTES)
    with pytest.raises(ValueError, match="it was refused"):
        open_cuda_pool(writer.pages, address, NUM_PAGES, b"w")


def test_a_pool_of_another_kind_is_refused(writer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot fetch the KV pool"):
        open_cuda_pool(writer.pages, f"unix:{tmp_path}/gone", NUM_PAGES, b"w")


def test_torch_is_shown_the_whole_allocation(owner) -> None:
    interface = owner.pool.__cuda_array_interface__
    assert interface["data"] == (owner.pool.base, False)
    assert interface["shape"] == (len(owner.pool),) == ((NUM_PAGES + 1) * PAGE_BYTES,)
    assert interface["typestr"] == "|u1"


def test_more_pages_than_the_pool_has_are_refused(owner) -> None:
    with pytest.raises(ValueError, match="9 pages of 512 bytes and the scratch page"):
        owner.pool.pages(PAGE_BYTES, NUM_PAGES + 1)
    with pytest.raises(IndexError):
        owner.pages.feed(ChunkHasher(KEY, 7, 0, 1), (NUM_PAGES,))
