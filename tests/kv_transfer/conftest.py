"""Nodes in miniature: a pool, a bulk thread, and the events it posted."""

import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from kv_transfer.actions import BulkEvent, WritePages
from kv_transfer.bulk import BulkThread
from kv_transfer.checksum import PageArray
from kv_transfer.inproc import InprocPools
from tandem.messages.common import NodeRef

EVENT_S = 10.0


@dataclass
class MiniNode:
    """A pool and its bulk thread; `identity` is that of its control links."""

    pages: PageArray
    bulk: BulkThread
    identity: bytes
    events: "queue.Queue[BulkEvent]" = field(default_factory=queue.Queue)

    def event(self) -> BulkEvent:
        """The next event of the bulk thread."""
        return self.events.get(timeout=EVENT_S)


@pytest.fixture
def inproc() -> InprocPools:
    return InprocPools()


@pytest.fixture
def make_node(inproc: InprocPools) -> Iterator[Callable[..., MiniNode]]:
    """`make_node(name, pages)` starts a bulk thread over the pages; all are closed at the end."""
    nodes: list[MiniNode] = []

    def make(name: str, pages: PageArray) -> MiniNode:
        events: queue.Queue[BulkEvent] = queue.Queue()
        identity = f"node/{name}/1".encode()
        bulk = BulkThread(
            pages, identity=identity, host="127.0.0.1", post=events.put, inproc=inproc
        )
        bulk.start()
        nodes.append(MiniNode(pages, bulk, identity, events))
        return nodes[-1]

    yield make
    for node in nodes:
        node.bulk.close()
        vars(node).clear()  # shared memory goes with the last array on it


@pytest.fixture
def make_pages() -> Callable[..., PageArray]:
    """`make_pages(num_pages, page_bytes)`: random bytes, the same at every run."""

    def make(num_pages: int, page_bytes: int) -> PageArray:
        return np.random.default_rng(num_pages).integers(
            0, 256, (num_pages, page_bytes), dtype=np.uint8
        )

    return make


@pytest.fixture
def make_write() -> Callable[..., WritePages]:
    """`make_write(owner_id, sources, targets, ...)`: a request to the bulk thread."""

    def make(
        owner_id: str,
        sources: tuple[int, ...],
        targets: tuple[int, ...],
        *,
        grant_id: int = 7,
        first: int = 0,
        request: int = 1,
    ) -> WritePages:
        owner = NodeRef(node_id=owner_id, incarnation=1, epoch=1, control_address="tcp://x")
        key = (bytes([request]) * 16, 1)
        return WritePages(key, owner, grant_id, first, sources, targets)

    return make


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
