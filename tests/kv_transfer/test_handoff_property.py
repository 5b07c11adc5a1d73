"""Both hand-off machines over a network that loses, repeats and reorders, with copies in any order.

The world below owns a simulated memory: what a page holds is (key, position), so that a write that
lands in a page which is no longer the transfer's shows at once.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kv_transfer.actions import (
    ArrivalFailed,
    Arrived,
    CloseGrant,
    Committed,
    FirstToken,
    GrantClosed,
    IncomingAction,
    OpenGrant,
    OutgoingAction,
    PagesVerified,
    PagesWritten,
    ReplyToWriter,
    SendToOwner,
    SourceReleased,
    StopWriting,
    TransferFailed,
    TransferKey,
    VerifyPages,
    WriteFailed,
    WritePages,
)
from kv_transfer.incoming import IncomingTransfers
from kv_transfer.outgoing import OutgoingPhase, OutgoingTransfers
from node.ledger import PageLedger, PageState
from tandem.layout import KVLayout
from tandem.messages.common import NodeRef, PrefillReport
from tandem.messages.handoff import ChunkSum, Commit

PAGE_SIZE = 4
NUM_PAGES = 12
LEASE_S = 5.0
WRITER = b"writer/p0/1"
OWNER = NodeRef(node_id="d0", incarnation=1, epoch=1, control_address="tcp://d0")
LAYOUT = KVLayout(num_layers=1, num_kv_heads=1, head_dim=1, page_size=PAGE_SIZE, dtype="float32")
REPORT = PrefillReport(
    node_id="p0", started_after_s=0.0, first_token_after_s=0.1, num_cached_tokens=0
)
Cell = tuple[TransferKey, int]


@dataclass
class Source:
    """What the prefill guest knows of a transfer."""

    num_pages: int
    num_computed: int = 0
    finished: bool = False
    released: int = 0


@dataclass
class World:
    """Two nodes, the wires between them, and their memory."""

    is_mapped: bool
    ledger: PageLedger = field(default_factory=lambda: PageLedger(NUM_PAGES))
    now: float = 0.0
    to_owner: list[Any] = field(default_factory=list)
    to_writer: list[Any] = field(default_factory=list)
    copies: list[WritePages] = field(default_factory=list)  # asked for, not answered
    in_flight: list[tuple[int, int, Cell]] = field(default_factory=list)  # (grant, page, content)
    owner_bulk: list[VerifyPages | CloseGrant] = field(default_factory=list)
    receiver: dict[int, tuple[int, ...]] = field(default_factory=dict)  # grants open at the owner
    grant_of_page: dict[int, int] = field(default_factory=dict)
    memory: dict[int, Cell] = field(default_factory=dict)
    stopped: set[TransferKey] = field(default_factory=set)
    sources: dict[TransferKey, Source] = field(default_factory=dict)
    resident: dict[TransferKey, Arrived] = field(default_factory=dict)
    outcomes: Counter[TransferKey] = field(default_factory=Counter)
    ended_by_guest: set[TransferKey] = field(default_factory=set)
    committed: set[TransferKey] = field(default_factory=set)
    arrived: set[TransferKey] = field(default_factory=set)
    suspects: set[TransferKey] = field(default_factory=set)
    link_was_lost: bool = False

    def __post_init__(self) -> None:
        self.outgoing = OutgoingTransfers(PAGE_SIZE)
        self.incoming = IncomingTransfers(self.ledger, LAYOUT, incarnation=7, lease_s=LEASE_S)

    def writer_does(self, actions: list[OutgoingAction]) -> None:
        for action in actions:
            match action:
                case SendToOwner():
                    self.to_owner.append(action.message)
                case WritePages():
                    assert action.key not in self.stopped
                    assert not self.sources[action.key].released
                    self.copies.append(action)
                case StopWriting():
                    self.stopped.add(action.key)
                case SourceReleased():
                    self.sources[action.key].released += 1
                    busy = [copy for copy in self.copies if copy.key == action.key]
                    assert not busy, "source pages released while a copy runs"
                case Committed():
                    assert action.key not in self.committed
                    self.committed.add(action.key)
                case TransferFailed():
                    assert action.key not in self.committed

    def owner_does(self, actions: list[IncomingAction]) -> None:
        for action in actions:
            match action:
                case ReplyToWriter():
                    self.to_writer.append(action.message)
                case OpenGrant():
                    self.receiver[action.grant_id] = action.pages
                    for page in action.pages:
                        self.memory.pop(page, None)
                        self.grant_of_page[page] = action.grant_id
                case CloseGrant() | VerifyPages():
                    self.owner_bulk.append(action)
                case Arrived():
                    self.arrive(action)
                case ArrivalFailed():
                    assert action.key not in self.ended_by_guest, "the guest knows"
                    self.outcomes[action.key] += 1

    def arrive(self, arrived: Arrived) -> None:
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
            event: PagesWritten | WriteFailed = WriteFailed(copy.key, copy.first, "stopped")
        else:
            chunk = ChunkSum(
                first=copy.first, num_pages=len(copy.source_pages), checksum=b"12345678"
            )
            event = PagesWritten(copy.key, chunk)
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

    def assert_targets_are_its_own(self, copy: WritePages) -> None:
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
        if isinstance(request, CloseGrant):
            self.receiver.pop(request.grant_id, None)
            closed = GrantClosed(request.grant_id, remote_writer_stopped=not self.is_mapped)
            self.owner_does(self.incoming.bulk_event(closed, self.now))
            return
        self.receiver.pop(request.grant_id, None)
        found = [self.memory.get(page) for page in request.pages]
        expected = [(request.key, position) for position in range(len(request.pages))]
        error = None if found == expected else "checksums differ"
        assert error is None or request.key in self.suspects
        verified = PagesVerified(request.key, request.grant_id, error)
        self.owner_does(self.incoming.bulk_event(verified, self.now))

    def deliver_to_owner(self, index: int, keep: bool) -> None:
        message = self.to_owner[index] if keep else self.to_owner.pop(index)
        self.owner_does(self.incoming.handle(WRITER, message, self.now))

    def deliver_to_writer(self, index: int, keep: bool) -> None:
        message = self.to_writer[index] if keep else self.to_writer.pop(index)
        self.writer_does(self.outgoing.handle("d0", message, self.now))

    def compute(self, key: TransferKey, num_pages: int) -> None:
        source = self.sources[key]
        source.num_computed = min(source.num_computed + num_pages, source.num_pages)
        pages = range(100, 100 + source.num_computed)
        if source.num_computed < source.num_pages:
            self.writer_does(self.outgoing.pages_computed(key, pages, self.now))
            return
        source.finished = True
        first = FirstToken(5, None, REPORT)
        self.writer_does(self.outgoing.finish(key, pages, first, self.now))

    def release(self, key: TransferKey) -> None:
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


class HandOff(RuleBasedStateMachine):
    """Rules in any order; `is_mapped` is set by the subclasses."""

    is_mapped = True

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.is_mapped)
        self.num_started = 0

    def some_key(self, index: int) -> TransferKey:
        keys = list(self.world.sources)
        return keys[index % len(keys)]

    @rule(
        num_tokens=st.integers(1, 20),
        growth=st.integers(0, 16),
        request=st.integers(0, 5),
        deadline_s=st.sampled_from([None, None, 3.0]),
    )
    def start(self, num_tokens: int, growth: int, request: int, deadline_s: float | None) -> None:
        request_id = bytes([request]) * 16
        attempt = 1 + sum(key[0] == request_id for key in self.world.sources)
        key = (request_id, attempt)
        self.world.sources[key] = Source(-(-num_tokens // PAGE_SIZE))
        self.num_started += 1
        actions = self.world.outgoing.start(
            key,
            OWNER,
            num_tokens=num_tokens,
            max_total_tokens=num_tokens + growth,
            sequence=self.num_started,
            deadline_s=deadline_s,
            page_hashes=b"",
            now=self.world.now,
        )
        self.world.writer_does(actions)

    @precondition(lambda self: self.world.sources)
    @rule(index=st.integers(0, 50), num_pages=st.integers(1, 3))
    def compute(self, index: int, num_pages: int) -> None:
        key = self.some_key(index)
        if not self.world.sources[key].finished:
            self.world.compute(key, num_pages)

    @precondition(lambda self: self.world.to_owner)
    @rule(index=st.integers(0, 50), keep=st.booleans())
    def deliver_to_owner(self, index: int, keep: bool) -> None:
        self.world.deliver_to_owner(index % len(self.world.to_owner), keep)

    @precondition(lambda self: self.world.to_writer)
    @rule(index=st.integers(0, 50), keep=st.booleans())
    def deliver_to_writer(self, index: int, keep: bool) -> None:
        self.world.deliver_to_writer(index % len(self.world.to_writer), keep)

    @rule(rounds=st.integers(1, 3))
    def deliver_all(self, rounds: int) -> None:
        for _ in range(rounds):
            for _ in range(len(self.world.to_owner)):
                self.world.deliver_to_owner(0, keep=False)
            for _ in range(len(self.world.to_writer)):
                self.world.deliver_to_writer(0, keep=False)

    @precondition(lambda self: self.world.to_owner or self.world.to_writer)
    @rule(index=st.integers(0, 50))
    def lose(self, index: int) -> None:
        wire = self.world.to_owner if index % 2 else self.world.to_writer
        if wire:
            wire.pop(index % len(wire))

    @precondition(lambda self: self.world.copies)
    @rule(index=st.integers(0, 50), fails=st.integers(0, 9), corrupts=st.integers(0, 9))
    def finish_copy(self, index: int, fails: int, corrupts: int) -> None:
        copies = self.world.copies
        self.world.finish_copy(index % len(copies), fails == 9, corrupts == 9)

    @precondition(lambda self: self.world.in_flight)
    @rule(index=st.integers(0, 50))
    def receive(self, index: int) -> None:
        self.world.receive(index % len(self.world.in_flight))

    @precondition(lambda self: self.world.owner_bulk)
    @rule()
    def owner_bulk_step(self) -> None:
        self.world.owner_bulk_step()

    @precondition(lambda self: self.world.sources)
    @rule(index=st.integers(0, 50))
    def cancel_at_writer(self, index: int) -> None:
        key = self.some_key(index)
        self.world.writer_does(self.world.outgoing.cancel(key, self.world.now))

    @rule(request=st.integers(0, 5), attempt=st.integers(1, 3))
    def cancel_at_owner(self, request: int, attempt: int) -> None:
        key = (bytes([request]) * 16, attempt)
        self.world.ended_by_guest |= {(key[0], earlier) for earlier in range(1, attempt + 1)}
        self.world.owner_does(self.world.incoming.cancel(key, self.world.now))

    @precondition(lambda self: self.world.resident)
    @rule(index=st.integers(0, 50))
    def release(self, index: int) -> None:
        resident = list(self.world.resident)
        self.world.release(resident[index % len(resident)])

    @rule(dt=st.sampled_from([0.1, 0.6, 2.5, LEASE_S + 0.1]))
    def tick(self, dt: float) -> None:
        self.world.tick(dt)

    @rule(at_writer=st.booleans())
    def link_flaps(self, at_writer: bool) -> None:
        world = self.world
        world.link_was_lost = True
        if at_writer:
            world.writer_does(world.outgoing.peer_lost("d0", world.now))
        else:
            world.owner_does(world.incoming.writer_lost(WRITER, world.now))

    @invariant()
    def ledger_is_sound(self) -> None:
        self.world.ledger.check()

    @invariant()
    def no_page_is_reused_under_a_writer(self) -> None:
        for copy in self.world.copies:
            self.world.assert_targets_are_its_own(copy)

    @invariant()
    def an_open_receiver_covers_only_pages_of_its_grant(self) -> None:
        world = self.world
        for grant_id, pages in world.receiver.items():
            for page in pages:
                assert world.grant_of_page[page] == grant_id
                assert world.ledger.state(page) in (
                    PageState.GRANTED,
                    PageState.FILLING,
                    PageState.DRAINING,
                    PageState.QUARANTINED,
                )

    @invariant()
    def pages_of_residents_do_not_change(self) -> None:
        for key, arrived in self.world.resident.items():
            cells = [self.world.memory[page] for page in arrived.pages]
            assert cells == [(key, position) for position in range(len(cells))]

    @invariant()
    def each_attempt_has_at_most_one_outcome(self) -> None:
        assert all(count == 1 for count in self.world.outcomes.values())
        assert all(source.released <= 1 for source in self.world.sources.values())

    def teardown(self) -> None:
        world = self.world
        world.settle()
        world.ledger.check()
        assert world.ledger.counts().free == NUM_PAGES
        assert world.ledger.num_promised == 0
        assert all(source.released == 1 for source in world.sources.values())
        assert world.committed <= world.arrived


class MappedHandOff(HandOff):
    """The writer writes into the owner's pages: only it can say that it stopped."""


