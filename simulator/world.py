"""A whole simulated deployment: processes, network, clients; and what may be done to it."""

import random

from simulator.bulk import Surroundings
from simulator.client import Client
from simulator.clock import Clock
from simulator.coordinator_process import CoordinatorProcess
from simulator.gateway_process import GatewayProcess
from simulator.knobs import Knobs
from simulator.network import Network
from simulator.node_process import NodeProcess
from simulator.node_setup import Directory, NodeSetup
from simulator.oracle import Request
from simulator.process import Process

FIRST_INCARNATION = 1_000_000


class World:
    """See the module. Dead processes are replaced by `start_*`, under a new incarnation."""

    def __init__(self, knobs: Knobs, requests: list[Request], *, is_traced: bool = False) -> None:
        self.knobs = knobs
        self.clock = Clock(is_traced=is_traced)
        self._rng = random.Random(f"world {knobs.seed}")
        self.network = Network(self.clock, knobs, random.Random(f"network {knobs.seed}"))
        self._num_started = 0
        self._around = Surroundings(
            knobs,
            random.Random(f"bulk {knobs.seed}"),
            is_blocked=self.network.is_cut,
            fence=self._fence,
            is_kind=lambda: self.network.is_kind,
        )
        self._directory = Directory(self._transport_of)
        self.coordinator = self.start_coordinator()
        self.nodes: dict[str, NodeProcess] = {}
        for index in range(len(knobs.roles)):
            self.start_node(index)
        self.gateways: dict[str, GatewayProcess] = {}
        for number in range(knobs.num_gateways):
            self.start_gateway(f"g{number}")
        self._client_process = Process(self.clock, "clients", clock_offset_s=0.0, drift=0.0)
        self.clients = [self.add_client(request) for request in requests]

    # --- processes --------------------------------------------------------------------------

    def _next_incarnation(self) -> int:
        """Grows over time, as start times do."""
        self._num_started += 1
        return FIRST_INCARNATION + int(self.clock.now * 1000) + self._num_started

    def start_coordinator(self) -> CoordinatorProcess:
        """A coordinator, in place of a dead one."""
        self.coordinator = CoordinatorProcess(
            self._next_incarnation(),
            self.clock,
            self.network,
            clock_offset_s=self._rng.uniform(0, 1e5),
        )
        return self.coordinator

    def start_node(self, index: int) -> NodeProcess:
        """Node number `index`, in place of a dead one."""
        weights = self.knobs.roles[index]
        kind = "p" if not weights[1] else "d" if not weights[0] else "m"
        setup = NodeSetup(
            node_id=f"{kind}{index}",
            index=index,
            incarnation=self._next_incarnation(),
            clock_offset_s=self._rng.uniform(0, 1e5),
            drift=self._rng.uniform(-5e-4, 5e-4),
        )
        node = NodeProcess(
            setup, self.clock, self.network, self.knobs, self._around, self._directory
        )
        node.on_left = lambda: self._node_left(node)
        self.nodes[setup.node_id] = node
        return node

    def _node_left(self, node: NodeProcess) -> None:
        """A rolling restart: the drained node's successor comes."""
        self.tell_owners(node)
        self.clock.after(0.5, self._replace_node, node)

    def _replace_node(self, node: NodeProcess) -> None:
        if self.nodes[node.setup.node_id] is node:
            self.start_node(node.setup.index)

    def gateway_died(self, gateway: GatewayProcess) -> None:
        """Its clients see their connections break."""
        for client in self.clients:
            client.gateway_died(gateway.address)

    def start_gateway(self, gateway_id: str) -> GatewayProcess:
        """A gateway, in place of a dead one."""
        gateway = GatewayProcess(
            gateway_id,
            self._next_incarnation(),
            self.clock,
            self.network,
            self.knobs,
            random.Random(f"{gateway_id} {self.knobs.seed} {self.clock.now}"),
            clock_offset_s=self._rng.uniform(0, 1e5),
        )
        self.gateways[gateway_id] = gateway
        return gateway

    def add_client(self, request: Request) -> Client:
        """A client that submits at its time."""
        return Client(self._client_process, self.network, request, self._pick_gateway)

    def _pick_gateway(self) -> str | None:
        alive = [g.address for _, g in sorted(self.gateways.items()) if g.process.is_alive]
        return self._rng.choice(alive) if alive else None

    def kill_node(self, node: NodeProcess) -> None:
        """SIGKILL; owners whose pools it had mapped learn of it by their pidfds."""
        node.process.kill()
        self.tell_owners(node)

    def tell_owners(self, node: NodeProcess) -> None:
        """The process ended, whether it was killed or left."""
        for other in self.nodes.values():
            if other.process.is_alive:
                other.bulk.writer_died(node.identity)

    def _fence(self, writer: bytes) -> None:
        for node in self.nodes.values():
            if node.identity == writer and node.process.is_alive:
                self.kill_node(node)

    def _transport_of(self, writer: str, owner: str) -> str:
        if self.knobs.transport != "mixed":
            return self.knobs.transport
        return random.Random(f"{self.knobs.seed} {writer} {owner}").choice(("shared_memory", "zmq"))

    def processes(self) -> list[Process]:
        """Every process of the deployment."""
        nodes = [node.process for node in self.nodes.values()]
        return [self.coordinator.process, *nodes, *(g.process for g in self.gateways.values())]

    @property
    def requests(self) -> list[Request]:
        """What all clients want."""
        return [client.request for client in self.clients]
