"""What the ledger asks is done in its order, and clients hear of their tokens first."""

import asyncio
from typing import Any

import msgspec

from gateway.actions import Action, CloseNode, ToClient, ToCoordinator, ToNode
from gateway.deeds import Deeds
from tandem.messages.common import NodeRef
from tests.gateway.session_desk import done, output

NODE = NodeRef(node_id="n", incarnation=1, epoch=1, control_address="tcp://127.0.0.1:1")


class Desk:
    """All whom deeds go to; `seen` is what came, in order. A client called `broken` raises."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.deeds = Deeds(self, self, self, self, ended=lambda end: self.seen.append("ended"))

    def owns(self, client: bytes) -> bool:
        return client != b"zmq"

    def tell(self, client: bytes, message: msgspec.Struct, *now: float) -> None:
        if client == b"broken":
            raise RuntimeError("a mistake of ours")
        self.seen.append(f"{client.decode()} {type(message).__name__}")

    def send(self, *message: Any) -> None:
        self.seen.append("node" if len(message) > 1 else "coordinator")

    def close(self, node_id: str, epoch: int) -> None:
        self.seen.append("closed")


def actions() -> list[Action]:
    return [
        ToNode(NODE, output(0)),
        ToClient(b"a", output(0)),
        ToCoordinator(output(0)),
        ToClient(b"zmq", done(1)),
        CloseNode("n", 1, "gone"),
    ]


def test_deeds_are_done_in_order() -> None:
    desk = Desk()
    desk.deeds.do(actions())
    assert desk.seen == ["node", "a Output", "coordinator", "zmq Done", "ended", "closed"]


def test_clients_hear_first_and_nobody_is_overtaken() -> None:
    async def run() -> None:
        desk = Desk()
        desk.deeds.do_clients_first(actions())
        told, rest = ["a Output", "zmq Done", "ended"], ["node", "coordinator", "closed"]
        assert desk.seen == told
        desk.deeds.do_clients_first([ToCoordinator(done(1))])
        assert desk.seen == told
        await asyncio.sleep(0)
        assert desk.seen == [*told, *rest, "coordinator"]
        desk.deeds.do_clients_first(actions())
        desk.deeds.do([ToNode(NODE, output(1))])
        assert desk.seen[len(told) + 4 :] == [*told, *rest, "node"]
        await asyncio.sleep(0)
        assert len(desk.seen) == 2 * len(told) + 8

    asyncio.run(run())


def test_one_that_cannot_be_done_stops_no_other() -> None:
    desk = Desk()
    desk.deeds.do([ToClient(b"broken", output(0)), ToClient(b"a", output(0))])
    assert desk.seen == ["a Output"]
