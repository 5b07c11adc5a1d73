"""Control sockets: delivery, what the sender learns, reconnection, and bytes of an attacker."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

from tandem.codec import MAGIC, ProtocolError, encode
from tandem.connection import MAX_FRAME_BYTES
from tandem.messages.client import ClientPing, ClientPong, ToClient, ToGateway
from tandem.sockets import Link, Server, peer_identity, require_loopback

PING = ClientPing(label="1")
PONG = ClientPong(label="1", model="m", ready=True, max_model_len=1)
Peers = tuple[Server[Any], Link[Any], str, zmq.asyncio.Context]


@asynccontextmanager
async def peers() -> AsyncIterator[Peers]:
    """A server, a link to it, its address, and the context of both."""
    context = zmq.asyncio.Context()
    server: Server[Any] = Server(context, ToGateway)
    address = server.bind("127.0.0.1", 0)
    link: Link[Any] = Link(context, ToClient, identity=b"client/a", address=address)
    try:
        yield server, link, address, context
    finally:
        link.close()
        server.close()
        context.term()


def run(scenario: Callable[[Peers], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with peers() as made:
            await asyncio.wait_for(scenario(made), 15)

    asyncio.run(inside())


async def until(condition: Callable[[], bool]) -> bool:
    """Whether it becomes true within three seconds."""
    for _ in range(300):
        if condition():
            return True
        await asyncio.sleep(0.01)
    return False


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_question_and_answer_in_order() -> None:
    async def scenario(made: Peers) -> None:
        server, link, _, _ = made
        for number in range(100):
            assert link.send(ClientPing(label=str(number)))
        for number in range(100):
            peer, message = await server.receive()
            assert (peer, message.label) == (b"client/a", str(number))
        assert server.send(b"client/a", PONG)
        assert await anext(link.messages()) == PONG
        assert (server.num_malformed, server.num_unsent, link.num_unsent) == (0, 0, 0)

    run(scenario)


def test_the_sender_learns_that_a_peer_is_gone() -> None:
    async def scenario(made: Peers) -> None:
        server, link, _, _ = made
        assert not server.send(b"nobody", PONG)
        link.send(PING)
        await server.receive()
        link.close()
        assert await until(lambda: not server.send(b"client/a", PONG))
        assert server.num_unsent >= 2

    run(scenario)


def test_a_full_queue_is_reported_not_waited_for() -> None:
    async def scenario(made: Peers) -> None:
        _, _, _, context = made
        link: Link[Any] = Link(context, ToClient, identity=b"b", address="tcp://127.0.0.1:9")
        started = time.monotonic()
        sent = [link.send(PING) for _ in range(10_200)]
        assert sent.count(False) == link.num_unsent == 200
        assert time.monotonic() - started < 5
        link.close()

    run(scenario)


def test_a_link_finds_a_restarted_server_again() -> None:
    async def scenario(made: Peers) -> None:
        server, link, address, context = made
        link.send(PING)
        await server.receive()
        server.close()
        port = int(address.rsplit(":", 1)[1])
        again: Server[Any] = Server(context, ToGateway)
        for _ in range(100):  # the old socket closes in the background
            try:
                again.bind("127.0.0.1", port)
                break
            except ValueError:
                await asyncio.sleep(0.02)
        link.send(ClientPing(label="2"))
        assert (await again.receive())[1] == ClientPing(label="2")
        assert again.send(b"client/a", PONG)
        assert await anext(link.messages()) == PONG
        again.close()

    run(scenario)


def test_a_peer_that_comes_back_gets_the_answers() -> None:
    async def scenario(made: Peers) -> None:
        server, link, address, context = made
        link.send(PING)
        await server.receive()
        newer: Link[Any] = Link(context, ToClient, identity=b"client/a", address=address)
        newer.send(PING)
        await server.receive()
        assert server.send(b"client/a", PONG)
        assert await anext(newer.messages()) == PONG
        newer.close()

    run(scenario)


def test_malformed_messages_are_counted_on_both_sides() -> None:
    async def scenario(made: Peers) -> None:
        server, link, address, context = made
        raw = context.socket(zmq.DEALER)
        raw.set(zmq.LINGER, 0)
        raw.set(zmq.IDENTITY, b"raw")
        raw.connect(address)
        for frames in ([b"hello"], [b"TDM\x02", b"\x80"], [MAGIC, b"\xc1"], [MAGIC] * 5000):
            await raw.send_multipart(frames)
            peer, error = await server.receive()
            assert peer == b"raw" and isinstance(error, ProtocolError)
        assert server.num_malformed == 4
        await raw.send_multipart(encode(PING))
        assert await server.receive() == (b"raw", PING)
        raw.close()

        link.send(PING)
        await server.receive()
        server.send(b"client/a", PING)  # of the other direction
        server.send(b"client/a", PONG)
        assert await anext(link.messages()) == PONG and link.num_malformed == 1

    run(scenario)


def test_an_oversized_frame_ends_its_connection_and_nothing_else() -> None:
    async def scenario(made: Peers) -> None:
        server, link, address, _ = made
        with zmq.Context() as plain, plain.socket(zmq.DEALER) as raw:
            raw.set(zmq.LINGER, 0)
            with raw.get_monitor_socket(zmq.EVENT_DISCONNECTED) as watch:
                raw.connect(address)
                raw.send_multipart([MAGIC, b"\x80", bytes(MAX_FRAME_BYTES + 1)])
                # Hung up on, not read and refused.
                assert await asyncio.to_thread(watch.poll, 10_000)
                raw.disable_monitor()
            link.send(PING)
            assert await server.receive() == (b"client/a", PING)

    run(scenario)


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" * (1 << 20),
        b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f",  # half a greeting
        # A whole NULL greeting and READY, then a frame that declares 8 GB.
        b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
        + b"\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
        + b"\x02\x00\x00\x00\x02\x00\x00\x00\x00" + bytes(100),
    ],
)  # fmt: skip
def test_foreign_bytes_on_the_port_hurt_nobody(noise: bytes) -> None:
    async def scenario(made: Peers) -> None:
        server, link, address, _ = made
        host, port = address.removeprefix("tcp://").rsplit(":", 1)
        before = resident_bytes()
        with socket.create_connection((host, int(port))) as attacker:
            attacker.settimeout(5)
            try:
                attacker.sendall(noise)
            except OSError:
                assert len(noise) > 1000  # hung up on before the end
            link.send(PING)
            assert await server.receive() == (b"client/a", PING)
            assert server.send(b"client/a", PONG)
            assert await anext(link.messages()) == PONG
        assert resident_bytes() - before < 16 << 20
        assert server.num_malformed == 0

    run(scenario)


def test_a_taken_port_and_a_bad_address_are_explained() -> None:
    async def scenario(made: Peers) -> None:
        _, _, address, context = made
        other: Server[Any] = Server(context, ToGateway)
        port = int(address.rsplit(":", 1)[1])
        with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1:{port}"):
            other.bind("127.0.0.1", port)
        other.close()
        with pytest.raises(ValueError, match="use tcp://host:port"):
            Link[Any](context, ToClient, identity=b"x", address="localhost")

    run(scenario)


def test_without_keys_only_loopback_is_served() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.5"):
        require_loopback(host)
    with pytest.raises(ValueError, match="allow-unauthenticated"):
        require_loopback("0.0.0.0")
    with pytest.raises(ValueError, match="does not resolve"):
        require_loopback("no-such-host.invalid")


def test_identities_differ_between_incarnations() -> None:
    assert peer_identity("node", "decode-0", 255) == b"node/decode-0/ff"
    assert peer_identity("node", "decode-0", 256) != peer_identity("node", "decode-0", 255)
    assert len(peer_identity("node", "x" * 300, 1)) == 255
