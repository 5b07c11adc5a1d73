"""A gateway on real loopback sockets, with a fake coordinator and fake nodes around it.

The raw client speaks MessagePack by the `msgpack` package and plain pyzmq: any speaker can.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgpack
import zmq
import zmq.asyncio

from gateway.config import GatewayConfig
from gateway.served_model import ServedModel
from gateway.server import serve
from tandem.keys import Keyring
from tandem.messages.common import NodeRef, SlaTargets
from tandem.messages.placement import (
    FromGateway,
    GatewayHello,
    GatewayRefused,
    GatewayWelcome,
    NodeDown,
    Place,
    Placed,
    RequestEnded,
    RequestEndedAck,
)
from tandem.messages.serving import Decode, FromGatewayToNode, PeerBeat, Prefill
from tandem.sockets import Server

TARGETS = SlaTargets(sla_class="standard", ttft_ms=20_000, tpot_ms=1000)


class Client:
    """Speaks to a gateway with nothing of ours."""

    def __init__(self, context: zmq.asyncio.Context, address: str) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.connect(address)

    async def say(self, message: dict, *frames: bytes) -> None:
        await self._socket.send_multipart([b"TDM\x01", msgpack.packb(message), *frames])

    async def hear(self) -> dict:
        magic, control = await asyncio.wait_for(self._socket.recv_multipart(), 10)
        assert magic == b"TDM\x01"
        return msgpack.unpackb(control)

    async def submit(self, text: str = "def f", label: str = "mine", **params) -> None:
        fields = {"type": "Submit", "label": label, "prompt": 0}
        fields["params"] = {"max_tokens": 8, "temperature": 0.0, **params}
        await self.say(fields, text.encode())

    async def received(self, accepted: dict, next_index: int, *, is_done: bool = False) -> None:
        fields = {"request_id": accepted["request_id"], "next_index": next_index}
        await self.say({"type": "Received", **fields, "is_done": is_done})

    async def answer(self) -> tuple[dict, list[int], str, dict]:
        """Accepted, ids, text, Done; confirmed."""
        accepted = await self.hear()
        assert accepted["type"] == "Accepted", accepted
        ids: list[int] = []
        text = ""
        while (message := await self.hear())["type"] == "Output":
            assert message["index"] == len(ids)
            ids += message["token_ids"]
            text += message["text"]
        await self.received(accepted, len(ids), is_done=True)
        return accepted, ids, text, message

    def close(self) -> None:
        self._socket.close()


class Cluster:
    """A coordinator and nodes on sockets; `nodes` are the fakes of conftest.py.

    With `keys`, in that folder. `page_size` lets gateways compute routing prefixes.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        world,
        keys: Path | None = None,
        page_size: int | None = None,
    ) -> None:
        self.context = context
        self.world = world
        self.keys = keys
        self.own_contexts: list[zmq.asyncio.Context] = []
        self.page_size = page_size
        self.coordinator = self._server(FromGateway, "coordinator", "coordinator")
        self.places: list[Place] = []
        self.address = self.coordinator.bind("127.0.0.1", 0)
        self.refusal: str | None = None
        self.orders_drain = False
        self.hellos: list[GatewayHello] = []
        self.gateway = b""
        self.servers: dict[str, Server] = {}
        self.tasks = [asyncio.create_task(self._coordinate())]
        self.num_beats = 0
        self.ends: list[RequestEnded] = []
        self.pause = asyncio.Event()
        for node_id in list(world.nodes):
            self.start(node_id)

    def _server(self, union, kind: str, name: str) -> Server:
        if self.keys is None:
            return Server(self.context, union)
        keyring = Keyring(self.keys, kind, name)
        self.own_contexts.append(zmq.asyncio.Context())  # each has one server with keys
        return Server(self.own_contexts[-1], union, keys=keyring, allowed={"gateway": union})

    def start(self, node_id: str) -> None:
        """Listen as a node that the world knows."""
        server = self._server(FromGatewayToNode, "node", node_id)
        node = self.world.nodes[node_id]
        node.ref = NodeRef(
            node_id=node_id,
            incarnation=node.ref.incarnation,
            epoch=node.ref.epoch,
            control_address=server.bind("127.0.0.1", 0),
        )
        self.servers[node_id] = server
        self.tasks.append(asyncio.create_task(self._serve(server, node)))

    async def kill(self, node_id: str) -> None:
        """A node dies, and the coordinator tells the gateway."""
        node = self.world.nodes.pop(node_id)
        self.servers.pop(node_id).close()
        down = NodeDown(node_id=node_id, epoch=node.ref.epoch, reason="killed")
        self.coordinator.send(self.gateway, down)

    async def _coordinate(self) -> None:
        while True:
            peer, message = await self.coordinator.receive()
            self.gateway = peer
            match message:
                case GatewayHello() if self.refusal is not None:
                    self.coordinator.send(peer, GatewayRefused(reason=self.refusal))
                case GatewayHello():
                    self.hellos.append(message)
                    self.coordinator.send(peer, self._welcome())
                case Place():
                    self.places.append(message)
                    self.coordinator.send(peer, self._placed(message))
                case RequestEnded():
                    self.ends.append(message)
                    self.coordinator.send(peer, RequestEndedAck(request_id=message.request_id))

    def _welcome(self) -> GatewayWelcome:
        return GatewayWelcome(
            coordinator_incarnation=1,
            sla_classes=(TARGETS,),
            default_class="standard",
            num_prefill_nodes=1,
            num_decode_nodes=1,
            max_model_len=300,
            page_size=self.page_size,
            kv_dtype=None if self.page_size is None else "float32",
            drain=self.orders_drain,
        )

    def _placed(self, place: Place) -> Placed:
        return Placed(
            request_id=place.request_id,
            attempt=place.attempt,
            prefill=self.world.nodes["p0"].ref,
            decode=self.world.nodes["d0"].ref,
            targets=TARGETS,
            sequence=1,
        )

    async def _serve(self, server: Server, node) -> None:
        pump: asyncio.Task | None = None
        peers: dict[bytes, bytes] = {}  # which gateway commanded a request
        try:
            while True:
                peer, message = await server.receive()
                if isinstance(message, PeerBeat):
                    self.num_beats += 1
                if isinstance(message, Prefill | Decode):
                    peers[message.spec.request_id] = peer
                for answer in node.command(message):
                    server.send(peer, answer)
                if pump is None:
                    pump = asyncio.create_task(self._pump(server, node, peers))
        except zmq.ZMQError:
            pass  # the node was killed
        finally:
            if pump is not None:
                pump.cancel()

    async def _pump(self, server: Server, node, peers: dict[bytes, bytes]) -> None:
        while True:
            await asyncio.sleep(0.01)
            if not self.pause.is_set():
                node.step()
                for emission in node.emit():
                    parts = (*emission.deltas, *emission.endings)
                    peer = peers[parts[0].request_id] if parts else b""
                    server.send(peer, emission)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for server in self.servers.values():
            server.close()
        self.coordinator.close()
        for context in self.own_contexts:
            context.term()


@contextlib.asynccontextmanager
async def running_gateway(
    cluster: Cluster, model: ServedModel, stop: asyncio.Event | None = None, **settings
) -> AsyncIterator[str]:
    """A gateway's address while it serves; with the block it ends."""
    settings = {"model": "", "port": 0, "http_port": -1, "name": "gw", "drain_s": 0.0, **settings}
    config = GatewayConfig(coordinator=cluster.address, **settings)
    stop = asyncio.Event() if stop is None else stop
    ready = asyncio.get_running_loop().create_future()
    gateway = asyncio.create_task(serve(config, model, stop=stop, on_ready=ready.set_result))
    try:
        yield await asyncio.wait_for(ready, 10)
    finally:
        stop.set()
        await asyncio.wait_for(gateway, 10)


@contextlib.asynccontextmanager
async def running_cluster(
    world, keys: Path | None = None, page_size: int | None = None
) -> AsyncIterator[Cluster]:
    """A coordinator and the world's nodes."""
    context = zmq.asyncio.Context()
    cluster = Cluster(context, world, keys, page_size)
    try:
        yield cluster
    finally:
        await cluster.close()
        context.term()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it does not happen within 10 s")
