"""Links to page owners: nothing passes before the owner has confirmed a measured transport."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import zmq.asyncio

from node.core import NodeLost
from node.ledger import PageLedger
from node.peers import Owners
from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity, NodeRef
from tandem.messages.handoff import (
    Drained,
    FromWriter,
    OwnerRefused,
    OwnerWelcome,
    TransportOffer,
    WriterHello,
)
from tandem.messages.membership import NodeLoad
from tandem.sockets import Server

WAIT_S = 10.0
OFFER = TransportOffer(transport="zmq", address="tcp://127.0.0.1:1")
LAYOUT = KVLayout(num_layers=1, num_kv_heads=1, head_dim=1, page_size=4, dtype="float32")
MODEL = ModelIdentity(
    served_name="m",
    weights_fingerprint="w",
    tokenizer_fingerprint="t",
    dtype="float32",
    max_model_len=8,
    vocab_size=9,
)
DRAINED = Drained(request_id=b"r" * 16, attempt=1)


class Exchange:
    """Opens what it is told to; notes what it was asked."""

    def __init__(self) -> None:
        self.outcome: str | ValueError = "zmq"
        self.may_open = threading.Event()
        self.may_open.set()
        self.num_opened = 0
        self.closed: list[str] = []

    def hello(self, epoch: int, chosen: str | None = None) -> WriterHello:
        return WriterHello(
            node_id="p0",
            incarnation=1,
            epoch=epoch,
            layout=LAYOUT,
            model=MODEL,
            host_id="h",
            transports=("zmq",),
            chosen=chosen,
        )

    def open_owner(self, welcome: OwnerWelcome) -> str:
        assert self.may_open.wait(WAIT_S)
        self.num_opened += 1
        if isinstance(self.outcome, ValueError):
            raise self.outcome
        return self.outcome

    def close_owner(self, node_id: str) -> None:
        self.closed.append(node_id)


class World:
    """A node's owners, and one owner's control socket in our hands."""

    def __init__(self) -> None:
        self.context = zmq.asyncio.Context()
        self.server: Server[Any] = Server(self.context, FromWriter)
        self.address = self.server.bind("127.0.0.1", 0)
        self.ref = NodeRef(node_id="d0", incarnation=5, epoch=1, control_address=self.address)
        self.exchange: Any = Exchange()
        self.load = NodeLoad(
            num_steps=0,
            step_age_s=7.0,
            num_prefill_waiting=0,
            num_prefill_tokens_waiting=0,
            num_decode_running=0,
            num_decode_waiting=0,
            num_transfers=0,
            num_requests=0,
            num_tokens_out=0,
            pages=PageLedger(1).counts(),
            has_work=True,
            predicted_step_s=5.0,
        )
        self.told: asyncio.Queue[Any] = asyncio.Queue()
        self.owners = Owners(
            self.context,
            self.exchange,
            node_id="p0",
            incarnation=1,
            offer=lambda event: True,
            insist=self.told.put_nowait,
            load=lambda: self.load,
        )

    async def heard(self) -> tuple[bytes, Any]:
        return await asyncio.wait_for(self.server.receive(), WAIT_S)

    async def hear(self, is_wanted: Callable[[Any], bool]) -> tuple[bytes, Any]:
        """The next message of this kind; greetings are repeated."""
        while True:
            peer, message = await self.heard()
            if is_wanted(message):
                return peer, message

    def welcome(self, peer: bytes, transport: str | None = None) -> None:
        welcome = OwnerWelcome(
            node_id="d0",
            incarnation=5,
            epoch=1,
            num_pages=3,
            offers=(OFFER,),
            transport=transport,
        )
        assert self.server.send(peer, welcome)


def in_world(scenario: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
    """A test of a scenario, in an event loop and with a world of its own."""

    async def play() -> None:
        world = World()
        try:
            await scenario(world)
        finally:
            world.exchange.may_open.set()
            world.owners.close_all()
            world.server.close()
            world.context.term()

    return lambda: asyncio.run(play())


def has_chosen(message: Any) -> bool:
    return isinstance(message, WriterHello) and message.chosen is not None


@in_world
async def test_messages_wait_until_the_owner_confirms_the_choice(world: World) -> None:
    world.owners.send(world.ref, DRAINED)
    peer, hello = await world.heard()
    assert hello.chosen is None
    world.welcome(peer)
    _, hello = await world.hear(has_chosen)
    assert hello.chosen == "zmq"
    assert (hello.has_work, hello.step_age_s, hello.predicted_step_s) == (True, 7.0, 5.0)
    world.welcome(peer, "shared_memory")  # not what was chosen
    world.welcome(peer)
    _, again = await world.heard()
    assert again == hello, "nothing but greetings has come"
    world.welcome(peer, "zmq")
    _, message = await world.hear(lambda m: not isinstance(m, WriterHello))
    assert message == DRAINED
    assert world.exchange.num_opened == 1


@in_world
async def test_measuring_does_not_hold_the_loop(world: World) -> None:
    world.exchange.may_open.clear()
    world.owners.send(world.ref, DRAINED)
    peer, _ = await world.heard()
    world.welcome(peer)
    began_at = time.monotonic()
    num_turns = 0
    while time.monotonic() - began_at < 0.2:
        await asyncio.sleep(0.005)
        num_turns += 1
    assert num_turns > 5
    assert world.exchange.num_opened == 0
    world.exchange.may_open.set()
    assert (await world.hear(has_chosen))[1].chosen == "zmq"


@in_world
async def test_no_transport_fails_with_its_reasons_and_is_tried_anew(world: World) -> None:
    world.exchange.outcome = ValueError("zmq: no answer")
    world.owners.send(world.ref, DRAINED)
    peer, _ = await world.heard()
    world.welcome(peer)
    lost = await asyncio.wait_for(world.told.get(), WAIT_S)
    assert lost == NodeLost(world.ref, "zmq: no answer")
    assert world.exchange.closed == ["d0"]
    world.exchange.outcome = "zmq"
    peer, hello = await world.heard()
    assert hello.chosen is None
    world.welcome(peer)
    assert (await world.hear(has_chosen))[1].chosen == "zmq"


@in_world
async def test_another_process_at_the_owners_address_is_not_written_to(world: World) -> None:
    predecessor = msgspec.structs.replace(world.ref, incarnation=4)
    world.owners.send(predecessor, DRAINED)
    peer, _ = await world.heard()
    world.welcome(peer)
    lost = await asyncio.wait_for(world.told.get(), WAIT_S)
    assert lost.node == predecessor and "another process answers" in lost.reason
    assert world.exchange.num_opened == 0


@in_world
async def test_a_refused_choice_is_forgotten(world: World) -> None:
    world.owners.send(world.ref, DRAINED)
    peer, _ = await world.heard()
    world.welcome(peer)
    await world.hear(has_chosen)
    world.server.send(peer, OwnerRefused(node_id="d0", reason="not this one"))
    lost = await asyncio.wait_for(world.told.get(), WAIT_S)
    assert lost == NodeLost(world.ref, "not this one")
    assert world.exchange.closed == ["d0"]
    await world.hear(lambda m: isinstance(m, WriterHello) and m.chosen is None)
