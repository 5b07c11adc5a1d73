"""Bytes and peers of an attacker against a listening server: each is rejected or counted and
dropped, memory stays, and an honest peer is served within a second afterwards.

W7 to W9, and W3 and W4 against a server with keys, are in `test_sockets_keys.py`; shipped pages
(W19 to W21) are attacked in `tests/kv_transfer`, members lie (W18, W22) in `tests/coordinator`.
"""

import asyncio
import resource
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
import zmq.asyncio

from tandem.codec import MAGIC, MAX_BINARY_BYTES, MAX_CONTROL_BYTES, ProtocolError, encode
from tandem.connection import HANDSHAKE_MS, send_now
from tandem.log_lines import printable
from tandem.messages.client import ClientPing, ClientPong, ToClient, ToGateway
from tandem.messages.handoff import FromWriter
from tandem.messages.membership import FromNode
from tandem.sockets import DEFAULT_RATE, Link, RateLimited, Server

MAX_GROWTH = 16 << 20
UNION = ToGateway | FromNode | FromWriter
NULL_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)


def memory() -> tuple[int, int]:
    """Virtual and resident bytes of this process."""
    virtual, resident, *_ = Path("/proc/self/statm").read_text().split()
    return int(virtual) * resource.getpagesize(), int(resident) * resource.getpagesize()


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def ready(socket_type: bytes) -> bytes:
    """The command by which a peer without keys ends its handshake."""
    value = b"\x0bSocket-Type" + struct.pack(">I", len(socket_type)) + socket_type
    body = b"\x05READY" + value
    return b"\x04" + bytes([len(body)]) + body


class World:
    """A server, what it received, and honest peers."""

    def __init__(self) -> None:
        self.context = zmq.asyncio.Context()
        self.server: Server[Any] = Server(self.context, UNION)
        self.address = self.server.bind("127.0.0.1", 0)
        self.host, port = self.address.removeprefix("tcp://").rsplit(":", 1)
        self.port = int(port)
        self.errors: list[ProtocolError] = []
        self.num_served = 0
        self._serving = asyncio.create_task(self._serve())
        self._opened: list[Any] = []

    async def _serve(self) -> None:
        while True:
            peer, message = await self.server.receive()
            if isinstance(message, ProtocolError):
                self.errors.append(message)
            elif isinstance(message, ClientPing):
                self.num_served += 1
                pong = ClientPong(label=message.label, model="", ready=True, max_model_len=1)
                self.server.send(peer, pong)

    async def canary(self) -> None:
        """An honest peer connects and is answered within a second."""
        link: Link[Any] = Link(
            self.context, ToClient, identity=b"client/canary/1", address=self.address
        )
        try:
            async with asyncio.timeout(1):
                link.send(ClientPing(label="canary"))
                assert (await anext(link.messages())).label == "canary"
        finally:
            link.close()

    def raw(self, identity: bytes | None = None) -> zmq.asyncio.Socket:
        """A foreign ZeroMQ program."""
        sock: zmq.asyncio.Socket = self.context.socket(zmq.DEALER)
        sock.set(zmq.LINGER, 0)
        if identity is not None:
            sock.set(zmq.IDENTITY, identity)
        sock.connect(self.address)
        self._opened.append(sock)
        return sock

    async def error_of(self, *frames: bytes) -> ProtocolError:
        """What the server makes of a message."""
        num_before = len(self.errors)
        await self.raw().send_multipart(frames)
        await until(lambda: len(self.errors) > num_before)
        return self.errors[-1]

    async def close(self) -> None:
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        for opened in self._opened:
            opened.close()
        self.server.close()
        self.context.term()


