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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tandem.child_process import ChildProcess, LineSink, ProcessPlan, child_environment
from tandem.client import Client
from tandem.errors import TandemError

COORDINATOR_PORT = 7300
GATEWAY_PORT = 7301
# Below Linux' ephemeral range (32768-60999), so that no outgoing connection takes the port first.
FREE_PORTS = range(20_000, 32_000)
POLL_S = 0.02
KILL_WAIT_S = 5.0
# Gateways and nodes report to the coordinator every second at least.
ACQUAINTANCE_S = 15.0
SHARE_OF_ALL_NODES = 0.8
NODE_SHARE = 0.2
NODE_RANK = 1
DRAIN_RANKS = {"gateway": 0, "any node": NODE_RANK, "coordinator": 2}


class ClusterError(Exception):
    """A process did not start, or ended by itself; the text has its last output."""


class LocalCluster:
    """Coordinator, gateway, `num_prefill` and `num_decode` nodes; `with` starts and stops them.

    `*_args` are further flags of each process; `node_args` go to all nodes. Ports: None picks a
    free one, a number must be free. `sink(name, line)` gets every line of output. Logs are in
    `run_dir`; without one, in a temporary folder that a clean stop removes. `processes` is by
    name: coordinator, gateway, prefill-0, ..., decode-0, ...
    """

    def __init__(
        self,
        *,
        model: str,
        num_prefill: int = 1,
        num_decode: int = 1,
        node_args: Sequence[str] = (),
        gateway_args: Sequence[str] = (),
        coordinator_args: Sequence[str] = (),
        coordinator_port: int | None = None,
        gateway_port: int | None = None,
        threads_per_node: int = 1,
        run_dir: Path | None = None,
        sink: LineSink | None = None,
        start_timeout_s: float = 300.0,
        drain_s: float = 30.0,
    ) -> None:
        if min(num_prefill, num_decode) < 1:
            raise ValueError("a deployment needs at least one prefill and one decode node")
        ports = _choose_ports(coordinator_port, gateway_port)
        self.coordinator_address, self.gateway_address = (f"tcp://127.0.0.1:{p}" for p in ports)
        self.processes: dict[str, ChildProcess] = {}
        self._is_own_dir = run_dir is None
        self.run_dir = run_dir or Path(tempfile.mkdtemp(prefix="tandem-"))
        self._sink = sink or (lambda name, line: None)
        self._env = child_environment(os.environ, threads_per_node)
        self._start_timeout_s = start_timeout_s
        self._drain_s = drain_s
        self.plans = plan_processes(
            model=model,
            ports=ports,
            num_prefill=num_prefill,
            num_decode=num_decode,
            run_dir=self.run_dir,
            node_args=node_args,
            gateway_args=gateway_args,
            coordinator_args=coordinator_args,
        )

    def start(self) -> None:
        """Start all at once, wait until requests are served. Raises ClusterError, and kills all."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        try:
            for plan in self.plans:
                self.processes[plan.name] = ChildProcess(
                    plan, log=self.run_dir / f"{plan.name}.log", env=self._env, sink=self._sink
                )
            self._wait_until_ready()
        except ClusterError:  # the logs say why: they stay
            self.kill()
            raise
        except BaseException:
            self.kill()
            self._remove_own_dir()
            raise

    def dead(self) -> list[str]:
        """Names of processes that have ended."""
        return [name for name, p in self.processes.items() if p.exit_status is not None]

    def logs(self, name: str) -> str:
        """All output of a process so far."""
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
        """Drain gateway, then nodes, then coordinator; returns the names that had to be killed.

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

    def kill(self) -> None:
        """End all at once, without draining."""
        self._kill(self.processes.values())

    def __enter__(self) -> "LocalCluster":
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _remove_own_dir(self) -> None:
        if self._is_own_dir:
            shutil.rmtree(self.run_dir, ignore_errors=True)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while True:
            if dead := self.dead():
                raise ClusterError(self.explain_death(dead[0]))
            waiting = [name for name, p in self.processes.items() if p.address is None]
            if not waiting:
                break
            if time.monotonic() > deadline:
                last = "\n".join(self.processes[waiting[0]].last_lines()[-5:])
                raise ClusterError(
                    f"after {self._start_timeout_s:g} s not ready: {', '.join(waiting)} "
                    f"(logs in {self.run_dir}). {waiting[0]} said last:\n{last}"
                )
            time.sleep(POLL_S)
        try:
            with Client(self.gateway_address) as client:
                client.wait_until_ready(ACQUAINTANCE_S)
        except TandemError as error:
            raise ClusterError(f"{error} (logs in {self.run_dir})") from None

    def _drain_order(self) -> Iterator[list[ChildProcess]]:
        """No new requests first; who keeps the books last."""
        for rank in sorted(set(DRAIN_RANKS.values())):
            yield [
                process
                for name, process in self.processes.items()
                if DRAIN_RANKS.get(name, NODE_RANK) == rank
            ]

    def _kill(self, processes: Iterable[ChildProcess]) -> None:
        doomed = list(processes)
        for process in doomed:
            process.send_signal(signal.SIGKILL)
        for process in doomed:
            process.wait(KILL_WAIT_S)


