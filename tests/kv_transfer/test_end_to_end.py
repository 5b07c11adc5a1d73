"""Both machines, both bulk threads, real bytes, real wire format: a hand-off from start to end."""

import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from kv_transfer import actions as kv
from kv_transfer.incoming import IncomingTransfers
from kv_transfer.inproc import InprocPools
from kv_transfer.outgoing import OutgoingTransfers
from kv_transfer.shared_memory import SharedPool
from node.ledger import PageLedger, PageState
from node.page_pool import PagePool
from tandem.codec import Decoder, encode
from tandem.layout import KVLayout
from tandem.messages.common import NodeRef, PrefillReport
from tandem.messages.handoff import FromOwner, FromWriter

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=16, page_size=4, dtype="float32")
NUM_PAGES = 24
OWNER = NodeRef(node_id="d0", incarnation=1, epoch=1, control_address="tcp://d0")
REPORT = PrefillReport(
    node_id="p0", started_after_s=0.0, first_token_after_s=0.1, num_cached_tokens=0
)


class Pair:
    """A writer and an owner whose control messages pass through the codec at once."""

    def __init__(self, writer: Any, owner: Any) -> None:
        self.writer, self.owner = writer, owner
        self.ledger = PageLedger(NUM_PAGES)
        self.outgoing = OutgoingTransfers(LAYOUT.page_size)
        self.incoming = IncomingTransfers(PagePool(self.ledger), LAYOUT, incarnation=1)
        self.to_owner: Decoder[Any] = Decoder(FromWriter)
        self.to_writer: Decoder[Any] = Decoder(FromOwner)
        self.seen: list[Any] = []
        self.now = 0.0

    def writer_does(self, actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, kv.SendToOwner):
                message = self.to_owner.decode(encode(action.message))
                self.owner_does(self.incoming.handle(self.writer.identity, message, self.now))
            elif isinstance(action, kv.WritePages | kv.StopWriting):
                self.writer.bulk.submit(action)
            else:
                self.seen.append(action)

    def owner_does(self, actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, kv.ReplyToWriter):
                message = self.to_writer.decode(encode(action.message))
                self.writer_does(self.outgoing.handle("d0", message, self.now))
            elif isinstance(action, kv.OpenGrant | kv.CloseGrant | kv.VerifyPages):
                self.owner.bulk.submit(action)
            else:
                self.seen.append(action)
        self.ledger.check()

    def run_until(self, is_done: Callable[[], bool]) -> None:
        """Pass bulk events on; time for the machines goes on ten times as fast."""
        begin = time.monotonic()
        while not is_done():
            assert time.monotonic() < begin + 15, (self.seen, self.incoming.live())
            self.now += 0.01
            self.pass_on(self.writer.events, self.outgoing, self.writer_does)
            self.pass_on(self.owner.events, self.incoming, self.owner_does)
            self.writer_does(self.outgoing.tick(self.now))
            self.owner_does(self.incoming.tick(self.now))

    def pass_on(self, events: "queue.Queue[Any]", machine: Any, obey: Any) -> None:
        try:
            obey(machine.bulk_event(events.get(timeout=0.001), self.now))
        except queue.Empty:
            return

    def start(self, key: kv.TransferKey, num_tokens: int) -> None:
        actions = self.outgoing.start(
            key,
            OWNER,
            num_tokens=num_tokens,
            max_total_tokens=num_tokens + 8,
            sequence=key[0][0],
            deadline_s=None,
            page_hashes=b"",
            gateway=b"g",
            now=self.now,
        )
        self.writer_does(actions)

    def arrived(self) -> list[kv.Arrived]:
        return [action for action in self.seen if isinstance(action, kv.Arrived)]

    def wait_for_arrival(self, number: int) -> kv.Arrived:
        self.run_until(lambda: len(self.arrived()) > number)
        return self.arrived()[number]

    def release(self, arrived: kv.Arrived) -> None:
        self.ledger.move(arrived.pages, PageState.ACTIVE)
        self.ledger.release(arrived.pages)
        self.ledger.unpromise(arrived.num_promised)
        self.owner_does(self.incoming.pages_freed(self.now))


