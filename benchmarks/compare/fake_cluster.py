"""`python -m benchmarks.compare.fake_cluster STEP_MS`: a coordinator, and one node of both roles.

The node has no model: token 0 of a request comes at once, the others one per step, all requests'
in one message, as decode nodes say them. What it took to say token 0, its queue and prefill, goes
into its reports and, when the request has ended, to standard output: `node REQUEST_ID MS`.
"""

import asyncio
import sys
import time
from dataclasses import dataclass

import uvloop
import zmq.asyncio

from tandem.messages.common import DecodeReport, NodeRef, PrefillReport, SlaTargets
from tandem.messages.placement import (
    FromGateway,
    GatewayHello,
    GatewayWelcome,
    Place,
    Placed,
    RequestEnded,
    RequestEndedAck,
)
from tandem.messages.serving import (
    Cancel,
    CommandAck,
    Decode,
    Emission,
    EmissionAck,
    Ending,
    FromGatewayToNode,
    Prefill,
    TokenDelta,
)
from tandem.sockets import Server

TARGETS = SlaTargets(sla_class="standard", ttft_ms=60_000, tpot_ms=10_000)
FIRST_ID, NUM_IDS = 300, 3000  # ordinary tokens of the demo model
MAX_DELTAS = 256  # per message: within its 64 KiB


@dataclass(slots=True)
class Running:
    """A request on the node."""

    peer: bytes
    max_tokens: int
    arrived_at: float
    num_made: int = 0
    first_after_s: float = 0.0


class FakeCluster:
    """See the module."""

    def __init__(self, context: zmq.asyncio.Context, step_s: float) -> None:
        self._step_s = step_s
        self.coordinator: Server[FromGateway] = Server(context, FromGateway)
        self.node: Server[FromGatewayToNode] = Server(context, FromGatewayToNode)
        self.address = self.coordinator.bind("127.0.0.1", 0)
        self._ref = NodeRef(
            node_id="node", incarnation=1, epoch=1, control_address=self.node.bind("127.0.0.1", 0)
        )
        self._running: dict[tuple[bytes, int], Running] = {}
        self._first_after_s: dict[bytes, float] = {}

    async def coordinate(self) -> None:
        """Welcome gateways, place everything."""
        while True:
            peer, message = await self.coordinator.receive()
            match message:
                case GatewayHello():
                    self.coordinator.send(peer, _welcome())
                case Place():
                    placed = Placed(
                        request_id=message.request_id,
                        attempt=message.attempt,
                        prefill=self._ref,
                        decode=self._ref,
                        targets=TARGETS,
                        sequence=1,
                    )
                    self.coordinator.send(peer, placed)
                case RequestEnded(request_id=request_id):
                    self.coordinator.send(peer, RequestEndedAck(request_id=request_id))
                    node_s = self._first_after_s.pop(request_id, None)
                    if node_s is not None:
                        print(f"node {request_id.hex()} {node_s * 1e3:.4f}", flush=True)

    async def serve(self) -> None:
        """Take commands; the first token comes with the answer to them."""
        while True:
            peer, message = await self.node.receive()
            now = time.perf_counter()
            match message:
                case Prefill() | Decode():
                    spec, kind = message.spec, type(message).__name__.lower()
                    self._acknowledge(peer, kind, spec.request_id, spec.attempt)
                    key = (spec.request_id, spec.attempt)
                    if isinstance(message, Decode) and key not in self._running:
                        assert spec.params.max_tokens is not None, "gateways resolve it"
                        self._running[key] = Running(peer, spec.params.max_tokens, now)
                        self._say(peer, [key])
                case Cancel(request_id=request_id, attempt=attempt):
                    self._running.pop((request_id, attempt), None)
                    self._acknowledge(peer, "cancel", request_id, attempt)
                case EmissionAck():
                    for key in message.ended:
                        self._running.pop(key, None)

    def _acknowledge(self, peer: bytes, command: str, request_id: bytes, attempt: int) -> None:
        ack = CommandAck(command=command, request_id=request_id, attempt=attempt)  # type: ignore[arg-type]
        self.node.send(peer, ack)

    async def step(self) -> None:
        """One token for every request, every so often."""
        while True:
            await asyncio.sleep(self._step_s)
            keys = [key for key, r in self._running.items() if r.num_made < r.max_tokens]
            for at in range(0, len(keys), MAX_DELTAS):
                part = keys[at : at + MAX_DELTAS]
                self._say(self._running[part[0]].peer, part)

    def _say(self, peer: bytes, keys: list[tuple[bytes, int]]) -> None:
        deltas, endings = [], []
        for key in keys:
            running = self._running[key]
            if running.num_made == 0:
                running.first_after_s = time.perf_counter() - running.arrived_at
                self._first_after_s[key[0]] = running.first_after_s
            token_id = FIRST_ID + (7 * running.num_made + key[0][0]) % NUM_IDS
            deltas.append(
                TokenDelta(
                    request_id=key[0], attempt=key[1], start=running.num_made, ids=(token_id,)
                )
            )
            running.num_made += 1
            if running.num_made == running.max_tokens:
                endings.append(_ending(*key, running))
        emission = Emission(
            node_id="node", incarnation=1, epoch=1, deltas=tuple(deltas), endings=tuple(endings)
        )
        self.node.send(peer, emission)


def _welcome() -> GatewayWelcome:
    return GatewayWelcome(
        coordinator_incarnation=1,
        sla_classes=(TARGETS,),
        default_class="standard",
        num_prefill_nodes=1,
        num_decode_nodes=1,
        max_model_len=4096,
    )


def _ending(request_id: bytes, attempt: int, running: Running) -> Ending:
    return Ending(
        request_id=request_id,
        attempt=attempt,
        end_index=running.max_tokens,
        reason="length",
        prefill=PrefillReport(
            node_id="node",
            started_after_s=0.0,
            first_token_after_s=running.first_after_s,
            num_cached_tokens=0,
        ),
        decode=DecodeReport(
            node_id="node",
            transfer_end_after_s=0.0,
            started_after_s=0.0,
            ended_after_s=0.0,
            transfer_bytes=0,
        ),
    )


async def main(step_ms: float) -> None:
    """Serve until killed."""
    context = zmq.asyncio.Context()
    cluster = FakeCluster(context, step_ms / 1e3)
    print(f"ready cluster {cluster.address}", flush=True)
    await asyncio.gather(cluster.coordinate(), cluster.serve(), cluster.step())


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1])))
