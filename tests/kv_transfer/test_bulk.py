"""Real copies between two pools over every transport: bytes, checksums, stops, losses, leaks."""

import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kv_transfer.actions import (
    BulkEvent,
    CloseGrant,
    GrantClosed,
    OpenGrant,
    PagesRead,
    PagesVerified,
    PagesWritten,
    ReadFailed,
    ReadPages,
    StopWriting,
    VerifyPages,
    WriteFailed,
    WritePages,
)
from kv_transfer.bulk import BulkThread
from kv_transfer.inproc import InprocPools
from kv_transfer.shared_memory import SharedPool
from tandem.messages.common import NodeRef

PAGE_BYTES = 4096 * 3
NUM_PAGES = 40
SOURCES, TARGETS = (3, 1, 20, 39), (9, 0, 30, 17)


@dataclass(frozen=True)
class Held:
    """What a process holds of the system: descriptors, threads, shared mappings."""

    descriptors: int
    threads: tuple[str, ...]
    mappings: int


@pytest.fixture
def held() -> Callable[[], Held]:
    """Counts what this process holds now."""

    def count() -> Held:
        maps = Path("/proc/self/maps").read_text()
        return Held(
            len(os.listdir("/proc/self/fd")),
            tuple(sorted(t.name for t in threading.enumerate())),
            maps.count("memfd:tandem-kv"),
        )

    return count


@pytest.fixture
def pool() -> Iterator[SharedPool]:
    pool = SharedPool.create((NUM_PAGES + 1) * 2_000_000)
    yield pool
    pool.close()


@pytest.fixture(params=["inproc", "shared_memory", "zmq"])
def pair(request, make_node, make_pages, pool: SharedPool, inproc: InprocPools):
    """A writer and an owner joined by a transport."""
    return join(request.param, make_node, make_pages, pool, inproc, PAGE_BYTES)


def join(transport: str, make_node, make_pages, pool: SharedPool, inproc, page_bytes: int):
    is_shared = transport == "shared_memory"
    pages = (
        pool.pages(page_bytes, NUM_PAGES)
        if is_shared
        else np.zeros((NUM_PAGES, page_bytes), np.uint8)
    )
    owner = make_node("d0", pages)
    writer = make_node("p0", make_pages(NUM_PAGES, page_bytes))
    if transport == "inproc":
        inproc.register("d0", pages)
    addresses = {"inproc": "d0", "zmq": owner.bulk.zmq_address}
    address = addresses.get(transport) or pool.serve(admits(owner.bulk))
    owner.bulk.admit_writer(writer.identity, transport)
    writer.bulk.open_peer("d0", 1, transport=transport, address=address, num_pages=NUM_PAGES)
    return writer, owner, transport


def admits(owner: BulkThread) -> Callable[[bytes, int, int], bool]:
    """Whoever asks may map the pool; its process is watched."""

    def admit(writer: bytes, pid: int, pidfd: int) -> bool:
        owner.watch_writer(writer, pid, pidfd)
        return True

    return admit


def verify(owner, write: WritePages, written: PagesWritten) -> PagesVerified:
    pages = write.target_pages
    owner.bulk.submit(VerifyPages(write.key, write.grant_id, pages, (written.chunk,)))
    event = owner.event()
    assert isinstance(event, PagesVerified)
    return event


def test_pages_arrive_and_verify(pair, make_write: Callable[..., WritePages]) -> None:
    writer, owner, transport = pair
    write = make_write("d0", SOURCES, TARGETS)
    owner.bulk.submit(OpenGrant(write.grant_id, writer.identity, TARGETS))
    writer.bulk.submit(write)
    written = writer.event()
    assert isinstance(written, PagesWritten)
    assert (written.key, written.chunk.first, written.chunk.num_pages) == (write.key, 0, 4)
    assert np.array_equal(owner.pages[list(TARGETS)], writer.pages[list(SOURCES)])
    untouched = sorted(set(range(NUM_PAGES)) - set(TARGETS))
    assert not owner.pages[untouched].any()
    assert verify(owner, write, written) == PagesVerified(write.key, write.grant_id, None)
    owner.bulk.submit(CloseGrant(write.grant_id))
    assert owner.event() == GrantClosed(write.grant_id, transport == "zmq")


def test_w19_a_flipped_bit_is_found(pair, make_write: Callable[..., WritePages]) -> None:
    writer, owner, _ = pair
    write = make_write("d0", SOURCES, TARGETS)
    owner.bulk.submit(OpenGrant(write.grant_id, writer.identity, TARGETS))
    writer.bulk.submit(write)
    written = writer.event()
    owner.pages[TARGETS[2], 777] ^= 1
    verified = verify(owner, write, written)
    assert verified.error is not None
    assert "checksum of pages 0 to 3" in verified.error


