"""Nodes in miniature: bulk threads over pools, an audited owner, a world of two simulated nodes."""

import queue
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest

from kv_transfer import actions as kv
from kv_transfer.bulk import BulkThread
from kv_transfer.checksum import PageArray
from kv_transfer.incoming import IncomingTransfers
from kv_transfer.inproc import InprocPools
from kv_transfer.outgoing import OutgoingTransfers
from node.ledger import PageLedger, PageState
from node.page_pool import PagePool
from tandem.layout import KVLayout
from tandem.messages.common import NodeRef, PrefillReport
from tandem.messages.handoff import ChunkSum, FromWriter

EVENT_S = 10.0
PAGE_SIZE = 4
NUM_PAGES = 12
LEASE_S = 5.0
WRITER = b"writer/p0/1"
OWNER = NodeRef(node_id="d0", incarnation=1, epoch=1, control_address="tcp://d0")
LAYOUT = KVLayout(num_layers=1, num_kv_heads=1, head_dim=1, page_size=PAGE_SIZE, dtype="float32")
PAGE_OF_64 = msgspec.structs.replace(LAYOUT, head_dim=2)
REPORT = PrefillReport(
    node_id="p0", started_after_s=0.0, first_token_after_s=0.1, num_cached_tokens=0
)
Cell = tuple[kv.TransferKey, int]


@dataclass
class MiniNode:
    """A pool and its bulk thread; `identity` is that of its control links."""

    pages: PageArray
    bulk: BulkThread
    identity: bytes
    events: "queue.Queue[kv.BulkEvent]" = field(default_factory=queue.Queue)

    def event(self) -> kv.BulkEvent:
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
        events: queue.Queue[kv.BulkEvent] = queue.Queue()
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
def make_write() -> Callable[..., kv.WritePages]:
    """`make_write(owner_id, sources, targets, ...)`: a request to the bulk thread."""

    def make(
        owner_id: str,
        sources: tuple[int, ...],
        targets: tuple[int, ...],
        *,
        grant_id: int = 7,
        first: int = 0,
        request: int = 1,
        later: tuple[int, ...] = (),
    ) -> kv.WritePages:
        owner = NodeRef(node_id=owner_id, incarnation=1, epoch=1, control_address="tcp://x")
        key = (bytes([request]) * 16, 1)
        return kv.WritePages(key, owner, grant_id, first, sources, targets, later)

    return make


class Owner:
    """The machine with its ledger; every call audits the ledger."""

    def __init__(self, num_pages: int = 8, *, incarnation: int = 5, **options: int) -> None:
        self.ledger = PageLedger(num_pages)
        self.pool = PagePool(self.ledger)
        self.layout = PAGE_OF_64
        self.machine = IncomingTransfers(
            self.pool, PAGE_OF_64, incarnation=incarnation, lease_s=10.0, **options
        )

    def hear(self, message: FromWriter, now: float = 0.0, writer: bytes = b"node/p0/1") -> list:
        return self.audited(self.machine.handle(writer, message, now))

    def bulk(self, event: kv.BulkEvent, now: float = 0.0) -> list:
        return self.audited(self.machine.bulk_event(event, now))

    def cancel(self, key: kv.TransferKey = (b"r" * 16, 2), now: float = 0.0) -> list:
        return self.audited(self.machine.cancel(key, now))

    def tick(self, now: float) -> list:
        return self.audited(self.machine.tick(now))

    def audited(self, actions: list[kv.IncomingAction]) -> list:
        self.ledger.check()
        return actions


@pytest.fixture
def make_owner() -> Callable[..., Owner]:
    """`make_owner(num_pages, ...)`."""
    return Owner


@pytest.fixture
def owner() -> Iterator[Owner]:
    """An owner of eight pages, audited at the end."""
    owner = Owner()
    yield owner
    owner.ledger.check()


@dataclass
class Source:
    """What the prefill guest knows of a transfer."""

    num_pages: int
    num_computed: int = 0
    finished: bool = False
    released: int = 0