def plan_processes(
    *,
    model: str,
    ports: tuple[int, int],
    num_prefill: int,
    num_decode: int,
    run_dir: Path,
    node_args: Sequence[str],
    gateway_args: Sequence[str],
    coordinator_args: Sequence[str],
) -> tuple[ProcessPlan, ...]:
    """What to start, nodes first (they take longest). `ports`: coordinator's and gateway's."""
    coordinator = f"tcp://127.0.0.1:{ports[0]}"
    common = ("--model", model, "--coordinator", coordinator)
    share = _memory_share(num_prefill + num_decode, node_args)
    nodes = [
        ProcessPlan(
            name=f"{role}-{index}",
            module=f"{role}_node",
            flags=(
                *("--name", f"{role}-{index}", "--host", "127.0.0.1", "--port", "0"),
                *(*common, "--run-dir", str(run_dir), *share, *node_args),
            ),
        )
        for role, count in (("prefill", num_prefill), ("decode", num_decode))
        for index in range(count)
    ]
    gateway = ProcessPlan(
        name="gateway",
        module="gateway",
        flags=(
            *("--host", "127.0.0.1", "--port", str(ports[1])),
            *(*common, *gateway_args),
        ),
    )
    return (
        *nodes,
        gateway,
        ProcessPlan(
            name="coordinator",
            module="coordinator",
            flags=("--host", "127.0.0.1", "--port", str(ports[0]), *coordinator_args),
        ),
    )


def _memory_share(num_nodes: int, node_args: Sequence[str]) -> tuple[str, ...]:
    """With many nodes on one host, smaller pools than a node alone would take."""
    if num_nodes * NODE_SHARE <= SHARE_OF_ALL_NODES:
        return ()
    given = [arg for arg in node_args if arg.startswith(("--num-pages", "--memory-share"))]
    return () if given else ("--memory-share", f"{SHARE_OF_ALL_NODES / num_nodes:.3f}")


def _choose_ports(coordinator: int | None, gateway: int | None) -> tuple[int, int]:
    """The ports asked for, or free ones. Raises ValueError for one that is taken."""
    for wanted in (coordinator, gateway):
        if wanted is not None and not is_free(wanted):
            raise ValueError(f"port {wanted} is taken: stop who listens there, or name another")
    chosen = [port for port in (coordinator, gateway) if port is not None]
    candidates = random.sample(FREE_PORTS, 200)
    free = (port for port in candidates if port not in chosen and is_free(port))
    return (
        coordinator if coordinator is not None else next(free),
        gateway if gateway is not None else next(free),
    )


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
