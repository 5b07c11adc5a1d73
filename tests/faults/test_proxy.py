"""The faulty proxy does what it is told to, and nothing else."""

import time
from collections.abc import Iterator

import pytest
import zmq

from scripts.fault_matrix.proxy import ProxyThread, Weather

HOST, FAR = "127.0.0.1", "127.0.0.2"


class Pair:
    """A DEALER that dials a ROUTER through the proxy."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.weather = Weather()
        self.proxy = ProxyThread(seed=1)
        self.router = context.socket(zmq.ROUTER)
        port = self.router.bind_to_random_port(f"tcp://{HOST}")
        self.proxy.listen(FAR, port, to_host=HOST, weather=self.weather)
        self.dealer = context.socket(zmq.DEALER)
        self.dealer.connect(f"tcp://{FAR}:{port}")

    def received(self, wait_ms: int = 300) -> list[list[bytes]]:
        messages = []
        while self.router.poll(wait_ms):
            messages.append(self.router.recv_multipart()[1:])
        return messages

    def close(self) -> None:
        self.dealer.close(linger=0)
        self.router.close(linger=0)
        self.proxy.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pair = Pair(context)
    yield pair
    pair.close()
    context.term()


def test_messages_pass_unchanged(pair: Pair) -> None:
    sent = [[b"a", b"", b"x" * 300], [b"y" * 70_000]]
    for message in sent:
        pair.dealer.send_multipart(message)
    assert pair.received() == sent
    assert pair.proxy.num_faults == 0


def test_messages_are_repeated_and_dropped_whole(pair: Pair) -> None:
    pair.weather.repeat = 1.0
    pair.dealer.send_multipart([b"one", b"two"])
    assert pair.received() == [[b"one", b"two"]] * 2
    pair.weather.repeat, pair.weather.drop = 0.0, 1.0
    pair.dealer.send_multipart([b"lost"])
    assert pair.received() == []
    pair.weather.drop = 0.0
    pair.dealer.send_multipart([b"kept"])
    assert pair.received() == [[b"kept"]]


def test_pages_are_damaged_and_control_messages_are_not(pair: Pair) -> None:
    version, header, body = b"version", b"\x92\x01\x02", bytes(1000)
    control = [version, b"\x81", body]
    pair.weather.flip = 1.0
    pair.dealer.send_multipart([version, header, body])
    pair.dealer.send_multipart(control)
    flipped, untouched = pair.received()
    assert untouched == control
    assert flipped[:2] == [version, header]
    assert sum(a != b for a, b in zip(flipped[2], body, strict=True)) == 1
    pair.weather.flip, pair.weather.truncate = 0.0, 1.0
    pair.dealer.send_multipart([version, header, body])
    assert [len(frame) for frame in pair.received()[0]] == [7, 3, 500]


def test_a_blocked_direction_delivers_later(pair: Pair) -> None:
    pair.dealer.send(b"before")
    assert pair.received() == [[b"before"]]
    pair.weather.block_up = True
    pair.dealer.send(b"during")
    assert pair.received() == []
    pair.weather.block_up = False
    assert pair.received() == [[b"during"]]


def test_a_slow_link_is_slow(pair: Pair) -> None:
    pair.dealer.send(b"warm")
    assert pair.received() == [[b"warm"]]
    pair.weather.bytes_per_s = 100_000
    begin = time.monotonic()
    pair.dealer.send(bytes(50_000))
    assert pair.router.poll(3000)
    assert time.monotonic() - begin >= 0.45


def test_a_cut_connection_comes_back(pair: Pair) -> None:
    pair.dealer.send(b"one")
    assert pair.received() == [[b"one"]]
    pair.proxy.cut()
    pair.dealer.send(b"two")
    assert pair.received(1000) in ([[b"two"]], [])
    pair.dealer.send(b"three")
    assert pair.received(1000)[-1] == [b"three"]
