"""Control sockets with keys: who gets in, under which name, and who does not."""

import asyncio
import logging
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zmq

from tandem.codec import MAX_BINARY_BYTES, ProtocolError, encode
from tandem.frames import Blob
from tandem.keys import KeyFolder, Keyring
from tandem.messages.client import ClientPing, Submit, ToGateway
from tandem.messages.membership import Goodbye
from tandem.sockets import Server
from tests.tandem.keyed_world import ALLOWED, PONG, World, is_gone, make_folder, run, until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


def test_peers_are_known_by_the_names_of_their_keys(folder: Path) -> None:
    async def scenario(w: World) -> None:
        link = w.link("client", "alice", "7")
        link.send(ClientPing(label="1"))
        assert await w.server.receive() == (b"client/alice/7", ClientPing(label="1"))
        assert w.server.key_name(b"client/alice/7") == "client/alice"
        assert w.server.key_name(b"client/alice/8") is None
        assert w.server.send(b"client/alice/7", PONG)
        assert await anext(link.messages()) == PONG
        assert not w.server.send(b"client/bob/1", PONG) and link.trouble is None

    run(folder, scenario)


@pytest.mark.parametrize("num_below", [0, 1, 40])
def test_the_largest_message_fits_encrypted(folder: Path, num_below: int) -> None:
    async def scenario(w: World) -> None:
        largest = Submit(label="1", prompt=Blob(bytes(MAX_BINARY_BYTES - num_below)))
        link = w.link("client", "alice", "7")
        link.send(largest)
        async with asyncio.timeout(5):
            assert await w.server.receive() == (b"client/alice/7", largest)

    run(folder, scenario)


def test_w07_an_identity_of_another_key_is_heard_by_nobody(folder: Path) -> None:
    async def scenario(w: World) -> None:
        claims = (b"node/a/1", b"client/bob/1", b"client/bob", b"client/alice", b"gateway/g/1")
        for claim in claims:
            await w.raw("client", "alice", claim).send_multipart(encode(ClientPing(label="x")))
        await w.raw("node", "a", b"free").send_multipart(encode(ClientPing(label="x")))
        reading = asyncio.create_task(w.server.receive())
        await until(lambda: w.server.num_unauthorized == len(claims) + 1)
        assert not reading.done()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await w.canary()
        assert w.server.num_unauthorized == len(claims) + 1
        with pytest.raises(ValueError, match="no identity for the key of client/alice"):
            w.open_link(
                w.address, identity=b"node/a/1", keys=Keyring(folder, "client", "alice"),
                server="gateway/g",
            )  # fmt: skip

    run(folder, scenario)


def test_w07_what_is_for_a_peer_never_goes_to_who_takes_its_identity(folder: Path) -> None:
    async def scenario(w: World) -> None:
        victim = w.raw("client", "bob", b"client/bob/1")
        await victim.send_multipart(encode(ClientPing(label="x")))
        assert (await w.server.receive())[0] == b"client/bob/1"
        thief = w.raw("client", "alice", None)
        thief.disconnect(w.address)
        thief.set(zmq.IDENTITY, b"client/bob/1")
        thief.set(zmq.IMMEDIATE, 1)
        thief.connect(w.address)
        async with asyncio.timeout(5):  # its key gets it in
            await thief.send_multipart(encode(ClientPing(label="x")))
        for _ in range(3):
            await w.canary()
        assert w.server.send(b"client/bob/1", PONG)
        assert await victim.poll(2000)
        assert not await thief.poll(100)

    run(folder, scenario)


def test_a_foreign_client_needs_no_identity_and_cannot_take_anothers(folder: Path) -> None:
    async def scenario(w: World) -> None:
        answered = set()
        for name in ("alice", "bob"):
            foreign = w.raw(*("client", name), b"same")
            await foreign.send_multipart(encode(ClientPing(label=name)))
            identity, _ = await w.server.receive()
            assert identity == f"client/{name}/=same".encode()
            assert w.server.send(identity, PONG)
            await foreign.recv_multipart()
            foreign.close()
            await until(partial(is_gone, w, identity))
            answered.add(identity)
        assert len(answered) == 2
        unnamed = w.raw("client", "bob", None)
        await unnamed.send_multipart(encode(ClientPing(label="x")))
        assert (await w.server.receive())[0].startswith(b"client/bob/=")

    run(folder, scenario)


def test_a_key_says_only_what_its_kind_may(folder: Path) -> None:
    async def scenario(w: World) -> None:
        goodbye = Goodbye(node_id="a", incarnation=1, epoch=1)
        client, node = w.link("client", "alice"), w.link("node", "a")
        client.send(goodbye)
        _, refused = await w.server.receive()
        assert isinstance(refused, ProtocolError) and w.server.num_malformed == 1
        node.send(goodbye)
        assert await w.server.receive() == (b"node/a/1", goodbye)
        node.send(Goodbye(node_id="b", incarnation=1, epoch=1))
        _, theft = await w.server.receive()
        assert isinstance(theft, ProtocolError) and "cannot speak for b" in str(theft)

    run(folder, scenario)


