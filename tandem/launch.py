"""All processes of a deployment on one host, started together and drained in order.

`LocalCluster` serves `tandem up`, the demo, benchmarks and tests. It starts processes by module
name and imports none of them.
"""

import os
import random
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tandem.child_process import ChildProcess, LineSink, ProcessPlan, child_environment
from tandem.client import Client
from tandem.errors import TandemError
from tandem.keys import KeyFolder
from tandem.launch_plan import ROLES, ClusterPlan

# Below Linux' ephemeral range (32768-60999), so that no outgoing connection takes the port first.
FREE_PORTS = range(20_000, 32_000)
LOCAL_CLIENT, LOCAL_OPERATOR = ("client", "local"), ("operator", "local")
NO_PORT = -1
POLL_S = 0.02
KILL_WAIT_S = 5.0
# Gateways and nodes report to the coordinator every second at least.
ACQUAINTANCE_S = 15.0
# Who takes new requests drains first, who keeps the books last.
DRAIN_ORDER = (("gateway",), ("prefill_node", "decode_node"), ("coordinator",))


class ClusterError(Exception):
    """A process did not start, or ended by itself; the text has its last output."""


class LocalCluster:
    """Coordinator, gateways, `num_prefill` and `num_decode` nodes; `with` starts and stops them.

    Without prefill nodes the decode nodes serve both roles, each for its own requests.
    `*_args` are further flags of each process; `node_args` go to all nodes. Ports: None picks a
    free one, a number must be free (`gateway_port` and `http_port` are the first gateway's); -1 is
    no HTTP, no dashboard. `sink(name, line)` gets every line of output. Logs are in `run_dir`;
    without one, in a temporary folder that a clean stop removes. `processes` is by name:
    coordinator, gateway, gateway-1, ..., prefill-0, ..., decode-0, ...

    `secure`: with keys, in `keys` (`run_dir`/keys); clients and operators use `key_name`.
    `started_as` says what is started in place of a plan: benchmarks compose processes of their own.
    """

    def __init__(
        self,
        *,
        model: str,
        num_prefill: int = 1,
        num_decode: int = 1,
        num_gateways: int = 1,
        node_args: Sequence[str] = (),
        gateway_args: Sequence[str] = (),
        coordinator_args: Sequence[str] = (),
        coordinator_port: int | None = None,
        gateway_port: int | None = None,
        http_port: int | None = None,
        dashboard_port: int | None = None,
        threads_per_node: int = 1,
        run_dir: Path | None = None,
        sink: LineSink | None = None,
        start_timeout_s: float = 300.0,
        drain_s: float = 30.0,
        secure: bool = False,
        started_as: Callable[[ProcessPlan], ProcessPlan] = lambda plan: plan,
    ) -> None:
        if num_prefill < 0 or min(num_decode, num_gateways) < 1:
            raise ValueError("a deployment needs a decode node and a gateway")
        others = [None] * (num_gateways - 1)
        wanted_http = [http_port, *(others if http_port != NO_PORT else [NO_PORT] * len(others))]
        *ports, dashboard = _choose_ports(
            coordinator_port, gateway_port, *others, *wanted_http, dashboard_port
        )
        ports, http_ports = ports[: 1 + num_gateways], ports[1 + num_gateways :]
        self.coordinator_address, *self.gateway_addresses = [f"tcp://127.0.0.1:{p}" for p in ports]
        self.processes: dict[str, ChildProcess] = {}
        self._is_own_dir = run_dir is None
        self.run_dir = run_dir or Path(tempfile.mkdtemp(prefix="tandem-"))
        self.keys = self.run_dir / "keys" if secure else None
        if secure:  # all gateways but the first have keys of other names than clients expect
            later = enumerate(self.gateway_addresses[1:], 1)
            self.gateway_addresses[1:] = [f"{a}#gateway-{i}" for i, a in later]
        self._sink = sink or (lambda name, line: None)
        self._env = child_environment(os.environ, threads_per_node)
        self._start_timeout_s = start_timeout_s
        self._drain_s = drain_s
        self._started_as = started_as
        self._plan = ClusterPlan(
            model=model,
            run_dir=self.run_dir,
            coordinator_port=ports[0],
            gateway_ports=ports[1:],
            http_ports=http_ports,
            dashboard_port=dashboard,
            num_prefill=num_prefill,
            num_decode=num_decode,
            node_args=node_args,
            gateway_args=gateway_args,
            coordinator_args=coordinator_args,
            keys=self.keys,
        )
        self.plans = {plan.name: plan for plan in self._plan.processes()}
        self._num_starts: dict[str, int] = {}

    @property
    def key_name(self) -> str | None:
        """Of the keys that clients and operators of this cluster may use."""
        return None if self.keys is None else LOCAL_CLIENT[1]

    @property
    def gateway_address(self) -> str:
        """The first gateway's."""
        return self.gateway_addresses[0]

    @property
    def http_addresses(self) -> list[str]:
        """Of all gateways; none where HTTP is off."""
        return [f"http://127.0.0.1:{port}" for port in self._plan.http_ports if port != NO_PORT]

    @property
    def dashboard_address(self) -> str | None:
        """Of the operators' dashboard, where there is one."""
        port = self._plan.dashboard_port
        return None if port == NO_PORT else f"http://127.0.0.1:{port}"

    @property
    def http_address(self) -> str:
        """The first gateway's, for OpenAI's clients: `/v1` is below it."""
        return self.http_addresses[0]

    def start(self) -> None:
        """Start all at once, wait until requests are served. Raises ClusterError, and kills all."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if self.keys is not None:
            KeyFolder.complete(self.keys, [LOCAL_CLIENT, LOCAL_OPERATOR])
        try:
            for plan in self.plans.values():
                self._launch(plan)
            self._wait_for_addresses(list(self.plans))
            self._wait_until_serving()
        except ClusterError:  # the logs say why: they stay
            self.kill()
            raise
        except BaseException:
            self.kill()
            self._remove_own_dir()
            raise

    def restart(self, name: str) -> None:
        """Drain a process that still runs, start it again, wait until it is ready.

        Raises ClusterError where it does not end in `drain_s`, ends badly, or does not start.
        """
        process = self.processes[name]
        if process.exit_status is None:
            process.send_signal(signal.SIGINT)
            if not process.wait(self._drain_s):
                text = f"{name} did not end within {self._drain_s:g} s (log: {process.log})"
                raise ClusterError(text)
            if process.exit_status != 0:
                raise ClusterError(self.explain_death(name))
        self._launch(self.plans[name])
        self._wait_for_addresses([name])

    def start_extra(self, role: str) -> str:
        """Start one more node, prefill or decode; returns its name once it is ready."""
        if role not in ROLES:
            raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")
        index = sum(plan.module == f"{role}_node" for plan in self.plans.values())
        plan = self._plan.node(role, index)
        self.plans[plan.name] = plan
        self._launch(plan)
        self._wait_for_addresses([plan.name])
        return plan.name

    def _launch(self, plan: ProcessPlan) -> None:
        count = self._num_starts[plan.name] = self._num_starts.get(plan.name, 0) + 1
        kind = {"gateway": "gateway", "coordinator": "coordinator"}.get(plan.module, "node")
        if self.keys is not None:
            KeyFolder.complete(self.keys, [(kind, plan.name)])
        log = self.run_dir / (f"{plan.name}.log" if count == 1 else f"{plan.name}.{count}.log")
        self.processes[plan.name] = ChildProcess(
            self._started_as(plan), log=log, env=self._env, sink=self._sink
        )

    def dead(self) -> list[str]:
        """Names of processes that have ended."""
        return [name for name, p in self.processes.items() if p.exit_status is not None]

    def logs(self, name: str) -> str:
        """All output of a process since it was last started."""
        return self.processes[name].log.read_text(encoding="utf-8")

    def explain_death(self, name: str) -> str:
        """How a process ended, with the last lines that it wrote."""
        process = self.processes[name]
        lines = "\n".join(f"    {line}" for line in process.last_lines()[-15:])
        return (
            f"{name} ended ({_describe_status(process.exit_status)}); its last lines "
            f"(all in {process.log}):\n{lines or '    (none)'}"
        )

    def stop(self) -> list[str]:
        """Drain gateways, then nodes, then coordinator; returns the names that had to be killed.

        Each group has `drain_s` seconds. May be called again.
        """
        killed: list[str] = []
        for group in self._drain_order():
            running = [process for process in group if process.exit_status is None]
            for process in running:
                process.send_signal(signal.SIGINT)
            deadline = time.monotonic() + self._drain_s
            late = [p for p in running if not p.wait(max(0.0, deadline - time.monotonic()))]
            self._kill(late)
            killed += [process.name for process in late]
        is_clean = not killed and all(p.exit_status == 0 for p in self.processes.values())
        if is_clean:
            self._remove_own_dir()
        return killed

    def kill(self, *names: str) -> None:
        """End these at once, without draining; without names, all."""
        self._kill([self.processes[name] for name in names or self.processes])

    def __enter__(self) -> "LocalCluster":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _remove_own_dir(self) -> None:
        if self._is_own_dir:
            shutil.rmtree(self.run_dir, ignore_errors=True)

    def _wait_for_addresses(self, names: Sequence[str]) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while True:
            if dead := [name for name in self.dead() if name in names]:
                raise ClusterError(self.explain_death(dead[0]))
            waiting = [name for name in names if self.processes[name].address is None]
            if not waiting:
                return
            if time.monotonic() > deadline:
                last = "\n".join(self.processes[waiting[0]].last_lines()[-5:])
                raise ClusterError(
                    f"after {self._start_timeout_s:g} s not ready: {', '.join(waiting)} "
                    f"(logs in {self.run_dir}). {waiting[0]} said last:\n{last}"
                )
            time.sleep(POLL_S)

    def _wait_until_serving(self) -> None:
        try:
            for address in self.gateway_addresses:
                with Client(address, keys=self.keys, key_name=self.key_name) as client:
                    client.wait_until_ready(ACQUAINTANCE_S)
        except TandemError as error:
            raise ClusterError(f"{error} (logs in {self.run_dir})") from None

    def _drain_order(self) -> Iterator[list[ChildProcess]]:
        for modules in DRAIN_ORDER:
            yield [p for name, p in self.processes.items() if self.plans[name].module in modules]

    def _kill(self, processes: Iterable[ChildProcess]) -> None:
        doomed = list(processes)
        for process in doomed:
            process.send_signal(signal.SIGKILL)
        for process in doomed:
            process.wait(KILL_WAIT_S)


def _choose_ports(*wanted: int | None) -> list[int]:
    """The ports asked for (-1: none), or free ones. Raises ValueError for one that is taken."""
    for port in wanted:
        if port is not None and port != NO_PORT and not is_free(port):
            raise ValueError(f"port {port} is taken: stop who listens there, or name another")
    candidates = random.sample(FREE_PORTS, 200)
    free = (port for port in candidates if port not in wanted and is_free(port))
    return [next(free) if port is None else port for port in wanted]


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of this host's loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _describe_status(status: int | None) -> str:
    if status is None:
        return "still running"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"
