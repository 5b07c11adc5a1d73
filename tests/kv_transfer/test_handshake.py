"""Who may exchange pages, over what; and a whole node's bulk side from hello to copy."""

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from kv_transfer.actions import OpenGrant, PagesVerified, PagesWritten, VerifyPages, WritePages
from kv_transfer.exchange import BulkExchange
from kv_transfer.handshake import Offer, answer, choose, host_id
from kv_transfer.shared_memory import SharedPool
from node.core import FromBulk
from node.state import NodeIdentity
from tandem.codec import Decoder, encode
from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity, NodeRef
from tandem.messages.handoff import ChunkSum, FromWriter, OwnerRefused, OwnerWelcome, WriterHello
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
SHARED, ZMQ = Offer("shared_memory", "unix:@x"), Offer("zmq", "tcp://127.0.0.1:1")


def hello(**changes) -> WriterHello:
    fields = {
        "node_id": "p0",
        "incarnation": 1,
        "epoch": 2,
        "layout": LAYOUT,
        "model": MODEL,
        "host_id": "h",
        "transports": ("shared_memory", "zmq"),
    }
    return WriterHello(**(fields | changes))


def reply(message: WriterHello, offers=(SHARED, ZMQ)) -> OwnerWelcome | OwnerRefused:
    return answer(
        message,
        node_id="d0",
        incarnation=5,
        epoch=6,
        layout=LAYOUT,
        model=MODEL,
        host_id="h",
        num_pages=9,
        offers=offers,
    )


def test_the_writers_first_choice_that_is_offered_wins() -> None:
    welcome = reply(hello())
    assert isinstance(welcome, OwnerWelcome)
    assert (welcome.transport, welcome.transport_address) == ("shared_memory", "unix:@x")
    assert (welcome.node_id, welcome.incarnation, welcome.num_pages) == ("d0", 5, 9)
    zmq_only = reply(hello(transports=("zmq",)))
    assert isinstance(zmq_only, OwnerWelcome)
    assert zmq_only.transport == "zmq"


def test_memory_is_not_shared_across_hosts() -> None:
    welcome = reply(hello(host_id="elsewhere"))
    assert isinstance(welcome, OwnerWelcome)
    assert welcome.transport == "zmq"
    assert choose(("shared_memory",), [SHARED, ZMQ], is_same_host=False) is None


def test_without_a_common_transport_both_lists_are_named() -> None:
    refused = reply(hello(transports=("shared_memory",)), offers=(ZMQ,))
    assert isinstance(refused, OwnerRefused)
    assert "['zmq']" in refused.reason
    assert "['shared_memory']" in refused.reason


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        (
            {"layout": msgspec.structs.replace(LAYOUT, page_size=32)},
            ("page_size", "16 here", "32 there"),
        ),
        (
            {"layout": msgspec.structs.replace(LAYOUT, dtype="bfloat16")},
            ("dtype", "float32", "bfloat16"),
        ),
        (
            {"model": msgspec.structs.replace(MODEL, weights_fingerprint="w2")},
            ("weights fingerprint", "w1 here", "w2 there"),
        ),
        (
            {"model": msgspec.structs.replace(MODEL, tokenizer_fingerprint="t2")},
            ("tokenizer fingerprint", "t1 here", "t2 there"),
        ),
    ],
)
def test_what_differs_is_refused_with_both_values(changes, values) -> None:
    refused = reply(hello(**changes))
    assert isinstance(refused, OwnerRefused)
    assert all(value in refused.reason for value in values), refused.reason


def test_names_and_limits_may_differ() -> None:
    model = msgspec.structs.replace(MODEL, served_name="alias", max_model_len=64)
    assert isinstance(reply(hello(model=model)), OwnerWelcome)


def test_host_id_is_stable_and_fits_the_wire() -> None:
    assert host_id() == host_id()
    decoder: Decoder[WriterHello] = Decoder(FromWriter)
    message = hello(host_id=host_id())
    assert decoder.decode(encode(message)) == message


NUM_PAGES = 6


class Node:
    """A `BulkExchange` over a pool of its own, and the events it offered."""

    def __init__(
        self, name: str, transport: str, run_dir: Path, num_refusals: int = 0, failed: Any = None
    ) -> None:
        self.name = name
        self.pool = SharedPool.create((NUM_PAGES + 1) * LAYOUT.page_bytes)
        self.pages = self.pool.pages(LAYOUT.page_bytes, NUM_PAGES)
        self.events: queue.Queue[FromBulk] = queue.Queue()
        self.num_refusals = num_refusals
        self.exchange = BulkExchange(
            NodeIdentity(name, 1, MODEL, LAYOUT, ()),
            self.pool,
            num_pages=NUM_PAGES,
            transport=transport,
            host="127.0.0.1",
            run_dir=run_dir,
        )
        self.exchange.start(self.take, failed)

    def take(self, event: FromBulk) -> bool:
        if self.num_refusals:
            self.num_refusals -= 1
            return False
        self.events.put(event)
        return True


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


@pytest.mark.parametrize("transport", ["auto", "zmq", "shared_memory"])
def test_from_hello_to_verified_pages(make_exchange, transport: str) -> None:
    writer, owner = make_exchange("p0", transport, num_refusals=3), make_exchange("d0")
    identity = peer_identity("node", "p0", 1)
    welcome = owner.exchange.answer(identity, writer.exchange.hello(4))
    assert isinstance(welcome, OwnerWelcome)
    assert owner.exchange.is_admitted(identity)
    assert not owner.exchange.is_admitted(peer_identity("node", "p0", 2))
    assert welcome.transport == ("zmq" if transport == "zmq" else "shared_memory")
    assert writer.exchange.open_owner(welcome) is None
    writer.pages[:] = np.arange(NUM_PAGES, dtype=np.uint8)[:, None] + 1
    ref = NodeRef(node_id="d0", incarnation=1, epoch=1, control_address="tcp://d0")
    key = (b"k" * 16, 1)
    owner.exchange.submit(OpenGrant(3, identity, (5, 0)))
    writer.exchange.submit(WritePages(key, ref, 3, 0, (1, 2), (5, 0)))
    sent = writer.events.get(timeout=10)  # the queue was full three times before
    assert sent.is_write
    assert isinstance(sent.event, PagesWritten)
    owner.exchange.submit(VerifyPages(key, 3, (5, 0), (sent.event.chunk,)))
    assert owner.events.get(timeout=10) == FromBulk(PagesVerified(key, 3, None), False)
    assert owner.pages[[5, 0], 0].tolist() == [2, 3]


def test_a_pool_that_cannot_be_opened_says_why(make_exchange) -> None:
    writer = make_exchange("p0")
    welcome = OwnerWelcome(
        node_id="d0",
        incarnation=1,
        epoch=1,
        num_pages=3,
        transport="shared_memory",
        transport_address="unix:@tandem-kv-nobody",
    )
    assert "cannot fetch the KV pool" in (writer.exchange.open_owner(welcome) or "")
    pigeon = msgspec.structs.replace(welcome, transport="pigeon")
    assert "chose pigeon" in (writer.exchange.open_owner(pigeon) or "")


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
