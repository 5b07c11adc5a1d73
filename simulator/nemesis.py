"""Faults, drawn from a seed: which, to whom, when, for how long; and an operator's role orders."""

import random
from collections.abc import Callable

from simulator.network import site
from simulator.node_process import NodeProcess
from simulator.process import Process
from simulator.world import World
from tandem.messages.membership import RoleWeights, SetWeights

PEACE_S = 1.5
FLIP_EVERY_S = 1.0
WEIGHTS = ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0))


class Nemesis:
    """Strikes again and again until told to stop; `heal` undoes all that can be undone."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = random.Random(f"nemesis {world.knobs.seed}")
        self._roles_rng = random.Random(f"role orders {world.knobs.seed}")
        self._is_active = True
        self._kinds = sorted(world.knobs.faults - {"corrupt"})
        self._acts: dict[str, Callable[[], None]] = {
            "kill_node": self._kill_node,
            "freeze_node": lambda: self._freeze(self._pick_node().process),
            "kill_coordinator": self._kill_coordinator,
            "freeze_coordinator": lambda: self._freeze(world.coordinator.process),
            "kill_gateway": self._kill_gateway,
            "partition": self._partition,
            "clog": self._clog,
            "drain": self._drain,
            "client": self._hang_up,
            "slow_node": self._slow,
        }
        world.network.is_kind = True  # all begin in peace
        world.clock.after(PEACE_S, self._begin)

    def _begin(self) -> None:
        self._world.network.is_kind = False
        if self._kinds:
            self._schedule()
        if self._world.knobs.flips_roles:
            self._schedule_flip()

    def _schedule_flip(self) -> None:
        delay_s = self._roles_rng.expovariate(1 / FLIP_EVERY_S)
        self._world.clock.after(delay_s, self._flip_roles)

    def _flip_roles(self) -> None:
        """An operator orders other roles; the coordinator keeps the last node of each."""
        if not self._is_active:
            return
        rng, coordinator = self._roles_rng, self._world.coordinator
        prefill, decode = rng.choice(WEIGHTS)
        order = SetWeights(
            name=rng.choice(sorted(self._world.nodes)),
            weights=RoleWeights(prefill=prefill, decode=decode),
            force=rng.random() < 0.3,
        )
        coordinator.process.run(coordinator.order, order)
        self._schedule_flip()

    def _schedule(self) -> None:
        delay_s = self._rng.expovariate(1 / self._world.knobs.fault_every_s)
        self._world.clock.after(delay_s, self._strike)

    def _strike(self) -> None:
        if self._is_active:
            kind = self._rng.choice(self._kinds)
            self._world.clock.reach(kind)
            self._acts[kind]()
            self._schedule()

    def _later(self, low_s: float, high_s: float, callback: Callable[[], None]) -> None:
        self._world.clock.after(self._rng.uniform(low_s, high_s), callback)

    # --- kinds ------------------------------------------------------------------------------

    def _pick_node(self) -> NodeProcess:
        return self._world.nodes[self._rng.choice(sorted(self._world.nodes))]

    def _kill_node(self) -> None:
        node = self._pick_node()
        if node.process.is_alive:
            self._world.kill_node(node)
            self._later(0.1, 6.0, lambda: self._restart(node))

    def _restart(self, node: NodeProcess) -> None:
        if self._world.nodes[node.setup.node_id] is node and not node.process.is_alive:
            self._world.start_node(node.setup.index)

    def _freeze(self, process: Process) -> None:
        if process.is_alive and not process.is_frozen:
            process.freeze()
            low, high = self._rng.choice(((0.1, 1.0), (2.5, 6.0)))
            self._later(low, high, lambda: self._thaw(process))

    def _thaw(self, process: Process) -> None:
        if process.is_frozen and process.is_alive:
            process.thaw()

    def _kill_coordinator(self) -> None:
        coordinator = self._world.coordinator
        if coordinator.process.is_alive:
            if any(len(g.ledger) for g in self._world.gateways.values()):
                self._world.clock.reach("coordinator restart mid-request")
            coordinator.process.kill()
            self._later(0.1, 4.0, self._restart_coordinator)

    def _restart_coordinator(self) -> None:
        if not self._world.coordinator.process.is_alive:
            self._world.start_coordinator()

    def _kill_gateway(self) -> None:
        gateway = self._world.gateways[self._rng.choice(sorted(self._world.gateways))]
        if gateway.process.is_alive:
            gateway.process.kill()
            self._world.gateway_died(gateway)
            self._later(0.1, 3.0, self._restart_gateways)

    def _restart_gateways(self) -> None:
        for gateway_id, gateway in sorted(self._world.gateways.items()):
            if not gateway.process.is_alive:
                self._world.start_gateway(gateway_id)

    def _two_sites(self) -> tuple[str, str]:
        one, other = self._rng.sample(sorted(map(site, self._world.processes())), 2)
        return one, other

    def _partition(self) -> None:
        network = self._world.network
        one, other = self._two_sites()
        network.cut(one, other, both_ways=self._rng.random() < 0.5)
        self._later(0.2, 6.0, network.heal)

    def _clog(self) -> None:
        """Swizzle-clog: some of the links stand still, then all go on."""
        network = self._world.network
        for _ in range(self._rng.randint(1, 5)):
            network.clog(*self._two_sites())
        if self._rng.random() < 0.3:
            network.slow(self._two_sites()[0], self._rng.choice((0.2, 1.0)))
        self._later(0.2, 5.0, network.heal)

    def _drain(self) -> None:
        """An operator restarts a node: drain, then a new process, as in a rolling restart."""
        nodes = self._world.nodes.values()
        if all(node.drain is None and node.process.is_alive for node in nodes):
            node = self._pick_node()
            node.process.run(node.start_drain)

    def _hang_up(self) -> None:
        running = [c for c in self._world.clients if c.has_begun and not c.request.is_over]
        if running:
            client = self._rng.choice(running)
            if self._rng.random() < 0.25:
                client.hang_up()
            else:
                client.reconnect()

    def _slow(self) -> None:
        node = self._pick_node()
        node.slowness = self._rng.choice((5.0, 20.0))
        if self._rng.random() < 0.3:
            node.wedged_until = self._world.clock.now + self._rng.uniform(1.0, 8.0)
        self._later(0.5, 5.0, lambda: self._speed_up(node))

    def _speed_up(self, node: NodeProcess) -> None:
        node.slowness = 1.0

    # --- the end ----------------------------------------------------------------------------

    def heal(self) -> None:
        """No more faults; everybody lives, and hears everybody."""
        self._is_active = False
        world = self._world
        world.clock.note("heal")
        world.network.heal()
        world.network.is_kind = True
        for process in world.processes():
            self._thaw(process)
        for node in list(world.nodes.values()):
            node.slowness, node.wedged_until = 1.0, 0.0
            self._restart(node)
        self._restart_coordinator()
        self._restart_gateways()