@pytest.fixture(params=["inproc", "shared_memory", "zmq"])
def pair(request, make_node, make_pages, inproc: InprocPools) -> Iterator[Pair]:
    transport = request.param
    pool = SharedPool.create((NUM_PAGES + 1) * LAYOUT.page_bytes) if transport != "inproc" else None
    pages = np.zeros((NUM_PAGES, LAYOUT.page_bytes), np.uint8)
    owner = make_node("d0", pages if pool is None else pool.pages(LAYOUT.page_bytes, NUM_PAGES))
    writer = make_node("p0", make_pages(64, LAYOUT.page_bytes))
    if pool is None:
        inproc.register("pool", pages)

    def admit(identity: bytes, pid: int, pidfd: int) -> bool:
        owner.bulk.watch_writer(identity, pid, pidfd)
        return True

    addresses = {"inproc": "pool", "zmq": owner.bulk.zmq_address}
    address = addresses.get(transport) or (pool.serve(admit) if pool is not None else "")
    owner.bulk.admit_writer(writer.identity, transport)
    writer.bulk.open_peer("d0", 1, transport=transport, address=address, num_pages=NUM_PAGES)
    yield Pair(writer, owner)
    if pool is not None:
        pool.close()


def test_chunked_prompts_arrive_exact_while_more_wait_for_pages(pair: Pair) -> None:
    """Six prompts of 7 pages each, in three chunks, through a pool that holds two of them."""
    sources = {}
    for number in range(6):
        key = (bytes([number]) * 16, 1)
        sources[key] = [(number * 7 + i * 5) % 64 for i in range(7)]
        pair.start(key, 27)
    for key, pages in sources.items():
        pair.writer_does(pair.outgoing.pages_computed(key, pages[:2], pair.now))
        pair.writer_does(pair.outgoing.pages_computed(key, pages[:5], pair.now))
        first = kv.FirstToken(11, None, REPORT)
        pair.writer_does(pair.outgoing.finish(key, pages, first, pair.now))
    for number in range(6):
        arrived = pair.wait_for_arrival(number)
        expected = pair.writer.pages[sources[arrived.key]]
        assert np.array_equal(pair.owner.pages[list(arrived.pages)], expected)
        pair.release(arrived)
    pair.run_until(lambda: not pair.outgoing.live() and not pair.incoming.live())
    assert pair.ledger.counts().free == NUM_PAGES
    for kind in (kv.Committed, kv.SourceReleased):
        assert {a.key for a in pair.seen if isinstance(a, kind)} == set(sources)
    assert not [a for a in pair.seen if isinstance(a, kv.TransferFailed | kv.ArrivalFailed)]


@pytest.mark.parametrize("who", ["writer", "owner"])
def test_a_cancel_in_the_middle_returns_every_page(pair: Pair, who: str) -> None:
    key = (b"c" * 16, 1)
    pair.start(key, 40)
    pair.writer_does(pair.outgoing.pages_computed(key, list(range(9)), pair.now))
    if who == "writer":
        pair.writer_does(pair.outgoing.cancel(key, pair.now))
    else:
        pair.owner_does(pair.incoming.cancel(key, pair.now))
    pair.run_until(lambda: not pair.outgoing.live() and not pair.incoming.live())
    assert pair.ledger.counts().free == NUM_PAGES
    assert pair.arrived() == []
    assert [a for a in pair.seen if isinstance(a, kv.SourceReleased)] == [kv.SourceReleased(key)]


def test_a_byte_that_changes_on_the_way_fails_both_sides(pair: Pair) -> None:
    key = (b"x" * 16, 1)
    pair.start(key, 8)
    (opened,) = pair.incoming.live().values()
    assert opened.value == "open"
    pair.writer_does(pair.outgoing.pages_computed(key, [3], pair.now))
    written = pair.writer.event()
    target = next(page for page in range(NUM_PAGES) if pair.owner.pages[page].any())
    pair.owner.pages[target, 100] ^= 4
    pair.writer_does(pair.outgoing.bulk_event(written, pair.now))
    first = kv.FirstToken(11, None, REPORT)
    pair.writer_does(pair.outgoing.finish(key, [3, 4], first, pair.now))
    pair.run_until(lambda: not pair.outgoing.live() and not pair.incoming.live())
    failures = [a for a in pair.seen if isinstance(a, kv.TransferFailed | kv.ArrivalFailed)]
    assert len(failures) == 2
    assert all("checksum of pages 0 to 0 differs" in failure.message for failure in failures)
    assert pair.ledger.counts().free == NUM_PAGES