def test_w19_right_bytes_of_another_request_do_not_verify(pair, make_write) -> None:
    writer, owner, _ = pair
    write = make_write("d0", SOURCES, TARGETS)
    owner.bulk.submit(OpenGrant(write.grant_id, writer.identity, TARGETS))
    writer.bulk.submit(write)
    chunk = writer.event().chunk
    other_key = (b"other request id", 1)
    owner.bulk.submit(VerifyPages(other_key, write.grant_id, TARGETS, (chunk,)))
    assert owner.event().error is not None


def test_w19_pages_in_exchanged_places_do_not_verify(pair, make_write) -> None:
    writer, owner, _ = pair
    write = make_write("d0", SOURCES, TARGETS)
    owner.bulk.submit(OpenGrant(write.grant_id, writer.identity, TARGETS))
    writer.bulk.submit(write)
    written = writer.event()
    owner.pages[[TARGETS[0], TARGETS[1]]] = owner.pages[[TARGETS[1], TARGETS[0]]]
    assert verify(owner, write, written).error is not None


@pytest.mark.parametrize("transport", ["inproc", "shared_memory", "zmq"])
@pytest.mark.parametrize("page_bytes", [64, 1_300_000])
def test_pages_smaller_and_larger_than_a_chunk(
    transport: str, page_bytes: int, make_node, make_pages, make_write, pool, inproc
) -> None:
    writer, owner, _ = join(transport, make_node, make_pages, pool, inproc, page_bytes)
    sources, targets = tuple(range(1, 35)), tuple(range(35, 1, -1))
    owner.bulk.submit(OpenGrant(7, writer.identity, targets))
    first = make_write("d0", sources[:20], targets[:20])
    second = make_write("d0", sources[20:], targets[20:], first=20)
    writer.bulk.submit(first)
    writer.bulk.submit(second)
    chunks = tuple(writer.event().chunk for _ in range(2))
    assert np.array_equal(owner.pages[list(targets)], writer.pages[list(sources)])
    owner.bulk.submit(VerifyPages(first.key, 7, targets, chunks))
    assert owner.event() == PagesVerified(first.key, 7, None)


def test_every_write_is_answered_after_a_stop(pair, make_write) -> None:
    writer, owner, _ = pair
    pages = tuple(range(NUM_PAGES))
    owner.bulk.submit(OpenGrant(7, writer.identity, pages * 50))
    writes = [make_write("d0", pages, pages, first=i * NUM_PAGES) for i in range(50)]
    for write in writes:
        writer.bulk.submit(write)
    writer.bulk.submit(StopWriting(writes[0].key))
    answers = [writer.event() for _ in writes]
    assert {a.chunk.first if isinstance(a, PagesWritten) else a.first for a in answers} == {
        write.first for write in writes
    }
    assert isinstance(answers[-1], WriteFailed)
    assert writer.events.empty()


def test_a_closed_peer_fails_its_writes_and_can_be_opened_again(pair, make_write) -> None:
    writer, owner, _ = pair
    writer.bulk.close_peer("d0")
    writer.bulk.submit(make_write("d0", SOURCES, TARGETS))
    failed = writer.event()
    assert isinstance(failed, WriteFailed)
    assert "no pool of d0 incarnation 1 is open" in failed.reason
    writer.bulk.open_peer(
        "d0", 1, transport="zmq", address=owner.bulk.zmq_address, num_pages=NUM_PAGES
    )
    owner.bulk.admit_writer(writer.identity, "zmq")
    owner.bulk.submit(OpenGrant(8, writer.identity, TARGETS))
    writer.bulk.submit(make_write("d0", SOURCES, TARGETS, grant_id=8))
    assert isinstance(writer.event(), PagesWritten)


def test_a_restarted_owner_gets_nothing_that_its_predecessor_granted(pair, make_write) -> None:
    writer, owner, _ = pair
    owner.bulk.submit(OpenGrant(7, writer.identity, TARGETS))
    write = make_write("d0", SOURCES, TARGETS)
    earlier = msgspec.structs.replace(write.owner, incarnation=0)
    writer.bulk.submit(replace(write, owner=earlier))
    failed = writer.event()
    assert isinstance(failed, WriteFailed)
    assert "incarnation" in failed.reason
    assert not owner.pages.any()


