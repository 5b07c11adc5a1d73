"""KV events as any subscriber sees them: plain pyzmq and the `msgpack` package."""

import socket

import msgpack
import pytest
import zmq

from node.actions import CacheChanged
from node.config import NodeConfig
from node.kv_events import CacheWatch, KVEvents
from node.state import NodeIdentity
from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity

MODEL = ModelIdentity(
    served_name="demo",
    weights_fingerprint="w",
    tokenizer_fingerprint="t",
    dtype="float32",
    max_model_len=4096,
    vocab_size=4000,
)
LAYOUT = KVLayout(num_layers=1, num_kv_heads=1, head_dim=8, page_size=16, dtype="float32")
IDENTITY = NodeIdentity("d0", 1, MODEL, LAYOUT, ())
ONE, TWO = (1).to_bytes(8, "big"), (2**64 - 1).to_bytes(8, "big")


@pytest.fixture
def context():
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


def config(**changes) -> NodeConfig:
    return NodeConfig(model="demo", name="d0", **changes)


def subscribed(context: zmq.Context, events: KVEvents, watch: CacheWatch) -> zmq.Socket:
    """A subscriber that has heard something: what is published next, it hears."""
    subscriber = context.socket(zmq.SUB)
    subscriber.set(zmq.LINGER, 0)
    subscriber.connect(events.address)
    subscriber.subscribe(b"kv@d0@")
    for _ in range(500):
        watch.changed(CacheChanged(True, (), ()))
        if subscriber.poll(20):
            break
    while subscriber.poll(100):
        subscriber.recv_multipart()
    return subscriber


def test_a_subscriber_reads_what_vllm_would_send(context: zmq.Context) -> None:
    watch = CacheWatch(config(kv_events_port=0), IDENTITY, context)
    assert watch.events is not None
    subscriber = subscribed(context, watch.events, watch)
    watch.changed(CacheChanged(False, (ONE, TWO), ()))
    watch.changed(CacheChanged(False, (), (ONE,)))
    watch.changed(CacheChanged(True, (TWO,), ()))
    heard = []
    numbers = []
    for _ in range(3):
        assert subscriber.poll(10_000)
        topic, number, payload = subscriber.recv_multipart()
        assert topic == b"kv@d0@demo"
        numbers.append(int.from_bytes(number, "big"))
        ts, events, rank = msgpack.unpackb(payload)
        assert ts > 1e9 and rank is None
        heard.append(events)
    assert numbers == list(range(numbers[0], numbers[0] + 3))
    stored = ["BlockStored", [1, 2**64 - 1], None, [], 16, None, "CPU", None]
    assert heard == [
        [stored],
        [["BlockRemoved", [1], "CPU"]],
        [["AllBlocksCleared"], ["BlockStored", [2**64 - 1], *stored[2:]]],
    ]
    subscriber.close()
    watch.close()


def test_without_a_port_nothing_listens(context: zmq.Context) -> None:
    watch = CacheWatch(config(), IDENTITY, context)
    watch.changed(CacheChanged(False, (ONE,), ()))
    assert watch.events is None
    watch.close()


def test_a_port_in_use_is_told_with_advice(context: zmq.Context) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match="--kv-events-port"):
            CacheWatch(config(kv_events_port=taken.getsockname()[1]), IDENTITY, context)


def test_strangers_are_heard_only_where_that_was_allowed(context: zmq.Context) -> None:
    for changes, host in (({}, "127.0.0.1"), ({"allow_unauthenticated": True}, "127.0.0.2")):
        watch = CacheWatch(config(kv_events_port=0, host="127.0.0.2", **changes), IDENTITY, context)
        assert watch.events is not None and watch.events.address.startswith(f"tcp://{host}:")
        watch.close()
