"""Memory is there before it is written, and what it holds does not change."""

import mmap

import numpy as np
import pytest

from kv_transfer.backing import SLICE_BYTES, Backing, populate
from kv_transfer.checksum import PageArray
from kv_transfer.transport import MappedPool

PAGE_BYTES = 96 << 10
NUM_PAGES = 8


@pytest.fixture
def pages() -> PageArray:
    """Pages that nobody has touched."""
    memory = mmap.mmap(-1, NUM_PAGES * PAGE_BYTES)
    return np.frombuffer(memory, np.uint8).reshape(NUM_PAGES, PAGE_BYTES)


def num_resident_bytes(pages: PageArray) -> int:
    """Of the mapping that begins there."""
    with open("/proc/self/smaps", encoding="ascii") as smaps:
        lines = iter(smaps)
        for line in lines:
            if line.startswith(f"{pages.ctypes.data:x}-"):
                return next(int(rest.split()[1]) << 10 for rest in lines if rest[:4] == "Rss:")
    raise AssertionError("no such mapping")


def test_wanted_pages_get_their_memory_slice_by_slice(pages: PageArray) -> None:
    backing = Backing(pages)
    backing.want((6, 1, 3))
    assert num_resident_bytes(pages) == 0
    backing.advance()
    assert num_resident_bytes(pages) == SLICE_BYTES // PAGE_BYTES * PAGE_BYTES
    while not backing.is_idle:
        backing.advance()
    assert num_resident_bytes(pages) == 3 * PAGE_BYTES
    assert pages.max() == 0


def test_pages_are_asked_for_once(pages: PageArray, monkeypatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("kv_transfer.backing.populate", lambda address, _: asked.append(address))
    backing = Backing(pages)
    backing.want((1, 2))
    backing.ask((2, 5))
    while not backing.is_idle:
        backing.advance()
    backing.want((5, 1))
    assert backing.is_idle
    backing.ask((5, 2, 1))
    assert asked == [pages[page].ctypes.data for page in (2, 5, 1)]


def test_the_first_pages_are_got_ready_and_granted_ones_before_them(
    pages: PageArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("kv_transfer.backing.populate", lambda address, _: asked.append(address))
    monkeypatch.setattr("kv_transfer.backing.READY_BYTES", 4 * PAGE_BYTES + 1)
    backing = Backing(pages)
    backing.want_first()
    backing.advance()
    backing.want((7, 0, 3))
    while not backing.is_idle:
        backing.advance()
    per_slice = SLICE_BYTES // PAGE_BYTES
    order = [*range(per_slice), *(page for page in (7, 3) if page >= per_slice)]
    order += [page for page in range(4) if page not in order]
    assert asked == [pages[page].ctypes.data for page in order]


def test_what_memory_holds_stays(pages: PageArray) -> None:
    pages[:] = 7
    assert populate(pages[1].ctypes.data + 5, PAGE_BYTES)
    assert (pages.min(), pages.max()) == (7, 7)
    assert not populate(0, 4096), "no memory of ours"


def test_a_write_prepares_later_pages(pages: PageArray, make_write) -> None:
    own = np.ones((2, PAGE_BYTES), np.uint8)
    pool = MappedPool(own, pages)
    write = make_write("d0", (0,), (4,), later=(2, 7))
    pool.submit(write, 0.0)
    assert len(pool.advance(0.0)) == 1
    assert [pool.advance(0.0) for _ in range(2)] == [[], []]
    assert pool.patience_ms is None
    assert num_resident_bytes(pages) == 3 * PAGE_BYTES
    assert pages.sum() == PAGE_BYTES
    pool.submit(make_write("d0", (0,), (4,), later=(0, 1, 3)), 0.0)
    assert len(pool.close("done")) == 1
    assert pool.patience_ms is None