@dataclass
class World:
    """Two nodes, the wires between them, and their memory.

    What a page holds is (key, position), so that a write that lands in a page which is no longer
    the transfer's shows at once.
    """

    is_mapped: bool
    ledger: PageLedger = field(default_factory=lambda: PageLedger(NUM_PAGES))
    now: float = 0.0
    to_owner: list[Any] = field(default_factory=list)
    to_writer: list[Any] = field(default_factory=list)
    copies: list[kv.WritePages] = field(default_factory=list)  # asked for, not answered
    in_flight: list[tuple[int, int, Cell]] = field(default_factory=list)  # (grant, page, content)
    owner_bulk: list[kv.VerifyPages | kv.CloseGrant] = field(default_factory=list)
    receiver: dict[int, tuple[int, ...]] = field(default_factory=dict)  # grants open at the owner
    grant_of_page: dict[int, int] = field(default_factory=dict)
    memory: dict[int, Cell] = field(default_factory=dict)
    stopped: set[kv.TransferKey] = field(default_factory=set)
    sources: dict[kv.TransferKey, Source] = field(default_factory=dict)
    resident: dict[kv.TransferKey, kv.Arrived] = field(default_factory=dict)
    outcomes: Counter[kv.TransferKey] = field(default_factory=Counter)
    ended_by_guest: set[kv.TransferKey] = field(default_factory=set)
    committed: set[kv.TransferKey] = field(default_factory=set)
    arrived: set[kv.TransferKey] = field(default_factory=set)
    suspects: set[kv.TransferKey] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.outgoing = OutgoingTransfers(PAGE_SIZE)
        self.incoming = IncomingTransfers(
            PagePool(self.ledger), LAYOUT, incarnation=OWNER.incarnation, lease_s=LEASE_S
        )

    def start(
        self, key: kv.TransferKey, num_tokens: int, growth: int, deadline_s: float | None
    ) -> None:
        self.sources[key] = Source(-(-num_tokens // PAGE_SIZE))
        actions = self.outgoing.start(
            key,
            OWNER,
            num_tokens=num_tokens,
            max_total_tokens=num_tokens + growth,
            sequence=len(self.sources),
            deadline_s=deadline_s,
            page_hashes=b"",
            gateway=b"g",
            now=self.now,
        )
        self.writer_does(actions)

    def writer_does(self, actions: list[kv.OutgoingAction]) -> None:
        for action in actions:
            match action:
                case kv.SendToOwner():
                    self.to_owner.append(action.message)
                case kv.WritePages():
                    assert action.key not in self.stopped
                    assert not self.sources[action.key].released
                    self.copies.append(action)
                case kv.StopWriting():
                    self.stopped.add(action.key)
                case kv.SourceReleased():
                    self.sources[action.key].released += 1
                    busy = [copy for copy in self.copies if copy.key == action.key]
                    assert not busy, "source pages released while a copy runs"
                case kv.Committed():
                    assert action.key not in self.committed
                    self.committed.add(action.key)
                case kv.TransferFailed():
                    assert action.key not in self.committed

    def owner_does(self, actions: list[kv.IncomingAction]) -> None:
        for action in actions:
            match action:
                case kv.ReplyToWriter():
                    self.to_writer.append(action.message)
                case kv.OpenGrant():
                    self.receiver[action.grant_id] = action.pages
                    for page in action.pages:
                        self.memory.pop(page, None)
                        self.grant_of_page[page] = action.grant_id
                case kv.CloseGrant() | kv.VerifyPages():
                    self.owner_bulk.append(action)
                case kv.Arrived():
                    self.arrive(action)
                case kv.ArrivalFailed():
                    assert action.key not in self.ended_by_guest, "the guest knows"
                    self.outcomes[action.key] += 1

    def arrive(self, arrived: kv.Arrived) -> None:
        assert arrived.key not in self.ended_by_guest
        self.outcomes[arrived.key] += 1
        self.arrived.add(arrived.key)
        for position, page in enumerate(arrived.pages):
            assert self.memory[page] == (arrived.key, position)
            assert self.ledger.state(page) is PageState.READY
        self.resident[arrived.key] = arrived

    def finish_copy(self, index: int, fails: bool, corrupts: bool) -> None:
        copy = self.copies[index]
        self.assert_targets_are_its_own(copy)
        for offset, page in enumerate(copy.target_pages):
            cell: Cell = (copy.key, copy.first + offset)
            if corrupts:
                cell = (copy.key, 1000)
                self.suspects.add(copy.key)
            if self.is_mapped:
                self.memory[page] = cell
            else:
                self.in_flight.append((copy.grant_id, page, cell))
        if not self.is_mapped and not fails and copy.key not in self.stopped:
            while any(grant == copy.grant_id for grant, _, _ in self.in_flight):
                fails |= not self.receive_first_of(copy.grant_id)
        del self.copies[index]
        if fails or copy.key in self.stopped:
            event: kv.PagesWritten | kv.WriteFailed = kv.WriteFailed(
                copy.key, copy.first, "stopped"
            )
        else:
            chunk = ChunkSum(
                first=copy.first, num_pages=len(copy.source_pages), checksum=b"12345678"
            )
            event = kv.PagesWritten(copy.key, chunk)
        self.writer_does(self.outgoing.bulk_event(event, self.now))

    def receive_first_of(self, grant_id: int) -> bool:
        index = next(i for i, (grant, _, _) in enumerate(self.in_flight) if grant == grant_id)
        return self.receive(index)

    def receive(self, index: int) -> bool:
        """The owner's receiver takes a chunk, where its grant is open."""
        grant_id, page, cell = self.in_flight.pop(index)
        if grant_id not in self.receiver:
            return False
        assert self.grant_of_page[page] == grant_id
        assert self.ledger.state(page) not in (PageState.FREE, PageState.READY, PageState.ACTIVE)
        self.memory[page] = cell
        return True

    def assert_targets_are_its_own(self, copy: kv.WritePages) -> None:
        """The key invariant: nobody else has a page that a mapped writer may be touching."""
        if not self.is_mapped:
            return
        for page in copy.target_pages:
            assert self.grant_of_page[page] == copy.grant_id
            assert self.ledger.state(page) in (
                PageState.GRANTED,
                PageState.FILLING,
                PageState.DRAINING,
            )

    def owner_bulk_step(self) -> None:
        """The bulk thread of the owner serves requests in order."""
        request = self.owner_bulk.pop(0)
        if isinstance(request, kv.CloseGrant):
            self.receiver.pop(request.grant_id, None)
            closed = kv.GrantClosed(request.grant_id, remote_writer_stopped=not self.is_mapped)
            self.owner_does(self.incoming.bulk_event(closed, self.now))
            return
        self.receiver.pop(request.grant_id, None)
        found = [self.memory.get(page) for page in request.pages]
        expected = [(request.key, position) for position in range(len(request.pages))]
        error = None if found == expected else "checksums differ"
        assert error is None or request.key in self.suspects
        verified = kv.PagesVerified(request.key, request.grant_id, error)
        self.owner_does(self.incoming.bulk_event(verified, self.now))

    def deliver_to_owner(self, index: int, keep: bool) -> None:
        message = self.to_owner[index] if keep else self.to_owner.pop(index)
        self.owner_does(self.incoming.handle(WRITER, message, self.now))

    def deliver_to_writer(self, index: int, keep: bool) -> None:
        message = self.to_writer[index] if keep else self.to_writer.pop(index)
        self.writer_does(self.outgoing.handle("d0", message, self.now))

    def compute(self, key: kv.TransferKey, num_pages: int) -> None:
        source = self.sources[key]
        source.num_computed = min(source.num_computed + num_pages, source.num_pages)
        pages = range(100, 100 + source.num_computed)
        if source.num_computed < source.num_pages:
            self.writer_does(self.outgoing.pages_computed(key, pages, self.now))
            return
        source.finished = True
        first = kv.FirstToken(5, None, REPORT)
        self.writer_does(self.outgoing.finish(key, pages, first, self.now))

    def release(self, key: kv.TransferKey) -> None:
        """The decode guest is through with a request."""
        arrived = self.resident.pop(key)
        for position, page in enumerate(arrived.pages):
            assert self.memory[page] == (key, position), "pages changed after they arrived"
        self.ledger.move(arrived.pages, PageState.ACTIVE)
        self.ledger.release(arrived.pages)
        self.ledger.unpromise(arrived.num_promised)
        self.owner_does(self.incoming.pages_freed(self.now))

    def tick(self, dt: float) -> None:
        self.now += dt
        self.writer_does(self.outgoing.tick(self.now))
        self.owner_does(self.incoming.tick(self.now))

    def settle(self) -> None:
        """A kind network, prompt copies, guests that finish: everything must come to its end."""
        for _ in range(400):
            while self.to_owner:
                self.deliver_to_owner(0, keep=False)
            while self.to_writer:
                self.deliver_to_writer(0, keep=False)
            while self.copies:
                self.finish_copy(0, fails=False, corrupts=False)
            while self.in_flight:
                self.receive(0)
            while self.owner_bulk:
                self.owner_bulk_step()
            for key in list(self.resident):
                self.release(key)
            for key, source in self.sources.items():
                if not source.finished:
                    self.compute(key, 1)
            self.tick(0.3)
            if self.is_quiet():
                return
        pytest.fail(f"not quiet: {self.outgoing.live()} {self.incoming.live()}")

    def is_quiet(self) -> bool:
        wires = self.to_owner or self.to_writer or self.copies or self.owner_bulk or self.in_flight
        live = self.outgoing.live() or self.incoming.live() or self.outgoing.num_unacknowledged
        return not (wires or live or self.resident)


@pytest.fixture
def make_world() -> Callable[[bool], World]:
    """`make_world(is_mapped)`."""
    return World
