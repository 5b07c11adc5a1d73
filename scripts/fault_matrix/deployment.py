"""A deployment that is there to be broken: any process killed, frozen, wedged, restarted, cut off.

With `proxied`, every socket of a node is reached through a proxy: nodes listen on 127.0.0.1 and
advertise an address of their own (127.0.1.x), and dial the coordinator under another (127.0.2.x).
KV then goes over zmq, whose bytes the proxy can damage.
"""

import asyncio
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.fault_matrix.proxy import ProxyThread, Weather
from tandem.child_process import ChildProcess, ProcessPlan, child_environment
from tandem.errors import TandemError
from tandem.launch import is_free
from tandem.messages.membership import ClusterStatus, NodeStatus
from tandem.status import query_status

LOOPBACK = "127.0.0.1"
PORTS = range(12_000, 19_000)
READY_S = 60.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is started. `node_args` go to every node."""

    name: str
    num_prefill: int = 2
    num_decode: int = 2
    num_gateways: int = 1
    proxied: bool = False
    is_real: bool = False
    node_args: tuple[str, ...] = ()


class Deployment:
    """Processes by name: coordinator, gateway-0, ..., prefill-0, ..., decode-0, ..."""

    def __init__(self, shape: Shape, model: str, seed: int) -> None:
        self.shape = shape
        self._model = model
        self._folder = tempfile.TemporaryDirectory(prefix="tandem-faults-")
        self._env = child_environment(os.environ, 1)
        rng = random.Random(seed)
        free = (port for port in rng.sample(PORTS, 300) if is_free(port))
        self._coordinator_port = next(free)
        gateways = [f"gateway-{n}" for n in range(shape.num_gateways)]
        self._gateway_ports = {name: next(free) for name in gateways}
        self.weather: dict[str, Weather] = {}  # by node: its own sockets
        self.uplink: dict[str, Weather] = {}  # by node: its link to the coordinator
        self._proxy = ProxyThread(seed) if shape.proxied else None
        self.plans = {plan.name: plan for plan in self._plan()}
        self.processes: dict[str, ChildProcess] = {}
        self._generation: dict[str, int] = {}

    # --- what to start ----------------------------------------------------------------------

    def _plan(self) -> list[ProcessPlan]:
        coordinator = f"tcp://{LOOPBACK}:{self._coordinator_port}"
        common = ("--host", LOOPBACK, "--model", self._model)
        nodes = [
            self._plan_node(f"{role}-{index}", role, number, coordinator)
            for number, (role, index) in enumerate(
                [
                    *(("prefill", n) for n in range(self.shape.num_prefill)),
                    *(("decode", n) for n in range(self.shape.num_decode)),
                ]
            )
        ]
        gateways = [
            ProcessPlan(
                name=name,
                module="gateway",
                flags=(
                    *common,
                    *("--name", name, "--port", str(port), "--coordinator", coordinator),
                    *("--http-port", "-1"),
                ),
            )
            for name, port in self._gateway_ports.items()
        ]
        # Cells look for losses, not for delay: a busy machine must not have its load refused.
        flags = (
            *("--host", LOOPBACK, "--port", str(self._coordinator_port)),
            *("--early-rejection", "off"),
        )
        return [
            *nodes,
            *gateways,
            ProcessPlan(name="coordinator", module="coordinator", flags=flags),
        ]

    def _plan_node(self, name: str, role: str, number: int, coordinator: str) -> ProcessPlan:
        flags = [*("--name", name, "--port", "0"), *self.shape.node_args]
        if not self.shape.is_real:
            flags += ["--device", "fake"]
        if self._proxy is not None:
            self.weather[name], self.uplink[name] = Weather(), Weather()
            uplink = f"127.0.2.{number + 1}"
            self._proxy.listen(
                uplink, self._coordinator_port, to_host=LOOPBACK, weather=self.uplink[name]
            )
            coordinator = f"tcp://{uplink}:{self._coordinator_port}"
            flags += ["--advertised-host", f"127.0.1.{number + 1}", "--transport", "zmq"]
        flags += ["--host", LOOPBACK, "--model", self._model, "--coordinator", coordinator]
        return ProcessPlan(name=name, module=f"{role}_node", flags=tuple(flags))

    # --- life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything and wait until it serves."""
        for name in self.plans:
            self._launch(name)
        self.wait_until_healthy(READY_S)

    def _launch(self, name: str) -> None:
        generation = self._generation[name] = self._generation.get(name, 0) + 1
        log = Path(self._folder.name) / f"{name}.{generation}.log"
        self.processes[name] = ChildProcess(
            self.plans[name], log=log, env=self._env, sink=lambda name, line: None
        )

    def restart(self, name: str) -> None:
        """Start a process again that has ended."""
        assert self.processes[name].exit_status is not None, f"{name} still runs"
        self._launch(name)

    def _restart_ended(self) -> None:
        for name, process in list(self.processes.items()):
            if process.exit_status is not None:
                self.restart(name)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal; after SIGKILL, wait for the end."""
        self.processes[name].send_signal(number)
        if number is signal.SIGKILL:
            self.processes[name].wait(5.0)

    def close(self) -> None:
        """Kill what runs and remove all traces."""
        for process in self.processes.values():
            process.send_signal(signal.SIGKILL)
        for process in self.processes.values():
            process.wait(5.0)
        if self._proxy is not None:
            self._proxy.close()
        self._folder.cleanup()

    def cut(self) -> None:
        """Reset every proxied connection."""
        if self._proxy is not None:
            self._proxy.cut()

    @property
    def num_network_faults(self) -> int:
        """Messages that the proxy repeated, dropped or damaged."""
        return 0 if self._proxy is None else self._proxy.num_faults

    def heal(self) -> None:
        """Fair weather, nobody frozen, everybody running; returns once all serve again."""
        for weather in (*self.weather.values(), *self.uplink.values()):
            for field, value in _fields(Weather()).items():
                setattr(weather, field, value)
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
        self.wait_until_healthy(READY_S)

    def logs(self, name: str, num_lines: int = 15) -> str:
        """The last lines of a process."""
        return "\n".join(self.processes[name].last_lines()[-num_lines:])

    def all_logs(self) -> str:
        """The last lines of every process."""
        return "\n".join(f"--- {name}\n{self.logs(name)}" for name in self.plans)

    # --- what is seen from outside ----------------------------------------------------------

    @property
    def gateways(self) -> list[str]:
        """Addresses for clients."""
        return [f"tcp://{LOOPBACK}:{port}" for port in self._gateway_ports.values()]

    @property
    def nodes(self) -> list[str]:
        """Names of all nodes."""
        return [name for name in self.plans if name.startswith(("prefill", "decode"))]

    def status(self) -> ClusterStatus:
        """As the coordinator sees it."""
        return asyncio.run(query_status(f"tcp://{LOOPBACK}:{self._coordinator_port}"))

    def wait_for(self, test: Callable[[ClusterStatus], bool], timeout_s: float) -> float | None:
        """Seconds until the status is as wanted; None where that takes too long."""
        begin = time.monotonic()
        while time.monotonic() - begin < timeout_s:
            self._open_doors()
            try:
                if test(self.status()):
                    return time.monotonic() - begin
            except TandemError:  # the coordinator may be what is down
                pass
            time.sleep(POLL_S)
        return None

    def wait_until_healthy(self, timeout_s: float) -> None:
        """Every node and gateway beats; who ended is started again, as a supervisor does (a node
        that hung may be ended by one that needs its pages). Raises RuntimeError after the time.
        """

        def is_healthy(status: ClusterStatus) -> bool:
            self._restart_ended()
            ready = all(p.address is not None for p in self.processes.values())
            present = {n.node_id for n in status.nodes if n.load is not None and not n.draining}
            gateways = {g.gateway_id for g in status.gateways}
            return ready and present == set(self.nodes) and gateways == set(self._gateway_ports)

        self._restart_ended()
        if self.wait_for(is_healthy, timeout_s) is None:
            absent = [n for n, p in self.processes.items() if p.exit_status is not None]
            raise RuntimeError(
                f"not healthy after {timeout_s:g} s; ended: {absent}; "
                + "\n".join(f"{name}: {self.logs(name, 3)}" for name in self.plans)
            )

    def leftovers(self, timeout_s: float) -> str | None:
        """What is left of requests when all have ended; None where nothing is."""

        def is_clean(node: NodeStatus) -> bool:
            load = node.load
            if load is None or load.num_requests:
                return False
            return load.pages.free + load.pages.cached == node.num_pages

        def all_clean(status: ClusterStatus) -> bool:
            return status.num_live_requests == 0 and all(map(is_clean, status.nodes))

        if self.wait_for(all_clean, timeout_s) is not None:
            return None
        status = self.status()
        dirty = [f"{n.node_id}: {n.load}" for n in status.nodes if not is_clean(n)]
        return f"{status.num_live_requests} live requests; {'; '.join(dirty)}"

    def _open_doors(self) -> None:
        """Proxies stand before the ports of every node that has opened some."""
        if self._proxy is None:
            return
        for number, name in enumerate(self.nodes):
            process = self.processes[name]
            if process.exit_status is None:
                for port in listening_ports(process.pid):
                    self._open_door(f"127.0.1.{number + 1}", port, self.weather[name])

    def _open_door(self, host: str, port: int, weather: Weather) -> None:
        assert self._proxy is not None
        if not self._proxy.listens(host, port):
            self._proxy.listen(host, port, to_host=LOOPBACK, weather=weather)


def _fields(weather: Weather) -> dict[str, object]:
    return {name: getattr(weather, name) for name in Weather.__slots__}


def listening_ports(pid: int) -> Sequence[int]:
    """TCP ports on which a process listens."""
    inodes = set()
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            target = os.readlink(entry.path)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
        tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    except OSError:
        return []  # it ended meanwhile
    fields = [line.split() for table in tables for line in table.splitlines()[1:]]
    return [int(f[1].split(":")[1], 16) for f in fields if f[3] == "0A" and f[9] in inodes]