def test_a_peer_that_comes_back_before_its_old_connection_ended_is_heard(folder: Path) -> None:
    async def scenario(w: World) -> None:
        for number in range(5):  # none of the earlier connections is closed
            link = w.link("node", "a", "1")
            link.send(ClientPing(label=str(number)))
            assert await w.server.receive() == (b"node/a/1", ClientPing(label=str(number)))
            assert w.server.send(b"node/a/1", PONG)
            assert await anext(link.messages()) == PONG

    run(folder, scenario)


def test_w08_who_cannot_get_in_learns_why(folder: Path, tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        strangers = KeyFolder.create(tmp_path / "strangers")
        strangers.add("client", "eve")
        gateway = Keyring(folder, "gateway").public_key
        (strangers.folder / "public" / "gateway").mkdir()
        strangers.public_path("gateway", "g").write_text(gateway)
        others = KeyFolder.create(tmp_path / "others")
        others.add("client", "alice")
        others.add("gateway", "g")
        links = {
            "requires keys: pass --keys": w.open_link(w.address, identity=b"x"),
            "does not accept the key of client/eve": w.link(
                "client", "eve", folder=strangers.folder
            ),
            "does not accept the key of operator/o": w.link("operator", "o"),
            "not those of gateway/g": w.link("client", "alice", folder=others.folder),
        }
        for link in links.values():
            link.send(ClientPing(label="let me in"))
        reading = asyncio.create_task(w.server.receive())
        for words, link in links.items():
            await until(partial(getattr, link, "trouble"))
            assert words in (link.trouble or "")
        assert not reading.done() and w.server.num_unauthorized == 0
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await w.canary()

    run(folder, scenario)


def test_a_client_with_keys_learns_that_a_server_has_none(folder: Path) -> None:
    async def scenario(w: World) -> None:
        bare: Server[Any] = Server(w.context, ToGateway)
        address = bare.bind("127.0.0.1", 0)
        link = w.open_link(
            address, identity=b"client/alice/1", keys=Keyring(folder, "client", "alice"),
            server="gateway/g",
        )  # fmt: skip
        await until(lambda: link.trouble)
        assert "has no keys, or not those of gateway/g" in (link.trouble or "")
        bare.close()

    run(folder, scenario)


def test_a_server_without_a_public_key_here_is_not_dialled(folder: Path) -> None:
    async def scenario(w: World) -> None:
        with pytest.raises(ValueError, match="no public key of gateway/none: copy it"):
            w.open_link(
                w.address, identity=b"client/bob/1", keys=Keyring(folder, "client", "bob"),
                server="gateway/none",
            )  # fmt: skip
        with pytest.raises(ValueError, match="which messages each kind"):
            Server(w.context, ToGateway, keys=Keyring(folder, "gateway"))

    run(folder, scenario)


def test_w09_a_broken_authenticator_admits_nobody(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(w: World) -> None:
        await w.canary()
        authenticator = w.server._authenticator
        assert authenticator is not None
        with caplog.at_level(logging.CRITICAL):
            authenticator.judge = None  # type: ignore[assignment,method-assign]
            late = w.link("client", "alice")
            late.send(ClientPing(label="x"))
            await until(lambda: late.trouble)
        assert "no more connections are admitted" in caplog.text
        reading = asyncio.create_task(w.server.receive())
        await until(lambda: late._connection._dialing.num_failures > 3)
        assert not reading.done()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    run(folder, scenario)


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(100),
        b"\x01\x00" + bytes(100),  # ZMTP 1
        b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x01\x05\x00\x00",  # ZMTP 2
        b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(47) + b"\x04\xc8\x05HELLO" + bytes(194),
    ],
    ids=["http", "v1", "v2", "hello"],
)
def test_w03_w04_other_protocols_are_hung_up_on(folder: Path, noise: bytes) -> None:
    async def scenario(w: World) -> None:
        host, port = w.address.removeprefix("tcp://").rsplit(":", 1)
        loop = asyncio.get_running_loop()
        with socket.create_connection((host, int(port))) as attacker:
            attacker.sendall(noise)
            attacker.setblocking(False)
            async with asyncio.timeout(5):
                try:
                    while await loop.sock_recv(attacker, 65_536):
                        pass
                except ConnectionError:
                    assert noise
            await w.canary()
            assert w.server.num_malformed == 0

    run(folder, scenario)


def test_one_server_with_keys_per_context(folder: Path) -> None:
    async def scenario(w: World) -> None:
        second: Server[Any] = Server(
            w.context, ToGateway, keys=Keyring(folder, "gateway"), allowed=ALLOWED
        )
        with pytest.raises(ValueError, match="make another context"):
            second.bind("127.0.0.1", 0)
        second.close()
        await w.canary()

    run(folder, scenario)
