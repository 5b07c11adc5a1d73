"""A gateway's server with keys, and whoever dials it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio

from tandem.keys import KeyFolder, Keyring
from tandem.messages.client import ClientPing, ClientPong, ToClient, ToGateway
from tandem.messages.membership import FromNode
from tandem.sockets import Link, Server

PONG = ClientPong(label="1", model="m", ready=True, max_model_len=1)
ALLOWED = {"client": ToGateway, "node": ToGateway | FromNode}


def make_folder(path: Path) -> Path:
    """Keys of a gateway, two clients, a node and an operator."""
    keys = KeyFolder.create(path / "keys")
    for kind, name in (
        ("gateway", "g"), ("client", "alice"), ("client", "bob"), ("node", "a"), ("operator", "o"),
    ):  # fmt: skip
        keys.add(kind, name)
    return keys.folder


class World:
    """A gateway's server with keys, and whoever dials it."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder = folder
        self.context = zmq.asyncio.Context()
        self.server: Server[Any] = Server(
            self.context,
            ToGateway | FromNode,
            keys=Keyring(folder, "gateway"),
            allowed=ALLOWED,
        )
        self.address = self.server.bind(host, 0)
        self._opened: list[Any] = []

    def link(
        self, kind: str, name: str, token: str = "1", *, folder: Path | None = None
    ) -> Link[Any]:
        """A link of a key's owner."""
        link: Link[Any] = Link(
            self.context,
            ToClient,
            identity=f"{kind}/{name}/{token}".encode(),
            address=self.address,
            keys=Keyring(folder or self.folder, kind, name),
            server="gateway/g",
        )
        self._opened.append(link)
        return link

    def open_link(self, address: str, **options: Any) -> Link[Any]:
        """A link as its options say."""
        link: Link[Any] = Link(self.context, ToClient, address=address, **options)
        self._opened.append(link)
        return link

    def raw(self, kind: str, name: str, identity: bytes | None) -> zmq.asyncio.Socket:
        """A foreign program with the owner's key and an identity of its choice."""
        keys = Keyring(self.folder, kind, name)
        sock: zmq.asyncio.Socket = self.context.socket(zmq.DEALER)
        sock.set(zmq.LINGER, 0)
        if identity is not None:
            sock.set(zmq.IDENTITY, identity)
        sock.set(zmq.CURVE_SERVERKEY, keys.keys_of("gateway", "g")[0].encode())
        sock.set(zmq.CURVE_PUBLICKEY, keys.public_key.encode())
        sock.set(zmq.CURVE_SECRETKEY, keys.secret_key.encode())
        sock.connect(self.address)
        self._opened.append(sock)
        return sock

    async def canary(self) -> None:
        """An honest client is served within a second."""
        async with asyncio.timeout(1):
            link = self.link("client", "bob", "canary")
            link.send(ClientPing(label="canary"))
            while (taken := await self.server.receive())[0] != b"client/bob/canary":
                pass
            assert taken[1] == ClientPing(label="canary")
            self.server.send(b"client/bob/canary", PONG)
            assert await anext(link.messages()) == PONG
        link.close()

    def close(self) -> None:
        for opened in self._opened:
            opened.close()
        self.server.close()
        self.context.term()


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    made = World(folder)
    try:
        yield made
    finally:
        made.close()


def run(folder: Path, scenario: Callable[[World], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with world(folder) as made:
            await asyncio.wait_for(scenario(made), 18)

    asyncio.run(inside())


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  nobody would set an event
            await asyncio.sleep(0.01)


def is_gone(w: World, identity: bytes) -> bool:
    return not w.server.send(identity, PONG)
