"""Links to nodes over real loopback sockets: which process a message reaches, and hanging up."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import zmq.asyncio

from gateway.node_links import NodeLinks
from tandem.keys import KeyFolder, Keyring
from tandem.messages.common import NodeRef
from tandem.messages.serving import AskAttempt, Cancel, CommandAck, FromGatewayToNode, PeerBeat
from tandem.sockets import Server

REQUEST_ID = (1).to_bytes(16, "big")
CANCEL = Cancel(request_id=REQUEST_ID, attempt=1)
ACK = CommandAck(command="cancel", request_id=REQUEST_ID, attempt=1)
BEAT = PeerBeat(gateway_id="gw", incarnation=5)


class Rig:
    """A node's server, and a gateway's links; with `keys` the node has the key of "d0"."""

    def __init__(self, context: zmq.asyncio.Context, keys: Path | None = None) -> None:
        self.server: Server = Server(
            context,
            FromGatewayToNode,
            keys=None if keys is None else Keyring(keys, "node", "d0"),
            allowed={"gateway": FromGatewayToNode},
        )
        self.address = self.server.bind("127.0.0.1", 0)
        self.heard: asyncio.Queue[tuple[NodeRef, msgspec.Struct]] = asyncio.Queue()
        self.links = NodeLinks(
            context,
            identity=b"gateway/gw/5",
            beat=BEAT,
            receive=lambda node, message: self.heard.put_nowait((node, message)),
            keys=None if keys is None else Keyring(keys, "gateway"),
        )

    def ref(self, node_id: str, epoch: int, incarnation: int = 1) -> NodeRef:
        return NodeRef(
            node_id=node_id,
            incarnation=incarnation,
            epoch=epoch,
            control_address=self.address,
        )

    async def arrives(self) -> tuple[bytes, msgspec.Struct]:
        return await asyncio.wait_for(self.server.receive(), 5)

    async def is_quiet(self) -> bool:
        """Whether nothing arrives any more."""
        try:
            await asyncio.wait_for(self.server.receive(), 0.3)
        except TimeoutError:
            return True
        return False


def play(scene: Callable, keys: Path | None = None) -> None:
    """Run a scene with a rig, and take it down."""

    async def run() -> None:
        context = zmq.asyncio.Context()
        rig = Rig(context, keys)
        try:
            await scene(rig)
        finally:
            rig.links.close_all()
            rig.server.close()
            context.term()

    asyncio.run(run())


def test_a_link_that_a_cancel_opened_again_can_be_closed_for_good() -> None:
    async def scene(rig: Rig) -> None:
        node = rig.ref("d0", 7)
        rig.links.send(node, CANCEL)
        assert [(await rig.arrives())[1] for _ in range(2)] == [BEAT, CANCEL]
        rig.links.close("d0", 7)
        rig.links.send(node, CANCEL)
        assert [(await rig.arrives())[1] for _ in range(2)] == [BEAT, CANCEL]
        rig.links.close("d0", 7)
        rig.links.beat_all()
        assert await rig.is_quiet()

    play(scene)


@pytest.mark.parametrize("name", ["d0", "d1"])
def test_of_two_processes_at_one_address_the_later_one_is_linked(name) -> None:
    """A restarted node on the same port answers under its new name, whatever is asked of the old.

    With a second link under the same identity its answers would come over one of the two only.
    """

    async def scene(rig: Rig) -> None:
        old, new = rig.ref("d0", 7), rig.ref(name, 8, incarnation=2)
        rig.links.send(old, CANCEL)
        assert [(await rig.arrives())[1] for _ in range(2)] == [BEAT, CANCEL]
        rig.links.send(new, CANCEL)
        arrived = [await rig.arrives() for _ in range(2)]
        assert [message for _, message in arrived] == [BEAT, CANCEL]
        rig.links.send(old, CANCEL)
        if name == "d0":  # it may have heard what was meant for its predecessor
            assert (await rig.arrives())[1] == CANCEL
            rig.links.send(old, AskAttempt(request_id=REQUEST_ID, attempt=1))
        rig.server.send(arrived[-1][0], ACK)
        assert await asyncio.wait_for(rig.heard.get(), 5) == (new, ACK)
        assert await rig.is_quiet()

    play(scene)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = KeyFolder.create(tmp_path / "keys")
    for kind, name in (("gateway", "gw"), ("node", "d0"), ("node", "d1")):
        folder.add(kind, name)
    return folder.folder


def test_with_keys_a_node_is_reached_under_its_own_name_only(keys) -> None:
    async def scene(rig: Rig) -> None:
        rig.links.send(rig.ref("d0", 7), CANCEL)
        arrived = [await rig.arrives() for _ in range(2)]
        assert [message for _, message in arrived] == [BEAT, CANCEL]
        assert arrived[0][0].startswith(b"gateway/gw/5")
        rig.server.send(arrived[-1][0], ACK)
        assert await asyncio.wait_for(rig.heard.get(), 5) == (rig.ref("d0", 7), ACK)
        rig.links.send(rig.ref("d1", 8), CANCEL)  # the process at that address has another key
        assert await rig.is_quiet()

    play(scene, keys)


def test_a_node_without_a_key_is_logged_once(keys, caplog) -> None:
    async def scene(rig: Rig) -> None:
        with caplog.at_level(logging.ERROR):
            for _ in range(3):
                rig.links.send(rig.ref("x0", 7), CANCEL)
        assert await rig.is_quiet()

    play(scene, keys)
    (record,) = caplog.records
    assert "x0" in record.getMessage()