class ReceivedHandOff(HandOff):
    """The owner's own receiver writes: closing it is proof."""

    is_mapped = False


SETTINGS = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestMapped = MappedHandOff.TestCase
TestMapped.settings = SETTINGS
TestReceived = ReceivedHandOff.TestCase
TestReceived.settings = SETTINGS


@pytest.mark.parametrize("is_mapped", [True, False])
def test_a_quiet_network_hands_over_everything(is_mapped: bool) -> None:
    world = World(is_mapped)
    for request in range(8):
        key = (bytes([request]) * 16, 1)
        world.sources[key] = Source(3)
        world.writer_does(
            world.outgoing.start(
                key,
                OWNER,
                num_tokens=11,
                max_total_tokens=20,
                sequence=request,
                deadline_s=None,
                page_hashes=b"",
                now=0.0,
            )
        )
    world.settle()
    assert len(world.arrived) == len(world.committed) == 8
    assert world.ledger.counts().free == NUM_PAGES


def test_the_world_notices_a_writer_that_goes_on_after_drained() -> None:
    """The check itself: a page given away under a running copy must be seen."""
    world = World(is_mapped=True)
    key = (b"r" * 16, 1)
    world.sources[key] = Source(1)
    start = world.outgoing.start(
        key,
        OWNER,
        num_tokens=4,
        max_total_tokens=4,
        sequence=0,
        deadline_s=None,
        page_hashes=b"",
        now=0.0,
    )
    world.writer_does(start)
    world.deliver_to_owner(0, keep=False)
    world.deliver_to_writer(0, keep=False)
    world.compute(key, 1)
    copy = world.copies[0]
    assert world.outgoing.live()[key] is OutgoingPhase.WRITING
    world.ledger.move(copy.target_pages, PageState.DRAINING)
    world.ledger.release(copy.target_pages)
    with pytest.raises(AssertionError):
        world.assert_targets_are_its_own(copy)
    assert not any(isinstance(message, Commit) for message in world.to_owner)
