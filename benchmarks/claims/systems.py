"""Deployments on this machine for benchmarks, and what their nodes say of themselves."""

import asyncio
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from loadgen.checkpoint import Shape, write_checkpoint
from tandem.async_client import AsyncClient
from tandem.launch import LocalCluster
from tandem.messages.membership import NodeLoad
from tandem.status import query_status

DEMO_MODEL = Path(__file__).resolve().parents[2] / "models/demo"
VOCAB_SIZE = 4096
# Twice per second: what a run did is told by then.
HEARTBEAT_WAIT_S = 1.2


class Deployment:
    """Nodes with coordinator and gateway; `with` starts and stops them.

    `shape`: random weights of that shape instead of the demo model. `is_mixed`: in place of a
    prefill and a decode node one that does both, alone on the last core of the machine, all else
    and the caller on the others.
    """

    def __init__(
        self,
        *,
        node_args: Sequence[str] = (),
        coordinator_args: Sequence[str] = (),
        shape: Shape | None = None,
        is_mixed: bool = False,
    ) -> None:
        self._node_args = node_args
        self._coordinator_args = coordinator_args
        self._shape = shape
        self._is_mixed = is_mixed
        self._stack = ExitStack()
        self.cluster: LocalCluster

    def __enter__(self) -> "Deployment":
        model = DEMO_MODEL
        if self._shape is not None:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-bench-"))
            model = Path(folder) / "model"
            write_checkpoint(model, self._shape, DEMO_MODEL)
        try:
            self.cluster = self._stack.enter_context(
                LocalCluster(
                    model=str(model),
                    num_prefill=0 if self._is_mixed else 1,
                    node_args=self._node_args,
                    coordinator_args=self._coordinator_args,
                )
            )
            if self._is_mixed:
                self._give_node_its_core()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _give_node_its_core(self) -> None:
        cores = os.sched_getaffinity(0)
        own = {max(cores)}
        if cores == own:
            raise ValueError("a node with a core of its own needs a machine of two cores or more")
        self._stack.callback(pin_process, os.getpid(), cores)
        pin_process(os.getpid(), cores - own)
        for name, process in self.cluster.processes.items():
            pin_process(process.pid, own if name == "decode-0" else cores - own)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def client(self) -> AsyncClient:
        """For its gateway."""
        return AsyncClient(self.cluster.gateway_address)


def pin_process(pid: int, cores: set[int]) -> None:
    """All threads that a process has, and so those that they start, to these cores."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):  # it ended
            os.sched_setaffinity(int(thread.name), cores)


async def node_loads(deployment: Deployment) -> dict[str, NodeLoad]:
    """What each node says of itself, by name, once its last heartbeat has told all of a run."""
    await asyncio.sleep(HEARTBEAT_WAIT_S)
    status = await query_status(deployment.cluster.coordinator_address)
    return {node.node_id: node.load for node in status.nodes if node.load is not None}


async def decode_load(deployment: Deployment) -> NodeLoad:
    """Of its decode node."""
    return (await node_loads(deployment))["decode-0"]