async def until(condition: Callable[[], object], seconds: float = 8.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  nobody would set an event
            await asyncio.sleep(0.005)


def attack(scenario: Callable[[World], Awaitable[None]]) -> None:
    """Run it between two canaries; memory must not grow."""

    async def inside() -> None:
        world = World()
        try:
            await world.canary()
            before = memory()[1]
            await asyncio.wait_for(scenario(world), 15)
            assert memory()[1] - before < MAX_GROWTH
            await world.canary()
        finally:
            await world.close()

    asyncio.run(inside())


async def until_hung_up(connection: socket.socket, seconds: float) -> None:
    """Read what the server says until it closes the connection."""
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    try:
        async with asyncio.timeout(seconds):
            while await loop.sock_recv(connection, 65_536):
                pass
    except ConnectionError:
        return


# --- bytes that are no ZeroMQ, or the wrong one -----------------------------------------------


def test_w01_a_silent_connection_is_closed() -> None:
    async def scenario(w: World) -> None:
        with socket.create_connection((w.host, w.port)) as silent:
            started = time.monotonic()
            await until_hung_up(silent, HANDSHAKE_MS / 1000 + 3)
            assert time.monotonic() - started > HANDSHAKE_MS / 1000 - 0.5

    attack(scenario)


@pytest.fixture
def many_descriptors() -> Iterator[int]:
    """How many connections to ourselves may be open at once; both ends are ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield min(2000, (hard - 500) // 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_w02_idle_connections_keep_nobody_out(many_descriptors: int) -> None:
    async def scenario(w: World) -> None:
        num_before = num_descriptors()
        with ExitStack() as stack:
            idle = []
            for number in range(many_descriptors):
                idle.append(stack.enter_context(socket.create_connection((w.host, w.port), 5)))
                if number % 100 == 0:
                    await asyncio.sleep(0)
            await w.canary()
            await until_hung_up(idle[-1], HANDSHAKE_MS / 1000 + 4)
        await until(lambda: num_descriptors() <= num_before + 10)

    attack(scenario)


@pytest.mark.parametrize(
    "noise",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\xff" * (1 << 20), b"\x16\x03\x01" + bytes(500)],
    ids=["http", "ff", "tls"],
)
def test_w03_other_protocols_reach_nobody(noise: bytes) -> None:
    async def scenario(w: World) -> None:
        with socket.create_connection((w.host, w.port)) as attacker:
            attacker.settimeout(5)
            try:
                attacker.sendall(noise)
            except OSError:
                assert len(noise) > 1000  # hung up on before the end
            await w.canary()
        assert not w.errors

    attack(scenario)


@pytest.mark.parametrize(
    "greeting",
    [
        b"\x01\x00",  # ZMTP 1: a frame with an empty identity
        b"\x05\x00abcd" + b"\xff" * 200,
        b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x01\x05\x00\x00",  # ZMTP 2
        b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f",  # cut off
        NULL_GREETING[:40],
        NULL_GREETING + ready(b"PUB"),
        NULL_GREETING + b"\x04\xff" + b"\x05READY" + bytes(248),
    ],
    ids=["v1", "v1-long", "v2", "signature", "cut", "pub", "bad-ready"],
)
def test_w04_old_cut_and_unfit_greetings_reach_nobody(greeting: bytes) -> None:
    async def scenario(w: World) -> None:
        with socket.create_connection((w.host, w.port)) as attacker:
            attacker.sendall(greeting)
            await w.canary()
        assert not w.errors

    attack(scenario)


def test_w05_a_frame_that_declares_gigabytes_is_not_waited_for() -> None:
    async def scenario(w: World) -> None:
        before = memory()[0]
        with socket.create_connection((w.host, w.port)) as attacker:
            declared = b"\x02\x00\x00\x00\x02\x00\x00\x00\x00" + bytes(100)
            attacker.sendall(NULL_GREETING + ready(b"DEALER") + declared)
            await until_hung_up(attacker, 5)
        assert memory()[0] - before < 1 << 30 and not w.errors

    attack(scenario)


def test_w06_too_many_frames_and_too_many_bytes_are_one_error() -> None:
    async def scenario(w: World) -> None:
        assert "5000 frames" in str(await w.error_of(*[MAGIC] * 5000))
        big = bytes(MAX_BINARY_BYTES)
        error = await w.error_of(MAGIC, encode(ClientPing(label="x"))[1], big, big)
        assert "over 8 MiB in all frames" in str(error)

    attack(scenario)


# --- frames that are no message ---------------------------------------------------------------


@pytest.mark.parametrize(
    "control",
    [
        b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff\x78",
        b"\xc9\xff\xff\xff\xff\x00",
    ],
    ids=["array", "map", "bytes", "extension"],
)  # fmt: skip
def test_w10_declared_lengths_allocate_nothing(control: bytes) -> None:
    async def scenario(w: World) -> None:
        assert "not a message" in str(await w.error_of(MAGIC, control))

    attack(scenario)


def test_w11_nested_declarations_allocate_nothing() -> None:
    async def scenario(w: World) -> None:
        nested = (b"\xdd\x00\x10\x00\x00" * 200).ljust(MAX_CONTROL_BYTES, b"\x00")
        assert "not a message" in str(await w.error_of(MAGIC, nested))
        in_a_field = b"\x82\xa4type\xa6Submit\xaaprompt_ids" + nested[: MAX_CONTROL_BYTES - 40]
        assert "not a message" in str(await w.error_of(MAGIC, in_a_field))
        too_long = await w.error_of(MAGIC, nested * 16)
        assert "65,536 allowed" in str(too_long)

    attack(scenario)


@pytest.mark.parametrize("depth", [17, 1024, 1025, 60_000])
def test_w12_depth_is_bounded(depth: int) -> None:
    async def scenario(w: World) -> None:
        deep = b"\x91" * depth + b"\xc0"
        assert "not a message" in str(await w.error_of(MAGIC, deep))
        for head in (
            b"\x82\xa4type\xa6Submit\xaaprompt_ids",
            b"\x82\xa4type\xa6Submit\xa5label",
            b"\x82\xa4type\xa6Submit\xa5other",
        ):
            assert "not a message" in str(await w.error_of(MAGIC, head + deep))

    attack(scenario)


def test_w13_a_million_empty_lists_are_refused() -> None:
    async def scenario(w: World) -> None:
        assert "65,536 allowed" in str(
            await w.error_of(MAGIC, b"\xdd\x00\x10\x00\x00" + b"\x90" * 2**20)
        )
        fitting = b"\xdd\x00\x00\xff\xf0" + b"\x90" * 65_500
        for field in (b"", b"\xaaprompt_ids", b"\xa4chat"):
            head = b"\x82\xa4type\xa6Submit" if field else b""
            control = (head + field + fitting)[:MAX_CONTROL_BYTES]
            assert "not a message" in str(await w.error_of(MAGIC, control))

    attack(scenario)


@pytest.mark.parametrize(
    ("control", "words"),
    [
        (b"\x82\xa1a\x01\xa1a\x02", "type"),
        (b"\x83\xa4type\xaaClientPing\xa5label\xa1x\xa5label\xa1y", "names a key twice"),
        (b"\x83\xa4type\xaaClientPing\xa4type\xaaClientPing\xa5label\xa1y", "names a key twice"),
        (b"\x81\x01\x01", "not a message"),
        (msgpack.packb({"type": "ClientPing", "label": "x", "other": 1}), "other"),
        (msgpack.packb({"type": "ClientPing"}), "label"),
    ],
)
def test_w14_maps_are_what_the_schema_says(control: bytes, words: str) -> None:
    async def scenario(w: World) -> None:
        assert words in str(await w.error_of(MAGIC, control))

    attack(scenario)


@pytest.mark.parametrize(
    "value",
    [
        b"\xd4\x05\x00",  # an extension
        b"\xc7\x0c\xff" + b"\xff" * 12,  # a timestamp out of range
        b"\xcb\x7f\xf8" + bytes(6),  # NaN
        b"\xcb\x7f\xf0" + bytes(6),  # infinity
        b"\xcb\xff\xf0" + bytes(6),
        b"\xca\x7f\xc0\x00\x00",  # NaN of 32 bits
    ],
)
@pytest.mark.parametrize(
    "head",
    [
        b"\x83\xa4type\xa6Submit\xa5label\xa1x\xa7ttft_ms",
        b"\x83\xa4type\xa6Submit\xa5label\xa1x\xa6params\x81\xabtemperature",
        b"\x83\xa4type\xa6Submit\xa5label\xa1x\xa6params\x81\xaalogit_bias\x81\x05",
    ],
    ids=["ttft", "temperature", "bias"],
)
def test_w15_extensions_and_numbers_that_are_none(head: bytes, value: bytes) -> None:
    async def scenario(w: World) -> None:
        assert "not a message" in str(await w.error_of(MAGIC, head + value))

    attack(scenario)


@pytest.mark.parametrize(
    "name", [b"\xff\xfe", b"m" * 60_000, b"a\x00b", b"a\nb", b"\x1b[31m", "\u202e".encode()]
)
def test_w16_names_are_plain_and_short_and_logs_show_them_escaped(name: bytes) -> None:
    async def scenario(w: World) -> None:
        head = b"\x83\xa4type\xa6Submit\xa5label\xa1x\xa5model"
        error = await w.error_of(MAGIC, head + b"\xda" + struct.pack(">H", len(name)) + name)
        line = printable(f"dropped a message of {name!r}: {error}")
        assert line.isprintable() and len(line) <= 1000

    attack(scenario)


@pytest.mark.parametrize("version", [b"TDM\x00", b"TDM\x80", b"TDM1", b"TDM\x02"])
def test_w17_another_version_is_named(version: bytes) -> None:
    async def scenario(w: World) -> None:
        error = await w.error_of(version, encode(ClientPing(label="x"))[1])
        assert f"speaks protocol version {version[3]}, this side 1: upgrade one" in str(error)
        unknown = await w.error_of(MAGIC, msgpack.packb({"type": "Unheard", "label": "x"}))
        assert "Unheard" in str(unknown)

    attack(scenario)


def test_w24_a_flood_is_dropped_and_told_and_others_are_served() -> None:
    """100,000 messages as fast as they go: more than the peer's burst, so most are dropped."""

    async def scenario(w: World) -> None:
        flooder = w.raw(b"client/flood/1")
        frames = encode(ClientPing(label="flood"))
        num_sent = 0
        for number in range(100_000):
            num_sent += send_now(flooder, frames)
            if number % 5_000 == 0:
                await w.canary()
        await until(lambda: w.num_served + w.server.num_limited >= num_sent)
        assert w.server.num_limited > num_sent / 4 and num_sent > 2 * DEFAULT_RATE.burst
        told = [error for error in w.errors if isinstance(error, RateLimited)]
        assert 1 <= len(told) <= 12 and "messages per second" in str(told[0])

    attack(scenario)
