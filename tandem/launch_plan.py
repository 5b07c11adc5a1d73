"""What `LocalCluster` starts: each process with its name, its module and its flags."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tandem.child_process import ProcessPlan

LOOPBACK = ("--host", "127.0.0.1")
SHARE_OF_ALL_NODES = 0.8
NODE_SHARE = 0.2
ROLES = ("prefill", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """Counts, ports and further flags of each kind of process; a gateway per pair of ports.

    Without prefill nodes every decode node serves both roles.
    """

    model: str
    run_dir: Path
    coordinator_port: int
    gateway_ports: Sequence[int]
    http_ports: Sequence[int]
    dashboard_port: int = -1
    num_prefill: int = 1
    num_decode: int = 1
    node_args: Sequence[str] = ()
    gateway_args: Sequence[str] = ()
    coordinator_args: Sequence[str] = ()
    keys: Path | None = None

    def processes(self) -> tuple[ProcessPlan, ...]:
        """All that a start begins with, nodes first: they take longest."""
        counts = zip(ROLES, (self.num_prefill, self.num_decode), strict=True)
        nodes = [self.node(role, index) for role, count in counts for index in range(count)]
        gateways = [self.gateway(index) for index in range(len(self.gateway_ports))]
        return (*nodes, *gateways, self.coordinator())

    def node(self, role: str, index: int) -> ProcessPlan:
        """`prefill-0`, `decode-3`, ..."""
        name = f"{role}-{index}"
        flags = ("--name", name, *LOOPBACK, "--port", "0", *self._common())
        is_mixed = role == "decode" and self.num_prefill == 0
        weights = ("--prefill-weight", "1") if is_mixed else ()
        share = _memory_share(self.num_prefill + self.num_decode, self.node_args)
        return ProcessPlan(
            name=name,
            module=f"{role}_node",
            flags=(*flags, "--run-dir", str(self.run_dir), *weights, *share, *self.node_args),
        )

    def gateway(self, index: int) -> ProcessPlan:
        """`gateway`, `gateway-1`, `gateway-2`, ..."""
        name = f"gateway-{index}" if index else "gateway"
        ports = ("--port", str(self.gateway_ports[index]))
        http = ("--http-port", str(self.http_ports[index]))
        flags = ("--name", name, *LOOPBACK, *ports, *http, *self._common())
        return ProcessPlan(name=name, module="gateway", flags=(*flags, *self.gateway_args))

    def coordinator(self) -> ProcessPlan:
        """The one coordinator; what its dashboard shows outlives it in the run folder."""
        history = () if self.dashboard_port == -1 else ("--history", self._history)
        flags = (
            *(*LOOPBACK, "--port", str(self.coordinator_port), *self._keys()),
            *("--dashboard-port", str(self.dashboard_port), *history),
        )
        return ProcessPlan(
            name="coordinator", module="coordinator", flags=(*flags, *self.coordinator_args)
        )

    @property
    def _history(self) -> str:
        return str(self.run_dir / "history.sqlite")

    def _common(self) -> tuple[str, ...]:
        address = f"tcp://127.0.0.1:{self.coordinator_port}"
        return ("--model", self.model, "--coordinator", address, *self._keys())

    def _keys(self) -> tuple[str, ...]:
        return () if self.keys is None else ("--keys", str(self.keys))


def _memory_share(num_nodes: int, node_args: Sequence[str]) -> tuple[str, ...]:
    """With many nodes on one host, smaller pools than a node alone would take."""
    if num_nodes * NODE_SHARE <= SHARE_OF_ALL_NODES:
        return ()
    given = [arg for arg in node_args if arg.startswith(("--num-pages", "--memory-share"))]
    return () if given else ("--memory-share", f"{SHARE_OF_ALL_NODES / num_nodes:.3f}")
