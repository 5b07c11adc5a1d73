"""A whole node's bulk side, from the first hello over measured transports to pages."""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from kv_transfer.actions import (
    OpenGrant,
    PagesRead,
    PagesVerified,
    PagesWritten,
    ReadPages,
    VerifyPages,
    WritePages,
)
from kv_transfer.exchange import BulkExchange
from kv_transfer.shared_memory import SharedPool
from node.core import FromBulk
from node.state import NodeIdentity
from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity, NodeRef
from tandem.messages.handoff import ChunkSum, OwnerRefused, OwnerWelcome, TransportOffer
from tandem.sockets import peer_identity

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=8, page_size=16, dtype="float32")
MODEL = ModelIdentity(
    served_name="m",
    weights_fingerprint="w1",
    tokenizer_fingerprint="t1",
    dtype="float32",
    max_model_len=128,
    vocab_size=100,
)
NUM_PAGES = 6
WRITER = peer_identity("node", "p0", 1)
OWNER = NodeRef(node_id="d0", incarnation=1, epoch=1, control_address="tcp://d0")
KEY = (b"k" * 16, 1)


class Node:
    """A `BulkExchange` over a pool of its own, and the events it offered."""

    def __init__(
        self,
        name: str,
        transport: str,
        run_dir: Path,
        *,
        num_refusals: int = 0,
        failed: Any = None,
        encrypt: bool = False,
    ) -> None:
        self.name = name
        self.pool = SharedPool.create((NUM_PAGES + 1) * LAYOUT.page_bytes)
        self.pages = self.pool.pages(LAYOUT.page_bytes, NUM_PAGES + 1)
        self.events: queue.Queue[FromBulk] = queue.Queue()
        self.num_refusals = num_refusals
        self.exchange = BulkExchange(
            NodeIdentity(name, 1, MODEL, LAYOUT, ()),
            self.pool,
            num_pages=NUM_PAGES,
            transport=transport,
            host="127.0.0.1",
            run_dir=run_dir,
            encrypt_bulk=encrypt,
        )
        self.exchange.start(self.take, failed)

    def take(self, event: FromBulk) -> bool:
        if self.num_refusals:
            self.num_refusals -= 1
            return False
        self.events.put(event)
        return True

    def welcomes(self, writer: "Node", chosen: str | None = None) -> OwnerWelcome:
        welcome = self.exchange.answer(WRITER, writer.exchange.hello(4, chosen))
        assert isinstance(welcome, OwnerWelcome), welcome
        return welcome


