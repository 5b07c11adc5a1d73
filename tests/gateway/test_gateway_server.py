"""The gateway's shell over real loopback sockets, with a fake coordinator and fake nodes.

The client here speaks MessagePack by the `msgpack` package and plain pyzmq: any speaker can.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import msgpack
import pytest
import zmq
import zmq.asyncio

from gateway.config import GatewayConfig
from gateway.server import ServedModel, serve
from tandem.messages.common import ModelIdentity, NodeRef, SlaTargets
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
from tandem.messages.serving import FromGatewayToNode, PeerBeat
from tandem.sampling import GenerationDefaults
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

    async def submit(self, text: str = "def f", **params) -> None:
        fields = {"type": "Submit", "label": "mine", "prompt": 0}
        fields["params"] = {"max_tokens": 8, "temperature": 0.0, **params}
        await self.say(fields, text.encode())

    async def answer(self) -> tuple[dict, list[int], str, dict]:
        """Accepted, ids, text, Done."""
        accepted = await self.hear()
        assert accepted["type"] == "Accepted", accepted
        ids: list[int] = []
        text = ""
        while (message := await self.hear())["type"] == "Output":
            assert message["index"] == len(ids)
            ids += message["token_ids"]
            text += message["text"]
        return accepted, ids, text, message

    def close(self) -> None:
        self._socket.close()


class Cluster:
    """A coordinator and nodes on sockets; `nodes` are the fakes of conftest.py."""

    def __init__(self, context: zmq.asyncio.Context, world) -> None:
        self.context = context
        self.world = world
        self.coordinator: Server = Server(context, FromGateway)
        self.address = self.coordinator.bind("127.0.0.1", 0)
        self.refusal: str | None = None
        self.gateway = b""
        self.servers: dict[str, Server] = {}
        self.tasks = [asyncio.create_task(self._coordinate())]
        self.num_beats = 0
        self.ends: list[RequestEnded] = []
        self.pause = asyncio.Event()
        for node_id in list(world.nodes):
            self.start(node_id)

    def start(self, node_id: str) -> None:
        """Listen as a node that the world knows."""
        server: Server = Server(self.context, FromGatewayToNode)
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
                    self.coordinator.send(peer, self._welcome())
                case Place():
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
        try:
            while True:
                peer, message = await server.receive()
                if isinstance(message, PeerBeat):
                    self.num_beats += 1
                for answer in node.command(message):
                    server.send(peer, answer)
                if pump is None:
                    pump = asyncio.create_task(self._pump(server, node, peer))
        except zmq.ZMQError:
            pass  # the node was killed
        finally:
            if pump is not None:
                pump.cancel()

    async def _pump(self, server: Server, node, peer: bytes) -> None:
        while True:
            await asyncio.sleep(0.01)
            if not self.pause.is_set():
                node.step()
                for emission in node.emit():
                    server.send(peer, emission)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for server in self.servers.values():
            server.close()
        self.coordinator.close()


@pytest.fixture
def served_model(tokenizer) -> ServedModel:
    identity = ModelIdentity(
        served_name="demo",
        weights_fingerprint="w",
        tokenizer_fingerprint="t",
        dtype="",
        max_model_len=4096,
        vocab_size=4096,
    )
    return ServedModel(identity, GenerationDefaults(eos_token_ids=(0,)), tokenizer)


@pytest.fixture
def run_gateway(served_model, make_world) -> Callable[..., None]:
    """Run an async test body as body(cluster, client) beside a gateway with the given settings."""

    @contextlib.asynccontextmanager
    async def stage(**settings) -> AsyncIterator[tuple[Cluster, Client]]:
        context = zmq.asyncio.Context()
        cluster = Cluster(context, make_world())
        settings = {"model": "", "port": 0, "name": "gw", "drain_s": 0.0, **settings}
        config = GatewayConfig(coordinator=cluster.address, **settings)
        stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
        gateway = asyncio.create_task(
            serve(config, served_model, stop=stop, on_ready=ready.set_result)
        )
        client = Client(context, await asyncio.wait_for(ready, 10))
        try:
            yield cluster, client
        finally:
            client.close()
            stop.set()
            await asyncio.wait_for(gateway, 10)
            await cluster.close()
            context.term()

    def run(body: Callable[[Cluster, Client], Awaitable[None]], **settings) -> None:
        async def main() -> None:
            async with stage(**settings) as (cluster, client):
                await body(cluster, client)

        asyncio.run(main())

    return run


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it does not happen within 10 s")


def test_a_plain_msgpack_speaker_is_served(run_gateway, tokenizer) -> None:
    async def body(cluster: Cluster, client: Client) -> None:
        await client.say({"type": "ClientPing", "label": "p"})
        pong = await client.hear()
        assert (pong["label"], pong["model"], pong["ready"]) == ("p", "demo", True)
        assert pong["max_model_len"] == 300
        await client.submit("def f", seed=2**64 - 1)
        accepted, ids, text, done = await client.answer()
        assert (accepted["label"], len(accepted["request_id"])) == ("mine", 16)
        assert accepted["seed"] == 2**64 - 1
        assert accepted["model_fingerprint"] == "w"
        assert accepted["num_prompt_tokens"] == len(tokenizer("def f")["input_ids"])
        assert len(ids) == 8
        assert text == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert (done["type"], done["reason"]) == ("Done", "length")
        assert done["usage"]["num_output_tokens"] == 8
        line = done["timeline"]
        assert (line["prefill_node"], line["decode_node"], line["num_attempts"]) == ("p0", "d0", 1)
        assert 0 <= line["placed_s"] <= line["first_token_s"] <= line["finished_s"]
        assert done["sla_attained"]
        await until(lambda: len(cluster.ends) == 1 and cluster.num_beats >= 2)
        assert all(not node.specs for node in cluster.world.nodes.values())

    run_gateway(body)


def test_chat_and_token_ids_are_taken_too(run_gateway, tokenizer) -> None:
    async def body(cluster: Cluster, client: Client) -> None:
        chat = [{"role": "user", "content": "hello"}]
        await client.say(
            {"type": "Submit", "label": "c", "chat": chat, "params": {"max_tokens": 2}}
        )
        accepted, ids, _, _ = await client.answer()
        rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        num_tokens = len(tokenizer(rendered, add_special_tokens=False)["input_ids"])
        assert (accepted["num_prompt_tokens"], len(ids)) == (num_tokens, 2)
        frame = b"".join(i.to_bytes(4, "little") for i in (5, 6, 7))
        message = {"type": "Submit", "label": "i", "prompt_ids": 0, "params": {"max_tokens": 3}}
        await client.say(message, frame)
        accepted, ids, _, _ = await client.answer()
        assert (accepted["num_prompt_tokens"], len(ids)) == (3, 3)

    run_gateway(body)


def test_what_cannot_be_served_is_refused_and_garbage_is_told(run_gateway) -> None:
    async def body(cluster: Cluster, client: Client) -> None:
        cases: list[tuple[dict, tuple[bytes, ...], str]] = [
            ({"prompt": 0, "model": "other"}, (b"a",), "unknown_model"),
            ({"prompt": 0, "sla_class": "gold"}, (b"a",), "unknown_sla_class"),
            ({"prompt": 0}, (b"",), "invalid_request"),
            ({}, (), "invalid_request"),
            ({"prompt": 0}, (b"a b c " * 300,), "context_too_long"),
            ({"prompt": 0, "params": {"top_p": 2.0}}, (b"a",), "invalid_request"),
        ]
        for fields, frames, code in cases:
            await client.say({"type": "Submit", "label": code, **fields}, *frames)
            refused = await client.hear()
            assert (refused["type"], refused["label"], refused["code"]) == ("Refused", code, code)
        await client.say({"type": "Submit", "label": "x" * 129, "prompt": 0}, b"a")
        malformed = await client.hear()
        assert malformed["type"] == "Malformed"
        assert "128" in malformed["message"]
        await client.say({"type": "Destroy"})
        assert (await client.hear())["type"] == "Malformed"
        await client.submit()
        assert (await client.answer())[3]["reason"] == "length"

    run_gateway(body)


def test_a_dead_node_does_not_break_the_stream(run_gateway) -> None:
    async def body(cluster: Cluster, client: Client) -> None:
        await client.submit(max_tokens=8)
        undisturbed = (await client.answer())[1]
        await client.submit(max_tokens=8)
        accepted = await client.hear()
        first = await client.hear()
        await cluster.kill("d0")
        cluster.world.add_node("d0")
        cluster.start("d0")
        ids, message = list(first["token_ids"]), await client.hear()
        while message["type"] == "Output":
            assert message["index"] == len(ids)
            ids += message["token_ids"]
            message = await client.hear()
        assert (message["request_id"], ids) == (accepted["request_id"], undisturbed)
        assert message["timeline"]["num_attempts"] == 2

    run_gateway(body)


def test_a_cancel_reaches_the_nodes(run_gateway) -> None:
    async def body(cluster: Cluster, client: Client) -> None:
        await client.submit(max_tokens=250)
        accepted = await client.hear()
        await client.hear()
        await client.say({"type": "CancelRequest", "request_id": accepted["request_id"]})
        while (message := await client.hear())["type"] == "Output":
            pass
        assert (message["reason"], message["code"]) == ("cancelled", "cancelled")
        await until(lambda: not any(node.specs for node in cluster.world.nodes.values()))

    run_gateway(body)


def test_a_client_that_hangs_up_frees_the_nodes(run_gateway) -> None:
    async def body(cluster: Cluster, client: Client) -> None:
        await client.submit(max_tokens=250)
        await client.hear()
        await client.hear()
        client.close()
        await until(lambda: len(cluster.ends) == 1)
        assert cluster.ends[0].reason == "cancelled"
        await until(lambda: not any(node.specs for node in cluster.world.nodes.values()))

    run_gateway(body)


def test_more_requests_than_allowed_are_refused_at_once(run_gateway) -> None:
    async def body(cluster: Cluster, client: Client) -> None:
        cluster.pause.set()
        await client.submit()
        assert (await client.hear())["type"] == "Accepted"
        await client.submit()
        refused = await client.hear()
        assert (refused["type"], refused["code"]) == ("Refused", "overloaded")
        assert refused["retry_after_s"] > 0
        assert "--max-live-requests" in refused["message"]

    run_gateway(body, max_live_requests=1)


def test_prompts_in_flight_are_bounded_by_their_bytes(run_gateway) -> None:
    async def body(cluster: Cluster, client: Client) -> None:
        await client.submit("a" * (2 << 20))
        refused = await client.hear()
        assert (refused["type"], refused["code"]) == ("Refused", "overloaded")
        assert "--max-prompt-mib" in refused["message"]

    run_gateway(body, max_prompt_mib=1)


def test_a_gateway_that_does_not_fit_ends_with_the_reason(served_model, make_world) -> None:
    async def main() -> None:
        context = zmq.asyncio.Context()
        cluster = Cluster(context, make_world())
        cluster.refusal = "weights_fingerprint is w in gw and v in p0"
        config = GatewayConfig(model="unused", port=0, coordinator=cluster.address)
        try:
            await serve(config, served_model, stop=asyncio.Event(), on_ready=print)
        finally:
            await cluster.close()
            context.term()

    with pytest.raises(ValueError, match="weights_fingerprint is w in gw and v in p0"):
        asyncio.run(asyncio.wait_for(main(), 10))


def test_addresses_beyond_loopback_need_consent(served_model) -> None:
    config = GatewayConfig(model="unused", host="0.0.0.0", port=0)
    with pytest.raises(ValueError) as caught:
        asyncio.run(serve(config, served_model, stop=asyncio.Event(), on_ready=print))
    assert "--allow-unauthenticated" in str(caught.value)