@pytest.mark.parametrize("page", [NUM_PAGES, -1, 2**31, -(2**31)])
def test_w19_a_page_that_the_pool_has_not_is_refused(pair, make_write, page: int) -> None:
    """Also the scratch page behind the pool's last: only measuring may write there."""
    writer, owner, _ = pair
    writer.bulk.submit(make_write("d0", SOURCES, (*TARGETS[:3], page)))
    failed = writer.event()
    assert isinstance(failed, WriteFailed)
    assert f"page {page} of a pool of {NUM_PAGES}" in failed.reason
    writer.bulk.submit(make_read(SOURCES, (*TARGETS[:3], page)))
    unread = writer.event()
    assert isinstance(unread, ReadFailed)
    assert f"page {page} of a pool of {NUM_PAGES}" in unread.reason
    assert not owner.pages.any()


def make_read(own: tuple[int, ...], theirs: tuple[int, ...], request: int = 1) -> ReadPages:
    owner = NodeRef(node_id="d0", incarnation=1, epoch=1, control_address="tcp://x")
    return ReadPages((bytes([request]) * 16, 1), owner, 7, theirs, own)


@pytest.mark.parametrize("transport", ["inproc", "shared_memory", "zmq"])
@pytest.mark.parametrize("page_bytes", [64, PAGE_BYTES, 1_300_000])
def test_an_owners_pages_are_read(
    transport: str, page_bytes: int, make_node, make_pages, pool, inproc
) -> None:
    writer, owner, _ = join(transport, make_node, make_pages, pool, inproc, page_bytes)
    own, theirs = tuple(range(1, 35)), tuple(range(35, 1, -1))
    owner.pages[:] = make_pages(NUM_PAGES + 1, page_bytes)[1:]
    before = writer.pages[[0, 35]].copy()
    owner.bulk.submit(OpenGrant(7, writer.identity, (0,), theirs))
    writer.bulk.submit(make_read(own, theirs))
    done = writer.event()
    assert isinstance(done, PagesRead)
    assert 0 < done.seconds < 10
    assert np.array_equal(writer.pages[list(own)], owner.pages[list(theirs)])
    assert np.array_equal(writer.pages[[0, 35]], before)


def test_reads_end_with_a_stop_and_with_the_link(pair) -> None:
    """Each is answered once; what arrives late changes no page."""
    writer, owner, _ = pair
    pages = tuple(range(NUM_PAGES))
    owner.bulk.submit(OpenGrant(7, writer.identity, (), pages))
    reads = [make_read(pages, pages, request=1 + i % 2) for i in range(40)]
    for read in reads:
        writer.bulk.submit(read)
    writer.bulk.submit(StopWriting(reads[0].key))
    writer.bulk.close_peer("d0")
    answers = [writer.event() for _ in reads]
    assert {type(answer) for answer in answers} <= {PagesRead, ReadFailed}
    assert isinstance(answers[-1], ReadFailed)
    for key in {read.key for read in reads}:
        assert sum(answer.key == key for answer in answers) == 20
    assert writer.events.empty()


def test_an_unknown_transport_says_so(make_node, make_pages) -> None:
    node = make_node("p0", make_pages(2, 64))
    with pytest.raises(ValueError, match="cannot write pages over 'pigeon'"):
        node.bulk.open_peer("d0", 1, transport="pigeon", address="roof", num_pages=2)


def test_close_leaves_nothing_behind(make_pages, make_write, held) -> None:
    """Descriptors, threads and mappings after many nodes came and went."""
    before = held()
    for _ in range(3):
        during = run_a_pair_of_nodes(make_pages, make_write, held)
        assert during.mappings == 2
        assert during.threads.count("bulk") == 2
        assert during.threads.count("kv-descriptor") == 1
    assert held() == before


def run_a_pair_of_nodes(make_pages, make_write, held):
    """Shared memory and zmq between two nodes, closed with writes under way."""
    pool = SharedPool.create((NUM_PAGES + 1) * PAGE_BYTES)
    events: queue.Queue[BulkEvent] = queue.Queue()
    owner = BulkThread(
        pool.pages(PAGE_BYTES, NUM_PAGES), identity=b"d0", host="127.0.0.1", post=events.put
    )
    writer = BulkThread(
        make_pages(NUM_PAGES, PAGE_BYTES), identity=b"p0", host="127.0.0.1", post=events.put
    )
    owner.start()
    writer.start()
    address = pool.serve(admits(owner))
    writer.open_peer("d0", 1, transport="shared_memory", address=address, num_pages=NUM_PAGES)
    writer.open_peer("d1", 1, transport="zmq", address=owner.zmq_address, num_pages=NUM_PAGES)
    for owner_id in ("d0", "d1"):
        writer.submit(make_write(owner_id, SOURCES, TARGETS))
    assert isinstance(events.get(timeout=10), PagesWritten | WriteFailed)
    during = held()
    for closing in (writer, owner, pool):
        closing.close()
        closing.close()
    assert not writer.is_alive
    return during