@pytest.fixture
def make_exchange(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def make(name: str, transport: str = "auto", **options: Any) -> Node:
        nodes.append(Node(name, transport, tmp_path, **options))
        return nodes[-1]

    yield make
    for node in nodes:
        node.exchange.close()
        vars(node).clear()
    assert list(tmp_path.iterdir()) == []


def join(writer: Node, owner: Node) -> str:
    """The whole negotiation; the transport."""
    chosen = writer.exchange.open_owner(owner.welcomes(writer))
    assert not owner.exchange.is_admitted(WRITER)
    assert owner.welcomes(writer, chosen).transport == chosen
    assert owner.exchange.is_admitted(WRITER)
    return chosen


@pytest.mark.parametrize("encrypt", [False, True])
@pytest.mark.parametrize("transport", ["auto", "zmq", "shared_memory"])
def test_from_hello_to_verified_and_read_pages(
    make_exchange, transport: str, encrypt: bool
) -> None:
    writer = make_exchange("p0", transport, num_refusals=3, encrypt=encrypt)
    owner = make_exchange("d0", encrypt=encrypt)
    chosen = join(writer, owner)
    assert transport in ("auto", chosen)
    assert not owner.exchange.is_admitted(peer_identity("node", "p0", 2))
    writer.pages[:] = np.arange(NUM_PAGES + 1, dtype=np.uint8)[:, None] + 1
    owner.pages[3] = 77
    owner.exchange.submit(OpenGrant(3, WRITER, (5, 0), (3,)))
    writer.exchange.submit(WritePages(KEY, OWNER, 3, 0, (1, 2), (5, 0)))
    sent = writer.events.get(timeout=10)  # the queue was full three times before
    assert sent.is_write
    assert isinstance(sent.event, PagesWritten)
    writer.exchange.submit(ReadPages(KEY, OWNER, 3, (3,), (4,)))
    got = writer.events.get(timeout=10)
    assert got.is_write
    assert isinstance(got.event, PagesRead)
    assert writer.pages[4].tolist() == [77] * LAYOUT.page_bytes
    owner.exchange.submit(VerifyPages(KEY, 3, (5, 0), (sent.event.chunk,)))
    assert owner.events.get(timeout=10) == FromBulk(PagesVerified(KEY, 3, None), False)
    assert owner.pages[[5, 0], 0].tolist() == [2, 3]


def test_both_transports_are_measured_told_and_kept(make_exchange, caplog) -> None:
    writer, owner = make_exchange("p0"), make_exchange("d0")
    began_at = time.monotonic()
    with caplog.at_level(logging.INFO, "tandem.kv_transfer"):
        chosen = join(writer, owner)
    assert time.monotonic() - began_at < 1.0
    speeds = writer.exchange.measured()["d0"]
    assert set(speeds) == {"shared_memory", "zmq"}
    assert min(speeds.values()) > 1e6
    assert speeds[chosen] == max(speeds.values())
    (line,) = [r.getMessage() for r in caplog.records if "to d0" in r.getMessage()]
    assert line.startswith("to d0: shared_memory ")
    assert line.endswith(f" GB/s: {chosen}")
    assert not owner.pages.any(), "measuring leaves zeros, and those in the scratch page only"


def test_an_offer_that_cannot_be_opened_falls_through_to_the_next(make_exchange) -> None:
    writer, owner = make_exchange("p0"), make_exchange("d0")
    welcome = owner.welcomes(writer)
    shared, zmq_offer = welcome.offers
    broken = msgspec.structs.replace(shared, address="unix:@tandem-kv-nobody")
    welcome = msgspec.structs.replace(welcome, offers=(broken, zmq_offer))
    assert writer.exchange.open_owner(welcome) == "zmq"
    assert set(writer.exchange.measured()["d0"]) == {"zmq"}
    assert owner.welcomes(writer, "zmq").transport == "zmq"


def test_no_offer_that_works_is_an_error_with_all_reasons(make_exchange) -> None:
    writer = make_exchange("p0")
    welcome = OwnerWelcome(
        node_id="d0",
        incarnation=1,
        epoch=1,
        num_pages=3,
        offers=(
            TransportOffer(transport="shared_memory", address="unix:@tandem-kv-nobody"),
            TransportOffer(transport="zmq", address="nonsense"),
        ),
    )
    with pytest.raises(ValueError, match=r"shared_memory: cannot fetch.*zmq: cannot dial"):
        writer.exchange.open_owner(welcome)
    pigeon = TransportOffer(transport="pigeon", address="roof")
    with pytest.raises(ValueError, match="'pigeon'"):
        writer.exchange.open_owner(msgspec.structs.replace(welcome, offers=(pigeon,)))


def test_a_silent_bulk_socket_is_given_up_within_about_a_second(make_exchange, free_port) -> None:
    writer = make_exchange("p0")
    address = f"tcp://127.0.0.1:{free_port()}"
    welcome = OwnerWelcome(
        node_id="d0",
        incarnation=1,
        epoch=1,
        num_pages=3,
        offers=(TransportOffer(transport="zmq", address=address),),
    )
    began_at = time.monotonic()
    with pytest.raises(ValueError, match=f"no answer from {address} within 1 s"):
        writer.exchange.open_owner(welcome)
    assert time.monotonic() - began_at < 1.5


def test_a_mapped_choice_needs_a_fetched_descriptor(make_exchange) -> None:
    """The pidfd taken then is the only proof that a mapped writer has ended."""
    writer, owner = make_exchange("p0"), make_exchange("d0")
    owner.welcomes(writer)
    refused = owner.exchange.answer(WRITER, writer.exchange.hello(4, "shared_memory"))
    assert isinstance(refused, OwnerRefused)
    assert "without having fetched the pool's descriptor" in refused.reason
    assert not owner.exchange.is_admitted(WRITER)


def test_w21_the_pool_of_an_owner_that_did_not_welcome_us_is_not_handed_over(make_exchange) -> None:
    writer, owner, other = make_exchange("p0"), make_exchange("d0"), make_exchange("d1")
    welcome = owner.welcomes(writer)
    stranger = peer_identity("node", "p1", 1)
    foreign = other.exchange.answer(
        stranger, msgspec.structs.replace(writer.exchange.hello(1), node_id="p1")
    )
    assert isinstance(foreign, OwnerWelcome)
    welcome = msgspec.structs.replace(welcome, offers=foreign.offers[:1])
    with pytest.raises(ValueError, match="refused"):
        writer.exchange.open_owner(welcome)


def test_an_identity_that_is_not_the_writers_is_refused(make_exchange) -> None:
    writer, owner = make_exchange("p0"), make_exchange("d0")
    refused = owner.exchange.answer(b"node/p9/1", writer.exchange.hello(4))
    assert isinstance(refused, OwnerRefused)
    assert "under another's identity" in refused.reason


def test_a_device_pool_is_refused_by_name(make_exchange) -> None:
    owner = make_exchange("d0")
    device = BulkExchange(
        NodeIdentity("g0", 1, MODEL, LAYOUT, ()),
        None,
        num_pages=3,
        transport="auto",
        host="127.0.0.1",
    )
    device.start(lambda event: True)
    refused = owner.exchange.answer(b"g0", device.hello(1))
    assert isinstance(refused, OwnerRefused)
    assert "device_memory" in refused.reason
    assert isinstance(device.answer(b"d0", owner.exchange.hello(1)), OwnerRefused)
    assert not owner.exchange.is_admitted(b"g0")
    assert not device.is_admitted(b"d0")
    device.close()


def test_the_death_of_the_bulk_thread_is_told(make_exchange, monkeypatch) -> None:
    told: queue.Queue[BaseException] = queue.Queue()
    unhandled: queue.Queue[BaseException | None] = queue.Queue()
    monkeypatch.setattr(threading, "excepthook", lambda args: unhandled.put(args.exc_value))
    node = make_exchange("p0", failed=told.put)
    beyond = (NUM_PAGES + 7,)
    chunk = ChunkSum(first=0, num_pages=1, checksum=b"c" * 8)
    node.exchange.submit(VerifyPages((b"k" * 16, 1), 3, beyond, (chunk,)))
    assert isinstance(told.get(timeout=10), IndexError)
    assert isinstance(unhandled.get(timeout=10), IndexError)


def test_pidfds_are_closed_with_the_node(make_exchange) -> None:
    before = num_pidfds()
    writer, owner = make_exchange("p0", "shared_memory"), make_exchange("d0")
    for _ in range(3):  # a link that was lost and opened again
        join_again(writer, owner)
    assert num_pidfds() == before + 1
    owner.exchange.close()
    assert num_pidfds() == before


def join_again(writer: Node, owner: Node) -> None:
    chosen = writer.exchange.open_owner(owner.welcomes(writer))
    owner.welcomes(writer, chosen)
    writer.exchange.submit(WritePages(KEY, OWNER, 3, 0, (1,), (5,)))
    assert isinstance(writer.events.get(timeout=10).event, PagesWritten)
    owner.exchange.submit(VerifyPages(KEY, 3, (), ()))  # what was asked for before is served
    owner.events.get(timeout=10)


def num_pidfds() -> int:
    names = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:  # of this very listing
            continue
    return sum("pidfd" in name for name in names)
